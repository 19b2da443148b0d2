"""The `rnnlm` command as people run it: real processes in a fresh home."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from homes import COMMAND, PROJECT, processes_of, ranks_of, wait_until_alone, without_settings
from mlflow import MlflowClient

from rnnlm_core.checkpoint import Checkpoints, pending
from rnnlm_core.store import Store

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = [
    "--preset", "smoke", "--cells", "rnn",
    "--set", "model.hidden_size=16", "--set", "corpus.max_tokens=8000", "--set", "train.device=cpu",
]  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    return {
        **without_settings(),
        "RNNLM_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PYTHONPATH": str(PROJECT),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh home, shared by the commands of this file in their order."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the commands are run in: neither the project nor the home."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def rnnlm(home: Path, elsewhere: Path) -> Command:
    """Return a function that runs the command and waits for it."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=environment(home), cwd=elsewhere, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def first(rnnlm: Command, home: Path) -> dict[str, Any]:
    """What the first run wrote."""
    done = rnnlm("run", *SMALL, "--json", home / "first.json")
    assert done.returncode == 0, done.stderr
    written: dict[str, Any] = json.loads((home / "first.json").read_text())
    return {**written, "stdout": done.stdout, "stderr": done.stderr}


def statuses(client: MlflowClient) -> set[str]:
    """Return how the tracked runs ended."""
    experiment = client.get_experiment_by_name("rnnlm")
    assert experiment is not None
    return {run.info.status for run in client.search_runs([experiment.experiment_id])}


def test_a_first_run_does_everything_and_leaves_no_process(first: dict[str, Any], home: Path) -> None:
    assert first["tasks"] == {"executed": 9, "cached": 0}
    assert first["best_cell"] == "rnn"
    assert "starting Prefect's own server" in first["stderr"].splitlines()[0]
    assert "train rnn      epoch 2/2" in first["stderr"]
    assert "9 stages done, 0 cached" in first["stdout"]
    assert f"\nread the report:            {first['report']}\n" in first["stdout"]
    assert Path(first["report"]).parent == home / "artifacts" / "reports"
    assert (home / "mlflow.db").exists()
    assert list(processes_of(home)) == []


def test_evaluating_gives_the_tracked_figures(first: dict[str, Any], rnnlm: Command, tmp_path: Path) -> None:
    done = rnnlm("evaluate", "--model", "rnn", "--corpus", "python-docs", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["perplexity"] == first["cells"]["rnn"]["test_perplexity"]
    assert figures["bits_per_char"] == first["cells"]["rnn"]["bits_per_char"]
    assert f"perplexity          {figures['perplexity']:.4f}" in done.stdout
    refused = rnnlm("evaluate", "--model", "rnn", "--corpus", "python-docs", "--split", "tset")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: unknown split: tset: did you mean test? (known: train, valid, test, all)\n",
    )
    three = tmp_path / "three"
    three.mkdir()
    for name in ("train", "valid", "test"):
        (three / f"{name}.txt").write_text(f"the {name} text " * 40)
    refused = rnnlm("evaluate", "--model", "rnn", "--corpus", three, "--split", "all")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: a text in three files has no `all`: three: use train, valid or test\n",
    )
    assert rnnlm("evaluate", "--model", "rnn", "--corpus", three).stdout.startswith(
        "rnn of python-docs on three (test of given, 560 "
    )
    other = tmp_path / "other.txt"
    other.write_text("Ünlike the text: " * 40)
    asked = rnnlm("evaluate", "--model", "rnn", "--corpus", other, "--split", "all")
    assert "of the tokens are not in the model's vocabulary: each counts as <unk>" in asked.stderr
    assert asked.stdout.startswith("rnn of python-docs on other.txt (all of it, 680 characters)\n")


def test_nothing_is_written_outside_the_home(first: dict[str, Any], home: Path, elsewhere: Path) -> None:
    assert list(elsewhere.iterdir()) == []
    made = {path.name for path in home.iterdir()}
    assert made <= {
        "mlflow.db",
        "mlflow.db.lock",
        "mlflow.db-wal",
        "mlflow.db-shm",
        "artifacts",
        "prefect",
        "first.json",
    }


def test_the_screens_text_has_no_control_characters_and_no_library_chatter(first: dict[str, Any]) -> None:
    for text in (first["stdout"], first["stderr"]):
        assert all(character.isprintable() or character == "\n" for character in text)
    before = ("starting", "download", "tokenize", "statistics", "vocabulary", "corpus")
    stages = (*before, "train", "evaluate", "generate", "compare")
    assert {line.split()[0] for line in first["stderr"].splitlines()} == set(stages)


def test_a_second_run_has_nothing_to_do(first: dict[str, Any], rnnlm: Command, home: Path) -> None:
    done = rnnlm("run", *SMALL, "--json", home / "second.json")
    assert done.returncode == 0, done.stderr
    assert "nothing to do: all 9 stages are cached" in done.stdout
    second = json.loads((home / "second.json").read_text())
    assert second["tasks"] == {"executed": 0, "cached": 9}
    assert second["cells"]["rnn"] == {**first["cells"]["rnn"], "cached": True}


def test_the_trained_cell_writes_and_prints_only_its_text(first: dict[str, Any], rnnlm: Command) -> None:
    done = rnnlm("generate", "--model", "rnn", "--prefix", "The ", "--length", "30")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The ")
    assert done.stdout.endswith("\n")
    assert len(done.stdout) == len("The ") + 30 + 1
    assert done.stderr.startswith("rnn of python-docs, trained ")
    assert done.stderr.count("\n") == 1


