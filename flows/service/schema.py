"""What `/openapi.json` says: the fields of requests, made of the config's own rules, and the shapes of answers."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flows.service.bodies import SETTINGS, UNKNOWN
from flows.service.limits import Limits
from flows.service.models import ModelFacts
from rnnlm_core.config import LONGEST_PREFIX, GenerateConfig

DESCRIPTION = """Bodies are JSON. An error is `{"error": {"message", "rule", "value", "remedy"}}`: one sentence, and its
parts.

A text depends on nothing but the model, the prefix and the settings: the same seed draws the same text again, and it is
the text that `rnnlm generate` prints.

With `stream: true` the answer is `application/x-ndjson`, one JSON object per line: `{"prefix"}`, the prefix as the
model reads it; any `{"warning"}`; `{"piece"}`, text that is added, as it comes; and last `{"done": true}`, or
`{"error"}` if something happened on the way. Who closes the connection ends the work.
"""
MEANINGS = {
    "length": "Tokens to add.",
    "temperature": "0: always the likeliest token; above, the text gets freer.",
    "top_k": "Draw among the so many likeliest tokens; 0 = all.",
    "top_p": "Draw among the likeliest tokens of this probability together; 1 = all.",
    "beam": "Continuations that beam search keeps side by side (at temperature 0); 1 = none.",
    "length_penalty": "Beam search ranks by log P / length^this.",
    "repetition_penalty": "Above 1, tokens that occurred are less likely.",
    "stop": "Tokens that end the text; they are no part of it.",
    "seed": "Draws the same text again (with temperature above 0).",
    "unknown": "Tokens outside the vocabulary: `map` to <unk>, or `error`.",
}
STATUSES = {
    404: "No such model; the known ones are named.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "A field that is unknown, missing or not allowed, or a text that the model cannot read.",
    503: "Too many requests wait; `Retry-After` says for how long.",
    504: "The answer takes longer than a request may; nothing of it goes on.",
}
_LIMITS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum", "below": "exclusiveMaximum"}


@dataclass(frozen=True)
class Health:
    """The service is there: `working` requests have a thread, `waiting` ones wait for one."""

    status: Literal["ok"]
    models: list[str]
    working: int
    waiting: int


@dataclass(frozen=True)
class Models:
    """What is served, and the limits of a request."""

    models: list[ModelFacts]
    limits: Limits


@dataclass(frozen=True)
class Text:
    """A continued text, the `prefix` as the model reads it included, and the settings it was drawn with."""

    model: str
    prefix: str
    text: str
    warnings: list[str]
    length: int
    temperature: float
    top_k: int
    top_p: float
    beam: int
    length_penalty: float
    repetition_penalty: float
    stop: list[str]
    seed: int
    unknown: Literal["map", "error"]


@dataclass(frozen=True)
class Score:
    """A text as the model read it, and how well the model foresaw all of its `num_tokens` but the first: `loss` in
    nats per predicted token, `perplexity` its exp; what is infinite is null."""

    text: str
    num_tokens: int
    loss: float
    perplexity: float | None
    bits_per_char: float | None


@dataclass(frozen=True)
class Scores:
    """The scores of texts, in their order."""

    model: str
    scores: list[Score]
    warnings: list[str]


@dataclass(frozen=True)
class Mistake:
    """What is wrong, in one sentence and in its parts."""

    message: str
    rule: str
    value: str
    remedy: str


@dataclass(frozen=True)
class Error:
    """An answer that is not what was asked for."""

    error: Mistake


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors that an address answers with, those of every address among them."""
    told = {
        400: "The body is not JSON in UTF-8.",
        403: "A page of another address may not ask.",
        421: "This service is not known under that host name.",
    } | STATUSES
    return {status: {"model": Error, "description": told[status]} for status in (400, 403, 421, *statuses)}


def generate_request(models: list[str], limits: Limits) -> dict[str, Any]:
    """Return the request of `/generate`: its settings are those of the config, with the server's limits."""
    kinds = get_type_hints(GenerateConfig)
    most = {"length": limits.length, "beam": limits.beam}
    properties: dict[str, Any] = {
        "model": _model(models),
        "prefix": {
            "type": "string", "minLength": 1, "maxLength": LONGEST_PREFIX, "description": "Text to continue.",
        },
    }  # fmt: skip
    for item in fields(GenerateConfig):
        if item.name not in SETTINGS:
            continue
        default = UNKNOWN if item.name == "unknown" else item.default
        about = _kind(kinds[item.name]) | {_LIMITS[rule]: limit for rule, limit in item.metadata.items()}
        if item.name in most:
            about["maximum"] = min(most[item.name], about["maximum"])
        default = list(default) if isinstance(default, tuple) else default
        if "maximum" in about and isinstance(default, int | float):
            default = min(default, about["maximum"])
        properties[item.name] = about | {"default": default, "description": MEANINGS[item.name]}
    properties["stream"] = {"type": "boolean", "default": False, "description": "Send the text as it grows."}
    content = {"application/x-ndjson": {"schema": {"type": "string", "description": "With `stream`: a record a line."}}}
    return _body(properties, ["model", "prefix"]) | {"responses": {"200": {"content": content}}}


def score_request(models: list[str]) -> dict[str, Any]:
    """Return the request of `/score`."""
    properties = {
        "model": _model(models),
        "texts": {
            "type": "array", "items": {"type": "string"}, "minItems": 1, "description": "Each of two tokens or more.",
        },
        "unknown": {"enum": ["map", "error"], "default": UNKNOWN, "description": MEANINGS["unknown"]},
    }  # fmt: skip
    return _body(properties, ["model", "texts"])


def _model(models: list[str]) -> dict[str, Any]:
    return {"type": "string", "enum": models, "description": "A name of `/models`."}


def _kind(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": {"type": "string", "minLength": 1}}
    return {"type": {int: "integer", float: "number"}[kind]}


def _body(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
