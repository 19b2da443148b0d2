"""The database is created whole or not at all, and what is none is named and kept."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from rnnlm_core.errors import IntegrityError, ResourceError, UsageError
from tasks import health, tracked_runs, tracking, tracking_database
from tasks.tracking_database import client, experiment_id


@pytest.mark.parametrize("content", [b"", b"not a database at all", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_named_and_kept(bare_home: Path, content: bytes) -> None:
    path = bare_home / "mlflow.db"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not an MLflow database") as caught:
        client()
    assert str(path) in str(caught.value)
    assert "restore it, or move it away to start anew" in str(caught.value)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(bare_home: Path) -> None:
    path = bare_home / "mlflow.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE other (x)")
    database.commit()
    database.close()
    with pytest.raises(IntegrityError, match="no such table: experiments"):
        client()


@pytest.fixture
def fresh() -> Iterator[None]:
    """No database was checked yet."""
    tracking_database._check_database.cache_clear()
    yield
    tracking_database._check_database.cache_clear()


def spoil_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_a_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xa5" * 4096
    path.write_bytes(content)


def set_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()


def drop_a_table_of_another_version(path: Path) -> None:
    set_version(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE latest_metrics")
        database.commit()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_half, "not an MLflow database"),
        (spoil_a_page, "not an MLflow database"),
        (set_version, "an MLflow database of another version"),
        (drop_a_table_of_another_version, "an MLflow database of another version"),
    ],
)
def test_a_damaged_or_foreign_database_is_named_and_kept_as_it_is(
    home: Path, fresh: None, spoil: Callable[[Path], None], told: str
) -> None:
    path = home / "mlflow.db"
    spoil(path)
    content = path.read_bytes()
    with pytest.raises(IntegrityError, match=f"{told}: {path}") as caught:
        client()
    assert caught.value.exit_code == 4
    assert "move it away to start anew" in str(caught.value)
    assert path.read_bytes() == content
    assert [entry.name for entry in home.iterdir() if entry.name.startswith(("mlflow.db", ".mlflow"))] == ["mlflow.db"]


DIE = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")
rows = [(str(number), "x" * 900) for number in range(99)]
database.executemany("INSERT INTO experiment_tags VALUES (?, ?, 0)", rows)
os._exit(9)
"""


def die_in_a_transaction(path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", DIE, str(path)], check=False).returncode == 9
    assert path.with_name("mlflow.db-journal").stat().st_size > 0  # what SQLite needs to take it back


def test_a_database_whose_writer_was_killed_in_the_middle_is_taken_back_and_used(home: Path, fresh: None) -> None:
    path = home / "mlflow.db"
    die_in_a_transaction(path)
    assert list(health.verify()) == []
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM experiment_tags").fetchone() == (0,)


def test_the_first_to_open_a_database_after_a_kill_may_be_us(home: Path, fresh: None) -> None:
    path = home / "mlflow.db"
    die_in_a_transaction(path)
    assert client().search_runs([experiment_id()]) == []


LEFT = (".mlflow.db.1.tmp", ".mlflow.db.1.tmp-journal", ".mlflow.db.2.tmp-wal")


def test_drafts_of_a_killed_process_are_swept_unless_somebody_creates_a_database_now(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [home / ".mlflow.db.backup", home / ".other.db.1.tmp"]
    for path in [*(home / name for name in LEFT), *others]:
        path.write_bytes(b"half")
    with FileLock(home / "mlflow.db.lock"):
        assert tracking_database.sweep_drafts() == []
        assert (home / LEFT[0]).exists()
    said = list(health.tidy())
    assert said == [f"removed what a process that is gone left unfinished: {home / name}" for name in LEFT]
    assert [path.exists() for path in others] == [True, True]
    assert list(health.tidy()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://somewhere/else")
    assert tracking_database.sweep_drafts() == []


def test_a_draft_left_by_a_process_of_the_same_number_is_not_built_on(bare_home: Path) -> None:
    for end in ("", "-journal", "-wal"):
        (bare_home / f".mlflow.db.{os.getpid()}.tmp{end}").write_bytes(b"left behind" * 1000)
    assert client().search_runs([experiment_id()]) == []
    assert list(bare_home.glob(".mlflow.db*")) == []


def test_two_processes_that_create_the_database_at_once_both_have_it(bare_home: Path) -> None:
    ask = (
        "from tasks import workspace; workspace.prepare_environment(); from tasks import tracking, tracking_database;"
        "print(tracking_database.experiment_id()); tracking._create('mine', {}, {})"
    )
    project = Path(tracking.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    both = [
        subprocess.Popen([sys.executable, "-c", ask], env=environment, text=True, cwd=bare_home,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0] != ""
    experiment = experiment_id()
    assert len(client().search_runs([experiment])) == 2
    assert [path.name for path in bare_home.glob(".mlflow.db*")] == []


def test_an_address_without_scheme_is_refused(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns/mine.db")
    with pytest.raises(UsageError, match=r"`MLFLOW_TRACKING_URI` must be an address .*: mlruns/mine.db: correct"):
        client()
    assert list(bare_home.rglob("*.db")) == []


def test_another_tracking_address_is_used_as_it_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mlflow.db").rename(tmp_path / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    with tracking.parent_run("smoke", "text", {}, "flow-run-1") as flow:
        assert tracked_runs.run_exists(flow.parent_run_id)
    assert not (home / "mlflow.db").exists()


def test_a_missing_driver_is_named_with_what_installs_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://rnnlm:secret@127.0.0.1:9/runs")
    with pytest.raises(ResourceError, match=r"no driver for this database: .*psycopg2") as caught:
        client()
    assert "`pip install '.[postgresql]'`" in str(caught.value)
    assert "secret" not in str(caught.value)
