import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core import evaluate as evaluate_module
from rnnlm_core.config import CELLS, ModelConfig
from rnnlm_core.corpus import read_ids
from rnnlm_core.errors import IntegrityError
from rnnlm_core.evaluate import evaluate, perplexity, stream_loss
from rnnlm_core.model import LanguageModel, save_model
from rnnlm_core.store import Handle, Store
from rnnlm_core.vocabulary import Vocabulary

V = 9
IDS = torch.randint(0, V, (50,), generator=torch.Generator().manual_seed(0)).int()


def model_of(cell: str = "gru", vocabulary_size: int = V, dropout: float = 0.0) -> LanguageModel:
    torch.manual_seed(1)
    model = LanguageModel(cell, vocabulary_size, ModelConfig(hidden_size=6, num_layers=2, dropout=dropout))
    with torch.no_grad():
        model.output.weight *= 8  # far from uniform: the order of the tokens matters
    return model


def naive_nats(model: LanguageModel, ids: Tensor) -> float:
    """One token at a time, the state handed on, the probability looked up."""
    nats, state = 0.0, model.initial_state(1)
    with torch.no_grad():
        for now, following in pairwise(ids):
            logits, state = model(now.reshape(1, 1), state)
            nats -= math.log(float(F.softmax(logits[0, 0], dim=-1)[int(following)]))
    return nats


@pytest.mark.parametrize("chunk", [1, 3, 7, 48, 49, 50, 512])
@pytest.mark.parametrize("cell", CELLS)
def test_the_loss_of_a_stream_is_that_of_its_tokens_one_by_one(
    cell: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "CHUNK", chunk)
    model = model_of(cell).double().eval()
    assert stream_loss(model, IDS) == pytest.approx(naive_nats(model, IDS), rel=1e-12)


def test_what_came_before_counts() -> None:
    model = model_of().double().eval()
    parts = stream_loss(model, IDS[:26]) + stream_loss(model, IDS[25:])
    assert abs(stream_loss(model, IDS) - parts) > 1e-3


def test_a_model_that_knows_nothing_hesitates_between_all_tokens() -> None:
    model = model_of()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
    assert perplexity(stream_loss(model, IDS) / 49) == pytest.approx(V, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training: bool) -> None:
    model = model_of(dropout=0.5).train(training)
    assert stream_loss(model, IDS) == stream_loss(model, IDS)
    assert model.training is training
    assert model.dropout.training is training


def test_the_mode_comes_back_after_an_error() -> None:
    model = model_of().train()
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        stream_loss(model, torch.tensor([1, V + 3, 2]))
    assert model.training


def test_evaluating_leaves_no_gradient() -> None:
    model = model_of().train()
    stream_loss(model, IDS)
    assert all(p.grad is None for p in model.parameters())
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (1.0, math.e), (709.0, math.exp(709)), (710.0, math.inf)])
def test_perplexity_is_exp_of_the_loss_and_inf_where_that_overflows(loss: float, expected: float) -> None:
    assert perplexity(loss) == expected


# On a corpus


def publish(store: Store, built: Any, level: str) -> tuple[Handle, LanguageModel]:
    model = model_of(vocabulary_size=built.vocabulary_size).eval()
    with store.draft("model") as draft:
        save_model(draft.folder, model, Vocabulary.load(store.open(built.vocabulary)), level, "none", {})
        return draft.publish(), model


@pytest.mark.parametrize("split", ["valid", "test"])
def test_characters_carry_their_loss_in_bits(split: str, characters: Any, store: Store) -> None:
    handle, model = publish(store, characters, "char")
    found = evaluate(handle, characters.corpus, split, store)
    ids = torch.from_numpy(read_ids(store.open(characters.corpus) / f"{split}.parquet").astype("int64"))
    assert found.split == split
    assert found.num_tokens == len(ids) == 400
    assert found.loss == pytest.approx(naive_nats(model, ids) / (len(ids) - 1), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_char == pytest.approx(found.loss / math.log(2), rel=1e-12)
    assert found.oov_rate == 0


def test_words_share_their_bits_among_their_characters_and_spaces(words: Any, store: Store) -> None:
    handle, _ = publish(store, words, "word")
    found = evaluate(handle, words.corpus, "test", store)
    tokens = words.text.split()
    predicted = tokens[-found.num_tokens :][1:]
    assert 0 < found.num_tokens < len(tokens)
    nats = found.loss * len(predicted)
    assert found.bits_per_char == pytest.approx(nats / math.log(2) / sum(len(w) + 1 for w in predicted), rel=1e-12)


def test_unknown_tokens_are_counted(build: Any, store: Store) -> None:
    built = build("ab" * 40 + "abxaxbaaaa", shares=(80, 10, 10))
    handle, _ = publish(store, built, "char")
    rates = {split: evaluate(handle, built.corpus, split, store).oov_rate for split in ("train", "valid", "test")}
    assert rates == {"train": 0, "valid": 0, "test": 2 / 9}


def test_a_missing_model_is_told(characters: Any, store: Store) -> None:
    with pytest.raises(IntegrityError, match=r"artifact model:0000.* is missing"):
        evaluate(Handle("model", "0" * 64), characters.corpus, "test", store)
