"""Where a run comes from: who asked for it, with what, on what, from which revision, and where Prefect shows it."""

import functools
import getpass
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from prefect.runtime import deployment
from prefect.utilities.urls import url_for

from tasks import workspace
from tasks.tracked_runs import PROCESSOR, REVISION, VERSIONS


def origin(preset: str, command: str) -> dict[str, str]:
    """Return the tags that fill MLflow's columns User, Source and Version, and say what figures and times depend on."""
    scheduled = str(deployment.name or "")
    source = {
        "mlflow.source.type": "JOB" if scheduled else "LOCAL",
        "mlflow.source.name": scheduled or f"{command} --preset {preset}",
    }
    return {**source, **_user(), **_revision(), **_machine()}


def prefect_link(flow_run_id: str) -> dict[str, str]:
    """Return, as a tag, where Prefect's user interface shows a flow run; nothing if none will be there later.

    The interface is `PREFECT_UI_URL`, or that of the server in `PREFECT_API_URL`. The server that a command starts
    for itself ends with it.
    """
    link = url_for("flow-run", obj_id=flow_run_id) if flow_run_id else None
    if link is None or link.startswith(tuple(_own_servers)):
        return {}
    return {"prefect.flow_run_url": link}


_own_servers: list[str] = []


def note_own_server(url: str) -> None:
    """Note that the Prefect server of this process ends with it."""
    _own_servers.append(url.removesuffix("api"))


@functools.cache
def _user() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user may have no name
        return {}


@functools.cache
def _revision() -> dict[str, str]:
    """Return the git revision of the project as a tag, if it is a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            cwd=workspace.PROJECT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    return {REVISION: done.stdout.strip()}


@functools.cache
def _machine() -> dict[str, str]:
    cores = workspace.cpu_slots()
    return {
        PROCESSOR: f"{_processor()}, {cores} core{'s' * (cores != 1)}",
        VERSIONS: f"python {platform.python_version()}, torch {metadata.version('torch')}",
    }


def _processor() -> str:
    """Return the processor by the name that its maker gave it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
