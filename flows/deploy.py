"""What must be right before a worker starts: MLflow's database, the runs of dead processes, the pool, the deployments.

`python -m flows.deploy` does it and says what it did (`--repair`: the runs alone, before a worker starts again): a
process of its own, so that what stays up stays small.
"""

import os
import subprocess
import sys
from pathlib import Path

from rnnlm_core.errors import ResourceError, RnnlmError
from tasks import workspace
from tasks.workspace import POOL


def deploy() -> None:
    """Make the work pool if there is none, put its runs in order, and deploy all of `prefect.yaml`.

    Raises `ConfigError` before anything is done if that file has mistakes.
    """
    from flows import deployments
    from tasks import scheduled_runs, tracking_database

    os.environ["PWD"] = str(workspace.PROJECT)  # what `prefect.yaml` calls the project: a shell may be elsewhere

    deployments.check(workspace.DEPLOYMENTS)
    tracking_database.experiment_id()
    scheduled_runs.make_pool(POOL)
    repair()
    prefect("deploy", "--all")
    for name in scheduled_runs.not_among(POOL, deployments.names(workspace.DEPLOYMENTS)):
        print(
            f"{name} is deployed, but not in {workspace.DEPLOYMENTS.name}: `prefect deployment delete {name}` ends it",
            flush=True,
        )


def repair() -> None:
    """Put the runs in order that a worker has left."""
    from tasks import health, scheduled_runs

    for done in [*health.tidy(), *scheduled_runs.repair(POOL)]:
        print(done, flush=True)


def prefect(*arguments: str) -> None:
    """Run a command of Prefect in the project; raises `ResourceError` with its last words if that fails."""
    # Not `python -m prefect`: with -P nothing in the current folder can be taken for a module of it.
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=workspace.PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join((done.stdout + done.stderr).split())
        raise ResourceError(
            f"`prefect {' '.join(arguments)}` failed", words[-300:], f"see {workspace.DEPLOYMENTS.name}"
        )


def main() -> None:
    """Deploy, or say in one line why that did not go."""
    workspace.prepare_environment()
    try:
        repair() if sys.argv[1:] == ["--repair"] else deploy()
    except RnnlmError as error:
        print("\n".join(f"error: {line}" for line in error.lines), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
