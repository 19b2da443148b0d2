"""Cells trained by workers: each is a flow run of its own, and the run that asked for them joins them."""

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from homes import COMMAND
from stack import TINY, Stack, invented_text, stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUICK = [f"{key}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers on one server, each with room for one run."""
    with stack(tmp_path_factory.mktemp("up")) as one:
        (one.home / "text.txt").write_text(invented_text(0))
        one.start("--runs", "1")
        worker = [str(Path(COMMAND[0]).with_name("prefect")), "worker", "start", "--pool", "rnnlm", "--type", "process"]
        results = {"PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(one.home / "artifacts" / "results")}
        environment = one.environment | results | {"PREFECT_API_URL": one.api}
        with (one.home / "second.txt").open("wb") as out:
            second = subprocess.Popen(
                [*worker, "--name", "second", "--limit", "1"],
                env=environment, cwd=one.home, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                yield one
            finally:
                second.terminate()
                second.wait(timeout=60)


def run(up: Stack, *options: str) -> "subprocess.CompletedProcess[str]":
    settings = [part for one in QUICK for part in ("--set", one)]
    corpus = str(up.home / "text.txt")
    return up.run("rnnlm", "run", "--preset", "smoke", "--corpus", corpus, "--on-workers", *settings, *options)


def when(run: dict[str, Any]) -> tuple[datetime, datetime]:
    return datetime.fromisoformat(run["start_time"]), datetime.fromisoformat(run["end_time"])


def test_two_workers_train_two_cells_at_the_same_time_and_the_run_joins_them(up: Stack) -> None:
    file = up.home / "out.json"
    done = run(up, "--cells", "gru,lstm", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = up.runs("train-cell")
    assert {one["name"] for one in (first, second)} == {"train gru", "train lstm"}
    assert [one["state_type"] for one in (first, second)] == ["COMPLETED", "COMPLETED"]
    assert max(when(first)[0], when(second)[0]) < min(when(first)[1], when(second)[1])
    summary = json.loads(file.read_text())
    assert set(summary["cells"]) == {"gru", "lstm"}
    children = [one for one in up.tagged("rnnlm.corpus", "text.txt") if one["rnnlm.kind"] == "cell"]
    assert len(children) == 2
    assert {one["mlflow.parentRunId"] for one in children} == {summary["parent_run_id"]}
    assert {one["status"] for one in children} == {"FINISHED"}
    again = run(up, "--cells", "gru,lstm")
    assert "nothing to do: all" in again.stdout, again.stdout + again.stderr
    assert len(up.runs("train-cell")) == 2


def test_the_failure_of_a_worker_s_training_is_told_and_the_other_cell_is_done(up: Stack) -> None:
    done = run(up, "--cells", "rnn,gru", "--set", "train.optimizer=sgd", "--set", "train.learning_rate=1e6",
               "--set", "train.clip_norm=0")  # fmt: skip
    assert done.returncode != 0
    assert "training gru on a worker ended as Failed" in done.stderr
    assert up.stuck() == []


def test_without_the_deployment_it_is_one_line(up: Stack) -> None:
    assert up.run("prefect", "--no-prompt", "deployment", "delete", "train-cell/train-cell").returncode == 0
    done = run(up, "--cells", "rnn", "--set", "train.seed=5")
    assert done.returncode in {5, 7}
    assert "nobody can train on a worker: no such deployment: train-cell/train-cell: start `rnnlm up`" in done.stderr
