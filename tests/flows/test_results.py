"""The results page: a row is filled by runs of exactly its settings, and stays when their database is gone."""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric

from flows import results
from flows.measured import Measured, read_measured, settings_of
from flows.results import FIGURES, missing_commands, results_page, with_tracked
from rnnlm_core.config import flatten
from rnnlm_core.errors import UsageError
from rnnlm_core.presets import run_config
from rnnlm_core.published import SECTIONS, Published, Section
from tasks import tracking
from tasks.tracking import FlowRun
from tasks.tracking_database import client
from tasks.wording import parameter_text

Train = Callable[..., str]
METRICS = {
    "best/train_perplexity": 1.2344,
    "best/valid_perplexity": 4.3488,
    "perplexity": 5.126,
    "test/perplexity": 5.126,
    "test/bits_per_char": 2.3579,
    "test/oov_rate": 0.04567,
    "valid/bits_per_char": 2.1207,
    "test/dynamic_perplexity": 4.625,
    "model/parameters": 1_234_567,
}
ROW = Published("GRU", "1.1", "d2l-time-machine", "gru")
TWICE = Published("two layers", "–", "d2l-time-machine", "gru", {"model.num_layers": 2, "train.learning_rate": 2.0})
COMMAND = "rnnlm run --preset d2l-time-machine --cells gru"
TWICE_COMMAND = f"{COMMAND} --set model.num_layers=2 --set train.learning_rate=2.0"
BASE = Published("base", "–", "time-machine", "lstm")
WIDER = Published("wider", "–", "time-machine", "lstm", {"model.hidden_size": 512})
LEARNING = Published("dynamic", "–", "time-machine", "lstm", {"evaluate.dynamic_rate": 0.5})
TAG = "rnnlm.dynamic_evaluation.test"
TOLD = "evaluate.dynamic_rate=0.5 evaluate.dynamic_rule=rms evaluate.dynamic_decay=0.0 evaluate.dynamic_steps=5"


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of two small sections, the second of which compares."""
    sections = (
        Section("Title", "Text.", (("ours", "train_perplexity"),), (ROW, TWICE)),
        Section("Ablations", "Text.", (("test", "test_perplexity"), ("dynamic", "test_dynamic_perplexity")),
                (BASE, WIDER, LEARNING), compared="test_perplexity"),
    )  # fmt: skip
    monkeypatch.setattr(results, "SECTIONS", sections)


@pytest.fixture
def train(home: Path) -> Train:
    """Return a function that leaves the MLflow run of a training, as if a row had been trained; it returns its id."""
    keys = itertools.count()

    def run(
        row: Published,
        changes: Mapping[str, Any] | None = None,
        *,
        metrics: Mapping[str, float] = METRICS,
        without: tuple[str, ...] = (),
        tags: Mapping[str, str] | None = None,
    ) -> str:
        config = run_config(row.preset, cells=[row.cell], changes={**row.changes, **(changes or {})})
        told = tuple((key, parameter_text(value)) for key, value in flatten(config).items() if key not in without)
        flow = FlowRun("parent", row.preset, config.corpus.name, told, "flow-run")
        with tracking.child_run(flow, row.cell, f"key-{next(keys)}", dict(tags or {})) as run_id:
            epochs = [Metric("perf/epoch_seconds", 65.0, 0, step) for step in (1, 2)]
            client().log_batch(run_id, metrics=epochs)
            tracking.log_metrics(run_id, dict(metrics))
        return run_id

    return run


def record(row: Published, **changes: Any) -> Measured:
    made = Measured(
        preset=row.preset,
        cell=row.cell,
        settings=settings_of(row.config),
        seed=0,
        figures={"train_perplexity": 1.25, "test_perplexity": 5.0},
        parameters=4711,
        hardware="cpu",
        seconds=130.0,
        run_id="0" * 32,
        date="2026-11-21",
    )
    return replace(made, **changes)


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of every row of every table by the first one, without the heads."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()[2:]]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_without_runs_every_row_says_so_with_its_command(home: Path) -> None:
    shown = rows(results_page(with_tracked([])))
    dashes = ["–"] * 5
    assert shown["GRU"] == ["1.1", "not run yet", *dashes, f"`{COMMAND}`", "–"]
    assert shown["two layers"] == ["–", "not run yet", *dashes, f"`{TWICE_COMMAND}`", "–"]


def test_a_row_is_filled_from_the_finished_run_of_its_settings(train: Train) -> None:
    tags = {"rnnlm.device": "cpu", "rnnlm.processor": "A | B, 2 cores", "rnnlm.versions": "python 3.11, torch 2.11"}
    run_id = train(ROW, tags=tags)
    started = datetime.fromtimestamp(client().get_run(run_id).info.start_time / 1000, UTC)
    (found,) = with_tracked([])
    assert found == Measured(
        preset="d2l-time-machine", cell="gru", settings=settings_of(ROW.config), seed=0, figures=found.figures,
        parameters=1_234_567, hardware="A | B, 2 cores", seconds=130.0, run_id=run_id,
        date=started.isoformat(timespec="seconds"),
        versions={"python": "3.11", "torch": "2.11", "revision": found.versions["revision"]},
    )  # fmt: skip
    assert found.figures["train_perplexity"] == 1.2344
    assert "test_dynamic_perplexity" not in found.figures
    about = ["1,234,567", "0", "A \\", "B, 2 cores", "2m10s", f"{started:%Y-%m-%d}", f"`{COMMAND}`", f"`{run_id}`"]
    shown = rows(results_page([found]))
    assert shown["GRU"] == ["1.1", "1.234", *about]  # the bar is escaped
    assert shown["two layers"][1] == "not run yet"


def test_a_gpu_is_named_as_it_is(train: Train) -> None:
    train(ROW, tags={"rnnlm.device": "NVIDIA H200", "rnnlm.processor": "a processor"})
    assert [one.hardware for one in with_tracked([])] == ["NVIDIA H200"]


def test_a_row_with_changes_is_filled_from_the_run_that_has_them(train: Train) -> None:
    run_id = train(TWICE)
    shown = rows(results_page(with_tracked([])))
    assert shown["two layers"][-2:] == [f"`{TWICE_COMMAND}`", f"`{run_id}`"]
    assert shown["GRU"][1] == "not run yet"


@pytest.mark.parametrize(
    "changes",
    [
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
    assert with_tracked([]) == []


def test_a_run_of_another_cell_or_preset_fills_no_row(train: Train) -> None:
    train(Published("LSTM", "–", "d2l-time-machine", "lstm"))
    train(Published("GRU", "–", "time-machine", "gru"))
    assert with_tracked([]) == []


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_an_unfinished_run_fills_no_row(train: Train, status: str) -> None:
    run_id = train(ROW)
    client().update_run(run_id, status=status)
    assert with_tracked([]) == []
    client().update_run(run_id, status="FINISHED")
    assert len(with_tracked([])) == 1


def test_a_deleted_or_unmeasured_run_fills_no_row(train: Train) -> None:
    client().delete_run(train(ROW))
    train(ROW, metrics={"best/train_perplexity": 1.0, "best/valid_perplexity": 2.0})  # of a sweep
    assert with_tracked([]) == []


def test_what_says_nothing_about_the_training_may_differ(train: Train) -> None:
    run_id = train(ROW, {"train.device": "cpu", "generate.length": 5, "generate.temperature": 0.9})
    assert [one.run_id for one in with_tracked([])] == [run_id]


def test_the_newest_of_several_runs_is_shown(train: Train) -> None:
    train(ROW)
    newest = train(ROW, metrics={**METRICS, "best/train_perplexity": 1.5})
    assert [(one.figures["train_perplexity"], one.run_id) for one in with_tracked([])] == [(1.5, newest)]


def test_a_run_from_before_a_key_existed_has_its_default(train: Train) -> None:
    run_id = train(ROW, without=("train.accumulate", "model.implementation"))
    assert [one.run_id for one in with_tracked([])] == [run_id]


def test_a_default_is_not_what_the_preset_says(train: Train) -> None:
    train(ROW, without=("train.epochs",))  # 500 there, 10 by default
    train(TWICE, without=("model.num_layers",))
    assert with_tracked([]) == []


def test_several_seeds_are_one_row_with_mean_and_deviation(train: Train) -> None:
    runs = [train(ROW, {"train.seed": seed}, metrics={**METRICS, "best/train_perplexity": value})
            for seed, value in ((0, 1.0), (7, 1.5))]  # fmt: skip
    shown = rows(results_page(with_tracked([])))["GRU"]
    assert shown[1] == "1.250 ± 0.354"
    assert shown[3] == "0, 7"
    assert shown[-1] == ", ".join(f"`{run_id}`" for run_id in runs)


def test_an_infinite_perplexity_of_one_seed_is_that_of_the_row() -> None:
    records = [record(ROW), record(ROW, seed=1, figures={"train_perplexity": math.inf})]
    assert rows(results_page(records))["GRU"][1] == "inf"
    assert rows(results_page(records[:1]))["GRU"][1] == "1.250"


# What lasts


def test_records_stay_without_a_database_and_with_an_empty_one(home: Path) -> None:
    records = [record(ROW), record(BASE, seed=3)]
    assert with_tracked(records) == records
    (home / "mlflow.db").unlink()
    assert with_tracked(records) == records
    assert not (home / "mlflow.db").exists()
    assert rows(results_page(records))["GRU"] == [
        "1.1", "1.250", "4,711", "0", "cpu", "2m10s", "2026-11-21", f"`{COMMAND}`", f"`{'0' * 32}`",
    ]  # fmt: skip


def test_a_newer_run_replaces_a_record_and_an_older_one_does_not(train: Train) -> None:
    run_id = train(ROW)
    assert [one.run_id for one in with_tracked([record(ROW)])] == [run_id]
    later = record(ROW, date="2999-01-01")
    assert with_tracked([later]) == [later]
    other_seed = record(ROW, seed=1, date="2999-01-01")
    assert [(one.seed, one.run_id) for one in with_tracked([other_seed])] == [(0, run_id), (1, "0" * 32)]


def test_records_stand_in_the_order_of_the_page_and_unknown_ones_last(home: Path) -> None:
    elsewhere = record(ROW, settings={"train.epochs": "3"})
    mixed = [elsewhere, record(WIDER), record(ROW, seed=1), record(ROW), record(TWICE)]
    assert with_tracked(mixed) == [record(ROW), record(ROW, seed=1), record(TWICE), record(WIDER), elsewhere]


def test_a_newer_run_with_fewer_figures_takes_nothing_away(train: Train) -> None:
    whole = train(BASE)
    fewer = {name: value for name, value in METRICS.items() if not name.startswith("test/")}
    train(BASE, metrics=fewer)  # evaluate.split=valid
    assert [one.run_id for one in with_tracked([])] == [whole]
    known = record(WIDER)
    train(WIDER, metrics=fewer)
    assert known in with_tracked([known])


def test_a_training_of_two_tables_has_the_figures_of_both(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Section("Other", "Text.", (("OOV", "test_oov_rate"),), (BASE,))
    monkeypatch.setattr(results, "SECTIONS", (*results.SECTIONS, other))
    whole = train(BASE)
    train(BASE, metrics={name: value for name, value in METRICS.items() if name != "test/oov_rate"})
    assert [one.run_id for one in with_tracked([])] == [whole]


# Comparisons


def test_the_difference_to_the_first_row_stands_beside() -> None:
    records = [record(BASE), record(WIDER, figures={"test_perplexity": 4.75})]
    shown = rows(results_page(records))
    assert shown["base"][1:4] == ["5.00", "–", "–"]
    assert shown["wider"][1:4] == ["4.75", "–", "-0.25"]
    assert shown["dynamic"][1:4] == ["not run yet", "–", "–"]


def test_a_difference_is_that_of_the_same_seeds() -> None:
    records = [
        record(BASE),
        record(BASE, seed=1, figures={"test_perplexity": 9.0}),
        record(WIDER, seed=1, figures={"test_perplexity": 9.5}),
    ]
    assert rows(results_page(records))["wider"][3] == "+0.50"
    assert rows(results_page([records[0], records[2]]))["wider"][3] == "–"


def test_dynamic_evaluation_is_a_row_of_the_same_run(train: Train) -> None:
    run_id = train(BASE, tags={TAG: TOLD})
    shown = rows(results_page(with_tracked([])))
    assert shown["base"][1:4] == ["5.13", "–", "–"]
    assert shown["dynamic"][1:4] == ["5.13", "4.62", "-0.50"]
    assert shown["dynamic"][-1] == shown["base"][-1] == f"`{run_id}`"


@pytest.mark.parametrize("told", ["", TOLD.replace("rate=0.5", "rate=0.25"), TOLD.replace("rms", "sgd")])
def test_dynamic_evaluation_with_other_settings_fills_no_row(train: Train, told: str) -> None:
    train(BASE, tags={TAG: told})
    assert [one.settings for one in with_tracked([])] == [settings_of(BASE.config)]


@pytest.mark.parametrize("tag", ["rnnlm.dynamic_evaluation.valid", "rnnlm.dynamic_evaluation"])
def test_the_settings_of_another_split_say_nothing_of_a_figure(train: Train, tag: str) -> None:
    train(BASE, tags={TAG: TOLD.replace("0.5", "0.25"), tag: TOLD})
    assert [one.settings for one in with_tracked([])] == [settings_of(BASE.config)]


# What is missing


def test_what_is_missing_is_printed_as_commands() -> None:
    assert missing_commands([record(ROW)], "title") == [TWICE_COMMAND]
    assert missing_commands([record(ROW)], "all")[0] == TWICE_COMMAND
    assert len(missing_commands([], "all")) == 5
    assert (
        missing_commands([], "ABL")[-1]
        == "rnnlm run --preset time-machine --cells lstm --set evaluate.dynamic_rate=0.5"
    )
    for unknown in ("", "nothing"):
        with pytest.raises(UsageError, match="unknown section"):
            missing_commands([], unknown)


def test_a_row_that_lacks_a_figure_is_missing() -> None:
    static = record(LEARNING)
    assert missing_commands([record(BASE), record(WIDER), static], "abl")[0].endswith("evaluate.dynamic_rate=0.5")
    learnt = replace(static, figures={**static.figures, "test_dynamic_perplexity": 4.0})
    assert missing_commands([record(BASE), record(WIDER), learnt], "abl") == []
    assert len(missing_commands([record(BASE, figures={"valid_perplexity": 4.0}), record(WIDER), learnt], "abl")) == 1


# The page itself


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "SECTIONS", SECTIONS)


@pytest.mark.usefixtures("whole")
def test_every_published_row_can_be_filled_and_the_page_stays_the_same() -> None:
    figures = {name: figure.of(METRICS) for name, figure in FIGURES.items()}
    records = list({(one := record(row, figures=figures)).identity: one
                    for section in SECTIONS for row in section.rows}.values())  # fmt: skip
    text = results_page(records)
    assert "| not run yet |" not in text
    assert missing_commands(records, "all") == []
    assert re.findall("^## (.*)", text, re.MULTILINE) == [section.title for section in SECTIONS]
    shown = rows(text)
    assert shown["LSTM beside nanoGPT"][1:3] == ["1.4699", "2.121"]
    assert shown["Zaremba small, 2 x 200"][1:3] == ["4.35", "5.13"]
    assert shown["RNN concise, 256"][1] == "1.234"
    assert "| 4.35 | 5.13 | 4.57% | 2.358 |" in text


@pytest.mark.usefixtures("whole")
def test_the_page_in_the_repository_is_that_of_its_records() -> None:
    docs = Path(__file__).parents[2] / "docs"
    records = read_measured(docs / "results.json")
    assert (docs / "results.md").read_text(encoding="utf-8") == results_page(records)
    rows_of_the_page = [row.config for section in SECTIONS for row in section.rows]
    assert all(any(one.is_of(config) for config in rows_of_the_page) for one in records)
    assert json.loads((docs / "results.json").read_text())["format"] == 1
