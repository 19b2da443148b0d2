"""The main flow: what it returns, what MLflow and Prefect know afterwards, and what a failure leaves."""

import asyncio
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

from flows.summary import PartlyDoneError
from rnnlm_core.errors import ConfigError, DataError, ResourceError, Stopped, UsageError
from tasks import progress, tracked_models, tracked_runs
from tasks import train as train_stage
from tasks.caching import record_fault
from tasks.progress import News
from tasks.tracking_database import client

Run_ = Callable[..., dict[str, Any]]
CELLS = ("rnn", "gru", "lstm")
FIGURES = {
    "run_id",
    "train_perplexity",
    "valid_perplexity",
    "test_perplexity",
    "bits_per_char",
    "dynamic_perplexity",
    "tokens_per_second",
    "parameters",
    "epochs",
    "cached",
    "samples",
}


@pytest.fixture
def mlflow_of() -> Callable[[Path], MlflowClient]:
    return lambda home: MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def all_runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("rnnlm")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def task_runs(flow_run_id: str) -> list[TaskRun]:
    async def ask() -> list[TaskRun]:
        async with get_client() as client:
            chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
            return await client.read_task_runs(flow_run_filter=chosen)

    return asyncio.run(ask())


def test_the_summary_has_the_agreed_shape(finished: Any) -> None:
    summary = finished.summary
    assert list(summary) == [
        "preset", "corpus", "cells", "best_cell", "parent_run_id", "seconds", "tasks", "report", "model"
    ]  # fmt: skip
    assert summary["preset"] == "smoke"
    assert summary["corpus"] == "book.txt"
    assert tuple(summary["cells"]) == CELLS
    for figures in summary["cells"].values():
        assert set(figures) == FIGURES
        assert figures["epochs"] == 2
        assert figures["cached"] is False
        assert figures["parameters"] > 0
        assert figures["tokens_per_second"] > 0
        assert 1 < figures["test_perplexity"] < 30
        assert math.isclose(2 ** figures["bits_per_char"], figures["test_perplexity"])
        (sample,) = figures["samples"]
        assert sample.startswith("the ")
        assert len(sample) == len("the ") + 10
    assert json.loads(json.dumps(summary))["cells"].keys() == summary["cells"].keys()


def test_the_best_cell_has_the_lowest_validation_perplexity(finished: Any) -> None:
    cells = finished.summary["cells"]
    assert finished.summary["best_cell"] == min(cells, key=lambda cell: cells[cell]["valid_perplexity"])


def test_a_first_run_executes_every_stage(finished: Any) -> None:
    assert finished.summary["tasks"] == {"executed": 15, "cached": 0}
    done = [(news.stage, news.cell) for news in finished.news if news.done == "done"]
    assert done[:4] == [("download", ""), ("tokenize", ""), ("vocabulary", ""), ("corpus", "")]
    assert ("statistics", "") in done
    assert done[-1] == ("compare", "")
    assert len(done) == len(set(done)) == 15


def test_every_epoch_of_every_cell_is_news(finished: Any) -> None:
    epochs = {cell: [n.epoch.number for n in finished.news if n.epoch and n.cell == cell] for cell in CELLS}
    assert epochs == {cell: [1, 2] for cell in CELLS}


def test_mlflow_has_a_parent_and_a_child_per_cell_all_finished(
    finished: Any, mlflow_of: Callable[[Path], MlflowClient]
) -> None:
    client = mlflow_of(finished.home)
    parent_id = finished.summary["parent_run_id"]
    family = [
        run for run in all_runs(client) if parent_id in (run.info.run_id, run.data.tags.get("mlflow.parentRunId"))
    ]
    runs = {run.info.run_id: run for run in family}
    assert len(runs) == 4
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs[parent_id]
    best = finished.summary["best_cell"]
    results = {cell: f"ppl {figures['test_perplexity']:.3f}" for cell, figures in finished.summary["cells"].items()}
    assert parent.info.run_name == f"smoke · {best} {results[best]} · book.txt"
    assert parent.data.tags["rnnlm.best_cell"] == finished.summary["best_cell"]
    for cell, figures in finished.summary["cells"].items():
        child = runs[figures["run_id"]]
        assert child.info.run_name == f"{cell} {results[cell]} · book.txt"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert parent.data.tags[f"rnnlm.child.{cell}"] == child.info.run_id
        assert child.data.metrics["perplexity"] == figures["test_perplexity"]
        assert child.data.params["model.hidden_size"] == "8"
        assert child.data.params["cell"] == cell
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert names == {"comparison.md", "config.json", "perplexity.png", "report.html", "table.json", "text"}
    children = [runs[figures["run_id"]] for figures in finished.summary["cells"].values()]
    assert len({frozenset(child.data.metrics) for child in children}) == 1
    for child in children:
        names = {item.path for item in client.list_artifacts(child.info.run_id)}
        assert names == {"config.json", "samples.json", "samples.txt", "training.png", "vocabulary.json"}


