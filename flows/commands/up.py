"""`rnnlm up` and `rnnlm down`: what scheduled runs need, started and ended."""

import os
import subprocess
import sys
import time
from typing import Annotated

import typer

from rnnlm_core.errors import ResourceError

LOGGED = {
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "ERROR",
}
"""Commands are silent about what they tell themselves; here the logs are all there is."""


def up(
    detach: Annotated[
        bool, typer.Option("--detach", metavar="", help="Return once all is up; `rnnlm down` ends it.")
    ] = False,
    prefect_port: Annotated[
        int | None, typer.Option(help="Port of Prefect's server.", min=1, max=65535, show_default="4200")
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(help="Port of MLflow's pages.", min=1, max=65535, show_default="5000")
    ] = None,
    runs: Annotated[int, typer.Option(help="Scheduled runs that may be under way at once.", min=1, max=1000)] = 2,
) -> None:
    """Start Prefect's server, a worker and MLflow's pages here, and deploy `prefect.yaml`; Ctrl-C ends all."""
    from tasks import workspace

    for name, level in LOGGED.items():
        os.environ.setdefault(name, level)
    workspace.prepare_environment()
    from flows.up import Plan, stay_up

    plan = Plan(prefect_port, mlflow_port, runs)
    if detach:
        ports = {"--prefect-port": prefect_port, "--mlflow-port": mlflow_port}
        chosen = [word for option, port in ports.items() if port is not None for word in (option, str(port))]
        _detach([*chosen, "--runs", str(runs)])
    else:
        stay_up(plan, lambda line: typer.echo(line, err=line.endswith("…") or line.startswith("warning")))


def down() -> None:
    """End what `rnnlm up` has started; flows under way keep their checkpoints and go on at the next start."""
    from tasks import workspace

    workspace.prepare_environment()
    from flows.up import stop

    typer.echo("ended" if stop(typer.echo) else "nothing is up")


def _detach(options: list[str]) -> None:
    """Start the same command without `--detach` in a session of its own, and wait until it is up."""
    from flows.up import logs, running

    logs().mkdir(parents=True, exist_ok=True)
    log = logs() / "up.log"
    with log.open("wb") as told:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.cli", "up", *options],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while (code := process.poll()) is None:
        there = running()
        if there is not None and there.pid == process.pid and there.ready:
            typer.echo(log.read_text(encoding="utf-8", errors="replace").rstrip())
            typer.echo("`rnnlm down` ends it")
            return
        time.sleep(0.2)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = next(
        (line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), f"exit {code}"
    )
    raise ResourceError("it did not come up", last, f"see {log}")
