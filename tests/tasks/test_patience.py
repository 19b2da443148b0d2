"""A database that another program holds is waited for, and what is written once it is free is written once."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rnnlm_core.errors import IntegrityError, ResourceError, RnnlmError, Stopped
from tasks import patience, progress, tracked_models, tracked_runs, tracking
from tasks.patience import PatientConnection
from tasks.progress import News
from tasks.stopping import stop_requested
from tasks.tracking import EpochLog, FlowRun
from tasks.tracking_database import client

HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2].split(";"):
    rows = database.execute(statement)
    rows.fetchone()
print("held", flush=True)
sys.stdin.read()
"""
WRITING, READING, ALONE = "BEGIN IMMEDIATE", "BEGIN;SELECT * FROM experiments", "BEGIN EXCLUSIVE"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits are told at once; a flow that failed before left its wish to stop."""
    stop_requested.clear()
    monkeypatch.setattr(patience, "TELL_SECONDS", 0.2)
    monkeypatch.setattr(patience, "POLL_SECONDS", 0.1)
    yield
    stop_requested.clear()


@pytest.fixture
def hold(home: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Return a function that has another process hold the database until its standard input closes."""
    holders = []

    def start(how: str) -> "subprocess.Popen[str]":
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(home / "mlflow.db"), how],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in holders:
        holder.communicate()


def metrics(home: Path, run_id: str) -> list[tuple[str, int, float]]:
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step"
        return database.execute(query, [run_id]).fetchall()


@pytest.mark.parametrize("how", [WRITING, READING, ALONE])
def test_metrics_wait_until_the_other_program_is_done_and_are_there_once(
    how: str, hold: Callable[[str], "subprocess.Popen[str]"], home: Path, parent: FlowRun, heard: list[News]
) -> None:
    holder = hold(how)
    assert holder.stdin is not None
    before = threading.Event()

    def release(news: News) -> None:
        if "has locked" in news.warning:
            assert holder.stdin is not None
            before.set()
            holder.stdin.close()

    with progress.listening(release):
        tracking.log_metrics(parent.parent_run_id, {"a": 1.0, "b": 2.0})
    holder.stdin = None
    assert before.is_set()
    assert metrics(home, parent.parent_run_id) == [("a", 0, 1.0), ("b", 0, 2.0)]
    assert [news.warning for news in heard] == [
        f"another program has locked {home / 'mlflow.db'}: waiting for it",
    ]


def test_threads_that_wait_together_say_it_once(
    hold: Callable[[str], "subprocess.Popen[str]"], home: Path, parent: FlowRun, heard: list[News]
) -> None:
    holder = hold(WRITING)
    run_id = parent.parent_run_id
    threads = [threading.Thread(target=tracking.log_metrics, args=(run_id, {f"m{i}": float(i)})) for i in range(4)]
    for thread in threads:
        thread.start()
    threads[0].join(timeout=1.5)  # long enough for each of them to have spoken
    assert [thread.is_alive() for thread in threads] == [True] * 4
    holder.communicate()
    for thread in threads:
        thread.join()
    assert metrics(home, run_id) == [(f"m{i}", 0, float(i)) for i in range(4)]
    assert len([news for news in heard if "has locked" in news.warning]) == 1


def test_who_reads_waits_as_well(
    hold: Callable[[str], "subprocess.Popen[str]"], home: Path, parent: FlowRun, heard: list[News]
) -> None:
    holder = hold(ALONE)
    threading.Timer(0.5, holder.communicate).start()
    assert tracked_runs.tracked_cells() == []
    assert len(heard) == 1


def test_a_lock_without_end_is_an_error_that_names_the_database(
    hold: Callable[[str], "subprocess.Popen[str]"], home: Path, parent: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.3)
    holder = hold(WRITING)
    with pytest.raises(ResourceError, match="the database is locked") as caught:
        tracking.log_metrics(parent.parent_run_id, {"a": 1.0})
    assert str(home / "mlflow.db") in str(caught.value)
    assert caught.value.exit_code == 5
    with pytest.raises(ResourceError, match="the database is locked"):
        tracking._create("new", {}, {})
    holder.communicate()
    assert metrics(home, parent.parent_run_id) == []
    tracking.log_metrics(parent.parent_run_id, {"a": 1.0})
    assert metrics(home, parent.parent_run_id) == [("a", 0, 1.0)]
    assert len(client().search_runs([tracking.experiment_id()])) == 1


def test_a_wish_to_stop_ends_the_wait(
    hold: Callable[[str], "subprocess.Popen[str]"], parent: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "STOP_SECONDS", 0.1)
    holder = hold(WRITING)
    with (
        progress.listening(lambda _: stop_requested.set()),
        pytest.raises(Stopped, match="stopped while waiting: another program has locked"),
    ):
        tracking.log_metrics(parent.parent_run_id, {"a": 1.0})
    holder.communicate()


