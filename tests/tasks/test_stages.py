"""The short stages: each runs the core on handles, stores what it makes, and tells MLflow what is its own."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rnnlm_core.config import EvaluateConfig, GenerateConfig, TokenizerConfig
from rnnlm_core.download import resolve
from rnnlm_core.errors import DataError, IntegrityError
from rnnlm_core.generate import continue_text
from rnnlm_core.saved_model import load_model
from rnnlm_core.store import Store
from tasks import workspace
from tasks.compare import compare
from tasks.corpus import corpus
from tasks.download import download
from tasks.dynamic_evaluation import dynamic_evaluation
from tasks.evaluate import TrackedEvaluation, evaluate
from tasks.generate import Samples, generate
from tasks.progress import News
from tasks.statistics import statistics
from tasks.tokenize import tokenize
from tasks.tracking import FlowRun
from tasks.tracking_database import client
from tasks.train import TrackedTraining, train
from tasks.vocabulary import vocabulary

STAGES = (
    download, tokenize, statistics, vocabulary, corpus, train, evaluate, dynamic_evaluation, generate, compare,
)  # fmt: skip
GREEDY = GenerateConfig(prefixes=("the time ", "we "), length=5)


@pytest.fixture
def trained(parent: FlowRun, train_cell: Callable[..., TrackedTraining]) -> Iterator[TrackedTraining]:
    return train_cell("gru", parent)


def test_each_stage_is_named_as_its_file() -> None:
    files = {path.stem for path in Path(workspace.__file__).parent.glob("*.py")}
    assert [stage.name for stage in STAGES] == [stage.fn.__module__.removeprefix("tasks.") for stage in STAGES]
    assert {stage.name for stage in STAGES} <= files


def test_each_stage_keys_by_the_core_module_it_runs() -> None:
    modules = {stage.name: stage.cache_policy.core_module for stage in STAGES}
    assert modules == {name: f"rnnlm_core.{name}" for name in modules}


def test_the_stages_of_a_cell_are_shown_with_it() -> None:
    shown = {stage.name: stage.task_run_name for stage in STAGES if stage.task_run_name}
    of_cells = {name: f"{name} {{cell}}" for name in ("train", "evaluate", "dynamic_evaluation", "generate")}
    assert shown == {stage.name: stage.name for stage in STAGES} | of_cells


def test_no_stage_is_retried_as_a_whole() -> None:
    """A download asks its addresses again itself: both together would multiply."""
    assert {stage.name: stage.retries for stage in STAGES} == {stage.name: 0 for stage in STAGES}


def test_the_stages_before_training_hand_on_verified_artifacts(home: Path, text: Path) -> None:
    fetched = download.fn(resolve(str(text)))
    tokens = tokenize.fn(fetched, "letters", 0, "word", "none", 0, None)
    words = vocabulary.fn(tokens, (80, 10, 10), TokenizerConfig(level="word", reserved_tokens=("<pad>",)))
    encoded = corpus.fn(tokens, words, (80, 10, 10), 0)
    store = Store(home / "artifacts" / "store")
    for handle in (fetched.handle, tokens.handle, words.handle, encoded.handle):
        assert store.fault(handle) == ""
    assert fetched.num_bytes == text.stat().st_size
    assert words.size == len({*text.read_text().replace(".", " ").split(), "<unk>", "<pad>"})
    assert {path.name for path in store.path(encoded.handle).glob("*.parquet")} == {
        "train.parquet",
        "valid.parquet",
        "test.parquet",
    }


@pytest.mark.parametrize(
    ("level", "eos", "bpe_size", "shares", "max_chars", "counts"),
    [
        ("char", "none", 0, None, 100, {"whole": 100}),
        ("byte", "none", 0, None, 0, {"whole": 6008}),
        ("word", "line", 0, None, 0, {"whole": 1045 + 3}),
        ("bpe", "none", 260, (80, 10, 10), 100, None),
    ],
)
def test_tokenize_cuts_as_it_is_told(
    home: Path,
    text: Path,
    level: str,
    eos: str,
    bpe_size: int,
    shares: tuple[int, int, int] | None,
    max_chars: int,
    counts: dict[str, int] | None,
) -> None:
    text.write_text(text.read_text() + "\n\nü!")
    tokens = tokenize.fn(download.fn(resolve(str(text))), "none", max_chars, level, eos, bpe_size, shares)
    if counts is not None:
        assert tokens.num_tokens == counts
    else:  # characters are divided, and four pairs of them merged
        assert list(tokens.num_tokens) == ["train", "valid", "test"]
        assert 50 < sum(tokens.num_tokens.values()) < 100


def test_statistics_describe_the_tokens_and_keep_a_picture(home: Path, text: Path) -> None:
    found = statistics.fn(tokenize.fn(download.fn(resolve(str(text))), "none", 0, "word", "none", 0, None))
    assert workspace.store().fault(found.handle) == ""
    assert found.num_tokens == len(text.read_text().split())
    assert found.grams[0].top[0] == (("the",), 174)
    assert (workspace.store().path(found.handle) / "zipf.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_refuses_an_artifact_that_changed(home: Path, text: Path) -> None:
    fetched = download.fn(resolve(str(text)))
    (workspace.store().path(fetched.handle) / "whole.txt").write_text("edited")
    with pytest.raises(IntegrityError, match=r"has a damaged whole.txt.*run the same command again to rebuild it"):
        tokenize.fn(fetched, "none", 0, "char", "none", 0, None)


def test_the_token_limit_shortens_training_only(home: Path, text: Path) -> None:
    tokens = tokenize.fn(download.fn(resolve(str(text))), "none", 0, "char", "none", 0, None)
    words = vocabulary.fn(tokens, (80, 10, 10), TokenizerConfig())
    whole, cut = (corpus.fn(tokens, words, (80, 10, 10), limit) for limit in (0, 500))
    assert cut.splits["train"].num_tokens == 500 < whole.splits["train"].num_tokens
    assert cut.splits["test"] == whole.splits["test"]


def test_evaluate_logs_its_figures_under_the_split_and_as_perplexity(built: Any, trained: TrackedTraining) -> None:
    for split in ("valid", "test"):
        done: TrackedEvaluation = evaluate.fn("gru", trained, built.corpus, EvaluateConfig(split=split))
        run = client().get_run(trained.run_id)
        assert done.run_id == trained.run_id
        assert run.data.metrics[f"{split}/perplexity"] == run.data.metrics["perplexity"] == done.evaluated.perplexity
        assert math.isclose(run.data.metrics[f"{split}/loss"], math.log(done.evaluated.perplexity))
        assert math.isclose(2 ** run.data.metrics[f"{split}/bits_per_char"], done.evaluated.perplexity)
        assert run.data.metrics[f"{split}/oov_rate"] == 0
        assert run.data.tags["rnnlm.evaluated_split"] == split


def test_generate_logs_each_sample_under_its_prefix(built: Any, trained: TrackedTraining) -> None:
    done: Samples = generate.fn("gru", trained, built.corpus, EvaluateConfig(), GREEDY)
    assert [sample.prefix for sample in done.samples] == ["the time ", "we "]
    assert [len(sample.text) for sample in done.samples] == [14, 8]
    logged = Path(client().download_artifacts(trained.run_id, "samples.txt")).read_text()
    assert logged == "\n\n".join(f"[{sample.prefix}]\n{sample.text}" for sample in done.samples) + "\n"


def test_generate_keeps_a_table_of_samples_at_several_temperatures(built: Any, trained: TrackedTraining) -> None:
    config = replace(GREEDY, temperature=0.5, top_k=3, seed=7)
    tables = []
    for _ in range(2):  # a stage that is done again replaces its table
        done = generate.fn("gru", trained, built.corpus, EvaluateConfig(), config)
        tables.append(json.loads(Path(client().download_artifacts(trained.run_id, "samples.json")).read_text()))
    assert tables[0] == tables[1]
    assert tables[0]["columns"] == ["temperature", "prefix", "text"]
    assert [row[:2] for row in tables[0]["data"]] == [[t, done.samples[0].prefix] for t in (0.0, 0.5, 0.8, 1.0)]
    assert tables[0]["data"][1][2] == done.samples[0].text
    saved = load_model(workspace.store().open(trained.trained.model))
    alone = [continue_text(saved, done.samples[0].prefix, replace(config, temperature=t)).text for t in (0.0, 0.8, 1.0)]
    assert [tables[0]["data"][row][2] for row in (0, 2, 3)] == alone
    shown = client().get_run(trained.run_id).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(shown) == [{"path": "samples.json", "type": "table"}]


def test_generate_without_prefix_goes_on_from_the_evaluated_split(built: Any, trained: TrackedTraining) -> None:
    config = GenerateConfig(length=5)
    samples = {
        split: generate.fn("gru", trained, built.corpus, EvaluateConfig(split=split), config).samples[0]
        for split in ("train", "test")
    }
    assert samples["train"].prefix == "the time"
    assert samples["test"].prefix != samples["train"].prefix
    assert all(len(sample.text) == 8 + 5 for sample in samples.values())


def test_a_prefix_with_unknown_characters_is_a_warning_of_its_cell(
    built: Any, trained: TrackedTraining, heard: list[News]
) -> None:
    config = GenerateConfig(prefixes=("thé",), length=5)
    (sample,) = generate.fn("gru", trained, built.corpus, EvaluateConfig(), config).samples
    assert sample.prefix == "thé"
    assert heard == [
        News("generate", "gru", warning="prefix has characters outside the vocabulary, read as <unk>: 'é'")
    ]
    with pytest.raises(DataError, match="prefix has characters outside the vocabulary: 'é'"):
        generate.fn("gru", trained, built.corpus, EvaluateConfig(), GenerateConfig(prefixes=("é",), unknown="error"))


def test_compare_puts_the_cells_side_by_side(
    built: Any, parent: FlowRun, train_cell: Callable[..., TrackedTraining]
) -> None:
    trainings = [train_cell(cell, parent) for cell in ("rnn", "gru")]
    evaluations = [evaluate.fn(t.trained.cell, t, built.corpus, EvaluateConfig()) for t in trainings]
    compared = compare.fn(trainings, evaluations)
    assert [row.cell for row in compared.rows] == ["rnn", "gru"]
    assert compared.best_cell == min(compared.rows, key=lambda row: row.valid_perplexity).cell
    folder = workspace.store().open(compared.handle)
    assert (folder / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r'"cell": "rnn"', (folder / "table.json").read_text())


def test_the_home_is_the_environments_and_every_path_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RNNLM_HOME", str(tmp_path / "here"))
    assert workspace.home() == tmp_path / "here"
    assert workspace.store().root == tmp_path / "here" / "artifacts" / "store"
    assert workspace.tracking_uri() == f"sqlite:///{tmp_path}/here/mlflow.db"
    monkeypatch.setenv("RNNLM_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    assert workspace.home() == tmp_path / "relative"
    monkeypatch.delenv("RNNLM_HOME")
    assert workspace.home() == workspace.PROJECT


def test_the_records_may_be_written_by_their_owner_only(bare_home: Path) -> None:
    assert (bare_home / "artifacts" / "results").stat().st_mode & 0o777 == 0o700


def test_settings_of_the_user_stay(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "DEBUG")
    workspace.prepare_environment()
    assert os.environ["MLFLOW_LOGGING_LEVEL"] == "DEBUG"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