def test_every_run_says_what_it_came_to_what_it_read_and_where_it_comes_from(
    finished: Any, mlflow_of: Callable[[Path], MlflowClient]
) -> None:
    client = mlflow_of(finished.home)
    parent = client.get_run(finished.summary["parent_run_id"])
    note = parent.data.tags["mlflow.note.content"]
    assert "Run again with `rnnlm run --preset smoke --corpus " in note
    for cell, figures in finished.summary["cells"].items():
        child = client.get_run(figures["run_id"])
        assert f"[{cell}](#/experiments/{child.info.experiment_id}/runs/{child.info.run_id})" in note
        assert f"test perplexity **{figures['test_perplexity']:.3f}**" in child.data.tags["mlflow.note.content"]
        # Of the process that trained, once per epoch.
        for metric in ("system/cpu_utilization_percentage", "system/peak_memory_megabytes"):
            history = client.get_metric_history(child.info.run_id, metric)
            assert [(one.step, one.value > 0) for one in history] == [(1, True), (2, True)]
        for run in (parent, child):
            (given,) = run.inputs.dataset_inputs
            assert given.dataset.name == "book.txt"
            assert run.data.tags["rnnlm.corpus_sha256"].startswith(given.dataset.digest)
            assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "train, valid, test")]
            shown = {
                key: run.data.tags[f"rnnlm.{key}"] for key in ("corpus", "preset", "level", "implementation", "device")
            }
            assert shown == {
                "corpus": "book.txt",
                "preset": "smoke",
                "level": "char",
                "implementation": "concise",
                "device": "cpu",
            }
            assert run.data.tags["mlflow.source.name"] == "rnnlm run --preset smoke"
            assert run.data.tags["mlflow.source.type"] == "LOCAL"
            assert run.data.tags["mlflow.user"]
            assert "prefect.flow_run_url" not in run.data.tags  # the server ends with the command


def test_the_parent_run_says_what_the_text_looks_like(
    finished: Any, book: Path, mlflow_of: Callable[[Path], MlflowClient], tmp_path: Path
) -> None:
    client = mlflow_of(finished.home)
    text, parent = book.read_text(), client.get_run(finished.summary["parent_run_id"])
    facts = parent.data.metrics
    assert facts["text/tokens_counted"] == len(text)
    assert facts["text/unigram_types"] == len(set(text))
    assert facts["text/bigram_types"] == len(set(itertools.pairwise(text)))
    assert facts["vocabulary/size"] == len(set(text)) + 1
    assert {split: facts[f"corpus/{split}_tokens"] for split in ("train", "valid", "test")} == {
        "train": 4800, "valid": 600, "test": 600,
    }  # fmt: skip
    assert facts["corpus/test_oov_rate"] == 0
    assert parent.data.tags["rnnlm.eos"] == "none"
    child = client.get_run(finished.summary["cells"]["gru"]["run_id"])
    assert parent.data.tags["rnnlm.corpus_sha256"] == child.data.tags["rnnlm.corpus_sha256"]
    paths = {item.path for item in client.list_artifacts(parent.info.run_id, "text")}
    assert paths == {"text/zipf.png", "text/statistics.json"}
    kept = json.loads(Path(client.download_artifacts(parent.info.run_id, "text/statistics.json", tmp_path)).read_text())
    assert [facts[f"text/{name}_zipf_exponent"] for name in ("unigram", "bigram", "trigram")] == [
        grams["exponent"] for grams in kept["grams"]
    ]
    picture = Path(client.download_artifacts(parent.info.run_id, "text/zipf.png", tmp_path))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_prefect_shows_every_stage_by_its_name(finished: Any, mlflow_of: Callable[[Path], MlflowClient]) -> None:
    parent = mlflow_of(finished.home).get_run(finished.summary["parent_run_id"])
    runs = task_runs(parent.data.tags["prefect.flow_run_id"])
    assert {run.state_name for run in runs} == {"Completed"}
    shown = {run.name.rsplit("-", 1)[0] for run in runs}  # a stage of the whole run has a suffix of Prefect's
    per_cell = {f"{stage} {cell}" for stage in ("train", "evaluate", "generate") for cell in CELLS}
    assert shown == {"download", "tokenize", "statistics", "vocabulary", "corpus", "compare"} | per_cell


