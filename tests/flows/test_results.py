"""The results page: a row is filled by a finished run of exactly its settings, and by no other."""

import itertools
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric

from flows import results
from flows.results import results_page
from rnnlm_core.config import flatten
from rnnlm_core.presets import run_config
from rnnlm_core.published import SECTIONS, Published, Section
from tasks import tracking
from tasks.tracking import FlowRun
from tasks.tracking_database import client
from tasks.wording import parameter_text

Train = Callable[..., str]
FIGURES = {
    "best/train_perplexity": 1.2344,
    "best/valid_perplexity": 4.3488,
    "test/perplexity": 5.126,
    "test/bits_per_char": 2.3579,
    "test/oov_rate": 0.04567,
    "valid/bits_per_char": 2.1207,
    "model/parameters": 1_234_567,
}
ROW = Published("GRU", "1.1", "d2l-time-machine", "gru")
TWICE = Published("two layers", "–", "d2l-time-machine", "gru", {"model.num_layers": 2, "train.learning_rate": 2.0})


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of two rows with one figure."""
    section = Section("Title", "Text.", (("ours", "train_perplexity"),), (ROW, TWICE))
    monkeypatch.setattr(results, "SECTIONS", (section,))


@pytest.fixture
def train(home: Path) -> Train:
    """Return a function that leaves the MLflow run of a training, as if a row had been trained; it returns its id."""
    keys = itertools.count()

    def run(
        row: Published,
        changes: Mapping[str, Any] | None = None,
        *,
        figures: Mapping[str, float] = FIGURES,
        without: tuple[str, ...] = (),
    ) -> str:
        config = run_config(row.preset, cells=[row.cell], changes={**row.changes, **(changes or {})})
        told = tuple((key, parameter_text(value)) for key, value in flatten(config).items() if key not in without)
        flow = FlowRun("parent", row.preset, config.corpus.name, told, "flow-run")
        with tracking.child_run(flow, row.cell, f"key-{next(keys)}", {}) as run_id:
            epochs = [Metric("perf/epoch_seconds", 65.0, 0, step) for step in (1, 2)]
            client().log_batch(run_id, metrics=epochs)
            tracking.log_metrics(run_id, dict(figures))
        return run_id

    return run


def rows(text: str) -> list[list[str]]:
    """Return the cells of every row of every table, without the heads."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.usefixtures("page")
def test_without_runs_every_row_is_a_command_to_type(home: Path) -> None:
    text = results_page()
    assert rows(text) == []
    assert text.endswith(
        "Not run here:\n\n"
        "- GRU: `rnnlm run --preset d2l-time-machine --cells gru`\n"
        "- two layers: `rnnlm run --preset d2l-time-machine --cells gru --set model.num_layers=2"
        " --set train.learning_rate=2.0`\n"
    )


@pytest.mark.usefixtures("page")
def test_a_row_is_filled_from_the_finished_run_of_its_settings(train: Train) -> None:
    run_id = train(ROW, {"train.seed": 0})
    started = client().get_run(run_id).info.start_time / 1000
    text = results_page()
    date = f"{datetime.fromtimestamp(started, UTC):%Y-%m-%d}"
    about = ["`d2l-time-machine --cells gru`", "0", date, "2m10s", f"`{run_id}`"]
    assert rows(text) == [["GRU", "1.1", "1.234", *about]]
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- two layers: `rnnlm run --preset d2l-time-machine --cells gru --set model.num_layers=2"
        " --set train.learning_rate=2.0`"
    ]


@pytest.mark.usefixtures("page")
def test_a_row_with_changes_is_filled_from_the_run_that_has_them(train: Train) -> None:
    run_id = train(TWICE)
    ((system, *_, settings, _, _, _, run),) = rows(results_page())
    assert system == "two layers"
    assert settings == "`d2l-time-machine --cells gru --set model.num_layers=2 --set train.learning_rate=2.0`"
    assert run == f"`{run_id}`"


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(
    "changes",
    [
        {"train.seed": 1},
        {"train.epochs": 499},
        {"train.learning_rate": 1.5},
        {"model.hidden_size": 128},
        {"model.implementation": "scratch"},
        {"corpus.max_tokens": 9999},
        {"corpus.normalizer": "letters"},
        {"tokenizer.min_freq": 2},
    ],
)
def test_a_run_of_other_settings_fills_no_row(train: Train, changes: dict[str, Any]) -> None:
    train(ROW, changes)
    assert rows(results_page()) == []