def test_compare_lists_the_run_once(first: dict[str, Any], rnnlm: Command) -> None:
    done = rnnlm("compare")
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if first["cells"]["rnn"]["run_id"] in line]
    assert "rnn" in row.split()
    assert "python-docs" in row
    assert "finished" in row
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted: run the same command again to go on"),
        (signal.SIGTERM, 143, "terminated: run the same command again to go on"),
    ],
)
def test_a_stopped_training_saves_its_place_closes_its_runs_and_goes_on_later(
    number: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = [*COMMAND, "run", *SMALL, "--set", "train.epochs=60", "--json", str(home / "out.json")]
    process = subprocess.Popen(
        command, env=environment(home), cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("train rnn      epoch 12/"):
            process.send_signal(number)
            break
    for line in process.stderr:
        seen.append(line)
        if line == f"{said}\n":
            break
    while number == signal.SIGINT and process.poll() is None:  # as people do who think that nothing happens
        process.send_signal(number)
        time.sleep(0.5)
    out, rest = process.communicate(timeout=120)
    assert process.returncode == code, "".join(seen) + rest
    assert out == ""
    assert rest == ""
    assert "Traceback" not in "".join(seen)
    assert list(processes_of(home)) == []
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    assert statuses(client) == {"KILLED"}
    # Only the stop has written a checkpoint: the clock's comes after 30 seconds.
    (key,) = pending(store := Store(home / "artifacts" / "store"))
    snapshot, faults = Checkpoints(store, key).load()
    assert snapshot is not None
    assert faults == []
    epochs = len(snapshot.facts["history"])
    assert epochs >= 12

    done = subprocess.run(
        command, env=environment(home), cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"train rnn      goes on after epoch {epochs}\n" in done.stderr
    assert "epoch 6/60 " not in done.stderr
    experiment = client.get_experiment_by_name("rnnlm")
    assert experiment is not None
    (cell,) = [run for run in client.search_runs([experiment.experiment_id]) if "rnnlm.cell" in run.data.tags]
    assert cell.info.status == "FINISHED"
    history = client.get_metric_history(cell.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, 61))
    assert [metric.value for metric in history][:epochs] == [epoch["train_loss"] for epoch in snapshot.facts["history"]]
    written = json.loads((home / "out.json").read_text())
    assert written["tasks"] == {"executed": 4, "cached": 5}
    assert written["cells"]["rnn"]["epochs"] == 60
    assert list(processes_of(home)) == []


@pytest.mark.slow
def test_the_smoke_command_holds_every_check_and_writes_only_at_home(
    rnnlm: Command, elsewhere: Path, tmp_path: Path
) -> None:
    done = rnnlm("smoke", "--summary", tmp_path / "summary.md")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 + 3 * 5
    assert {line.split()[0] for line in lines} == {"ok"}
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines()
    assert summary[0] == "## ✓ rnnlm smoke: all 19 checks hold"
    assert [line.split()[1] for line in summary if line.startswith("| ")] == ["cell", "rnn", "gru", "lstm"]
    (effort,) = [line.split() for line in summary if line.startswith("- run 1: ")]
    assert int(effort[3]) + int(effort[6]) == 15  # the commands before have done some of them
    assert any(line.startswith("- run 2: 0 stages done, 15 cached, ") for line in summary)
    assert sum(line.startswith("- ✓ ") for line in summary) == 19
    assert list(elsewhere.iterdir()) == []


# Two processes train a cell together


TWO = [*SMALL, "--processes", "2"]


@pytest.mark.slow
def test_two_processes_train_and_are_tracked_and_come_to_what_one_does(
    first: dict[str, Any], rnnlm: Command, home: Path, tmp_path: Path
) -> None:
    done = rnnlm("run", *TWO, "--json", tmp_path / "two.json")
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["tasks"] == {"executed": 4, "cached": 5}  # train, evaluate, generate, compare
    one, both = (run["cells"]["rnn"]["test_perplexity"] for run in (first, two))
    assert both == pytest.approx(one, rel=1e-3)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rnnlm")
    assert experiment is not None
    (tracked,) = client.search_runs(
        [experiment.experiment_id], "params.`train.processes` = '2' and tags.`rnnlm.cell` = 'rnn'"
    )
    assert tracked.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(tracked.info.run_id, "train/loss")] == [1, 2]
    assert list(processes_of(home)) == []
    again = rnnlm("run", *SMALL, "--set", "train.processes=2")
    assert "nothing to do: all 9 stages are cached" in again.stdout


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_no_rank_and_a_checkpoint(home: Path) -> None:
    store = Store(home / "artifacts" / "store")
    endless = [*COMMAND, "run", *TWO, "--set", "train.epochs=1000000"]
    often = environment(home) | {"RNNLM_CHECKPOINT_SECONDS": "0.5"}
    killed = subprocess.Popen(endless, env=often, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not pending(store):
        assert killed.poll() is None
        time.sleep(0.1)
    assert len(ranks_of(home)) == 2
    killed.kill()
    killed.wait()
    wait_until_alone(home)
    (key,) = pending(store)
    assert Checkpoints(store, key).load()[0] is not None
