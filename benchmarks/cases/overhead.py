"""What the pipeline costs when there is nothing to do: start-up, server, and a look into the cache per stage."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import targets
from benchmarks.measure import Command, Series, take_turns
from benchmarks.rows import Figure, Row, Setting, speed_ratio
from rnnlm_core.errors import ResourceError

TASKS = 10
SERVER_SECONDS = 120
MODULE = (sys.executable, "-m")


def overhead(setting: Setting) -> Iterator[Row]:
    """Whole commands: help, a run with everything cached, and bare Prefect flows."""
    yield from _help(setting)
    yield from _cached_run(setting)


def _limited(name: str, series: Series, limit: float, note: str = "") -> Row:
    """Return the row of something that must not take longer than a limit, in seconds."""
    ours = Figure.of(series, "s")
    return Row(
        case="overhead",
        name=name,
        unit="s",
        ours=ours,
        peer_name="the limit",
        peer=Figure.single(limit),
        ratio=ours.median / limit,
        target=1.0,
        at_most=True,
        note=note,
    )


def _help(setting: Setting) -> Iterator[Row]:
    peer = "prefect --help"
    sides = {
        "ours": Command((*MODULE, "flows.cli", "--help"), {}),
        peer: Command((*MODULE, "prefect", "--help"), {"PREFECT_HOME": str(setting.folder / "prefect-help")}),
    }
    series = take_turns(sides, rounds=1 if setting.quick else 3)
    yield _limited("rnnlm --help, at most", series["ours"], targets.HELP_SECONDS)
    yield Row(
        case="overhead",
        name="rnnlm --help",
        unit="s",
        ours=Figure.of(series["ours"], "s"),
        peer_name=peer,
        peer=Figure.of(series[peer], "s"),
        ratio=speed_ratio(series["ours"], series[peer]),
    )


def _cached_run(setting: Setting) -> Iterator[Row]:
    home, result = setting.folder / "home", setting.folder / "cached.json"
    home.mkdir()
    environment = _environment(home)
    less = ("--cells", "rnn", "--set", "train.epochs=1") if setting.quick else ()
    run = Command((*MODULE, "flows.cli", "run", "--preset", "smoke", *less, "--json", str(result)), environment)
    bare = f"Prefect flow, {TASKS} cached tasks"
    sides = {
        "ours": run,
        bare: Command((*MODULE, "benchmarks.sides.bare_flow", str(TASKS)), environment),
        "empty": Command((*MODULE, "benchmarks.sides.bare_flow", "0"), environment),
    }
    # The first round fills the caches.
    series = take_turns(sides, rounds=1 if setting.quick else 2)
    stages = json.loads(result.read_text())["tasks"]
    yield Row(
        case="overhead",
        name=f"rnnlm run, {stages['cached']} of {stages['cached'] + stages['executed']} stages cached",
        unit="s",
        ours=Figure.of(series["ours"], "s"),
        peer_name=bare,
        peer=Figure.of(series[bare], "s"),
        ratio=1 / speed_ratio(series["ours"], series[bare]),
        target=targets.CACHED_RUN_AT_MOST,
        at_most=True,
        note="whole commands, the start of Prefect's server in each; ratio of times",
    )
    yield _beside_a_server(setting, run, home)
    ours = _per_stage(series["ours"], series["empty"], stages["cached"] + stages["executed"])
    theirs = _per_stage(series[bare], series["empty"], TASKS)
    yield Row(
        case="overhead",
        name="per stage",
        unit="s",
        ours=ours,
        peer_name=bare,
        peer=theirs,
        # On a busy machine an empty flow may take longer than a full one: then nothing can be said.
        ratio=theirs.best / ours.best if min(ours.best, theirs.best) > 0 else None,
        note="beyond an empty flow, ratio of the best; ours verifies artifacts and keeps the run's record in MLflow",
    )


def _beside_a_server(setting: Setting, run: Command, home: Path) -> Row:
    """Measure the cached run where a Prefect server is up already."""
    with _server(home) as address:
        warm = replace(run, environment={**run.environment, "PREFECT_API_URL": address})
        series = take_turns({"ours": warm}, rounds=1 if setting.quick else 2)
    return _limited("rnnlm run, all cached, Prefect's server running", series["ours"], targets.CACHED_RUN_SECONDS)


@contextmanager
def _server(home: Path) -> Iterator[str]:
    """Run Prefect's server on a free port of this machine and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **_environment(home)}
    environment.pop("PREFECT_API_URL")
    command = [*MODULE, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            address = f"http://127.0.0.1:{port}/api"
            _wait_for(f"{address}/health", server)
            yield address
        finally:
            server.terminate()


def _wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    import httpx

    until = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            httpx.get(address, timeout=5).raise_for_status()
            return
        except httpx.HTTPError as error:
            if server.poll() is not None or time.monotonic() > until:
                raise ResourceError("Prefect's server did not start", address, str(error)) from error
            time.sleep(0.2)


def _per_stage(series: Series, empty: Series, stages: int) -> Figure:
    """Return what a stage adds to an empty flow."""
    own, base = Figure.of(series, "s"), Figure.of(empty, "s")
    assert own.cpu is not None
    assert base.cpu is not None
    return replace(
        own,
        median=(own.median - base.median) / stages,
        p25=(own.p25 - base.p25) / stages,
        best=(own.best - base.best) / stages,
        cpu=(own.cpu - base.cpu) / stages,
    )


def _environment(home: Path) -> dict[str, str]:
    """Everything below `home`, a server of its own in each command, and nothing sent anywhere."""
    return {
        "RNNLM_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": "",
        "MLFLOW_TRACKING_URI": "",
        "DO_NOT_TRACK": "1",
    }
