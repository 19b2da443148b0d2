import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core import evaluate as evaluate_module
from rnnlm_core.config import CELLS, ModelConfig
from rnnlm_core.corpus import build_corpus, id_batches
from rnnlm_core.download import download, resolve
from rnnlm_core.errors import DataError, IntegrityError
from rnnlm_core.evaluate import evaluate, stream_loss
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.outcomes import perplexity
from rnnlm_core.saved_model import save_model
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import tokenize
from rnnlm_core.vocabulary import Vocabulary, build_vocabulary

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
    assert model.dropout_output.training is training


def test_the_mode_comes_back_after_an_error() -> None:
    model = model_of().train()
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)|ids from 1 to 12, of 9"):
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


def publish(store: Store, built: Any, level: str, eos: str = "none") -> tuple[Handle, LanguageModel]:
    model = model_of(vocabulary_size=built.vocabulary_size).eval()
    with store.draft("model") as draft:
        about = {"vocabulary": built.vocabulary.sha256}
        words = Vocabulary.load(store.open(built.vocabulary))
        save_model(draft.folder, model, words, tokenizer(level, eos), "none", about)
        return draft.publish(), model


@pytest.mark.parametrize("split", ["valid", "test"])
def test_characters_carry_their_loss_in_bits(split: str, characters: Any, store: Store) -> None:
    handle, model = publish(store, characters, "char")
    found = evaluate(handle, characters.corpus, split, store)
    ids = torch.from_numpy(next(id_batches(store.open(characters.corpus) / f"{split}.parquet")).astype("int64"))
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


def test_eos_is_a_token_that_the_result_names_and_the_line_end_it_stands_for(store: Store, tmp_path: Path) -> None:
    lines = ["one two three", "two one", "", "three one two"] * 10
    path = tmp_path / "lines.txt"
    path.write_text("".join(line + "\n" for line in lines))
    shares = (60, 20, 20)
    tokens = tokenize(download(resolve(str(path)), store).handle, "none", "word", store, eos="line")
    words = build_vocabulary(tokens, shares, 1, (), store)
    corpus = build_corpus(tokens, words.handle, shares, 0, store)
    built = SimpleNamespace(vocabulary=words.handle, vocabulary_size=words.size)
    handle, _ = publish(store, built, "word", "line")
    found = evaluate(handle, corpus.handle, "test", store)
    stream = [token for line in lines for token in [*line.split(), "<eos>"]]
    predicted = stream[len(stream) - found.num_tokens + 1 :]
    assert (found.eos, found.num_tokens) == ("line", len(stream) // 5)
    assert "<eos>" in predicted
    before = stream[len(stream) - found.num_tokens]
    chars = sum(0 if word == "<eos>" else len(word) + 1 for word in predicted)
    chars += sum(one == two == "<eos>" for one, two in pairwise([before, *predicted]))  # empty lines
    assert found.bits_per_char == pytest.approx(found.loss * len(predicted) / math.log(2) / chars, rel=1e-12)


def test_a_corpus_without_eos_says_so(words: Any, store: Store) -> None:
    handle, _ = publish(store, words, "word")
    assert evaluate(handle, words.corpus, "test", store).eos == "none"


def test_a_corpus_with_other_ids_is_refused(build: Any, store: Store) -> None:
    one, other = build("abcabcbca" * 20), build("cbacbaabc" * 20)
    handle, _ = publish(store, one, "char")
    assert evaluate(handle, one.corpus, "test", store).num_tokens == 18
    with pytest.raises(DataError, match=f"model and corpus have different vocabularies: .*{other.corpus.sha256[:12]}"):
        evaluate(handle, other.corpus, "test", store)


def test_an_infinite_perplexity_stays_infinite(characters: Any, store: Store) -> None:
    model = model_of(vocabulary_size=characters.vocabulary_size)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()[0] = 1e4  # all on <unk>, which never occurs
    words = Vocabulary.load(store.open(characters.vocabulary))
    with store.draft("model") as draft:
        about = {"vocabulary": characters.vocabulary.sha256}
        save_model(draft.folder, model, words, tokenizer("char"), "none", about)
        handle = draft.publish()
    found = evaluate(handle, characters.corpus, "test", store)
    assert found.perplexity == math.inf
    assert found.loss == pytest.approx(1e4)
    assert found.bits_per_char == pytest.approx(1e4 / math.log(2))


def test_a_missing_model_is_told(characters: Any, store: Store) -> None:
    with pytest.raises(IntegrityError, match=r"artifact model:0000.* is missing"):
        evaluate(Handle("model", "0" * 64), characters.corpus, "test", store)


def test_a_split_within_one_character_has_no_bits_per_character(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("é" * 40)
    shares = (38, 1, 1)
    tokens = tokenize(download(resolve(str(path)), store).handle, "none", "byte", store)
    words = build_vocabulary(tokens, shares, 1, (), store)
    corpus = build_corpus(tokens, words.handle, shares, 0, store)
    built = SimpleNamespace(vocabulary=words.handle, vocabulary_size=words.size)
    handle, _ = publish(store, built, "byte")
    assert corpus.splits["test"].predicted_chars == 0
    found = evaluate(handle, corpus.handle, "test", store)
    assert math.isfinite(found.perplexity)
    assert found.bits_per_char == math.inf
