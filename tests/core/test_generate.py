from itertools import islice
from typing import Any

import pytest
import torch

from rnnlm_core.config import CELLS, GenerateConfig, ModelConfig
from rnnlm_core.errors import DataError, UsageError
from rnnlm_core.generate import (
    DEFAULT_PREFIX_TOKENS,
    Sample,
    continue_ids,
    continue_text,
    generate,
    opening,
    prefix_tokens,
)
from rnnlm_core.model import LanguageModel, SavedModel, load_model, save_model
from rnnlm_core.store import Handle, Store
from rnnlm_core.vocabulary import Vocabulary

LETTERS = Vocabulary(dict.fromkeys("abcdefgh ", 9))
WORDS = Vocabulary(dict.fromkeys(("time", "and", "the", "traveller"), 9))


def saved_model(
    vocabulary: Vocabulary = LETTERS, level: str = "char", normalizer: str = "none", cell: str = "gru"
) -> SavedModel:
    torch.manual_seed(0)
    model = LanguageModel(cell, len(vocabulary), ModelConfig(hidden_size=6, num_layers=2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)  # far from uniform: greedy text varies
    return SavedModel(model, vocabulary, level, normalizer, {})


def draws(model: LanguageModel, count: int, temperature: float, seed: int = 0) -> list[int]:
    return list(islice(continue_ids(model, [1], temperature, torch.Generator().manual_seed(seed)), count))


# Drawing


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_takes_the_most_likely_token_after_all_that_came_before(cell: str) -> None:
    saved = saved_model(cell=cell)
    ids = saved.vocabulary[list("abba")]
    with torch.no_grad():
        for _ in range(30):
            logits, _ = saved.model(torch.tensor([ids]), saved.model.initial_state(1))  # all anew, no state kept
            ids.append(int(logits[0, -1].argmax()))
    sample = continue_text(saved, "abba", GenerateConfig(length=30))
    assert sample == Sample("abba", "".join(saved.vocabulary.to_tokens(ids)))
    assert len(set(ids[4:])) > 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    model = saved_model().model
    logits = torch.linspace(-2, 2, len(LETTERS))
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(logits)
    counts = torch.bincount(torch.tensor(draws(model, 3000, temperature)), minlength=len(LETTERS))
    expected = torch.softmax(logits / temperature, dim=0)
    assert (counts / 3000 - expected).abs().max() < 0.03


def test_cold_draws_are_greedy() -> None:
    model = saved_model().model
    assert draws(model, 40, 1e-4) == draws(model, 40, 0.0)


def test_the_seed_decides_the_text() -> None:
    saved = saved_model()
    config = GenerateConfig(length=40, temperature=1.0, seed=1)
    one = continue_text(saved, "ab", config)
    assert continue_text(saved, "ab", config) == one
    assert continue_text(saved, "ab", GenerateConfig(length=40, temperature=1.0, seed=2)) != one


def test_drawing_neither_uses_nor_moves_the_random_state_of_the_caller() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = draws(saved_model().model, 20, 1.0)
    torch.set_rng_state(before)
    model = saved_model().model
    torch.manual_seed(6)
    moved = torch.get_rng_state()
    assert draws(model, 20, 1.0) == one
    assert torch.equal(torch.get_rng_state(), moved)


def test_between_two_draws_the_caller_computes_as_always() -> None:
    following = continue_ids(saved_model().model, [1], 0.0, torch.Generator())
    next(following)
    assert not torch.is_inference_mode_enabled()
    assert torch.ones(1, requires_grad=True).exp().requires_grad
    next(following)


@pytest.mark.parametrize("length", [1, 2, 57])
def test_exactly_the_wanted_number_of_tokens_is_added(length: int) -> None:
    sample = continue_text(saved_model(), "abc", GenerateConfig(length=length))
    tokens = sample.text.removeprefix("abc").replace("<unk>", "?")
    assert sample.text.startswith("abc")
    assert len(tokens) == length


def test_words_are_joined_with_spaces() -> None:
    sample = continue_text(saved_model(WORDS, "word"), " time  and\nthe ", GenerateConfig(length=5))
    assert sample.prefix == "time and the"
    assert sample.text.startswith("time and the ")
    assert len(sample.text.split(" ")) == 8


# Prefixes


def test_a_prefix_is_read_by_the_rule_of_the_model() -> None:
    saved = saved_model(normalizer="letters")
    assert prefix_tokens(saved, "  Bad,\n\n CAFE!", "error") == list("bad cafe ")
    assert prefix_tokens(saved_model(), "bad", "error") == list("bad")


@pytest.mark.parametrize(("prefix", "what"), [("", "prefix is empty: '': give at least one character")])
def test_an_empty_prefix_is_refused(prefix: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        continue_text(saved_model(), prefix, GenerateConfig())


@pytest.mark.parametrize(("level", "normalizer", "prefix"), [("word", "none", " \n"), ("char", "letters", "?!")])
def test_a_prefix_of_which_nothing_is_left_is_refused(level: str, normalizer: str, prefix: str) -> None:
    saved = saved_model(WORDS if level == "word" else LETTERS, level, normalizer)
    with pytest.raises(
        UsageError, match=f"nothing is left of the prefix after normalizer `{normalizer}`: .*other text"
    ):
        continue_text(saved, prefix, GenerateConfig())


@pytest.mark.parametrize(
    ("level", "prefix", "shown"),
    [("char", "azbzà", "characters outside the vocabulary: 'z', 'à'"), ("word", "the zoo", "words .*: 'zoo'")],
)
def test_unknown_tokens_are_listed_once_each(level: str, prefix: str, shown: str) -> None:
    saved = saved_model(WORDS if level == "word" else LETTERS, level)
    with pytest.raises(DataError, match=f"prefix has {shown}: leave them out, or use `--unknown map`"):
        continue_text(saved, prefix, GenerateConfig(unknown="error"))


def test_unknown_tokens_are_read_as_unk_with_a_warning() -> None:
    saved = saved_model()
    warnings: list[str] = []
    sample = continue_text(saved, "azà", GenerateConfig(length=9), warnings.append)
    assert warnings == ["prefix has characters outside the vocabulary, read as <unk>: 'z', 'à'"]
    ids = list(islice(continue_ids(saved.model, [saved.vocabulary["a"], 0, 0], 0, torch.Generator()), 9))
    assert sample == Sample("azà", "azà" + "".join(saved.vocabulary.to_tokens(ids)))


def test_a_known_prefix_warns_of_nothing() -> None:
    warnings: list[str] = []
    continue_text(saved_model(), "abc", GenerateConfig(length=1), warnings.append)
    assert warnings == []


# From the store


def publish(store: Store, built: Any, level: str) -> Handle:
    saved = saved_model(Vocabulary.load(store.open(built.vocabulary)), level)
    with store.draft("model") as draft:
        save_model(draft.folder, saved.model, saved.vocabulary, level, "none", {})
        return draft.publish()


def test_each_prefix_gives_a_sample_in_order(characters: Any, store: Store) -> None:
    handle = publish(store, characters, "char")
    config = GenerateConfig(prefixes=("un", "so"), length=12)
    samples = generate(handle, characters.corpus, "test", config, store)
    saved = load_model(store.open(handle))
    assert samples == tuple(continue_text(saved, prefix, config) for prefix in ("un", "so"))


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_without_prefix_the_split_opens(level: str, split: str, build: Any, characters: Any, store: Store) -> None:
    built = build(characters.text, level=level)
    tokens = list(built.text) if level == "char" else built.text.split()
    start = 0 if split == "train" else len(tokens) - built.splits["test"].num_tokens
    expected = ("" if level == "char" else " ").join(tokens[start : start + DEFAULT_PREFIX_TOKENS])
    handle = publish(store, built, level)
    (sample,) = generate(handle, built.corpus, split, GenerateConfig(length=3), store)
    assert sample.prefix == expected
    assert sample.text.startswith(expected)
    assert opening(load_model(store.open(handle)), store.open(built.corpus), split) == expected


def test_a_split_that_opens_with_unknown_characters_is_read_as_its_tokens(build: Any, store: Store) -> None:
    built = build("ab" * 40 + "xayb" * 5)
    handle = publish(store, built, "char")
    warnings: list[str] = []
    config = GenerateConfig(length=6, unknown="error")
    (sample,) = generate(handle, built.corpus, "test", config, store, warnings.append)
    saved = load_model(store.open(handle))
    a, b = saved.vocabulary["a"], saved.vocabulary["b"]
    opened = [0, b, 0, a, 0, b, 0, a]
    ids = list(islice(continue_ids(saved.model, opened, 0, torch.Generator()), 6))
    assert warnings == []
    assert sample.prefix == "".join(saved.vocabulary.to_tokens(opened))
    assert sample.text == sample.prefix + "".join(saved.vocabulary.to_tokens(ids))
