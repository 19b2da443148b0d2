"""A home and what must be true of it after any fault: a checker that shares no code with what it checks."""

import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

import flows.cli

PROJECT = Path(flows.cli.__file__).parents[1]
COMMAND = [sys.executable, "-c", "import sys; from flows.cli import main; sys.argv[0] = 'rnnlm'; main()"]
EPOCHS = 4
SMALL = [
    "run", "--preset", "smoke", "--set", "model.hidden_size=16", "--set", "corpus.max_tokens=20000",
    "--set", f"train.epochs={EPOCHS}", "--set", "train.device=cpu",
]  # fmt: skip


def places(home: Path) -> dict[str, str]:
    """Return the environment of a command that works in this home and saves its place often."""
    return {
        "RNNLM_HOME": str(home),
        "RNNLM_CHECKPOINT_SECONDS": "0.3",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "artifacts" / "results"),
        "PYTHONPATH": str(PROJECT),
    }


def without_settings() -> dict[str, str]:
    """Return this process's environment without the settings of rnnlm, MLflow and Prefect."""
    ours = ("RNNLM_", "MLFLOW_", "PREFECT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def wait_until_alone(home: Path) -> None:
    """Wait until no process lives that works for this home: what a killed command started ends by itself."""
    deadline = time.monotonic() + 120
    while alive := [process.cmdline() for process in processes_of(home)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def trainings_of(home: Path) -> list[psutil.Process]:
    """Return the processes that train in this home."""
    return [process for process in processes_of(home) if "rnnlm_core.train_process" in process.cmdline()]


def ranks_of(home: Path) -> list[psutil.Process]:
    """Return the processes that train together in this home."""
    return [process for process in processes_of(home) if "rnnlm_core.rank_process" in process.cmdline()]


def processes_of(home: Path) -> Iterator[psutil.Process]:
    """Yield the processes whose environment names this home."""
    for process in psutil.process_iter():
        try:
            arguments = process.cmdline()
            if (
                process.environ().get("RNNLM_HOME") == str(home)
                and process.status() != psutil.STATUS_ZOMBIE
                and arguments
            ):
                yield process
        except psutil.Error:  # it ended meanwhile
            continue


def store_of(home: Path) -> Path:
    return home / "artifacts" / "store"


def artifacts(home: Path) -> dict[str, Path]:
    """Return the folder of each artifact by its kind and digest.

    Equal runs have equal ones, but for the comparison, which holds tokens per second.
    """
    folders = [path for path in store_of(home).glob("*/*") if path.is_dir() and not path.name.startswith(".")]
    return {f"{path.parent.name}:{path.name}": path for path in folders if path.parent.name != "comparison"}


def is_whole(folder: Path) -> bool:
    """Whether an artifact is what its name says, and each of its files what its manifest says."""
    try:
        manifest = (folder / "manifest.json").read_bytes()
        files = json.loads(manifest)["files"]
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return (
            hashlib.sha256(manifest).hexdigest() == folder.name
            and there == {*files, "manifest.json"}
            and all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == files[name]["sha256"] for name in files)
        )
    except (OSError, ValueError, KeyError):
        return False


def unfinished(home: Path) -> list[Path]:
    """Return the drafts and temporary files that lie in a home."""
    return [
        path for path in home.rglob("*")
        if "prefect" not in path.parts and (path.name.startswith(".draft-") or path.name.endswith(".tmp"))
    ]  # fmt: skip


def let_time_pass(home: Path) -> None:
    """Make what lies unfinished look old, as it would be when somebody comes back to it."""
    for path in unfinished(home):
        os.utime(path, (time.time() - 600,) * 2)


def rows(database: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    # Not read-only: the first to open it after a kill takes back what was half written.
    with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=60)) as connection:
        return connection.execute(query, values).fetchall()


