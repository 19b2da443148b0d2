import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rnnlm_core import onnx_export
from rnnlm_core.config import ModelConfig
from rnnlm_core.errors import IntegrityError, ResourceError
from rnnlm_core.levels import BYTES, BpeTokenizer, tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.onnx_export import check_onnx, export_onnx
from rnnlm_core.saved_model import SavedModel
from rnnlm_core.vocabulary import Vocabulary

NEEDED = "the extra `onnx` is not installed"
onnx = pytest.importorskip("onnx", reason=NEEDED)
onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDED)
LETTERS = Vocabulary(dict.fromkeys("abcdefgh", 9))


def saved_model(cell: str = "gru", **config: Any) -> SavedModel:
    torch.manual_seed(2)
    shape = ModelConfig(hidden_size=6, init="uniform", init_range=1.0, dropout=0.4, **config)
    return SavedModel(LanguageModel(cell, len(LETTERS), shape).eval(), LETTERS, tokenizer("char"), "letters", {})


def kinds() -> Iterator[tuple[str, dict[str, Any]]]:
    inputs = ({}, {"embedding_size": 4}, {"embedding_size": 6, "tie_weights": True})
    made = [("concise", "auto"), ("scratch", "auto"), ("scratch", "after")]
    for cell, (how, gate), layers, more in itertools.product(("rnn", "gru", "lstm"), made, (1, 2), inputs):
        if cell == "gru" or gate == "auto":
            yield cell, {"implementation": how, "reset_gate": gate, "num_layers": layers, **more}


@pytest.mark.parametrize(("cell", "config"), list(kinds()), ids=str)
def test_the_file_computes_what_the_model_does_with_any_batch_and_steps_and_carries_the_state(
    cell: str, config: dict[str, Any]
) -> None:
    saved = saved_model(cell, **config)
    session = onnxruntime.InferenceSession(export_onnx(saved), providers=["CPUExecutionProvider"])
    names = ["h", "c"] if cell == "lstm" else ["h"]
    assert [one.name for one in session.get_inputs()] == ["ids", *names]
    assert [one.name for one in session.get_outputs()] == ["logits", *(f"{name}_next" for name in names)]
    for batch, lengths in ((1, (1, 1, 5)), (3, (7, 1))):
        state = saved.model.initial_state(batch)
        held = {name: np.zeros((len(state), batch, 6), np.float32) for name in names}
        for steps in lengths:
            ids = torch.randint(len(LETTERS), (batch, steps), generator=torch.Generator().manual_seed(steps))
            with torch.inference_mode():
                wanted, state = saved.model(ids, state)
            logits, *after = session.run(None, {"ids": ids.numpy(), **held})
            held = dict(zip(names, after, strict=True))
            assert logits.shape == wanted.shape
            assert np.abs(logits - wanted.numpy()).max() < 1e-5
            for i, layer in enumerate(state):
                for name, part in zip(names, layer, strict=True):
                    assert np.abs(held[name][i] - part.numpy()).max() < 1e-5


def test_the_file_alone_says_what_its_ids_mean() -> None:
    properties = {one.key: one.value for one in onnx.load_from_string(export_onnx(saved_model())).metadata_props}
    assert json.loads(properties.pop("rnnlm.tokens")) == ["<unk>", *"abcdefgh"]
    assert json.loads(properties.pop("rnnlm.tokenizer")) == {"level": "char", "eos": "none"}
    assert properties == {"rnnlm.cell": "gru", "rnnlm.normalizer": "letters"}


def test_byte_pairs_go_with_the_file() -> None:
    cut = BpeTokenizer.learn(["the time the time traveller"], 260)
    words = Vocabulary(dict.fromkeys([*BYTES, *cut.alphabet], 1))
    saved = SavedModel(LanguageModel("rnn", len(words), ModelConfig(hidden_size=2)).eval(), words, cut, "none", {})
    properties = {one.key: one.value for one in onnx.load_from_string(export_onnx(saved)).metadata_props}
    assert BpeTokenizer(properties["rnnlm.bpe"]).split("the time") == cut.split("the time")
    tokens = json.loads(properties["rnnlm.tokens"])
    assert [tokens[i] for i in words[cut.split("the time")]] == cut.split("the time")


def test_equal_models_make_equal_files() -> None:
    assert export_onnx(saved_model("lstm")) == export_onnx(saved_model("lstm"))


def test_tied_weights_are_stored_once() -> None:
    tied, untied = (export_onnx(saved_model(embedding_size=6, tie_weights=tie)) for tie in (True, False))
    assert len(tied) <= len(untied) - 4 * 6 * len(LETTERS)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_file_of_another_model_is_noticed(cell: str) -> None:
    saved = saved_model(cell)
    data = export_onnx(saved)
    assert check_onnx(data, saved) < 1e-5
    nn.init.normal_(saved.model.layers[0].weight_hh_l0)  # seen from the second token on
    with pytest.raises(IntegrityError, match="the ONNX file computes something else"):
        check_onnx(data, saved)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_its_name_is_told(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = export_onnx(saved_model())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=rf"not installed: {package}: pip install '\.\[onnx\]'"):
        export_onnx(saved_model())
    with pytest.raises(ResourceError, match=rf"not installed: {package}: pip"):
        check_onnx(data, saved_model())


def test_more_weights_than_a_file_holds_are_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 100)
    with pytest.raises(ResourceError, match="an ONNX file holds at most 100 bytes"):
        export_onnx(saved_model())
