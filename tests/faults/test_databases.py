"""MLflow's database under many writers, a long lock, kills while it is created, damage, and a full disk."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import flows.cli

PROJECT = Path(flows.cli.__file__).parents[1]
COMMAND = "import sys; from flows.cli import main; sys.argv[0] = 'rnnlm'; main()"
SMALL = [
    "run", "--preset", "smoke", "--cells", "rnn", "--set", "model.hidden_size=16", "--set", "corpus.max_tokens=20000",
    "--set", "train.device=cpu",
]  # fmt: skip
KILLS = int(os.environ.get("RNNLM_KILLS", "10"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PREPARE = "from tasks import workspace; workspace.prepare_environment()\n"
LOG = (
    PREPARE
    + """
from tasks import tracking
from rnnlm_core.outcomes import Epoch
with tracking.parent_run("smoke", "text", {}, "flow") as flow:
    for number in range(500):
        tracking.log_metrics(flow.parent_run_id, {f"m{number}": float(number)})
"""
)
OPEN = PREPARE + "from tasks.tracking_database import experiment_id; print(experiment_id())"
LOG_A_MINUTE = (
    PREPARE
    + """
import sys, time
from tasks import tracking
from rnnlm_core.outcomes import Epoch
with tracking.parent_run("smoke", "text", {}, "flow") as flow:
    log = tracking.EpochLog(flow.parent_run_id)
    for number in range(1, 101):
        log.add(Epoch(number, 100, 1.0 / number, 2.0, 1e-3, 0.5, 1000.0, 0.1))
        if number == 10:
            log.flush()
            print("under way", flush=True)
            sys.stdin.readline()
        time.sleep(0.05)
    log.flush()
"""
)
FILL = (
    PREPARE
    + """
from tasks import tracking
from rnnlm_core.outcomes import Epoch
with tracking.parent_run("smoke", "text", {}, "flow") as flow:
    log = tracking.EpochLog(flow.parent_run_id)
    for number in range(1, 100_001):
        log.add(Epoch(number, 100_000, 1.0 / number, 2.0, 1e-3, 0.5, 1000.0, 0.1))
    log.flush()
"""
)


def start(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    ours = ("RNNLM_", "MLFLOW_", "PREFECT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    places = {"RNNLM_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "PYTHONPATH": str(PROJECT)}
    home.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], env={**kept, **places}, cwd=home, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == code, output + errors
    return output, errors


def rows(home: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        return database.execute(query).fetchall()


def check_gapless(home: Path, num_steps: int) -> None:
    """Every metric has each step once."""
    found = rows(home, "SELECT key, count(*), count(DISTINCT step), min(step), max(step) FROM metrics GROUP BY key")
    assert found
    assert {row[1:] for row in found} == {(num_steps, num_steps, 1, num_steps)}
    assert rows(home, "PRAGMA integrity_check") == [("ok",)]


def test_four_processes_create_one_database_and_log_500_metrics_each(tmp_path: Path) -> None:
    processes = [start(tmp_path, LOG) for _ in range(4)]
    for process in processes:
        assert finish(process)[0] == ""
    assert rows(tmp_path, "SELECT count(*) FROM metrics") == [(2000,)]
    assert rows(tmp_path, "SELECT count(*) FROM metrics GROUP BY run_uuid") == [(500,)] * 4
    assert rows(tmp_path, "SELECT status FROM runs") == [("FINISHED",)] * 4
    assert rows(tmp_path, "SELECT count(*) FROM experiments WHERE name = 'rnnlm'") == [(1,)]
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


def test_a_database_that_another_program_holds_for_a_minute_loses_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, LOG_A_MINUTE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "under way\n"
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(65)
        assert process.poll() is None
        assert holder.execute("SELECT max(step) FROM metrics").fetchone() == (10,)
        holder.execute("ROLLBACK")
    _, errors = finish(process)
    assert "Traceback" not in errors
    check_gapless(tmp_path, 100)
    assert rows(tmp_path, "SELECT status FROM runs") == [("FINISHED",)]


def test_a_run_is_not_harmed_by_a_lock_of_a_minute(tmp_path: Path) -> None:
    process = start(tmp_path, COMMAND, *SMALL, "--set", "train.epochs=40")
    while not (tmp_path / "mlflow.db").exists() or not rows(tmp_path, "SELECT 1 FROM metrics WHERE step > 1"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, timeout=60)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        time.sleep(65)
        assert process.poll() is None
        holder.execute("ROLLBACK")
    _, errors = finish(process)
    assert errors.count("another program has locked") == 1
    found = rows(tmp_path, "SELECT key, count(*), count(DISTINCT step) FROM metrics WHERE step > 0 GROUP BY key")
    assert len(found) == 8
    assert {row[1:] for row in found} == {(40, 40)}
    assert rows(tmp_path, "SELECT DISTINCT status FROM runs") == [("FINISHED",)]


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_kill_while_the_database_is_created_is_forgotten(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    process = start(tmp_path, OPEN)
    while not list(tmp_path.glob(".mlflow.db.*.tmp")) and not (tmp_path / "mlflow.db").exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 1.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = sorted(path.name for path in tmp_path.glob(".mlflow.db.*"))
    print("left by the kill:", left)
    if draw.random() < 0.5:
        finish(start(tmp_path, PREPARE + "from tasks import tracking_database; tracking_database.sweep_drafts()"))
        assert list(tmp_path.glob(".mlflow.db.*")) == []
    assert finish(start(tmp_path, OPEN))[0] == "1\n"
    assert list(tmp_path.glob(".mlflow.db.*")) == []
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xa5" * 4096
    path.write_bytes(content)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    home = tmp_path_factory.mktemp("whole")
    finish(start(home, OPEN))
    return (home / "mlflow.db").read_bytes()


@pytest.mark.parametrize(
    "spoil", [half, newer, corrupt, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"garbage" * 999)]
)
def test_a_command_with_a_broken_database_does_nothing_and_says_so(
    spoil: Callable[[Path], object], database: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(database)
    spoil(path)
    content = path.read_bytes()
    _, errors = finish(start(tmp_path, COMMAND, *SMALL), 4)
    assert "Traceback" not in errors
    assert str(path) in errors
    assert "move it away to start anew" in errors
    assert path.read_bytes() == content
    assert not (tmp_path / "artifacts" / "store").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_run_on_a_disk_that_fills_up_is_never_finished_with_a_gap(small_disk: Path) -> None:
    _, errors = finish(start(small_disk, FILL), 1)
    assert "rnnlm_core.errors.ResourceError: no space left: " in errors
    assert rows(small_disk, "SELECT status FROM runs") != [("FINISHED",)]
    assert rows(small_disk, "PRAGMA integrity_check") == [("ok",)]
    found = rows(small_disk, "SELECT key, count(*), count(DISTINCT step), min(step) FROM metrics GROUP BY key")
    (last,) = {row[1] for row in found}
    assert {row[1:] for row in found} == {(last, last, 1)}  # what is there is there without a gap
    print("epochs that fitted:", last)
