"""The server of one command: it answers, and it never stays behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

import flows.server
from flows.server import Api, OwnApi, prefect_api
from rnnlm_core.errors import ResourceError

PROJECT = Path(flows.server.__file__).parents[1]
PARENT = """
import sys, time
from flows.server import OwnApi
api = OwnApi()
with api.ready():
    print(api.process.pid, flush=True)
    time.sleep(600)
"""


def test_the_server_of_the_session_answers(server: OwnApi) -> None:
    assert httpx.get(f"{server.url}/health", timeout=30).json() is True
    assert server.url.startswith("http://127.0.0.1:")


def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        assert server.is_running()
        os.kill(parent.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs([server], timeout=60)
    for process in alive:
        process.kill()
    assert gone == [server]


def test_a_stopped_server_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    api = OwnApi()
    server = psutil.Process(api.process.pid)
    api.stop()
    assert api.process.returncode is not None
    assert not server.is_running()
    api.stop()  # as at exit


def test_a_server_that_cannot_start_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    api = OwnApi()
    with pytest.raises(ResourceError, match="Prefect's own server did not start: exit code 1: run `prefect server"):  # noqa: SIM117
        with api.ready():
            pytest.fail("it is not ready")
    api.stop()


def test_a_configured_server_is_used_and_not_started(server: OwnApi) -> None:
    with prefect_api() as api:
        assert api.own is False
        assert api.url == server.url
        with api.ready():
            assert httpx.get(f"{api.url}/health", timeout=30).status_code == 200


def test_a_configured_server_that_does_not_answer_is_named() -> None:
    api = Api("http://127.0.0.1:9/api")
    with pytest.raises(ResourceError, match=r"does not answer: http://127.0.0.1:9/api \(ConnectError\): start it with"):  # noqa: SIM117
        with api.ready():
            pytest.fail("it is not ready")
