"""Where a run keeps its things: the one place that reads the environment.

`RNNLM_HOME` (default: the project folder) holds `mlflow.db` and `artifacts/`. Every path here is absolute and asked
for when needed, so that a worker, a test or a moved folder finds its own.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rnnlm_core.config import CHECKPOINT_SECONDS
from rnnlm_core.download import without_password
from rnnlm_core.errors import ResourceError, UsageError
from rnnlm_core.store import Store

if TYPE_CHECKING:
    from rnnlm_core.remote import Remote

TRACKING_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
PROJECT = Path(__file__).resolve().parent.parent
DEPLOYMENTS = PROJECT / "prefect.yaml"
POOL = "rnnlm"
"""The work pool of all deployments."""


def home() -> Path:
    """Return the folder that holds everything made at run time."""
    chosen = os.environ.get("RNNLM_HOME")
    if chosen:
        try:
            return Path(chosen).expanduser().resolve()
        except RuntimeError as error:  # ~nobody
            raise UsageError("`RNNLM_HOME` must be a folder", chosen, str(error)) from error
    return PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()


def artifacts() -> Path:
    """Return the folder of artifacts."""
    return home() / "artifacts"


def store() -> Store:
    """Return the store of artifacts."""
    return Store(artifacts() / "store", remote())


def remote() -> "Remote | None":
    """Return where hosts share their artifacts: what `RNNLM_STORE` names, nowhere by default."""
    chosen = os.environ.get("RNNLM_STORE")
    if not chosen:
        return None
    from rnnlm_core.remote import connect

    return connect(chosen)


def reports() -> Path:
    """Return the folder of the runs' reports."""
    return artifacts() / "reports"


def sweeps_database() -> Path:
    """Return the place of the database of sweeps."""
    return artifacts() / "sweeps.db"


def tracking_uri() -> str:
    """Return the address of the MLflow store: `MLFLOW_TRACKING_URI`, or `mlflow.db` at home."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    if not chosen:
        return f"sqlite:///{home() / 'mlflow.db'}"
    scheme, _, place = chosen.partition("://")
    # sqlite:// and sqlite:/// name a database in memory: its runs would be gone with the command.
    if scheme.partition("+")[0] not in TRACKING_SCHEMES or not place.strip("/"):
        raise UsageError(
            "`MLFLOW_TRACKING_URI` must be an address such as sqlite:////path/mlflow.db or http://host:5000",
            without_password(chosen),
            f"correct or unset it (known: {', '.join(TRACKING_SCHEMES)})",
        )
    return chosen


def prepare_environment() -> None:
    """Give Prefect and MLflow their settings, before either is imported; what the user has set stays."""
    api = os.environ.get("PREFECT_API_URL", "")
    try:
        _ = urlsplit(api).port
    except ValueError as error:  # Prefect would not even be imported
        raise UsageError("`PREFECT_API_URL` is not an address", without_password(api), "correct or unset it") from error
    results = artifacts() / "results"
    try:
        results.mkdir(parents=True, exist_ok=True)
        results.chmod(0o700)  # what lies here is believed, so only its owner may write it
    except OSError as error:
        remedy = "set RNNLM_HOME to a folder that can be written"
        raise ResourceError("cannot write artifacts", f"{results} ({error.strerror})", remedy) from error
    defaults = {
        "PREFECT_HOME": str(home() / ".prefect"),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(results),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # failures are told once, by the command itself
        "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for results
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def checkpoint_seconds() -> float:
    """Return how often a training saves its place: `RNNLM_CHECKPOINT_SECONDS`, 30 by default."""
    chosen = os.environ.get("RNNLM_CHECKPOINT_SECONDS", str(CHECKPOINT_SECONDS))
    try:
        seconds = float(chosen)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError("`RNNLM_CHECKPOINT_SECONDS` must be a number of seconds", chosen, "correct or unset it")
    return seconds


def cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cpu_slots() -> int:
    """Return how many trainings fit on this machine's processors at once, one thread each."""
    return len(cores())


def gpu_slots() -> int:
    """Return how many trainings share a GPU at once: `RNNLM_GPU_SLOTS`, 3 by default.

    A recurrent network of these sizes waits for its own steps more than it computes.
    """
    chosen = os.environ.get("RNNLM_GPU_SLOTS", "3")
    if not (chosen.isascii() and chosen.isdecimal() and 1 <= int(chosen[:6]) <= 99):
        raise UsageError("`RNNLM_GPU_SLOTS` must be a whole number from 1 to 99", chosen, "correct or unset it")
    return int(chosen)
