"""N-grams beside a network, and alone, through the whole chain."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.commands.generate import load_tracked
from flows.language_model import language_model
from flows.service.models import served_model
from rnnlm_core.config import GenerateConfig
from rnnlm_core.errors import ConfigError, UsageError
from rnnlm_core.generate import continue_text
from rnnlm_core.onnx_export import export_onnx
from rnnlm_core.score import score_texts
from rnnlm_core.search import make_plan
from tasks import tracked_models
from tasks.progress import News
from tasks.tracking_database import client

Run = Callable[..., dict[str, Any]]
BOTH = ("ngram", "gru")
NO_NETWORK = {"corpus.max_tokens": 0, "corpus.split": "80/10/10", "generate.prefixes": ["the "], "generate.length": 10}


def test_ngrams_stand_beside_a_network_with_the_same_figures(run: Run, train_here: list[str]) -> None:
    summary = run(BOTH, model__order=3)
    assert list(summary["cells"]) == list(BOTH)
    assert sorted(train_here) == ["gru", "ngram"]
    ngram, gru = (summary["cells"][cell] for cell in BOTH)
    assert ngram.keys() == gru.keys()
    assert 1 < ngram["valid_perplexity"] < gru["valid_perplexity"]  # of eight units after two epochs
    assert summary["best_cell"] == "ngram"
    assert (ngram["epochs"], gru["epochs"]) == (1, 2)
    assert len(ngram["samples"][0]) == len(gru["samples"][0]) == len("the ") + 10
    child, network = (client().get_run(one["run_id"]).data for one in (ngram, gru))
    theirs = {name for name in network.metrics if not name.startswith(("optim/", "system/"))}
    assert {name for name in child.metrics if not name.startswith("system/")} == theirs
    assert child.metrics["model/parameters"] == ngram["parameters"] > 100
    assert {key for key in child.params if key.startswith(("model.", "train."))} == {"model.order", "model.discounts"}
    assert not {"model.order", "model.discounts"} & network.params.keys()
    assert "rnnlm.implementation" not in child.tags
    note = child.tags["mlflow.note.content"]
    assert "**NGRAM**, order 3, on text.txt (characters): test perplexity" in note
    assert "--cells ngram" in note
    assert "--set model.order=3" in note
    assert "train." not in note
    assert "](#/experiments/" in client().get_run(summary["parent_run_id"]).data.tags["mlflow.note.content"]
    assert "ngram as a dashed level" in Path(summary["report"]).read_text()
    (text,) = tracked_models.predict(child.tags["rnnlm.model_uri"], ["the "], length=10, temperature=0.0)
    assert text == continue_text(load_tracked("ngram")[0], "the ", GenerateConfig(length=10)).text


def test_a_setting_repeats_the_training_of_the_cells_that_it_says_something_of(run: Run, train_here: list[str]) -> None:
    run(BOTH)
    train_here.clear()
    assert run(BOTH)["tasks"]["executed"] == 0
    run(BOTH, model__order=2)
    assert train_here == ["ngram"]
    train_here.clear()
    run(BOTH, train__learning_rate=2e-3, model__hidden_size=9)
    assert train_here == ["gru"]


def test_alone_they_need_no_setting_of_networks_and_take_none(home: Path, text: Path, train_here: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"`train\.epochs` has no effect on the cell ngram alone\. Got 3"):
        language_model("smoke", str(text), ["ngram"], {**NO_NETWORK, "train.epochs": 3})
    with pytest.raises(ConfigError, match=r"`model\.order` has no effect without the cell ngram\. Got 3"):
        language_model("smoke", str(text), ["gru"], {**NO_NETWORK, "model.order": 3})
    assert train_here == []
    summary = language_model("smoke", str(text), ["ngram"], NO_NETWORK)
    assert summary["best_cell"] == "ngram"
    assert summary["model"]["champion"] is True


def test_what_uses_trained_models_uses_them(home: Path, text: Path, train_here: list[str]) -> None:
    summary = language_model("smoke", str(text), ["ngram"], NO_NETWORK)
    saved, tracked = load_tracked("ngram")
    (score,) = score_texts(saved, ["the machine"])
    assert 1 < score.perplexity < 10
    facts = served_model("ngram", saved, tracked).facts
    assert (facts.cell, facts.order, facts.hidden_size, facts.num_layers) == ("ngram", 5, None, None)
    assert facts.parameters == summary["cells"]["ngram"]["parameters"]
    with pytest.raises(UsageError, match="an ONNX file holds a network: ngram: use the model itself"):
        export_onnx(saved)


def test_a_short_text_that_no_network_could_be_trained_on_is_enough(
    home: Path, tmp_path: Path, train_here: list[str], heard: list[News]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("to be or not to be that is the question " * 3)
    summary = language_model("smoke", str(short), ["ngram"], {**NO_NETWORK, "generate.prefixes": ["to "]})
    assert summary["cells"]["ngram"]["samples"][0].startswith("to ")
    assert [news.cell for news in heard if "too few counts for" in news.warning] == ["ngram"]


def test_a_sweep_varies_the_order_or_nothing() -> None:
    with pytest.raises(ConfigError, match=r"a sweep of ngram alone varies model\.order and model\.discounts"):
        make_plan("smoke", cells=["ngram"])
    plan = make_plan("smoke", cells=["ngram", "gru"], search=["model.order=2,3", "model.hidden_size=4,8"])
    cells = {config.cells[0]: config for config in plan.corners()}
    assert {config.model.order for config in plan.corners() if config.cells == ("ngram",)} == {2, 3}
    assert cells["ngram"].train == cells["ngram"].train.__class__()
    assert cells["gru"].model.order == 5
