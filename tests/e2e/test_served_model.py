"""`mlflow models serve` answers for a logged model, on loopback, with what the model says where it is loaded."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from homes import without_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]
PATIENCE = 600
Post = Callable[..., tuple[int, Any]]


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def is_up(port: int) -> bool:
    try:
        return ask(port, "GET", "/ping")[0] == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def post(logged: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    """Serve the registered model, and return a function that asks it; in the end the server goes, and all of it."""
    champion = logged.register("book")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    own = {
        "MLFLOW_TRACKING_URI": logged.tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # MLflow starts `uvicorn` by its name, as in an environment that is activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", champion]
    with (elsewhere / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
            env=without_settings() | own, cwd=elsewhere, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    group = psutil.Process(server.pid)
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_up(port):
            told = (elsewhere / "log").read_text()
            assert server.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.5)

        def invoke(texts: list[str], **params: Any) -> tuple[int, Any]:
            status, body = ask(port, "POST", "/invocations", {"inputs": texts, "params": params})
            return status, json.loads(body)

        yield invoke
        every = [group, *group.children(recursive=True)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    _, alive = psutil.wait_procs(every, 60)
    assert alive == []
    assert not is_up(port)


@pytest.fixture(scope="module")
def model(logged: Any) -> Iterator[Any]:
    """The same model, loaded here."""
    with logged.tracked_here():
        yield mlflow.pyfunc.load_model(logged.uri)


TEXTS = ["The time ", "language"]


def test_the_server_continues_texts_as_the_model_does(post: Post, model: Any) -> None:
    wanted = {"length": 25, "temperature": 0.7, "seed": 3}
    assert post(TEXTS, **wanted) == (200, {"predictions": model.predict(TEXTS, params=wanted)})
    assert post(TEXTS) == (200, {"predictions": model.predict(TEXTS)})


def test_the_server_scores_texts_as_the_model_does(post: Post, model: Any) -> None:
    status, answer = post(TEXTS, mode="score")
    assert status == 200
    assert answer == {"predictions": model.predict(TEXTS, params={"mode": "score"})}
    assert set(answer["predictions"][0]) == {"text", "num_tokens", "loss", "perplexity", "bits_per_char"}


@pytest.mark.parametrize(
    ("texts", "params", "told"),
    [
        (TEXTS, {"mode": "rate"}, "unknown mode: rate"),
        (TEXTS, {"mode": "score", "length": 9}, "no effect in mode `score`: length=9"),
        (TEXTS, {"length": "many"}, "Can not safely convert"),
        (["€"], {}, "prefix has characters outside the vocabulary: '€'"),
        (["T"], {"mode": "score"}, "needs at least 2 tokens"),
    ],
)
def test_a_mistake_is_answered_with_400_and_what_it_is(
    post: Post, texts: list[str], params: dict[str, Any], told: str
) -> None:
    status, answer = post(texts, **params)
    assert status == 400
    assert answer["error_code"] in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
    assert told in answer["message"]


def test_the_command_writes_the_same_text(post: Post, logged: Any) -> None:
    drawn = ["--length", "25", "--temperature", "0.7", "--seed", "3"]
    for reference in (logged.uri, "models:/book@champion"):
        _, answer = post(["The "], length=25, temperature=0.7, seed=3)
        written = logged.rnnlm("generate", "--model", reference, "--prefix", "The ", *drawn)
        assert written == answer["predictions"][0] + "\n"