@pytest.mark.usefixtures("page")
def test_a_run_of_another_cell_or_preset_fills_no_row(train: Train) -> None:
    train(Published("LSTM", "–", "d2l-time-machine", "lstm"))
    train(Published("GRU", "–", "time-machine", "gru"))
    assert rows(results_page()) == []


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_an_unfinished_run_fills_no_row(train: Train, status: str) -> None:
    run_id = train(ROW)
    client().update_run(run_id, status=status)
    assert rows(results_page()) == []
    client().update_run(run_id, status="FINISHED")
    assert len(rows(results_page())) == 1


@pytest.mark.usefixtures("page")
def test_a_deleted_run_fills_no_row(train: Train) -> None:
    client().delete_run(train(ROW))
    assert rows(results_page()) == []


@pytest.mark.usefixtures("page")
def test_what_says_nothing_about_the_training_may_differ(train: Train) -> None:
    run_id = train(ROW, {"train.device": "cpu", "generate.length": 5, "generate.temperature": 0.9})
    assert [row[-1] for row in rows(results_page())] == [f"`{run_id}`"]


@pytest.mark.usefixtures("page")
def test_the_newest_of_several_runs_is_shown(train: Train) -> None:
    train(ROW)
    newest = train(ROW, figures={**FIGURES, "best/train_perplexity": 1.5})
    assert [(row[2], row[-1]) for row in rows(results_page())] == [("1.500", f"`{newest}`")]


@pytest.mark.usefixtures("page")
def test_a_run_from_before_a_key_existed_has_its_default(train: Train) -> None:
    run_id = train(ROW, without=("train.accumulate", "model.implementation"))
    assert [row[-1] for row in rows(results_page())] == [f"`{run_id}`"]


@pytest.mark.usefixtures("page")
def test_a_default_is_not_what_the_preset_says(train: Train) -> None:
    train(ROW, without=("train.epochs",))  # 500 there, 10 by default
    train(TWICE, without=("model.num_layers",))
    assert rows(results_page()) == []


@pytest.mark.usefixtures("page")
def test_a_figure_that_was_not_measured_is_a_dash(train: Train) -> None:
    train(ROW, figures={})
    assert [row[:3] for row in rows(results_page())] == [["GRU", "1.1", "–"]]


@pytest.fixture
def everything(train: Train) -> dict[str, str]:
    """A run for every published row; its system and section by run id."""
    return {train(row): f"{section.title}: {row.system}" for section in SECTIONS for row in section.rows}


def test_every_published_row_can_be_filled_and_the_page_stays_the_same(everything: dict[str, str]) -> None:
    text = results_page()
    assert "Not run here" not in text
    assert results_page() == text
    filled = rows(text)
    assert [row[-1].strip("`") for row in filled] == list(everything)
    assert [row[0] for row in filled] == [name.split(": ")[1] for name in everything.values()]
    assert [cell for row in filled for cell in row[2:] if cell in ("–", "")] == []
    assert re.findall("^## (.*)", text, re.MULTILINE) == [section.title for section in SECTIONS]


def test_figures_have_the_digits_they_are_published_with(everything: dict[str, str]) -> None:
    shown = {row[0]: row[2:-5] for row in rows(results_page()) if row[1] not in ("–",)}
    assert shown["LSTM beside nanoGPT"] == ["1.4699", "2.121", "1,234,567"]
    assert shown["2 x 200 LSTM"] == ["4.35", "5.13", "1,234,567"]
    assert shown["RNN concise, 256"] == ["1.234"]
    words = [row[2:-5] for row in rows(results_page()) if "time-machine-words" in row[-5]]
    assert words == [["4.35", "5.13", "4.57%", "2.358"]] * 3