def test_prefect_has_the_comparison_as_markdown(finished: Any, mlflow_of: Callable[[Path], MlflowClient]) -> None:
    parent = mlflow_of(finished.home).get_run(finished.summary["parent_run_id"])
    flow_run_id = parent.data.tags["prefect.flow_run_id"]

    async def ask() -> list[Any]:
        async with get_client() as client:
            chosen = ArtifactFilter(key=ArtifactFilterKey(any_=["comparison"]))
            return await client.read_artifacts(artifact_filter=chosen)

    (artifact,) = [one for one in asyncio.run(ask()) if str(one.flow_run_id) == flow_run_id]
    assert artifact.type == "markdown"
    head, _, *rows = artifact.data.splitlines()
    assert head.startswith("| cell | implementation | parameters | train | valid | test |")
    assert [row.split()[1] for row in rows] == list(CELLS)


def test_one_failing_cell_leaves_the_others_and_only_it_is_trained_again(
    run: Run_, home: Path, train_here: list[str], heard: list[News], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = train_stage.train_in_child

    def fail_gru(job: Any, *rest: Any) -> dict[str, Any]:
        if job.cell == "gru":
            raise ResourceError("training of gru was killed", "SIGKILL", "lower train.batch_size")
        return works(job, *rest)

    monkeypatch.setattr(train_stage, "train_in_child", fail_gru)
    with pytest.raises(PartlyDoneError, match="some cells failed: gru: training of gru was killed: SIGKILL") as caught:
        run(("rnn", "gru"))
    assert caught.value.exit_code == 7
    summary = caught.value.summary.as_json()
    assert list(summary["cells"]) == ["rnn"]
    assert summary["best_cell"] == "rnn"
    assert summary["tasks"]["executed"] == 9
    warnings = [news for news in heard if news.warning]
    assert [(news.stage, news.cell) for news in warnings] == [("train", "gru")]
    assert warnings[0].warning.startswith("failed: training of gru was killed")
    statuses = {one.data.tags.get("rnnlm.cell", "parent"): one.info.status for one in all_runs(client())}
    assert statuses == {"parent": "FAILED", "rnn": "FINISHED", "gru": "FAILED"}

    monkeypatch.setattr(train_stage, "train_in_child", works)
    train_here.clear()
    again = run(("rnn", "gru"))
    assert train_here == ["gru"]
    assert {cell: figures["cached"] for cell, figures in again["cells"].items()} == {"rnn": True, "gru": False}
    assert again["cells"]["rnn"]["run_id"] == summary["cells"]["rnn"]["run_id"]
    assert [one.info.status for one in all_runs(client())].count("FAILED") == 1  # the first parent


def test_when_every_cell_fails_the_first_reason_is_raised(
    run: Run_, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Any, *rest: Any) -> dict[str, Any]:
        raise ResourceError("out of memory", job.cell, "lower train.batch_size")

    monkeypatch.setattr(train_stage, "train_in_child", fail)
    with pytest.raises(ResourceError, match=r"out of memory: (rnn|gru): lower train.batch_size"):
        run(("rnn", "gru"))
    # The stages before, the failures of both cells in both later stages, and the flow's own: no pickle among them.
    records = list((home / "artifacts" / "results").iterdir())
    assert len(records) >= 5 + 2 + 1
    assert [health_fault for path in records if (health_fault := record_fault(path))] == []
    assert {one.info.status for one in all_runs(client())} == {"FAILED"}


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been(
    run: Run_, home: Path, heard: list[News], monkeypatch: pytest.MonkeyPatch, at_home: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("RNNLM_CHECKPOINT_SECONDS", "0")

    def stop_after_two(news: News) -> None:
        if news.epoch is not None and news.epoch.number == 2:
            train_stage.stop_requested.set()

    with progress.listening(stop_after_two), pytest.raises(Stopped, match="in epoch 3: run the same command again"):
        run(train__epochs=4)
    (interrupted,) = [one for one in all_runs(client()) if one.data.tags["rnnlm.kind"] == "cell"]
    assert interrupted.info.status == "KILLED"
    assert {one.info.status for one in all_runs(client())} == {"KILLED"}

    heard.clear()
    resumed = run(train__epochs=4)["cells"]["rnn"]
    assert resumed["run_id"] == interrupted.info.run_id
    assert [step for step, _ in tracked_runs.curve(resumed["run_id"], "train/loss")] == [1, 2, 3, 4]
    assert client().get_run(resumed["run_id"]).info.status == "FINISHED"
    curve = tracked_runs.curve(resumed["run_id"], "train/loss")
    with at_home(tmp_path / "undisturbed"):
        whole = run(train__epochs=4)["cells"]["rnn"]
        assert tracked_runs.curve(whole["run_id"], "train/loss") == curve
    assert resumed["samples"] == whole["samples"]
    assert resumed["test_perplexity"] == whole["test_perplexity"]


def test_a_wish_to_stop_does_not_outlive_its_run(run: Run_, train_here: list[str]) -> None:
    train_stage.stop_requested.set()
    assert run()["tasks"]["executed"] == 9
    assert train_here == ["rnn"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train__epoch": 3}, ConfigError, "unknown config key: train.epoch: did you mean train.epochs?"),
        ({"train__epochs": True}, ConfigError, "`train.epochs` must be an integer. Got True"),
        ({"corpus__split": "given"}, UsageError, "`corpus.split` given needs a corpus in three files"),
        ({"train__batch_size": 4000}, DataError, "needs at least"),
    ],
)
def test_a_mistake_is_told_before_anything_is_tracked(
    run: Run_, home: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        run(**changes)
    assert message in str(caught.value)
    assert all_runs(client()) == []
    assert not (home / "artifacts" / "store").exists()


def test_without_held_out_text_the_training_figures_stand_alone(run: Run_) -> None:
    summary = run(corpus__split="100/0/0", evaluate__split="train")
    figures = summary["cells"]["rnn"]
    assert figures["valid_perplexity"] is None
    assert figures["test_perplexity"] is None
    assert figures["train_perplexity"] > 1
    assert summary["best_cell"] == "rnn"
    assert "valid/perplexity" not in client().get_run(figures["run_id"]).data.metrics


def test_words_and_lines_are_told_with_what_the_vocabulary_lacks(run: Run_, text: Path) -> None:
    # Of a vocabulary this small no exponent can be told.
    text.write_text("a b\nb a\n" * 900 + "a c\n" * 200)
    summary = run(tokenizer__level="word", tokenizer__eos="line", generate__prefixes=["a b"])
    parent = client().get_run(summary["parent_run_id"]).data
    assert parent.tags["rnnlm.eos"] == "line"
    assert parent.metrics["text/unigram_types"] == 4
    assert "text/unigram_zipf_exponent" not in parent.metrics
    assert parent.metrics["corpus/train_tokens"] == (1800 + 200) * 3 * 0.8
    assert parent.metrics["corpus/test_oov_rate"] == pytest.approx(1 / 3)
    assert summary["cells"]["rnn"]["samples"][0].startswith("a b")


def test_byte_pairs_go_the_whole_way(run: Run_, text: Path) -> None:
    summary = run(tokenizer__level="bpe", tokenizer__bpe_size=280)
    figures = summary["cells"]["rnn"]
    (sample,) = figures["samples"]
    assert sample.startswith("the ")
    assert len(sample) > len("the ") + 10  # tokens of more than one character
    assert math.log2(figures["test_perplexity"]) > figures["bits_per_char"] > 0
    parent = client().get_run(summary["parent_run_id"]).data
    child = client().get_run(figures["run_id"]).data
    assert parent.metrics["vocabulary/size"] in (280, 281)
    assert parent.metrics["corpus/test_oov_rate"] == 0
    assert parent.metrics["text/tokens_counted"] == parent.metrics["corpus/train_tokens"] < 4800
    assert child.params["tokenizer.bpe_size"] == "280"
    again = tracked_models.predict(child.tags["rnnlm.model_uri"], ["the "], length=10, temperature=0.5, seed=0)
    assert again == [sample]


def test_a_text_too_short_for_its_splits_is_refused_with_the_minimum(run: Run_, text: Path) -> None:
    text.write_text("too short")
    with pytest.raises(DataError) as caught:
        run()
    assert "9 tokens" in str(caught.value)
    assert "342" in str(caught.value)  # 80 % of which fill a batch of 16 x 16, the offset and the last target