def stages_that_count(home: Path) -> set[str]:
    """Return the stages that a next run need not do: their record is there, and all that it names."""
    runs: set[str] = set()
    if (home / "mlflow.db").exists():
        active = "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'"
        with tempfile.TemporaryDirectory() as folder:  # what is half written is for the next command to take back
            for path in home.glob("mlflow.db*"):
                shutil.copy(path, folder)
            runs = {run for (run,) in rows(Path(folder) / "mlflow.db", active)}
    stages = set()
    for record in (home / "artifacts" / "results").glob("*-*"):
        try:
            named = list(_named(json.loads(json.loads(record.read_bytes())["result"])["value"]))
        except (ValueError, KeyError):  # damaged, or the record of a failure
            continue
        folders = [store_of(home) / kind / name for kind, name in named if kind != "run"]
        if all(map(is_whole, folders)) and all(name in runs for kind, name in named if kind == "run"):
            stages.add(record.name.partition("-")[0])
    # What is compared are runs: new ones are compared anew.
    return stages if "train" in stages else stages - {"compare"}


def _named(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if value.keys() == {"kind", "sha256"}:
            yield value["kind"], value["sha256"]
        for key, part in value.items():
            if key == "run_id":
                yield "run", part
            yield from _named(part)
    elif isinstance(value, list):
        for part in value:
            yield from _named(part)


def what_is_wrong(home: Path, prefect: Path) -> Iterator[str]:
    """Yield each invariant that does not hold once the same command has been run to its end."""
    yield from (f"{name} is not whole" for name, folder in artifacts(home).items() if not is_whole(folder))
    yield from (f"unfinished: {path}" for path in unfinished(home))
    for database in (home / "mlflow.db", prefect):
        if (found := rows(database, "PRAGMA integrity_check")) != [("ok",)]:
            yield f"{database} is damaged: {found}"
    # A deleted run is out of everybody's reach and sight.
    open_runs = "SELECT run_uuid, name FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
    yield from (f"MLflow run is open: {row}" for row in rows(home / "mlflow.db", open_runs))
    models = "SELECT model_id, status FROM logged_models WHERE status != 2 AND lifecycle_stage = 'active'"
    yield from (f"logged model is not ready: {row}" for row in rows(home / "mlflow.db", models))
    open_flows = "SELECT id, name, state_type FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING', 'CANCELLING')"
    yield from (f"Prefect flow run is open: {row}" for row in rows(prefect, open_flows))
    finished = (
        "SELECT run_uuid FROM runs WHERE status = 'FINISHED' AND name NOT LIKE 'smoke%' AND lifecycle_stage = 'active'"
    )
    for (run,) in rows(home / "mlflow.db", finished):
        for metric in ("train/loss", "valid/loss", "optim/learning_rate"):
            steps = rows(
                home / "mlflow.db", "SELECT step FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step", run, metric
            )
            if steps != [(step,) for step in range(1, EPOCHS + 1)]:
                yield f"run {run} has {metric} at {steps}"
    if not rows(home / "mlflow.db", finished):
        yield "no finished run of a cell"
    yield from _registry_faults(home / "mlflow.db")


def _registry_faults(database: Path) -> Iterator[str]:
    """Each logged model is one version, each version has a verdict, and each registered model a champion."""
    versions = rows(
        database, "SELECT name, version, source FROM model_versions WHERE current_stage != 'Deleted_Internal'"
    )
    if not versions:
        yield "no version of a model"
    if len({(name, source) for name, _, source in versions}) != len(versions):
        yield f"a logged model has several versions: {versions}"
    verdicts = ("rnnlm.promoted_because", "rnnlm.not_promoted")
    told = rows(database, "SELECT name, version FROM model_version_tags WHERE key IN (?, ?)", *verdicts)
    yield from (
        f"no verdict on version {version} of {name}" for name, version, _ in versions if (name, version) not in told
    )
    champions = rows(database, "SELECT name, version FROM registered_model_aliases WHERE alias = 'champion'")
    if {name for name, _ in champions} != {name for name, _, _ in versions}:
        yield f"champions are {champions} of {versions}"
    for name, version in champions:
        moves = rows(
            database,
            "SELECT value FROM registered_model_tags WHERE name = ? AND key LIKE 'rnnlm.move.%' ORDER BY key",
            name,
        )
        if not moves or not moves[-1][0].startswith(f"version {version}, "):
            yield f"version {version} is the champion of {name}, and the moves end with {moves[-1:]}"
