"""What can be wrong with what a project has made, and what can be mended without asking.

`verify` believes nothing and changes nothing. `repair` removes what nobody will miss: what is damaged is made again
by the next run, what a dead process left behind is ended in its name.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Crashed

from rnnlm_core.checkpoint import Checkpoints, pending, unlisted, unlisted_copies
from rnnlm_core.errors import IntegrityError
from rnnlm_core.store import MANIFEST, Handle, Store, folder_fault, sweep_files, write_atomically
from tasks import (  # noqa: F401 - every stage: a record can be read once the stage that wrote it is there
    caching,
    compare,
    corpus,
    download,
    dynamic_evaluation,
    evaluate,
    generate,
    measure_champion,
    patience,
    processes,
    relocation,
    statistics,
    text_shards,
    tokenize,
    tracked_registry,
    tracking,
    tracking_database,
    train,
    vocabulary,
    workspace,
)
from tasks.database_file import remove_drafts
from tasks.locking import KernelLocks

if TYPE_CHECKING:
    from rnnlm_core.remote import Remote


def verify(copies: bool = False) -> Iterator[str]:
    """Yield what is wrong with any artifact, checkpoint, record, logged model or database, one line each.

    With `copies` also with what lies in the store's remote: every byte of it is read.
    """
    store = workspace.store()
    for handle in store.handles():
        fault = store.fault(handle) or _page_fault(store.path(handle))
        if fault and store.path(handle).exists():  # a training under way removes old checkpoints
            yield f"artifact {handle} {fault}: {store.path(handle)}"
    if copies:
        yield from (f"copy of {handle} {fault}: {store.remote}" for handle, fault in _copy_faults(store))
    yield from _checkpoint_faults(store)
    databases = [path for path in (tracking_database.local_database(), _prefect_database()) if path is not None]
    if workspace.sweeps_database().exists():
        databases.append(workspace.sweeps_database())
    damaged = [fault for path in databases for fault in _database_faults(path)]
    yield from damaged
    move = None if damaged else relocation.find_move()
    if move is not None:
        yield "; ".join(move.error().lines)
    elif not damaged:  # what the records name is looked up there
        yield from (f"record {record.name}: {fault}" for record, fault in _record_faults())
        yield from tracked_registry.faults()
    for folder in _logged_models():
        if fault := folder_fault(folder, folder.name):
            yield f"model logged in MLflow {fault}: {folder}"


def repair(copies: bool = False) -> Iterator[str]:
    """Mend what can be mended, and yield what was done, one line each. Safe while other runs are under way.

    With `copies` also what is damaged in the store's remote.
    """
    store = workspace.store()
    yield from tidy()
    if store.remote is not None:
        yield from _tidy_remote(store.remote)
    for handle in store.handles():
        if store.fault(handle) and (fault := store.remove_damaged(handle)):
            yield f"removed artifact {handle}, which {fault}: the next run makes it again"
    if copies and store.remote is not None:
        for handle, fault in _copy_faults(store):
            store.remote.withdraw(handle)
            if store.fault(handle):
                yield f"withdrew the copy of {handle} in {store.remote}, which {fault}: who makes it again uploads it"
            else:
                store.remote.upload(handle, store.path(handle))
                yield f"replaced the copy of {handle} in {store.remote}, which {fault}, by the one here"
    for folder in _logged_models():
        fault = folder_fault(folder, folder.name)
        if fault and not store.fault(Handle("model", folder.name)):
            _restore(store.path(Handle("model", folder.name)), folder)
            yield f"replaced the model in MLflow, which {fault}, by the one in the store: {folder}"
    for record, fault in _record_faults():
        record.unlink(missing_ok=True)
        yield f"removed record {record.name}: {fault}"


def _copy_faults(store: Store) -> Iterator[tuple[Handle, str]]:
    """Yield each artifact of the remote that is not whole, and what is wrong with it."""
    assert store.remote is not None
    for handle in store.remote.handles():
        if (fault := store.fault_of_copy(handle)) and fault != "is missing":  # removed meanwhile
            yield handle, fault


def _tidy_remote(remote: "Remote") -> Iterator[str]:
    """Remove from a remote what nobody can be at work on, a day after."""
    for name in remote.sweep():
        yield f"removed what an upload left unfinished: {remote}/{name}"
    for handle in unlisted_copies(remote):
        if remote.is_forgotten(f"{handle.kind}/{handle.sha256}/{MANIFEST}"):
            remote.discard(handle)
            yield f"removed {handle} in {remote}, which no list names"


def tidy() -> Iterator[str]:
    """Do the part of `repair` that takes little time: what every flow does when it starts."""
    store = workspace.store()
    left = [*store.sweep(), *sweep_files(workspace.reports())]
    left += [*tracking_database.sweep_drafts(), *remove_drafts(workspace.sweeps_database())]
    for path in left:
        yield f"removed what a process that is gone left unfinished: {path}"
    clear_checkpoints()
    dead = tracking.close_dead_runs()
    for run in dead:
        yield f"closed MLflow run {run.run_id}, whose process is gone"
    flow_runs = {run.tags["prefect.flow_run_id"] for run in dead if run.tags.get("prefect.flow_run_id")}
    for flow_run_id in sorted(flow_runs | set(_dead_flow_runs())):
        if _crash(flow_run_id):
            yield f"closed Prefect flow run {flow_run_id}, whose process is gone"


def clear_checkpoints() -> None:
    """Remove the checkpoints of the trainings whose result is on record, and those that belong to no list."""
    store, locks = workspace.store(), KernelLocks()
    for key in pending(store):
        record = _records() / key
        with locks.if_free(key) as free:  # not under way
            # A record that does not count, half of one, protects nothing from being done again.
            if free and record.exists() and not caching.record_fault(record):
                Checkpoints(store, key).clear()
    for key, checkpoint in list(unlisted(store)):
        with locks.if_free(key) as free:  # otherwise it is about to be listed
            if free:
                store.remove(checkpoint)


def _dead_flow_runs() -> Iterator[str]:
    """Yield the flow runs that Prefect believes under way though their process is gone."""
    open_states = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    under_way = FlowRunFilter(state=FlowRunFilterState(type=open_states))
    with get_client(sync_client=True) as api:
        runs: list[FlowRun] = []
        while page := api.read_flow_runs(flow_run_filter=under_way, sort=FlowRunSort.ID_DESC, offset=len(runs)):
            runs += page
    for run in runs:
        if processes.has_ended(run.tags):
            yield str(run.id)


def _crash(flow_run_id: str) -> bool:
    """Tell Prefect that a flow run is over; False if it knows that, or does not know the run."""
    with get_client(sync_client=True) as api:
        try:
            run = api.read_flow_run(flow_run_id)
        except ObjectNotFound:  # another server's
            return False
        if run.state is None or run.state.is_final():
            return False
        api.set_flow_run_state(run.id, Crashed(message="Its process ended without a word."), force=True)
        return True


def _logged_models() -> list[Path]:
    """Return the folders in MLflow that are called by the digest of a model of ours."""
    found = (workspace.artifacts() / "mlflow").rglob("*")
    return sorted(path for path in found if re.fullmatch("[0-9a-f]{64}", path.name) and path.is_dir())


def _restore(whole: Path, damaged: Path) -> None:
    """Make a folder the copy of another, file by file: a kill leaves it as damaged as it was, in its place."""
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    for path in [path for path in damaged.rglob("*") if not path.is_dir()]:
        if path.relative_to(damaged) not in names:
            path.unlink()
    for name in names:
        write_atomically(damaged / name, (whole / name).read_bytes())


def _records() -> Path:
    return Path(get_current_settings().results.local_storage_path)


def _record_faults() -> Iterator[tuple[Path, str]]:
    """Yield each record of a result that no longer counts, and why."""
    locks = KernelLocks()
    for record in sorted(path for path in _records().glob("*") if path.is_file()):
        with locks.if_free(record.name) as free:  # otherwise another run is writing it
            if free and (fault := caching.record_fault(record)):
                yield record, fault


def _page_fault(folder: Path) -> str:
    """Read every page of every parquet file, checksums on; return what is wrong."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            return f"has an unreadable {path.name} ({error})"
    return ""


