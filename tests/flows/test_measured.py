"""The file of measured figures: read strictly, written whole, merged by date."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.measured import Measured, merged, read_measured, settings_of, write_measured
from rnnlm_core.config import RunConfig
from rnnlm_core.errors import IntegrityError
from rnnlm_core.presets import run_config

ONE = Measured(
    preset="smoke", cell="gru", settings={"train.epochs": "2"}, seed=0, figures={"test_perplexity": 5.0}, parameters=12,
    hardware="cpu", seconds=65.0, run_id="ab" * 16, date="2026-11-21T10:00:00+00:00", versions={"torch": "2.11"},
)  # fmt: skip


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    records = [ONE, replace(ONE, seed=1, figures={"test_perplexity": math.inf}, parameters=None, versions={})]
    assert read_measured(path) == []
    write_measured(path, records)
    assert read_measured(path) == records
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"figures": {"test_perplexity": "five"}}, "rows.0.figures.test_perplexity: Input should be a valid number"),
        ({"figures": {"test_perplexity": "nan"}}, "rows.0.figures: Value error, no figure is not a number"),
        ({"figures": {}}, "rows.0.figures: Dictionary should have at least 1 item"),
        ({"figure": {}}, "rows.0.figure: Unexpected keyword argument"),
        ({"seed": -1}, "rows.0.seed: Input should be greater than or equal to 0"),
        ({"seconds": "inf"}, "rows.0.seconds: Input should be a finite number"),
        ({"run_id": "../x"}, "rows.0.run_id: String should match pattern"),
        ({"date": "yesterday"}, "rows.0.date: Value error, Invalid isoformat string: 'yesterday'"),
        ({"hardware": ""}, "rows.0.hardware: String should have at least 1 character"),
        ({"settings": ["train.epochs"]}, "rows.0.settings: Input should be a valid dictionary"),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "results.json"
    write_measured(path, [ONE])
    content = json.loads(path.read_text())
    content["rows"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(IntegrityError) as caught:
        read_measured(path)
    assert str(caught.value).startswith(f"measured figures are wrong: {told}")
    assert f"{path}: correct it, or restore it from version control" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("\xff", "cannot be read"),
        ('{"format": 1', "cannot be read"),
        ("[]", "must be of format 1"),
        ('{"format": 2, "rows": []}', "must be of format 1"),
        ('{"format": 1}', "rows: Input should be a valid list"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=told):
        read_measured(path)


def test_a_training_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_measured(path, [ONE, replace(ONE, run_id="cd" * 16)])
    with pytest.raises(IntegrityError, match="a training with its seed twice"):
        read_measured(path)


def test_of_two_records_the_newer_one_stays() -> None:
    older = replace(ONE, date="2026-11-21", figures={"test_perplexity": 6.0})  # a day is its first moment
    assert merged([ONE], [older]) == merged([older], [ONE]) == [ONE]
    again = replace(ONE, figures={"test_perplexity": 4.0})
    assert merged([ONE], [again]) == [again]
    other = replace(ONE, seed=1)
    assert merged([ONE], [other]) == [ONE, other]


def test_settings_are_what_differs_from_the_defaults_but_seed_and_place() -> None:
    assert settings_of(RunConfig()) == {}
    changes = {
        "train.seed": 5,
        "train.device": "cpu",
        "train.epochs": 3,
        "generate.length": 7,
        "evaluate.split": "valid",
    }
    assert settings_of(run_config(changes=changes)) == settings_of(run_config(changes={"train.epochs": 3}))
    learning = run_config("smoke", None, ["gru"], {"evaluate.dynamic_rate": 0.5})
    assert settings_of(learning)["evaluate.dynamic_rate"] == "0.5"
    assert replace(ONE, settings=settings_of(learning)).is_of(learning)
    assert not replace(ONE, cell="rnn", settings=settings_of(learning)).is_of(learning)
