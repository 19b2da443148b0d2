"""The HTTP service on small models, asked over real connections."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flows.service.app
from flows.service.app import create_app
from flows.service.limits import Limits
from flows.service.models import ModelFacts, ServedModel, served_model
from flows.service.schema import Score, Text
from flows.service.server import Server, address_of, listen
from rnnlm_core.config import GenerateConfig, ModelConfig
from rnnlm_core.generate import continue_text
from rnnlm_core.levels import BYTES, tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.saved_model import SavedModel
from rnnlm_core.score import score_texts
from rnnlm_core.vocabulary import Vocabulary
from tasks.tracked_runs import TrackedRun

LIMITS = Limits(length=300, beam=4, body=4096, seconds=60.0, workers=2)
VOCABULARIES = {
    "char": Vocabulary(dict.fromkeys("abcdefgh '\n", 9)),
    "word": Vocabulary(dict.fromkeys(("time", "and", "the", "traveller"), 9)),
    "byte": Vocabulary(dict.fromkeys(BYTES, 9)),
}
PREFIXES = {"char": "abba", "word": "the  time", "byte": "née “"}


class SteppedModel(LanguageModel):
    """A model that counts its steps, takes its time for each, and goes on only while it is let."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__("rnn", len(VOCABULARIES["char"]), ModelConfig(hidden_size=6))
        self.eval()
        self.seconds, self.steps, self.go_on = seconds, 0, threading.Event()
        self.go_on.set()

    def forward(self, ids: Any, state: Any) -> Any:
        self.steps += 1
        time.sleep(self.seconds)
        assert self.go_on.wait(60)
        return super().forward(ids, state)


@dataclass
class Service:
    """A running service and what it serves."""

    address: str
    models: dict[str, ServedModel]
    app: Any
    client: httpx.Client

    @property
    def place(self) -> tuple[str, int]:
        host, port = self.address.removeprefix("http://").split(":")
        return host, port

    def ask(self, path: str, content: Any, **headers: str) -> httpx.Response:
        """Post what Python's JSON, which escapes what is no Unicode, makes of `content`."""
        return self.post(path, json.dumps(content), **{"Content-Type": "application/json", **headers})

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.client.post(path, content=body, headers=headers)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/health").json()
        return found

    def wait_for(self, **figures: int) -> None:
        deadline = time.monotonic() + 60
        while not figures.items() <= (health := self.health()).items():
            assert time.monotonic() < deadline, health
            time.sleep(0.01)


def saved_model(level: str = "char", model: LanguageModel | None = None) -> SavedModel:
    vocabulary = VOCABULARIES[level]
    if model is None:
        torch.manual_seed(0)
        model = LanguageModel("gru", len(vocabulary), ModelConfig(hidden_size=6, num_layers=2)).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(4)  # far from uniform: greedy text varies
    return SavedModel(model, vocabulary, tokenizer(level, "none"), "none", {})


