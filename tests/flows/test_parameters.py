"""What Prefect's form shows of the flows' parameters, and what it refuses."""

from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

from flows.retrain import retrain
from flows.watch_corpus import watch_corpus
from rnnlm_core.config import OWN_CELLS, RunConfig, flatten
from rnnlm_core.presets import PRESETS


@pytest.fixture(scope="module")
def form() -> dict[str, Any]:
    """The schema that Prefect stores with a deployment of `retrain`."""
    return parameter_schema(retrain).model_dump()


def test_every_parameter_has_a_type_a_description_and_a_default(form: dict[str, Any]) -> None:
    for name, about in form["properties"].items():
        assert about["description"], name
        assert "default" in about, name
    assert form["properties"]["preset"]["enum"] == list(PRESETS)
    assert form["properties"]["tolerance"]["type"] == "number"
    assert form["properties"]["cells"]["anyOf"][0]["items"]["enum"] == list(OWN_CELLS)


def test_the_form_has_every_key_of_the_config_with_its_type_words_and_limits(form: dict[str, Any]) -> None:
    keys = form["definitions"]["Changes"]["properties"]
    assert keys.keys() == flatten(RunConfig()).keys() - {"cells"}
    assert [key for key, about in keys.items() if not about.get("description")] == []
    epochs = keys["train.epochs"]
    assert (epochs["type"], epochs["minimum"], epochs["maximum"]) == ("integer", 1, 1_000_000)
    assert keys["model.implementation"]["enum"] == ["concise", "scratch"]
    assert keys["train.clip_norm"]["description"] == "Largest global gradient norm; 0 = no clipping."
    assert keys["model.tie_weights"]["enum"] == ["true", "false"]
    assert form["definitions"]["Changes"]["additionalProperties"] is False


def test_what_is_watched_must_be_named() -> None:
    assert parameter_schema(watch_corpus).model_dump()["required"] == ["corpus"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"preset": "smokey"}, "preset"),
        ({"cells": ["lstn"]}, "'rnn', 'gru', 'lstm' or 'ngram'"),
        ({"tolerance": -1}, "greater than or equal to 0"),
        ({"changes": {"train.epochz": 3}}, "Extra inputs are not permitted"),
        ({"changes": {"train.epochs": "3"}}, "valid integer"),
        ({"changes": {"train.epochs": True}}, "valid integer"),
        ({"changes": {"model.dropout": 1.0}}, "less than 1"),
        ({"changes": {"model.tie_weights": False}}, "'true' or 'false'"),
        ({"changes": {"generate.prefixes": "the"}}, "valid list"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterTypeError, match=said):
        retrain.validate_parameters({"corpus": "x", **given})
