"""The database is created whole or not at all, and what is none is named and kept."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rnnlm_core.errors import IntegrityError, UsageError
from tasks import tracked_runs, tracking
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
