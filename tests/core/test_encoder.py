"""The bidirectional encoder knows the tokens that follow; the language model does not."""

import pytest
import torch
from torch import Tensor

from rnnlm_core.config import CELLS, ModelConfig
from rnnlm_core.encoder import BidirectionalEncoder
from rnnlm_core.model import LanguageModel

V = 9
every_cell = pytest.mark.parametrize("cell", CELLS)


def encoder_of(cell: str, **more: float) -> BidirectionalEncoder:
    torch.manual_seed(0)
    return BidirectionalEncoder(cell, V, embedding_size=4, hidden_size=5, **more).double()


def ids_and_changed() -> tuple[Tensor, Tensor]:
    """Two rows of ids, and the same with another last token."""
    ids = torch.randint(0, V, (2, 6), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % V
    return ids, changed


@every_cell
@pytest.mark.parametrize("num_layers", [1, 2])
def test_there_is_one_vector_per_token_from_both_directions(cell: str, num_layers: int) -> None:
    ids, _ = ids_and_changed()
    assert encoder_of(cell, num_layers=num_layers)(ids.int()).shape == (2, 6, 10)


@every_cell
def test_a_later_token_changes_what_stands_before_it(cell: str) -> None:
    ids, changed = ids_and_changed()
    encoder = encoder_of(cell)
    difference = (encoder(ids) - encoder(changed))[:, :-1].abs()
    assert difference[..., :5].max() == 0  # the forward half has not read it yet
    assert difference[..., 5:].amax(-1).min() > 1e-8


@every_cell
def test_each_half_is_a_layer_of_torch_in_its_direction(cell: str) -> None:
    encoder = encoder_of(cell)
    ids, _ = ids_and_changed()
    kind = type(encoder.layers)
    for suffix, half, order in (("", slice(0, 5), slice(None)), ("_reverse", slice(5, 10), None)):
        one = kind(4, 5, batch_first=True).double()
        for name, parameter in one.named_parameters():
            parameter.data.copy_(getattr(encoder.layers, name + suffix).data)
        inputs = encoder.embedding(ids)
        expected = one(inputs)[0] if order else one(inputs.flip(1))[0].flip(1)
        torch.testing.assert_close(encoder(ids)[..., half], expected, rtol=0, atol=1e-12)


def test_layers_above_read_both_directions_of_those_below() -> None:
    ids, changed = ids_and_changed()
    encoder = encoder_of("gru", num_layers=2)
    assert (encoder(ids) - encoder(changed))[:, 0, :5].abs().max() > 0  # through the backward half of the first layer


@pytest.mark.parametrize("implementation", ["concise", "scratch"])
@every_cell
def test_a_language_model_does_not_read_ahead(cell: str, implementation: str) -> None:
    ids, changed = ids_and_changed()
    torch.manual_seed(0)
    config = ModelConfig(implementation=implementation, hidden_size=5, num_layers=2, init="torch")
    model = LanguageModel(cell, V, config).double()
    one, other = (model(rows, model.initial_state(2))[0] for rows in (ids, changed))
    assert torch.equal(one[:, :-1], other[:, :-1])
    assert not torch.equal(one[:, -1], other[:, -1])


def test_dropout_between_the_layers_works_in_training_alone() -> None:
    ids, _ = ids_and_changed()
    encoder = encoder_of("gru", num_layers=2, dropout=0.5)
    assert not torch.equal(encoder(ids), encoder(ids))
    encoder.eval()
    assert torch.equal(encoder(ids), encoder(ids))


def test_dropout_between_layers_needs_two_of_them() -> None:
    with pytest.raises(ValueError, match=r"at least two of them, got dropout=0.5, num_layers=1"):
        encoder_of("gru", dropout=0.5)
    encoder_of("gru", dropout=0.5, num_layers=2)
