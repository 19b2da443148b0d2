"""The summary, its table, and how it goes into a file."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import tables
from flows.commands import screen
from flows.comparison import COLUMNS, ORDERS, CellFigures, implementation_of, markdown_table, of_runs, sorted_by
from flows.summary import CellSummary, PartlyDoneError, RegisteredCell, RunSummary
from tasks.tracked_registry import Version
from tasks.tracked_runs import TrackedRun
from tasks.wording import figure

GRU = CellSummary("run-g", 5.25, 6.5, 7.125, 2.8328, 12345.6, 4711, 3, False, ("the end",))
RNN = CellSummary("run-r", 123456.789, None, None, 3.0, 99.4, 12, 1, True, ("the ",))
SUMMARY = RunSummary(
    "smoke", "text", {"rnn": RNN, "gru": GRU}, "gru", "run-p", 1.5, {"executed": 3, "cached": 8}, "/home/report.html"
)


def text_of(table: Any) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.5, "0.500"), (7.1254, "7.125"), (99.9994, "99.999"), (100.0, "100.0"), (123456.789, "123,456.8")],
)
def test_a_figure_has_the_digits_people_compare(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_the_markdown_table_has_a_row_per_cell_and_the_columns_of_the_other_tables() -> None:
    rnn = CellFigures("rnn", "scratch", 12, 123456.789, None, None, 3.0, 99.4, None, False)
    gru = CellFigures("gru", "concise", 4711, 5.25, 6.5, 7.125, 2.8328, 12345.6, 1234.56, True)
    lines = markdown_table([rnn, gru], {"gru": "[gru](#run)"}).splitlines()
    assert lines[0] == "| " + " | ".join(COLUMNS) + " |"
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 11
    assert lines[2] == "| rnn | scratch | 12 | 123,456.8 | – | – | 3.000 | 99 | – |  |"
    assert lines[3] == "| [gru](#run) | concise | 4,711 | 5.250 | 6.500 | 7.125 | 2.833 | 12,346 | 1,234.6 | yes |"


def test_a_column_of_dynamic_evaluation_is_there_where_somebody_asked() -> None:
    rnn = CellFigures("rnn", "scratch", 12, 5.5, None, 7.5, 3.0, 99.4, None, False)
    gru = CellFigures("gru", "concise", 12, 5.25, 6.5, 7.125, 2.8, 12345.6, 1.0, True, 6.75)
    lines = markdown_table([rnn, gru]).splitlines()
    assert "| test | dynamic | bits/char |" in lines[0]
    assert lines[1].count("|") == lines[2].count("|") == 12
    assert "| 7.500 | – | 3.000 |" in lines[2]
    assert "| 7.125 | 6.750 | 2.800 |" in lines[3]
    assert "dynamic" not in markdown_table([rnn])
    learnt = replace(SUMMARY, cells={"rnn": RNN, "gru": replace(GRU, dynamic_perplexity=6.75)})
    assert "dynamic" not in text_of(tables.summary_table(SUMMARY.as_json()))
    rows = {
        line.split()[0]: line.split()
        for line in text_of(tables.summary_table(learnt.as_json())).splitlines()
        if line.strip()
    }
    assert rows["cell"][3:6] == ["test", "dynamic", "bits/char"]
    assert rows["gru"][4:7] == ["7.125", "6.750", "2.833"]
    tags = {"rnnlm.cell": "gru", "rnnlm.evaluated_split": "valid"}
    metrics = {"valid/dynamic_perplexity": 6.75, "test/dynamic_perplexity": 1.0, "perf/train_minutes": 1.0}
    tracked = of_runs([TrackedRun("run-1", "FINISHED", 0.0, tags, metrics, {})], set())
    assert " 6.750 " in text_of(tables.runs_table(tracked))
    assert tracked[0].as_json()["dynamic_perplexity"] == 6.75


def test_the_summary_as_json_is_plain_data() -> None:
    plain = SUMMARY.as_json()
    assert json.loads(json.dumps(plain))["cells"]["gru"]["samples"] == ["the end"]
    assert plain["cells"]["rnn"]["test_perplexity"] is None
    assert plain["tasks"] == {"executed": 3, "cached": 8}
    assert plain["report"] == "/home/report.html"


def test_a_partly_done_run_tells_reasons_and_remedy_and_keeps_the_summary() -> None:
    error = PartlyDoneError(SUMMARY, "lstm: out of memory")
    assert error.exit_code == 7
    assert str(error) == "some cells failed: lstm: out of memory: run the same command again: only they are trained"
    assert error.summary is SUMMARY


def test_a_json_file_holds_no_infinity(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    screen.write_json(path, {"cells": {"rnn": {"test_perplexity": math.inf, "samples": ["é", math.nan]}}})
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == {
        "cells": {"rnn": {"test_perplexity": None, "samples": ["é", None]}},
        "not_finite": {"cells.rnn.test_perplexity": "inf", "cells.rnn.samples.1": "nan"},
    }
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_the_table_marks_the_best_cell_and_says_what_was_trained() -> None:
    text = text_of(tables.summary_table(SUMMARY.as_json()))
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["gru"][1] == "*"
    assert rows["gru"][-1] == "no"
    assert rows["rnn"][1] == "123,456.8"
    assert rows["rnn"][-1] == "yes"
    assert "smoke · text" in text


def test_the_table_of_runs_shows_what_a_run_has_and_a_dash_for_the_rest() -> None:
    tags = {"rnnlm.cell": "gru", "rnnlm.corpus": "text", "rnnlm.preset": "smoke", "rnnlm.evaluated_split": "valid"}
    figures = {
        "best/train_perplexity": 5.0,
        "valid/bits_per_char": 2.5,
        "perf/train_minutes": 1.25,
        "model/parameters": 12,
    }
    runs = [
        TrackedRun("run-1", "FINISHED", 0.0, tags, figures, {"model.implementation": "scratch"}),
        TrackedRun("run-2", "KILLED", 86400.0, {}, {"perf/train_minutes": 0.0}, {}),
    ]
    first, second = text_of(tables.runs_table(of_runs(runs, {"run-1"}))).splitlines()[-3:-1]
    assert " ".join(first.split()[2:]) == "gru scratch 12 5.000 – – 2.500 – 1.2 yes text smoke finished run-1"
    assert " ".join(second.split()[2:]) == "? ? – – – – – – 0.0 ? ? killed run-2"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 150])
def test_a_narrow_terminal_gets_the_columns_that_fit_and_is_told_which_do_not(width: int) -> None:
    tags = {"rnnlm.cell": "gru", "rnnlm.corpus": "text", "rnnlm.preset": "time-machine"}
    metrics = {"best/valid_perplexity": 4.0, "test/perplexity": 5.0, "model/parameters": 123456.0}
    cells = of_runs([TrackedRun("0a1b" * 8, "FINISHED", 0.0, tags, metrics, {})], set())
    whole, narrow = tables.runs_table(cells), tables.runs_table(cells, width)
    assert tables.table_width(narrow) <= width or width == 60
    shown, every = ([column.header for column in table.columns] for table in (narrow, whole))
    assert {"cell", "test", "corpus", "run id"} <= set(shown)
    assert "implementation" not in shown
    left_out = [name for name in tables.LESS_WANTED if name in every and name not in shown]
    assert narrow.caption == f"left out for want of width: {', '.join(left_out)} (all are in --json FILE)"
    assert [name for name in every if name not in left_out] == shown
    assert tables.runs_table(cells, 500).caption is None


@pytest.mark.parametrize("width", [80, 120])
def test_versions_fit_as_well(width: int) -> None:
    tags = {"rnnlm.cell": "gru", "rnnlm.corpus": "text", "rnnlm.not_promoted": "valid perplexity 9.9 is not below " * 4}
    versions = [Version("rnnlm-my-txt-0123456789", 1, "run", "models:/m-1", 0.0, False, tags)]
    table = tables.versions_table(versions, width)
    assert tables.table_width(table) <= width
    assert table.caption is not None
    assert table.caption.startswith("left out for want of width: why (not)")
    assert tables.versions_table(versions).caption is None


def test_a_name_with_brackets_is_as_wide_as_it_is_shown() -> None:
    tags = {"rnnlm.cell": "gru", "rnnlm.corpus": "[draft] :smile: [/odd] novel.txt"}
    cells = of_runs([TrackedRun("0a1b" * 8, "FINISHED", 0.0, tags, {}, {})], set())
    console = tables.plain_console()
    with console.capture() as captured:
        console.print(tables.runs_table(cells))
    widest = max(map(len, captured.get().splitlines()))
    assert tables.table_width(tables.runs_table(cells)) == widest


def test_a_cell_of_another_package_is_written_as_a_step() -> None:
    shown = [implementation_of(cell, "concise") for cell in ("gru", "ngram", "mgu")]
    assert shown == ["concise", "–", "step"]


def test_runs_are_sorted_by_date_or_by_perplexity_and_those_without_come_last() -> None:
    def tracked(name: str, started: float, **figures: float) -> TrackedRun:
        metrics = {f"{'best/valid' if key == 'valid' else key}{'/' if key == 'test' else '_'}perplexity": value
                   for key, value in figures.items()}  # fmt: skip
        return TrackedRun(name, "FINISHED", started, {}, {"perf/train_minutes": 1.0, **metrics}, {})

    runs = [tracked("a", 1, valid=3.0, test=4.0), tracked("b", 3), tracked("c", 2, valid=2.0, test=5.0),
            tracked("d", 0, valid=math.nan, test=math.inf)]  # fmt: skip
    cells = of_runs(runs, set())
    order = {by: "".join(cell.run.run_id for cell in sorted_by(by, cells)) for by in ORDERS}
    assert order["started"] == "bcad"
    assert order["valid"][:2] == "ca"
    assert order["test"][:2] == "ac"


def test_a_run_as_json_is_plain_data_with_what_identifies_it() -> None:
    tags = {"rnnlm.cell": "gru", "rnnlm.corpus": "text", "rnnlm.preset": "smoke"}
    (cell,) = of_runs([TrackedRun("run-1", "FINISHED", 0.0, tags, {"perf/train_minutes": 1.5}, {})], {"run-1"})
    plain = json.loads(json.dumps(cell.as_json()))
    assert list(plain)[:5] == ["run_id", "started", "status", "corpus", "preset"]
    assert plain["started"] == "1970-01-01T00:00:00+00:00"
    assert (plain["cell"], plain["minutes"], plain["champion"], plain["test_perplexity"]) == ("gru", 1.5, True, None)


@pytest.mark.parametrize(
    ("champion", "line"),
    [
        (True, "champion of rnnlm-text: gru, version 3 (because)"),
        (False, "gru is version 3 of rnnlm-text and not its champion: because"),
    ],
)
def test_the_verdict_is_one_line(champion: bool, line: str) -> None:
    summary = replace(SUMMARY, model=RegisteredCell("rnnlm-text", 3, champion, "because"))
    assert tables.verdict_line(summary.as_json()) == line


def test_the_commands_of_the_user_interfaces_exist_and_name_the_store() -> None:
    mlflow, prefect = tables.ui_commands("sqlite:////data/mlflow.db")
    assert mlflow.endswith("mlflow ui --backend-store-uri sqlite:////data/mlflow.db")
    assert prefect.endswith("prefect server start")


def test_a_password_stays_in_the_environment_and_the_command_works_as_printed() -> None:
    address = "postgresql://rnnlm:secret@127.0.0.1/runs"
    mlflow, _ = tables.ui_commands(address)
    assert "secret" not in mlflow
    command = mlflow.removeprefix("see the runs in MLflow:").strip()
    assert shlex.split(command, comments=True)[-2:] == ["--backend-store-uri", "$MLFLOW_TRACKING_URI"]
    assert tables.ui_commands("http://me:secret@host:5000")[0].endswith(" http://me:***@host:5000")