def _checkpoint_faults(store: Store) -> Iterator[str]:
    for key in pending(store):
        faults: list[str] = []
        for digest in Checkpoints(store, key).digests(faults):
            if store.loss(Handle("checkpoint", digest)) == "is missing":  # damage was told with the artifacts
                faults.append(f"checkpoint {digest[:12]} of {key} is missing")
        yield from faults


def _prefect_database() -> Path | None:
    """Return the place of Prefect's own database, if it keeps one here."""
    path = get_current_settings().home / "prefect.db"
    return path if path.exists() else None


def _database_faults(path: Path) -> Iterator[str]:
    if not path.stat().st_size:
        yield f"database {path} is empty: restore it, or move it away to start anew"
        return
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":  # SQLite takes a file of a few bytes for an empty database
            yield f"database {path} is damaged (no SQLite file): restore it, or move it away to start anew"
            return
    try:
        # Not read-only: what a kill left half written is taken back by the first to open it.
        address = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, factory=patience.PatientConnection)) as database:
            found = [row[0] for row in database.execute("PRAGMA integrity_check(3)")]
    except (IntegrityError, sqlite3.DatabaseError) as error:
        found = [str(error)]
    if found != ["ok"]:
        yield f"database {path} is damaged ({'; '.join(found)}): restore it, or move it away to start anew"