@contextmanager
def serving(models: dict[str, ServedModel], limits: Limits) -> Iterator[Service]:
    """Serve models on a free port until the block ends."""
    started = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        app = create_app(models, limits, ["example.org"])
        server = Server(app, started.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        assert started.wait(60)
        address = address_of(listener)
        try:
            with httpx.Client(base_url=address, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
                yield Service(address, models, app, client)
        finally:
            app.state.work.stop()
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """What is expected is computed beside the service, with as many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service with a model of each level."""
    with serving({level: served_model(level, saved_model(level), None) for level in VOCABULARIES}, LIMITS) as running:
        yield running


@contextmanager
def stepping(model: SteppedModel, limits: Limits) -> Iterator[Service]:
    """Serve one model that can be held; in the end it is let go."""
    with serving({"slow": served_model("slow", saved_model(model=model), None)}, limits) as running:
        try:
            yield running
        finally:
            model.go_on.set()


def refused(answer: httpx.Response, status: int, *parts: str) -> dict[str, str]:
    """Check that an answer is an error of one sentence that has all `parts`."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert content.keys() == {"error"}
    error: dict[str, str] = content["error"]
    assert error.keys() == {"message", "rule", "value", "remedy"}
    assert "Traceback" not in answer.text
    assert error["message"].isprintable()
    for part in parts:
        assert part in error["message"]
    return error


# Texts

SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 1, "seed": 3},
    {"temperature": 0.7, "seed": 2**32 - 1, "top_k": 3, "top_p": 0.9},
    {"repetition_penalty": 3.0},
    {"beam": 3, "length": 12},
]


@pytest.mark.parametrize("asked", SAMPLING, ids=str)
@pytest.mark.parametrize("level", VOCABULARIES)
def test_the_text_is_that_of_generate_at_once_and_as_a_stream(
    service: Service, level: str, asked: dict[str, Any]
) -> None:
    config = GenerateConfig(**{"length": 60, "unknown": "error", **asked})
    sample = continue_text(service.models[level].saved, PREFIXES[level], config)
    content = {"model": level, "prefix": PREFIXES[level], "length": config.length, **asked}
    answer = service.ask("/generate", content)
    assert answer.status_code == 200, answer.text
    given = {item.name: getattr(config, item.name) for item in fields(config) if item.name != "prefixes"}
    assert answer.json() == {
        "model": level, "prefix": sample.prefix, "text": sample.text, "warnings": [], **given, "stop": [],
    }  # fmt: skip
    assert answer.json().keys() == {item.name for item in fields(Text)}

    with service.client.stream("POST", "/generate", json={**content, "stream": True}) as stream:
        assert stream.headers["content-type"] == "application/x-ndjson"
        records = [json.loads(line) for line in stream.iter_lines()]
    assert records[0] == {"prefix": sample.prefix}
    assert records[-1] == {"done": True}
    assert {key for record in records[1:-1] for key in record} <= {"piece"}
    assert "".join(record["piece"] for record in records[1:-1]) == sample.text.removeprefix(sample.prefix)


def test_a_text_ends_before_a_stop_token(service: Service) -> None:
    content = {"model": "char", "prefix": "abba", "length": 60, "temperature": 1, "seed": 1}
    added = service.ask("/generate", content).json()["text"].removeprefix("abba")
    ended = service.ask("/generate", {**content, "stop": [added[10]]}).json()
    assert ended["text"] == "abba" + added.split(added[10])[0]
    assert ended["stop"] == [added[10]]


def test_what_is_unknown_is_refused_or_read_with_a_warning(service: Service) -> None:
    content = {"model": "char", "prefix": "abba€", "length": 5}
    for stream in (False, True):
        refused(service.ask("/generate", {**content, "stream": stream}), 422, "characters outside the vocabulary: '€'")
    mapped = service.ask("/generate", {**content, "unknown": "map"}).json()
    assert mapped["warnings"] == ["prefix has characters outside the vocabulary, read as <unk>: '€'"]
    streamed = service.ask("/generate", {**content, "unknown": "map", "stream": True}).text.splitlines()
    assert json.loads(streamed[1]) == {"warning": mapped["warnings"][0]}


def test_texts_are_scored_each_by_itself(service: Service) -> None:
    texts = ["abba cab", "a'\nb", "hhhh"]
    answer = service.ask("/score", {"model": "char", "texts": texts})
    assert answer.status_code == 200, answer.text
    scored = score_texts(service.models["char"].saved, texts)
    assert answer.json() == {
        "model": "char",
        "scores": [{item.name: getattr(one, item.name) for item in fields(Score)} for one in scored],
        "warnings": [],
    }
    mapped = service.ask("/score", {"model": "char", "texts": ["ab€"], "unknown": "map"}).json()
    assert mapped["warnings"] == ["text has characters outside the vocabulary, read as <unk>: '€'"]
    # The one byte that is predicted is no whole character: infinite bits per character, which JSON has no word for.
    (half,) = service.ask("/score", {"model": "byte", "texts": ["é"]}).json()["scores"]
    assert half["bits_per_char"] is None


# What is served


def test_models_are_told_with_the_figures_of_their_runs() -> None:
    tags = {"rnnlm.corpus": "book", "rnnlm.preset": "smoke", "rnnlm.evaluated_split": "valid"}
    metrics = {"best/valid_perplexity": 3.5, "valid/bits_per_char": 2.0, "test/perplexity": float("inf")}
    run = TrackedRun("0a1b", "FINISHED", 0.0, tags, metrics, {})
    with serving({"mine": served_model("mine", saved_model(), run)}, LIMITS) as running:
        answer = running.client.get("/models").json()
    assert answer["limits"]["length"] == 300
    (facts,) = answer["models"]
    assert facts.keys() == {item.name for item in fields(ModelFacts)}
    assert facts["run_id"] == "0a1b"
    assert (facts["name"], facts["cell"], facts["corpus"], facts["level"]) == ("mine", "gru", "book", "char")
    assert (facts["valid_perplexity"], facts["test_perplexity"], facts["bits_per_char"]) == (3.5, None, 2.0)
    assert facts["parameters"] == sum(p.numel() for p in saved_model().model.parameters())
    assert facts["beginning"] == ""


def test_the_description_names_every_field_with_the_limits_of_this_server(service: Service) -> None:
    api = service.client.get("/openapi.json").json()
    assert set(api["paths"]) == {"/health", "/models", "/generate", "/score"}
    asked = api["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert asked["additionalProperties"] is False
    assert asked["properties"]["length"]["maximum"] == 300
    assert asked["properties"]["beam"]["maximum"] == 4
    assert asked["properties"]["top_p"]["exclusiveMinimum"] == 0.0
    assert asked["properties"]["unknown"].items() >= {"enum": ["map", "error"], "default": "error"}.items()
    assert "application/x-ndjson" in api["paths"]["/generate"]["post"]["responses"]["200"]["content"]
    assert {"400", "404", "413", "422", "503", "504"} <= api["paths"]["/generate"]["post"]["responses"].keys()
    # What it says is allowed is: the defaults, and the largest of everything that can be had together.
    defaults = {name: field["default"] for name, field in asked["properties"].items() if "default" in field}
    assert service.ask("/generate", {"model": "char", "prefix": "a", **defaults}).status_code == 200


@pytest.mark.parametrize("page", ["/", "/docs", "/page.css", "/page.js", "/reference.js"])
def test_the_pages_need_nothing_from_elsewhere_and_run_nothing_but_their_own(service: Service, page: str) -> None:
    answer = service.client.get(page)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    for word in ("http:", "https:", "innerHTML", "insertAdjacentHTML", "document.write", "eval(", "onclick", "style="):
        assert word not in text


def test_the_page_has_what_its_readers_and_their_tools_look_for(service: Service) -> None:
    page = service.client.get("/").text
    for name in ("prefix", "temperature", "length", "seed"):
        assert f'id="{name}"' in page
        assert f'<label for="{name}">' in page
    assert '<button id="write" type="submit">' in page


# What is refused

JSON = {"Content-Type": "application/json"}
GOOD = {"model": "char", "prefix": "abba", "length": 5}
NESTED: list[Any] = []
for _ in range(900):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b'{"model": "char"', "line 1, column 17"),
        (b"{'model': 'char'}", "the body is not JSON"),
        (b'{"model": "char"} {}', "Extra data"),
        (b'\xef\xbb\xbf{"model": "char"}', "the body is not JSON"),
        (b'{"model": "\xff"}', "the body is not UTF-8 at byte 11: 0xff"),
        ('{"model": "char"}'.encode("utf-16"), "the body is not UTF-8 at byte 0"),
        (b"[" * 4000, "nested too deeply"),
        (b'{"a":' * 800, ""),
        (b"[" * 1000 + b"]" * 1000, ""),
        (b"[]", "the body must be a JSON object: list"),
        (b"null", "the body must be a JSON object: NoneType"),
        (b'"text"', "the body must be a JSON object: str"),
        (b'{"temperature": NaN}', "JSON has no such number: NaN"),
        (b'{"temperature": -Infinity}', "JSON has no such number: -Infinity"),
        (b'{"seed": ' + b"9" * 3000 + b"}", "a number of too many digits"),
        (b'{"seed": 1, "seed": 2}', "a field is given twice: seed"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/score"])
def test_a_body_that_is_no_json_object_is_refused(service: Service, path: str, body: bytes, said: str) -> None:
    refused(service.post(path, body, **JSON), 400, said)


@pytest.mark.parametrize(
    ("changes", "status", "parts"),
    [
        ({"model": "gru"}, 404, ["unknown model: gru: known: char, word, byte"]),
        ({"model": "chr"}, 404, ["unknown model: chr: did you mean char?"]),
        ({"model": "../char"}, 404, ["unknown model"]),
        ({"model": "\ud800\x1b[31m\n"}, 404, ["unknown model: \\ud800\\x1b[31m\\n"]),
        ({"model": None}, 422, ["`model` must be the name of a model: None: known: char, word, byte"]),
        ({"model": 1}, 422, ["`model` must be the name of a model"]),
        ({"prefix": None}, 422, ["`prefix` must be a string"]),
        ({"prefix": ["a"]}, 422, ["`prefix` must be a string"]),
        ({"prefix": {"a": 1}}, 422, ["`prefix` must be plain: dict"]),
        ({"stop": NESTED}, 422, ["`stop` must be plain: list"]),
        ({"prefix": ""}, 422, ["prefix is empty"]),
        ({"prefix": "\ud800"}, 422, ["prefix is not UTF-8 at position 0"]),
        ({"prefix": "abc\x00"}, 422, ["characters outside the vocabulary: '\\x00'"]),
        ({"lenght": 5}, 422, ["unknown field: lenght: did you mean length?", "temperature"]),
        ({"prefixes": ["a"]}, 422, ["unknown field: prefixes: did you mean prefix?"]),
        ({"length": 0}, 422, ["`generate.length` must be at least 1. Got 0"]),
        ({"length": -1}, 422, ["`generate.length` must be at least 1. Got -1"]),
        ({"length": 301}, 422, ["`generate.length` is at most 300 on this server: 301", "--max-length"]),
        ({"length": 10**6}, 422, ["`generate.length` must be at most 10000. Got 1000000"]),
        ({"length": 10**90}, 422, ["`generate.length` must be at most 10000"]),
        ({"length": "5"}, 422, ["`generate.length` must be an integer. Got '5'"]),
        ({"length": 5.0}, 422, ["`generate.length` must be an integer. Got 5.0"]),
        ({"length": True}, 422, ["`generate.length` must be an integer. Got True"]),
        ({"length": None}, 422, ["`generate.length` must be an integer. Got None"]),
        ({"length": [5]}, 422, ["`generate.length` must be an integer. Got [5]"]),
        ({"temperature": -0.1}, 422, ["`generate.temperature` must be at least 0.0. Got -0.1"]),
        ({"temperature": 1e308}, 422, ["`generate.temperature` must be at most 5.0"]),
        ({"temperature": 10**90}, 422, ["`generate.temperature` must be at most 5.0"]),
        ({"temperature": "1"}, 422, ["`generate.temperature` must be a number. Got '1'"]),
        ({"temperature": 1, "top_p": 0}, 422, ["`generate.top_p` must be above 0.0. Got 0.0"]),
        ({"temperature": 1, "top_k": -1}, 422, ["`generate.top_k` must be at least 0. Got -1"]),
        ({"temperature": 1, "beam": 2}, 422, ["`generate.beam` has no effect on drawn samples"]),
        ({"temperature": 1, "seed": -1}, 422, ["`generate.seed` must be at least 0. Got -1"]),
        ({"temperature": 1, "seed": 2**32}, 422, ["`generate.seed` must be at most 4294967295"]),
        ({"seed": 3}, 422, ["`generate.seed` has no effect at temperature 0"]),
        ({"beam": 5}, 422, ["`generate.beam` is at most 4 on this server: 5", "--max-beam"]),
        ({"repetition_penalty": 0.5}, 422, ["`generate.repetition_penalty` must be at least 1.0"]),
        ({"stop": "a"}, 422, ["`generate.stop` must be a list of strings. Got 'a'"]),
        ({"stop": [1]}, 422, ["`generate.stop` must be a list of strings"]),
        ({"stop": [""]}, 422, ["`generate.stop` must hold no empty token"]),
        ({"stop": ["ab"]}, 422, ["`generate.stop` must hold single tokens of the model (level char): 'ab'"]),
        ({"stop": ["\udfff"]}, 422, ["`generate.stop` is not UTF-8"]),
        ({"unknown": "drop"}, 422, ["`generate.unknown` must be one of map, error. Got 'drop'"]),
        ({"stream": "yes"}, 422, ["`stream` must be true or false"]),
        ({"stream": 1}, 422, ["`stream` must be true or false"]),
        (
            {"length": 0, "temperature": 9},
            422,
            ["`generate.length` must be at least 1", "`generate.temperature` must be"],
        ),
    ],
    ids=str,
)
def test_a_field_that_is_not_allowed_is_one_sentence(
    service: Service, changes: dict[str, Any], status: int, parts: list[str]
) -> None:
    body = json.dumps({**GOOD, **changes})  # escapes what is no Unicode
    refused(service.post("/generate", body, **JSON), status, *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"texts": None}, ["`texts` must be a list of strings, at least one"]),
        ({"texts": []}, ["`texts` must be a list of strings, at least one"]),
        ({"texts": ["ab", 1]}, ["`texts` must be a list of strings"]),
        ({"texts": "ab"}, ["`texts` must be a list of strings"]),
        ({"texts": ["a"]}, ["too short"]),
        ({"texts": ["ab", "\ud800b"]}, ["text is not UTF-8 at position 0"]),
        ({"texts": ["ab€"]}, ["text has characters outside the vocabulary: '€'"]),
        ({"unknown": ["map"]}, ["`generate.unknown` must be one of map, error"]),
        ({"prefix": "a"}, ["unknown field: prefix: known: model, texts, unknown"]),
    ],
    ids=str,
)
def test_a_mistake_in_scoring_is_one_sentence(service: Service, changes: dict[str, Any], parts: list[str]) -> None:
    body = json.dumps({"model": "char", "texts": ["ab"], **changes})
    refused(service.post("/score", body, **JSON), 422, *parts)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=5), parts, max_size=4),
    max_leaves=8,
)
NAMES = ("prefix", "texts", "length", "temperature", "top_k", "top_p", "beam", "stop", "seed", "unknown", "stream")


@settings(max_examples=80, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["/generate", "/score"]),
    content=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
    model=st.sampled_from(["char", "word", "byte"]),
)
def test_no_json_makes_the_server_fail(service: Service, path: str, content: dict[str, Any], model: str) -> None:
    body = json.dumps({"model": model, "length": 5, **content})
    answer = service.post(path, body, **JSON)
    if answer.status_code != 200:
        assert answer.status_code in (400, 422), answer.text
        refused(answer, answer.status_code)


@settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200))
def test_no_bytes_make_the_server_fail(service: Service, body: bytes) -> None:
    refused(service.post("/generate", body, **JSON), 400)


def test_an_address_or_method_that_is_not_there_is_one_sentence(service: Service) -> None:
    refused(service.client.get("/nowhere%0a%1b[31m"), 404, "not found: GET /nowhere\\n\\x1b[31m")
    answer = service.client.delete("/generate")
    refused(answer, 405, "method not allowed: DELETE /generate")
    assert answer.headers["allow"] == "POST"


def parts_of(size: int) -> Iterator[bytes]:
    yield b'{"prefix": "'
    for _ in range(size // 1000):
        yield b"a" * 1000
    yield b'"}'


def test_a_large_body_is_refused_without_being_read(service: Service) -> None:
    body = b'{"prefix": "' + b"a" * 4096 + b'"}'
    refused(service.post("/generate", body, **JSON), 413, "send at most 4,096 bytes")
    chunked = service.post("/generate", parts_of(5000), **JSON)
    refused(chunked, 413, "the body is too large")
    host, port = service.place
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.putrequest("POST", "/generate")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()  # and not one byte of it
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()
    small = json.dumps(GOOD).encode()
    exact = small[:-1] + b" " * (4096 - len(small)) + b"}"
    assert service.post("/generate", exact, **JSON).status_code == 200


def test_a_body_that_does_not_come_is_refused() -> None:
    limits = replace(LIMITS, seconds=0.3)
    with serving({"char": served_model("char", saved_model(), None)}, limits) as running:
        host, port = running.place
        connection = http.client.HTTPConnection(host, port, timeout=60)
        connection.putrequest("POST", "/generate")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert answer.status == 408
        assert "the body did not arrive in time" in answer.read().decode()
        connection.close()


# Who may ask


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.7.7", 200),
        ("example.org:80", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil@localhost", 421),
        ("localhost/evil", 421),
        ("localhost:port", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_our_own_names_are_answered(service: Service, host: str, status: int) -> None:
    answer = service.client.get("/health", headers={"Host": host})
    if status == 200:
        assert answer.status_code == 200
    else:
        refused(answer, 421, "not known under that name", "--allowed-host NAME")
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost:8001", "http://localhost:1", ""])
def test_a_foreign_page_may_not_ask(service: Service, origin: str) -> None:
    answer = service.ask("/generate", GOOD, Host="localhost:8000", Origin=origin)
    refused(answer, 403, "a page of another address may not ask")
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_own_page_may_ask_also_through_a_proxy_that_speaks_https(service: Service, scheme: str) -> None:
    answer = service.ask("/generate", GOOD, Host="localhost:8000", Origin=f"{scheme}://localhost:8000")
    assert answer.status_code == 200


def test_a_form_of_a_foreign_page_may_not_ask(service: Service) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = service.post("/generate", json.dumps(GOOD), **({"Content-Type": kind} if kind else {}))
        refused(answer, 415, "the body must be JSON")
    refused(service.ask("/score", {}, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}), 403)
    preflight = service.client.options("/generate", headers={"Origin": "http://evil.example"})
    assert preflight.status_code == 403


def test_the_page_itself_may_ask(service: Service) -> None:
    assert service.ask("/generate", GOOD, Host="localhost:8000", Origin="http://localhost:8000").status_code == 200


# Many, slow and gone


def test_who_does_not_fit_into_the_line_is_told_when_to_come_back() -> None:
    model = SteppedModel()
    model.go_on.clear()
    answers: list[httpx.Response] = []
    with stepping(model, replace(LIMITS, workers=1, waiting=1)) as running:

        def ask() -> None:
            answers.append(running.ask("/generate", {**GOOD, "model": "slow"}))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for number, thread in enumerate(threads):
            thread.start()
            running.wait_for(working=1, waiting=number)
        turned_away = running.ask("/generate", {**GOOD, "model": "slow"})
        refused(turned_away, 503, "the server is busy: 1 requests wait: try again in 5 s")
        assert turned_away.headers["retry-after"] == "5"
        model.go_on.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200, 200]
        assert running.ask("/generate", {**GOOD, "model": "slow"}).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up_and_so_is_its_work() -> None:
    model = SteppedModel(seconds=0.02)
    with stepping(model, replace(LIMITS, seconds=0.5)) as running:
        refused(
            running.ask("/generate", {**GOOD, "model": "slow", "length": 300}),
            504, "the answer takes longer than a request may: 0.5 s: ask for a shorter text",
        )  # fmt: skip
        running.wait_for(working=0, waiting=0)
        steps = model.steps
        assert steps < 300
        refused(running.ask("/generate", {**GOOD, "model": "slow", "length": 300, "beam": 2}), 504)
        refused(running.ask("/score", {"model": "slow", "texts": ["ab"] * 100}), 504)
        running.wait_for(working=0, waiting=0)
        lines = running.ask("/generate", {**GOOD, "model": "slow", "length": 300, "stream": True}).text.splitlines()
        assert json.loads(lines[0]) == {"prefix": "abba"}
        assert json.loads(lines[-1])["error"]["rule"] == "the answer takes longer than a request may"


def test_within_a_long_step_the_answer_comes_in_time_and_who_waited_in_vain_is_told_so() -> None:
    model = SteppedModel()
    model.go_on.clear()
    answers: dict[str, httpx.Response] = {}
    with stepping(model, replace(LIMITS, seconds=0.5, workers=1)) as running:

        def ask(name: str) -> None:
            answers[name] = running.ask("/generate", {**GOOD, "model": "slow"})

        first, second = (threading.Thread(target=ask, args=[name]) for name in ("first", "second"))
        first.start()
        running.wait_for(working=1)
        second.start()
        first.join(60)
        second.join(60)
        refused(answers["first"], 504)
        refused(answers["second"], 503, "the server is busy: no thread was free for 0.5 s")
        assert running.health()["working"] == 1  # the step is still under way
        model.go_on.set()
        running.wait_for(working=0)
        assert model.steps == 1


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_ends_the_work(stream: bool) -> None:
    model = SteppedModel(seconds=0.02)
    with stepping(model, replace(LIMITS, workers=1)) as running:
        host, port = running.place
        body = json.dumps({**GOOD, "model": "slow", "length": 300, "stream": stream}).encode()
        with socket.create_connection((host, port), timeout=60) as connection:
            head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                assert b"prefix" in connection.recv(4096) + connection.recv(4096)
            running.wait_for(working=1)
        running.wait_for(working=0, waiting=0)
        assert model.steps < 300


def test_a_server_that_is_stopped_ends_what_it_is_writing() -> None:
    model = SteppedModel(seconds=0.02)
    with stepping(model, LIMITS) as running:
        asked = {**GOOD, "model": "slow", "length": 300, "stream": True}
        with running.client.stream("POST", "/generate", json=asked) as stream:
            lines = stream.iter_lines()
            assert json.loads(next(lines)) == {"prefix": "abba"}
            running.app.state.work.stop()
            *_, last = lines
        assert json.loads(last)["error"]["rule"] == "the server is stopping"
    assert model.steps < 300


def test_many_at_once_get_each_their_own_text(service: Service) -> None:
    def content(number: int) -> dict[str, Any]:
        word = "".join("abcdefgh"[(number >> shift) % 8] for shift in (0, 3, 6))
        return {"model": "char", "prefix": word, "length": 20, "temperature": 1.5, "seed": number % 50}

    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        texts[number] = service.ask("/generate", content(number)).json()["text"]

    threads = [threading.Thread(target=ask, args=[number]) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    saved = service.models["char"].saved
    for number in range(30):
        asked = content(number)
        config = GenerateConfig(length=20, temperature=1.5, seed=asked["seed"])
        assert texts[number] == continue_text(saved, asked["prefix"], config).text
    assert len(set(texts.values())) == 30


def test_a_bug_is_told_as_one_without_its_traceback(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Iterator[Any]:
        raise ZeroDivisionError("secret")
        yield

    monkeypatch.setattr(flows.service.app, "continuation", broken)
    answer = service.ask("/generate", GOOD)
    refused(answer, 500, "the server has a bug: ZeroDivisionError")
    assert "secret" not in answer.text
    deadline = time.monotonic() + 60
    while "ZeroDivisionError: secret" not in caplog.text:  # it is logged after the answer
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_pages_are_beside_the_code_so_that_a_wheel_has_them() -> None:
    folder = Path(flows.service.app.__file__).parent
    assert all((folder / name).is_file() for name, _ in flows.service.app.PAGES.values())
