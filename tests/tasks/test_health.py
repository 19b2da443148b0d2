"""`verify` finds whatever is wrong, `repair` mends what the next run makes again."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rnnlm_core import store as store_module
from rnnlm_core.checkpoint import Checkpoints, Snapshot, pending
from rnnlm_core.errors import ResourceError
from rnnlm_core.saved_model import WEIGHTS
from rnnlm_core.store import Handle
from tasks import caching, health, patience, tracked_models, tracking, workspace
from tasks.caching import VerifiedSerializer
from tasks.locking import KernelLocks
from tasks.stopping import stop_requested
from tasks.tracking_database import client
from tasks.train import TrackedTraining


@pytest.fixture(autouse=True)
def _no_server(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no Prefect server here: what is asked of one is tested beside the flows.

    A flow that failed before leaves its wish to stop.
    """
    stop_requested.clear()
    monkeypatch.setattr(health, "_dead_flow_runs", list)


@pytest.fixture
def trained(train_cell: Callable[..., TrackedTraining], parent: tracking.FlowRun) -> TrackedTraining:
    """A trained cell, with a record as Prefect writes it."""
    done = train_cell("rnn", parent)
    metadata = {"serializer": {"type": caching.READER}, "storage_key": "x"}
    record = {"metadata": metadata, "result": VerifiedSerializer().dumps(done).decode()}
    (workspace.artifacts() / "results" / "train-abc").write_text(json.dumps(record))
    return done


def flip(path: Path, bit: int = 77) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def model_in_mlflow(home: Path) -> Path:
    (manifest,) = (home / "artifacts" / "mlflow").rglob("manifest.json")
    return manifest.parent


def test_a_project_that_is_whole_has_no_faults(trained: TrackedTraining) -> None:
    assert list(health.verify()) == []
    assert list(health.repair()) == []


def test_a_project_without_anything_has_no_faults(bare_home: Path) -> None:
    assert list(health.verify()) == []
    assert not (bare_home / "mlflow.db").exists()


@pytest.mark.parametrize("kind", ["text", "tokens", "vocabulary", "corpus", "ids", "model"])
def test_a_flipped_bit_of_any_artifact_is_found_and_the_artifact_removed(kind: str, trained: TrackedTraining) -> None:
    handle = next(workspace.store().handles(kind))  # of `ids`, one a split
    path = next(p for p in sorted(workspace.store().path(handle).iterdir()) if p.name != "manifest.json")
    flip(path)
    faults = list(health.verify())
    assert faults[0].startswith(f"artifact {handle} has a damaged {path.name}: ")
    assert any("train-abc" in fault for fault in faults) == (kind == "model")
    done = list(health.repair())
    assert done[0] == f"removed artifact {handle}, which has a damaged {path.name}: the next run makes it again"
    assert not workspace.store().path(handle).exists()
    assert list(health.verify()) == []


def test_a_run_that_is_gone_is_missed_by_its_record(trained: TrackedTraining) -> None:
    client().delete_run(trained.run_id)
    (fault,) = health.verify()
    assert fault == f"record train-abc: MLflow run {trained.run_id} is gone"
    assert list(health.repair()) == [f"removed record train-abc: MLflow run {trained.run_id} is gone"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04", b'{"metadata": {"serializer": {"type": "pickle"}}}'])
def test_a_record_that_is_none_is_found(content: bytes, home: Path) -> None:
    record = workspace.artifacts() / "results" / "train-abc"
    record.write_bytes(content)
    (fault,) = health.verify()
    assert fault.startswith("record train-abc: ")
    assert len(list(health.repair())) == 1
    assert not record.exists()


def test_a_model_that_changed_in_mlflow_is_found_and_not_loaded(trained: TrackedTraining, home: Path) -> None:
    folder = model_in_mlflow(home)
    flip(folder / WEIGHTS, 9999)
    (fault,) = health.verify()
    assert fault == f"model logged in MLflow has a damaged {WEIGHTS}: {folder}"
    uri = client().get_run(trained.run_id).data.tags["rnnlm.model_uri"]
    with pytest.raises(Exception, match=f"the model has a damaged {WEIGHTS}"):
        tracked_models.predict(uri, ["the "], length=3)
    (done,) = health.repair()
    assert done.startswith(f"replaced the model in MLflow, which has a damaged {WEIGHTS}, by the one in the store")
    assert list(health.verify()) == []
    assert tracked_models.predict(uri, ["the "], length=3)[0].startswith("the ")


def test_a_model_in_mlflow_that_lost_its_manifest_is_found(trained: TrackedTraining, home: Path) -> None:
    (model_in_mlflow(home) / "manifest.json").unlink()
    (fault,) = health.verify()
    assert fault.startswith("model logged in MLflow is missing: ")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "is empty"), (b"SQLite format 3\0" + b"\xff" * 4096, "is damaged"), (b"x", "is damaged")],
)
def test_a_database_that_is_none_is_found_and_left_as_it_is(content: bytes, told: str, bare_home: Path) -> None:
    path = bare_home / "mlflow.db"
    path.write_bytes(content)
    (fault,) = health.verify()
    assert fault.startswith(f"database {path} {told}")
    assert path.read_bytes() == content


