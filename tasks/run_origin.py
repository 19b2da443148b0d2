"""Where a run comes from: who asked for it, with what, from which revision, and where Prefect shows it."""

import functools
import getpass
import subprocess

from prefect.runtime import deployment
from prefect.utilities.urls import url_for

from tasks import workspace


def origin(preset: str, command: str) -> dict[str, str]:
    """Return the tags that fill MLflow's columns User, Source and Version."""
    scheduled = str(deployment.name or "")
    source = {
        "mlflow.source.type": "JOB" if scheduled else "LOCAL",
        "mlflow.source.name": scheduled or f"{command} --preset {preset}",
    }
    return {**source, **_user(), **_revision()}


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
    return {"mlflow.source.git.commit": done.stdout.strip()}
