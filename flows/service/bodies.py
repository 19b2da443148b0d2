"""The bodies of requests: read in bounded size and time, and understood as what the command line would be given."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn, get_type_hints

from starlette.requests import ClientDisconnect, Request

from flows.service.limits import Limits, Refused
from rnnlm_core.config import GenerateConfig, RunConfig
from rnnlm_core.config_rules import prefix_mistake
from rnnlm_core.config_values import override
from rnnlm_core.errors import ConfigError, UsageError, suggestion, unknown_name

SETTINGS = tuple(item.name for item in fields(GenerateConfig) if item.name != "prefixes")
"""What can be set of a continuation, called as the keys of the config are called."""
GENERATE_FIELDS = ("model", "prefix", *SETTINGS, "stream")
SCORE_FIELDS = ("model", "texts", "unknown")
UNKNOWN = "error"
"""Unlike the samples of a run, what somebody asks for is not read as something else unless they say so."""
_WORDS = {int: "an integer", float: "a number"}


async def read_fields(request: Request, known: tuple[str, ...], limits: Limits, deadline: float) -> dict[str, Any]:
    """Return the fields of a JSON object, or refuse the request; at most `limits.body` bytes of it are read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another page could send anything else without asking
        raise Refused(415, "the body must be JSON", kind or "no Content-Type", "send Content-Type: application/json")
    body = await _body(request, limits, deadline)
    try:
        content = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_integer)
    except UnicodeDecodeError as error:
        what = f"the body is not UTF-8 at byte {error.start}"
        raise Refused(400, what, f"0x{body[error.start]:02x}", "send UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg}, line {error.lineno}, column {error.colno}"
        raise Refused(400, "the body is not JSON", where, "send one JSON object") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply", "", "send one flat JSON object") from None
    if not isinstance(content, dict):
        raise Refused(400, "the body must be a JSON object", type(content).__name__, "send one JSON object")
    for name, value in content.items():
        if name not in known:
            raise UsageError("unknown field", name, suggestion(name, list(known)))
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value)):
            raise UsageError(f"`{name}` must be plain", type(value).__name__, "give a value, or a list of strings")
    return content


async def _body(request: Request, limits: Limits, deadline: float) -> bytes:
    too_large = Refused(413, "the body is too large", "", f"send at most {limits.body:,} bytes")
    promised = request.headers.get("content-length", "0")
    if not promised.isdecimal() or int(promised[:20]) > limits.body:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout_at(deadline):
            async for part in request.stream():
                body += part
                if len(body) > limits.body:
                    raise too_large
    except TimeoutError:
        raise Refused(408, "the body did not arrive in time", f"{limits.seconds:g} s", "send it at once") from None
    except ClientDisconnect:
        raise Refused(499, "nobody waits for this any more") from None
    return bytes(body)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(400, "a field is given twice", twice, "give it once")
    return content


def _no_constant(name: str) -> NoReturn:
    raise Refused(400, "JSON has no such number", name, "give a finite number")


def _integer(digits: str) -> int:
    if len(digits) > 100:
        raise Refused(400, "a number of too many digits", digits, "give a smaller number")
    return int(digits)


def asked_model(content: Mapping[str, Any], known: list[str]) -> str:
    """Return the name of the model that a request is for."""
    name = content.get("model")
    if not isinstance(name, str):
        raise UsageError("`model` must be the name of a model", repr(name), f"known: {', '.join(known)}")
    if name not in known:
        error = unknown_name("model", name, known)
        raise Refused(404, *error.args)
    return name


def asked_prefix(content: Mapping[str, Any]) -> str:
    """Return the text to continue."""
    prefix = content.get("prefix")
    if not isinstance(prefix, str):
        raise UsageError("`prefix` must be a string", repr(prefix), "give the text to continue")
    if mistake := prefix_mistake(prefix):
        raise UsageError(mistake, repr(prefix), "give at least one character" if not prefix else "give other text")
    return prefix


def asked_texts(content: Mapping[str, Any]) -> list[str]:
    """Return the texts to score."""
    texts = content.get("texts")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("`texts` must be a list of strings, at least one", repr(texts), "give the texts to score")
    return texts


def asked_flag(content: Mapping[str, Any], name: str) -> bool:
    """Return a field that is true or false, false if it is not there."""
    value = content.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"`{name}` must be true or false", repr(value), "")
    return value


def asked_settings(content: Mapping[str, Any], limits: Limits) -> GenerateConfig:
    """Return how the continuation is drawn: the rules are those of the config, the limits also the server's."""
    kinds = get_type_hints(GenerateConfig)
    given = {name: content[name] for name in SETTINGS if name in content}
    # A config key on the command line is text; here a number is a number.
    mistakes = [
        f"`generate.{name}` must be {_WORDS.get(kinds[name], 'a list of strings')}. Got {value!r}"
        for name, value in given.items()
        if isinstance(value, str) and name != "unknown"
    ]
    if mistakes:
        raise ConfigError(*mistakes)
    defaults = {"unknown": UNKNOWN, "length": min(GenerateConfig.length, limits.length)}
    changes = {f"generate.{name}": value for name, value in (defaults | given).items()}
    config = override(RunConfig(), changes).generate
    for name, most in (("length", limits.length), ("beam", limits.beam)):
        if getattr(config, name) > most:
            remedy = f"ask for less, or start the server with --max-{name}"
            raise UsageError(f"`generate.{name}` is at most {most} on this server", getattr(config, name), remedy)
    return config