def checkpoints(key: str) -> Checkpoints:
    import torch

    found = Checkpoints(workspace.store(), key)
    for number in (1, 2):
        found.save(Snapshot({"x": torch.full((3,), float(number))}, {"number": number}))
    return found


def test_the_checkpoints_of_a_training_on_record_are_cleared_and_others_kept(trained: TrackedTraining) -> None:
    checkpoints("train-abc")
    checkpoints("train-def")
    health.clear_checkpoints()
    assert [key for key in pending(workspace.store()) if key.endswith(("abc", "def"))] == ["train-def"]
    kept, faults = Checkpoints(workspace.store(), "train-def").load()
    assert kept is not None
    assert faults == []


def test_checkpoints_on_no_list_are_removed_unless_their_training_is_under_way(home: Path) -> None:
    for key in ("train-abc", "train-def"):
        checkpoints(key)
        Checkpoints(workspace.store(), key).pointer.unlink()
    assert len(list(workspace.store().handles("checkpoint"))) == 4
    locks = KernelLocks()
    locks.acquire_lock("train-def", "me")
    health.clear_checkpoints()
    left = [workspace.store().path(handle) / "state.json" for handle in workspace.store().handles("checkpoint")]
    assert [json.loads(path.read_text())["key"] for path in left] == ["train-def"] * 2
    locks.release_lock("train-def", "me")
    health.clear_checkpoints()
    assert list(workspace.store().handles("checkpoint")) == []


def test_a_record_that_does_not_count_takes_no_checkpoint_away(home: Path) -> None:
    checkpoints("train-abc")
    (workspace.artifacts() / "results").mkdir(parents=True, exist_ok=True)
    (workspace.artifacts() / "results" / "train-abc").write_text('{"metadata": {"storage')
    health.clear_checkpoints()
    assert len(Checkpoints(workspace.store(), "train-abc").digests()) == 2


def test_an_artifact_that_is_no_checkpoint_and_on_no_list_is_removed(home: Path) -> None:
    with workspace.store().draft("checkpoint") as draft:
        (draft.folder / "state.json").write_text("[1]")
        draft.publish()
    health.clear_checkpoints()
    assert list(workspace.store().handles("checkpoint")) == []


def test_a_database_that_is_locked_is_waited_for_and_not_called_damaged(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.3)
    with closing(sqlite3.connect(home / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ResourceError, match="the database is locked"):
            list(health.verify())


def test_a_checkpoint_that_is_missing_or_damaged_is_found(home: Path) -> None:
    newest, older = checkpoints("train-def").digests()
    shutil.rmtree(workspace.store().path(Handle("checkpoint", newest)))
    flip(workspace.store().path(Handle("checkpoint", older)) / "state.json")
    faults = list(health.verify())
    assert f"checkpoint {newest[:12]} of train-def is missing" in faults
    assert any(fault.startswith(f"artifact checkpoint:{older[:12]} has a damaged state.json") for fault in faults)


def test_what_a_dead_process_left_is_swept_and_what_a_live_one_writes_is_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ABANDONED_SECONDS", 0.0)
    store = workspace.store()
    left = store.root / "text" / ".draft-left"
    left.mkdir(parents=True)
    (left / "half.txt").write_text("half")
    half = store.root / "checkpoint" / ".key.json.abc.tmp"
    half.parent.mkdir()
    half.write_text("[")
    with store.draft("text") as draft:
        time.sleep(0.01)
        done = list(health.tidy())
        assert draft.folder.exists()
    assert sorted(done) == sorted(f"removed what a process that is gone left unfinished: {p}" for p in (left, half))
    assert not left.exists()
    assert not half.exists()


def test_a_run_of_a_dead_process_is_closed(home: Path) -> None:
    dead = {"rnnlm.pid": "999999999", "rnnlm.started": "1.00"}
    run_id = tracking._create("left behind", dead, {})
    assert list(health.tidy()) == [f"closed MLflow run {run_id}, whose process is gone"]
    assert client().get_run(run_id).info.status == "KILLED"
    assert list(health.tidy()) == []
    assert os.getpid() != 999999999


def test_the_records_of_every_stage_can_be_read() -> None:
    """A record names the class it holds, which is known once the stage that wrote it is imported."""
    folder = Path(health.__file__).parent
    stages = [path.stem for path in folder.glob("*.py") if "\n@stage(" in path.read_text(encoding="utf-8")]
    assert len(stages) >= 10
    program = "import sys; import tasks.health; print(*[name for name in sys.modules if name.startswith('tasks.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {f"tasks.{stage}" for stage in stages} - set(done.stdout.split()) == set()


def test_reading_the_records_of_every_stage_needs_no_pytorch() -> None:
    """A run with everything cached begins seconds earlier without it."""
    program = "import sys; import flows.language_model; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
