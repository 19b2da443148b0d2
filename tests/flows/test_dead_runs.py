"""Flow runs whose process is gone: Prefect would show them as running for ever."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Running

from flows.language_model import language_model
from tasks import health, processes

Run_ = Callable[..., dict[str, Any]]


@pytest.fixture
def other() -> Any:
    """A process that lives until the test lets it end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def flow_run_of(process: psutil.Process) -> FlowRun:
    """Return a flow run that is under way and says that this process does it."""
    tag = f"{processes.PREFIX}{processes.host()}:{process.pid}:{processes.start_of(process)}"
    with get_client(sync_client=True) as api, tags(tag):
        run = api.create_flow_run(language_model, tags=[tag], state=Running())
        return api.read_flow_run(run.id)


def state_of(run: FlowRun) -> str:
    with get_client(sync_client=True) as api:
        return str(api.read_flow_run(run.id).state_name)


def test_a_flow_run_is_closed_once_its_process_is_gone(home: Path, other: subprocess.Popen[bytes]) -> None:
    run = flow_run_of(psutil.Process(other.pid))
    assert list(health.tidy()) == []
    assert state_of(run) == "Running"
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert list(health.tidy()) == [f"closed Prefect flow run {run.id}, whose process is gone"]
    assert state_of(run) == "Crashed"
    assert list(health.tidy()) == []


def test_a_process_that_got_the_id_of_a_dead_one_is_another(home: Path, other: subprocess.Popen[bytes]) -> None:
    assert processes.is_alive(str(other.pid), processes.start_of(psutil.Process(other.pid)))
    assert not processes.is_alive(str(other.pid), processes.start_of(psutil.Process()))


def test_a_process_that_nobody_has_waited_for_is_gone(other: subprocess.Popen[bytes]) -> None:
    started = processes.start_of(psutil.Process(other.pid))
    other.kill()
    while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not processes.is_alive(str(other.pid), started)


def test_runs_of_other_machines_and_of_nobody_are_left_alone() -> None:
    assert not processes.has_ended([f"{processes.PREFIX}elsewhere:{2**22 + 1}:1-1"])
    assert not processes.has_ended(["nightly", processes.PREFIX + "nightly"])
    assert processes.has_ended(["nightly", f"{processes.PREFIX}{processes.host()}:{2**22 + 1}:1-1"])
