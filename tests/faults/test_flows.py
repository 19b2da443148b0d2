"""Whole commands that are killed, or started together: nothing is lost, nothing is done twice, nothing stays open."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

import flows.cli
from rnnlm_core.store import Store

PROJECT = Path(flows.cli.__file__).parents[1]
COMMAND = [sys.executable, "-c", "import sys; from flows.cli import main; sys.argv[0] = 'rnnlm'; main()"]
SMALL = [
    "run", "--preset", "smoke", "--cells", "rnn,gru", "--set", "model.hidden_size=16",
    "--set", "corpus.max_tokens=20000", "--set", "train.epochs=4", "--set", "train.device=cpu",
]  # fmt: skip
SEEDS = int(os.environ.get("RNNLM_SEEDS", "2"))
"""How many commands are killed; `make faults` asks for more."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def environment(home: Path, **more: str) -> dict[str, str]:
    ours = ("RNNLM_", "MLFLOW_", "PREFECT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    places = {"RNNLM_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "PYTHONPATH": str(PROJECT)}
    return {**kept, **places, "RNNLM_CHECKPOINT_SECONDS": "0.5", **more}


def start(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    home.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*COMMAND, *arguments], env=environment(home), cwd=home, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def wait_until_alone(home: Path) -> None:
    """Wait until no process lives that works for this home: what a killed command started ends by itself."""
    deadline = time.monotonic() + 60
    while True:
        alive = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RNNLM_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
            except psutil.Error:
                continue
        if not alive:
            return
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


def artifacts(home: Path) -> set[str]:
    """The artifacts of a home: equal runs have equal ones, but for the comparison, which holds tokens per second."""
    store = Store(home / "artifacts" / "store")
    return {f"{handle.kind}:{handle.sha256}" for handle in store.handles() if handle.kind != "comparison"}


def rows(home: Path, query: str, *values: str, database: str = "mlflow.db") -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / database)) as connection:
        return connection.execute(query, values).fetchall()


def check_closed(home: Path) -> None:
    """Nothing stays open: MLflow and Prefect know that their runs are over, each metric has each step once."""
    assert rows(home, "SELECT run_uuid FROM runs WHERE status = 'RUNNING'") == []
    open_flows = "SELECT id, state_type FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING')"
    assert rows(home, open_flows, database="prefect/prefect.db") == []
    twice = (
        "SELECT run_uuid, key, step FROM metrics WHERE key LIKE 'train/%' OR key LIKE 'valid/%' "
        "GROUP BY run_uuid, key, step HAVING count(*) > 1"
    )
    assert rows(home, twice) == []
    assert finish(start(home, "verify")) == "everything is whole\n"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], float]:
    """The artifacts of a run that nobody disturbed, and how long it took."""
    home = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finish(start(home, *SMALL))
    seconds = time.monotonic() - started
    check_closed(home)
    return artifacts(home), seconds


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_command_killed_at_a_random_moment_is_finished_by_the_same_command(
    seed: int, undisturbed: tuple[set[str], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    home = tmp_path / "home"
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 2)):
        process = start(home, *SMALL)
        time.sleep(draw.uniform(0.2, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until_alone(home)
    finish(start(home, *SMALL, "--json", str(home / "out.json")))
    wait_until_alone(home)
    assert artifacts(home) == expected
    check_closed(home)
    written = json.loads((home / "out.json").read_text())
    assert set(written["cells"]) == {"rnn", "gru"}
    for cell in written["cells"].values():
        steps = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY step"
        assert rows(home, steps, cell["run_id"]) == [(1,), (2,), (3,), (4,)]
    shutil.rmtree(home)


def test_commands_started_together_do_each_stage_once(undisturbed: tuple[set[str], float], tmp_path: Path) -> None:
    expected, _ = undisturbed
    home = tmp_path / "home"
    processes = [start(home, *SMALL, "--json", str(home / f"{number}.json")) for number in range(4)]
    for process in processes:
        finish(process)
    wait_until_alone(home)
    assert artifacts(home) == expected
    check_closed(home)
    written = [json.loads((home / f"{number}.json").read_text()) for number in range(4)]
    stages = 5 + 3 * 2 + 1
    assert sum(one["tasks"]["executed"] for one in written) == stages
    assert sum(one["tasks"]["cached"] for one in written) == 3 * stages
    figures = [{cell: f["valid_perplexity"] for cell, f in one["cells"].items()} for one in written]
    assert figures == [figures[0]] * 4