def test_epochs_that_could_not_be_written_are_written_by_the_training_that_goes_on(
    hold: Callable[[str], "subprocess.Popen[str]"], home: Path, parent: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnnlm_core.outcomes import Epoch

    epochs = [Epoch(number, 3, 1.0 / number, None, 1e-3, 0.5, 1000.0, 0.1) for number in (1, 2, 3)]
    log = EpochLog(parent.parent_run_id)
    log.add(epochs[0])
    log.flush()
    with monkeypatch.context() as patch:
        patch.setattr(patience, "WAIT_SECONDS", 0.2)
        holder = hold(WRITING)
        log.add(epochs[1])
        with pytest.raises(ResourceError, match="is locked"):
            log.flush()
        holder.communicate()
    again = EpochLog(parent.parent_run_id)
    for epoch in epochs:  # a training that goes on tells all its epochs
        again.add(epoch)
    again.flush()
    losses = [row for row in metrics(home, parent.parent_run_id) if row[0] == "train/loss"]
    assert losses == [("train/loss", n, 1.0 / n) for n in (1, 2, 3)]


def test_a_run_that_cannot_be_closed_keeps_its_error_and_is_closed_later(
    hold: Callable[[str], "subprocess.Popen[str]"], home: Path, monkeypatch: pytest.MonkeyPatch, heard: list[News]
) -> None:
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match="boom"), tracking.parent_run("smoke", "text", {}, "flow-run-1") as flow:  # noqa: PT012 - the lock comes inside
        holder = hold(WRITING)
        raise RuntimeError("boom")
    holder.communicate()
    assert client().get_run(flow.parent_run_id).info.status == "RUNNING"
    (warning,) = [news.warning for news in heard if news.stage == "mlflow"]
    assert warning.startswith(f"run {flow.parent_run_id} stays open until the next start: the database is locked")


def test_a_run_whose_end_cannot_be_noted_is_not_finished(
    hold: Callable[[str], "subprocess.Popen[str]"], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.2)
    with (
        pytest.raises(ResourceError, match="is locked"),
        tracking.parent_run("smoke", "text", {}, "flow-run-1") as flow,
    ):
        holder = hold(WRITING)
    holder.communicate()
    assert client().get_run(flow.parent_run_id).info.status == "RUNNING"


def connect(path: Path, mode: str = "rwc") -> PatientConnection:
    database = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, factory=PatientConnection)
    assert isinstance(database, PatientConnection)
    return database


def test_what_is_broken_for_good_is_told_in_our_words_at_once(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    with closing(connect(path)) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("PRAGMA max_page_count = 3")  # a disk that is full at 12 kB
        with pytest.raises(ResourceError, match=r"no space left: .*some\.db"):
            database.cursor().executemany("INSERT INTO t VALUES (?)", [["x" * 1000]] * 100)
        database.rollback()
        assert database.execute("SELECT count(*) FROM t").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):  # no fault of the file
            database.execute("SELECT * FROM nobody")
    with closing(connect(path, "ro")) as database, pytest.raises(ResourceError, match=r"cannot be used: .*readonly"):
        database.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(ResourceError, match=r"cannot be used.*unable to open"):
        connect(tmp_path / "nowhere" / "some.db").execute("SELECT 1")
    path.write_bytes(path.read_bytes()[:4096])
    with (
        closing(connect(path)) as database,
        pytest.raises(IntegrityError, match=rf"not an MLflow database: {path} .*malformed"),
    ):
        database.execute("SELECT * FROM t")


@pytest.mark.parametrize("broken", [ResourceError("no space left", "here", "free some"), IntegrityError("bad")])
def test_our_errors_come_through_every_call_of_mlflow(
    parent: FlowRun, monkeypatch: pytest.MonkeyPatch, broken: RnnlmError, tmp_path: Path
) -> None:
    run = tracking._create("other", {}, {})

    def refuse(*_: object) -> None:
        raise broken

    calls: list[Callable[[], object]] = [
        lambda: tracking.log_metrics(run, {"a": 1.0}),
        lambda: tracking.set_tags(run, {"a": "b"}),
        lambda: tracking._create("third", {}, {}),
        lambda: client().set_terminated(run, "FINISHED"),
        lambda: tracked_runs.run_exists(run),
        lambda: tracked_runs.find_model_run("rnn"),
        lambda: tracked_models.model_files(f"runs:/{run}/model"),
        lambda: tracked_models.predict(f"models:/{'m-' + 32 * '0'}", ["a"]),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(patience, "patiently", refuse)
        for call in calls:
            with pytest.raises(type(broken)) as caught:
                call()
            assert caught.value is broken
