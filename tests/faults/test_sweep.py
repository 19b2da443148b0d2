"""A sweep that is killed or stopped half-way and started again ends with every trial, each told once."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import Commands, Running
from homes import places, rows, store_of, wait_until_alone, without_settings

TRIALS = 20
SWEEP = [
    "sweep", "--preset", "smoke", "--cells", "rnn", "--trials", str(TRIALS), "--set", "corpus.max_tokens=4000",
    "--set", "train.epochs=4", "--set", "train.device=cpu", "--search", "train.learning_rate=log:0.001..0.1",
    "--search", "model.hidden_size=8,16", "--search", "train.batch_size=8..16",
]  # fmt: skip


def settled(home: Path) -> int:
    """Return how many trials are over."""
    if not (home / "artifacts" / "sweeps.db").exists():
        return 0
    return rows(home / "artifacts" / "sweeps.db", "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')")[
        0
    ][0]


def until_settled(running: Running, number: int) -> None:
    """Wait until so many trials are over."""
    deadline = time.monotonic() + 1500
    while settled(running.home) < number:
        assert not running.ends_within(0.05), running.output()
        assert time.monotonic() < deadline


def what_is_wrong(home: Path) -> list[str]:
    """Return what must not be once the sweep is done."""
    mlflow, sweeps = home / "mlflow.db", home / "artifacts" / "sweeps.db"
    found = [f"run is open: {row}" for row in rows(mlflow, "SELECT name FROM runs WHERE status = 'RUNNING'")]
    twice = rows(mlflow, "SELECT run_uuid, key, step FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1")
    found += [f"told twice: {row}" for row in twice]
    states = Counter(state for (state,) in rows(sweeps, "SELECT state FROM trials"))
    if sum(states.values()) != TRIALS or not set(states) <= {"COMPLETE", "PRUNED"}:
        found.append(f"trials: {states}")
    tag = (
        "SELECT value FROM tags WHERE key = 'rnnlm.trial' "
        "AND run_uuid IN (SELECT run_uuid FROM runs WHERE status = 'FINISHED')"
    )
    if sorted(int(number) for (number,) in rows(mlflow, tag)) != list(range(TRIALS)):
        found.append(f"runs of trials: {rows(mlflow, tag)}")
    values = (
        "SELECT count(*) FROM latest_metrics WHERE key = 'best/valid_perplexity' "
        "AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'rnnlm.trial')"
    )
    if rows(mlflow, values) != [(TRIALS,)]:
        found.append(f"trials with a figure: {rows(mlflow, values)}")
    parents = rows(mlflow, "SELECT status FROM runs WHERE name LIKE 'sweep %'")
    if parents != [("FINISHED",)]:
        found.append(f"runs of the sweep: {parents}")
    return found + [f"checkpoint left: {path.name}" for path in (store_of(home) / "checkpoint").glob("[!.]*")]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_ends_half_way_ends_whole_when_started_again(
    commands: Commands, tmp_path: Path, number: signal.Signals
) -> None:
    home = commands.home(f"sweep-{number.name}")
    running = commands.start(home, *SWEEP)
    until_settled(running, TRIALS // 2)
    running.send(number)
    code = running.wait()
    before = settled(home)
    assert code == (-9 if number == signal.SIGKILL else 128 + number), running.output()
    wait_until_alone(home)
    if number != signal.SIGKILL:
        assert "run the same command again to go on" in running.output()
        assert rows(home / "mlflow.db", "SELECT name FROM runs WHERE status = 'RUNNING'") == []
    assert commands.run(home, *SWEEP) == 0, (home / "output.txt").read_text()
    assert what_is_wrong(home) == []
    assert commands.run(home, *SWEEP) == 0
    told = (home / "output.txt").read_text()
    assert "nothing to do: all trials are done" in told
    print(f"{number.name}: {before} of {TRIALS} trials were over; {told.split('trials: ')[1].split(' · ')[0]}")


CREATE = """
import sys
from tasks import workspace; workspace.prepare_environment()
from rnnlm_core.search import make_plan
from tasks import studies
with studies.turn(sys.argv[1]):
    print(studies.open_study(make_plan("smoke", name=sys.argv[1])).sweep_id)
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [("one", "two"), ("one", "one")])
def test_processes_that_create_the_database_at_once_both_have_it(tmp_path: Path, names: tuple[str, str]) -> None:
    environment = without_settings() | places(tmp_path)
    both = [
        subprocess.Popen([sys.executable, "-c", CREATE, name], env=environment, cwd=tmp_path, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in names
    ]  # fmt: skip
    answers = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert len({answer for answer, _ in answers}) == len(set(names))
    studies = rows(tmp_path / "artifacts" / "sweeps.db", "SELECT study_name FROM studies ORDER BY 1")
    assert studies == [(name,) for name in sorted(set(names))]
    assert [path.name for path in (tmp_path / "artifacts").glob(".sweeps*")] == []
