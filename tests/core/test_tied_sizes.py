"""An embedding of its own width that the output shares: the last layer is as wide, and everything knows it."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnlm_core.checkpoint import Checkpoints
from rnnlm_core.config import CELLS, GenerateConfig, ModelConfig, TrainConfig
from rnnlm_core.errors import Stopped
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.generate import continue_texts
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel, convert, num_parameters
from rnnlm_core.saved_model import SavedModel, load_model, save_model
from rnnlm_core.store import Store
from rnnlm_core.train import fit
from rnnlm_core.vocabulary import Vocabulary

LETTERS = Vocabulary(dict.fromkeys("abcdefgh", 9))
V = len(LETTERS)
APART = ModelConfig(hidden_size=7, num_layers=3, embedding_size=4, tie_weights=True)
MODULES = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
every_cell = pytest.mark.parametrize("cell", CELLS)


def model_of(cell: str, **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(cell, V, replace(APART, **changes)).eval()


def ids_of(batch: int, steps: int) -> Tensor:
    return torch.randint(V, (batch, steps), generator=torch.Generator().manual_seed(1))


def test_awd_lstm_on_penn_treebank_has_24_221_600_parameters() -> None:
    with torch.device("meta"):
        config = ModelConfig(hidden_size=1150, num_layers=3, embedding_size=400, tie_weights=True)
        assert num_parameters(LanguageModel("lstm", 10_000, config)) == 24_221_600


@every_cell
def test_it_computes_what_layers_of_torch_with_these_sizes_do(cell: str) -> None:
    model = model_of(cell).double()
    assert model.embedding is not None
    outputs, ends = model.embedding(ids_of(2, 6)), []
    for layer, (inputs, units) in zip(model.layers, ((4, 7), (7, 7), (7, 4)), strict=True):
        peer = MODULES[cell](inputs, units, batch_first=True).double()
        peer.load_state_dict(layer.state_dict())
        outputs, end = peer(outputs)
        ends.append(end if isinstance(end, tuple) else (end,))
    expected = outputs @ model.embedding.weight.t() + model.output.bias

    state = model.initial_state(2)
    assert [tuple(part.shape for part in layer) for layer in state] == [
        ((2, units),) * (2 if cell == "lstm" else 1) for units in (7, 7, 4)
    ]
    first, between = model(ids_of(2, 6)[:, :2], state)
    second, after = model(ids_of(2, 6)[:, 2:], between)
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(after, ends, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other[0], rtol=0, atol=1e-12)


@every_cell
def test_scratch_layers_have_the_same_sizes(cell: str) -> None:
    scratch = model_of(cell, implementation="scratch", reset_gate="after")
    concise = convert(scratch, "concise")
    ids, state = ids_of(2, 6), scratch.initial_state(2)
    torch.testing.assert_close(concise(ids, state)[0], scratch(ids, state)[0])


@every_cell
def test_it_is_saved_measured_and_continued(cell: str, tmp_path: Path) -> None:
    model = model_of(cell)
    save_model(tmp_path, model, LETTERS, tokenizer("char"), "none", {})
    saved = load_model(tmp_path)
    assert saved.model.embedding.weight is saved.model.output.weight
    assert stream_loss(saved.model, ids_of(1, 700)[0]) == stream_loss(model, ids_of(1, 700)[0])
    for options in ({}, {"beam": 3}, {"temperature": 1.0}):
        both = continue_texts(saved, ["ab", "abcd"], GenerateConfig(length=6, **options))
        alone = [continue_texts(saved, [text], GenerateConfig(length=6, **options))[0] for text in ("ab", "abcd")]
        assert list(both) == alone


@every_cell
def test_onnx_takes_the_states_side_by_side(cell: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    import onnx

    from rnnlm_core.onnx_export import check_onnx, export_onnx

    saved = SavedModel(model_of(cell, init="uniform", init_range=1.0), LETTERS, tokenizer("char"), "none", {})
    data = export_onnx(saved)
    assert check_onnx(data, saved) < 1e-4
    shapes = {
        one.name: [size.dim_value for size in one.type.tensor_type.shape.dim]
        for one in onnx.load_from_string(data).graph.input
    }
    assert shapes["h"][::2] == [1, 18]


@every_cell
def test_a_training_goes_on_exactly(cell: str, store: Store) -> None:
    ids, config = ids_of(1, 200)[0].int(), TrainConfig(epochs=2, batch_size=4, num_steps=5, device="cpu")
    model = replace(APART, dropout=0.2)
    whole = fit(cell, V, ids, ids[:50], model, config)
    for number in (3, 9, 14):
        calls, checkpoints = itertools.count(1), Checkpoints(store, f"key-{number}")
        with pytest.raises(Stopped):
            fit(
                cell, V, ids, ids[:50], model, config, checkpoints=checkpoints, checkpoint_seconds=0.0,
                should_stop=lambda calls=calls, number=number: next(calls) == number,
            )  # fmt: skip
        again = fit(cell, V, ids, ids[:50], model, config, checkpoints=checkpoints)
        theirs = whole.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in again.model.state_dict().items())
        assert [e.valid_loss for e in again.history] == [e.valid_loss for e in whole.history]
