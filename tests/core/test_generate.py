import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from rnnlm_core import generate as generate_module
from rnnlm_core.config import CELLS, GenerateConfig, ModelConfig
from rnnlm_core.errors import DataError, UsageError
from rnnlm_core.generate import (
    DEFAULT_PREFIX_TOKENS,
    Sample,
    continue_ids,
    continue_text,
    continue_texts,
    generate,
    known_opening,
    opening,
    prefix_tokens,
    probabilities,
    stream_text,
)
from rnnlm_core.kneser_ney import estimate
from rnnlm_core.levels import BYTES, tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.ngram import NgramModel
from rnnlm_core.ngram_counts import count_ngrams
from rnnlm_core.saved_model import SavedModel, load_model, save_model
from rnnlm_core.softmax import MixtureOfSoftmaxes
from rnnlm_core.store import Handle, Store
from rnnlm_core.vocabulary import Vocabulary

LETTERS = Vocabulary(dict.fromkeys("abcdefgh ", 9))
WORDS = Vocabulary(dict.fromkeys(("time", "and", "the", "traveller"), 9))
LINES = Vocabulary(dict.fromkeys(("time", "and", "<eos>", "the", "traveller"), 9))
ALL_BYTES = Vocabulary(dict.fromkeys(BYTES, 9))


def saved_model(
    vocabulary: Vocabulary = LETTERS,
    level: str = "char",
    normalizer: str = "none",
    cell: str = "gru",
    eos: str = "none",
) -> SavedModel:
    torch.manual_seed(0)
    model = LanguageModel(cell, len(vocabulary), ModelConfig(hidden_size=6, num_layers=2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)  # far from uniform: greedy text varies
    return SavedModel(model, vocabulary, tokenizer(level, eos), normalizer, {})


def memoryless(logits: Tensor, vocabulary: Vocabulary = LETTERS, eos: str = "none", level: str = "char") -> SavedModel:
    """A model whose logits are the same after whatever came before."""
    saved = saved_model(vocabulary, level, eos=eos)
    with torch.no_grad():
        saved.model.output.weight.zero_()
        saved.model.output.bias.copy_(logits)
    return saved


def following(model: LanguageModel, ids: list[int], count: int, config: GenerateConfig) -> list[int]:
    return [token for (token,) in islice(continue_ids(model, [ids], config), count)]


def draws(model: LanguageModel, count: int, temperature: float, seed: int = 0) -> list[int]:
    return following(model, [1], count, GenerateConfig(temperature=temperature, seed=seed))


def added(saved: SavedModel, prefix: str, config: GenerateConfig) -> str:
    sample = continue_text(saved, prefix, config)
    assert sample.text.startswith(sample.prefix)
    return sample.text.removeprefix(sample.prefix)


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
    logits = torch.linspace(-2, 2, len(LETTERS))
    model = memoryless(logits).model
    counts = torch.bincount(torch.tensor(draws(model, 2000, temperature)), minlength=len(LETTERS))
    expected = torch.softmax(logits / temperature, dim=0)
    assert (counts / 2000 - expected).abs().max() < 0.03


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
    steps = continue_ids(saved_model().model, [[1]], GenerateConfig())
    next(steps)
    assert not torch.is_inference_mode_enabled()
    assert torch.ones(1, requires_grad=True).exp().requires_grad
    next(steps)


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


# Drawing among the likeliest


def brute_force(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Sort, keep k, keep until p is reached, scale: with lists. Equal tokens are kept in the order of their ids."""
    powers = [math.exp(logit / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: (-powers[i], i))
    kept = order[:top_k] if top_k else order
    total = math.fsum(powers[i] for i in kept)
    nucleus: list[int] = []
    for i in kept:
        if top_p < 1 and math.fsum(powers[j] for j in nucleus) / total >= top_p:
            break
        nucleus.append(i)
        assume(abs(math.fsum(powers[j] for j in nucleus) / total - top_p) > 1e-9 or top_p == 1)
    total = math.fsum(powers[i] for i in nucleus)
    return [powers[i] / total if i in nucleus else 0.0 for i in range(len(logits))]


@given(
    logits=st.lists(st.integers(-8, 8).map(lambda n: n / 2), min_size=1, max_size=9),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 10),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
)
def test_probabilities_are_those_of_the_likeliest(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    expected = brute_force(logits, temperature, top_k, top_p)
    found = probabilities(torch.tensor(logits), temperature, top_k, top_p)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert [p > 0 for p in found.tolist()] == [p > 0 for p in expected]


def test_the_token_that_reaches_the_sum_is_among_the_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert probabilities(logits, 1.0, top_p=0.79).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert probabilities(logits, 1.0, top_p=0.81).tolist() == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0])
    assert probabilities(logits, 1.0, top_p=1e-9).tolist() == [1, 0, 0, 0]


def test_the_nucleus_is_of_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.2, 0.2, 0.2]).log()
    assert probabilities(logits, 1.0, top_k=2, top_p=0.65).tolist() == [1, 0, 0, 0]  # 0.4 of 0.6 is more than 0.65


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_only_the_likeliest_is_greedy(changes: dict[str, Any]) -> None:
    saved = saved_model()
    drawn = GenerateConfig(length=30, temperature=2.0, seed=3, **changes)
    assert added(saved, "ab", drawn) == added(saved, "ab", GenerateConfig(length=30))


@pytest.mark.parametrize(("changes", "possible"), [({"top_k": 3}, {7, 8, 9}), ({"top_p": 0.5}, {8, 9})], ids=str)
def test_nothing_but_the_likeliest_is_drawn(changes: dict[str, Any], possible: set[int]) -> None:
    model = memoryless(torch.arange(len(LETTERS)) / 2).model
    config = GenerateConfig(temperature=1.0, **changes)
    assert len(LETTERS) == 10
    assert set(following(model, [1], 300, config)) == possible


# Repetition


@pytest.mark.parametrize("shift", [0.0, -6.0, 6.0], ids=["mixed", "negative", "positive"])
def test_what_occurred_is_divided_when_positive_and_multiplied_when_negative(shift: float) -> None:
    logits = torch.linspace(-2, 2, len(LETTERS)).double() + shift
    saved = memoryless(logits)
    saved.model.double()
    prefix, seen, expected = [9, 3], {9, 3}, []
    for _ in range(20):
        adjusted = [
            (value / 1.3 if value > 0 else value * 1.3) if i in seen else value
            for i, value in enumerate(logits.tolist())
        ]
        expected.append(max(range(len(adjusted)), key=adjusted.__getitem__))
        seen.add(expected[-1])
    assert following(saved.model, prefix, 20, GenerateConfig(repetition_penalty=1.3)) == expected
    assert len(set(expected)) > 1


def mixed(logits: Tensor) -> LanguageModel:
    """What `memoryless` gives, by a mixture of two softmaxes that are the same: log-probabilities."""
    model = LanguageModel("gru", len(LETTERS), ModelConfig(hidden_size=6, mixture=2)).eval()
    assert isinstance(model.output, MixtureOfSoftmaxes)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(logits)
    return model.double()


@pytest.mark.parametrize("penalty", [1.5, 3.0])
def test_the_penalty_means_the_same_for_log_probabilities(penalty: float) -> None:
    logits = torch.linspace(-3, 3, len(LETTERS)).double()  # the mean is 0
    one, other = memoryless(logits).model.double(), mixed(logits)
    assert float(other.output(torch.zeros(6).double()).detach().exp().sum()) == pytest.approx(1)
    for temperature in (0.0, 1.0):
        config = GenerateConfig(repetition_penalty=penalty, temperature=temperature)
        expected = following(one, [9, 3], 40, config)
        assert following(other, [9, 3], 40, config) == expected
        assert len(set(expected)) > 1
    assert set(following(other, [9, 3], 40, GenerateConfig())) == {9}


def test_a_model_that_is_sure_of_log_probabilities_leaves_its_loop(tmp_path: Path) -> None:
    ids = np.array([*range(len(LETTERS)), *[1, 2] * 30], np.uint8)  # after 1 nearly always 2, after 2 nearly always 1
    found = estimate(count_ngrams(ids, 3, len(LETTERS), None, tmp_path), True, None, tmp_path)
    model: Any = NgramModel(ModelConfig(order=3), found.ids, found.grams)
    assert set(following(model, [1, 2], 20, GenerateConfig())) == {1, 2}
    assert set(following(model, [1, 2], 20, GenerateConfig(repetition_penalty=5.0))) > {1, 2}


def test_a_penalty_of_one_changes_nothing() -> None:
    saved = saved_model()
    config = GenerateConfig(length=30, temperature=1.0)
    plain = added(saved, "ab", config)
    assert added(saved, "ab", replace(config, repetition_penalty=1.0)) == plain
    assert added(saved, "ab", replace(config, repetition_penalty=5.0)) != plain


# Several prefixes at once

PREFIXES = ("a", "abba", "hgfedcba abc", "a")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "config",
    [
        GenerateConfig(length=25),
        GenerateConfig(length=25, temperature=1.0, seed=5),
        GenerateConfig(length=25, temperature=1.5, top_k=5, top_p=0.9, repetition_penalty=1.5),
        GenerateConfig(length=6, beam=3),
        GenerateConfig(length=25, stop=("c",)),
    ],
    ids=["greedy", "drawn", "nucleus", "beam", "stop"],
)
def test_prefixes_of_different_lengths_are_continued_as_if_alone(config: GenerateConfig, cell: str) -> None:
    saved = saved_model(cell=cell)
    with torch.no_grad():
        for parameter in saved.model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 0)  # what came before counts
    together = continue_texts(saved, PREFIXES, config)
    assert together == tuple(continue_text(saved, prefix, config) for prefix in PREFIXES)
    assert len({sample.text.removeprefix(sample.prefix) for sample in together}) == 3


# Stop tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stop_token_ends_the_sample_and_is_no_part_of_it(temperature: float) -> None:
    saved = saved_model()
    config = GenerateConfig(length=40, temperature=temperature)
    ids = following(saved.model, saved.vocabulary[list("ab")], 40, config)
    last = next(i for i in range(3, 40) if ids[i] not in ids[:i] and ids[i])  # a token that is new there
    stop = saved.vocabulary.to_tokens(ids[last])
    expected = "".join(saved.vocabulary.to_tokens(ids[:last]))
    assert added(saved, "ab", replace(config, stop=(stop,))) == expected


@pytest.mark.parametrize("beam", [1, 2])
def test_a_stop_token_met_at_once_adds_nothing(beam: int) -> None:
    logits = torch.zeros(len(LETTERS))
    logits[LETTERS["c"]] = 9
    saved = memoryless(logits)
    config = GenerateConfig(length=5, stop=("c",), beam=beam)
    assert continue_text(saved, "ab", config) == Sample("ab", "ab")
    assert "".join(stream_text(saved, "ab", config)) == "ab"


def test_the_prefix_may_hold_a_stop_token() -> None:
    saved = memoryless(torch.nn.functional.one_hot(torch.tensor(LETTERS["a"]), len(LETTERS)).float())
    assert added(saved, "cc", GenerateConfig(length=3, stop=("c",))) == "aaa"


def test_each_of_several_stop_tokens_ends_a_sample() -> None:
    saved = saved_model()
    free = added(saved, "ab", GenerateConfig(length=40)).replace("<unk>", "?")
    stops = tuple(sorted(set(free) - {"?"}))[:2]
    assert len(stops) == 2
    shortest = min(free.index(stop) for stop in stops)
    text = added(saved, "ab", GenerateConfig(length=40, stop=stops)).replace("<unk>", "?")
    assert text == free[:shortest]


def test_a_line_end_stops_where_lines_end_in_eos() -> None:
    logits = torch.zeros(len(LINES))
    logits[LINES["<eos>"]] = 9
    saved = memoryless(logits, LINES, "line", "word")
    assert added(saved, "the time", GenerateConfig(length=3, stop=("\n",))) == ""
    assert added(saved, "the time", GenerateConfig(length=3, stop=("<eos>",))) == ""
    assert added(saved, "the time", GenerateConfig(length=2)) == "\n\n"


@pytest.mark.parametrize(("level", "stop"), [("char", "z"), ("char", "ab"), ("word", "zoo"), ("word", "the time")])
def test_a_stop_that_is_no_token_of_the_model_is_refused(level: str, stop: str) -> None:
    saved = saved_model(WORDS if level == "word" else LETTERS, level)
    prefix = "the" if level == "word" else "a"
    for config in (GenerateConfig(length=2, stop=(stop,)), GenerateConfig(length=2, stop=(stop,), beam=2)):
        with pytest.raises(UsageError, match=rf"single tokens of the model \(level {level}\): '{stop}'"):
            continue_text(saved, prefix, config)


# Text, piece by piece


@pytest.mark.parametrize(
    ("vocabulary", "level", "eos", "prefix"),
    [
        (LETTERS, "char", "none", "abba"),
        (WORDS, "word", "none", " the  time"),
        (LINES, "word", "line", "the time\nand"),
        (ALL_BYTES, "byte", "none", "时间 and"),
    ],
    ids=["char", "word", "eos", "byte"],
)
@pytest.mark.parametrize(
    "config",
    [GenerateConfig(length=30), GenerateConfig(length=30, temperature=1.0, seed=2), GenerateConfig(length=5, beam=3)],
    ids=["greedy", "drawn", "beam"],
)
def test_the_pieces_of_a_stream_are_the_text(
    config: GenerateConfig, vocabulary: Vocabulary, level: str, eos: str, prefix: str
) -> None:
    saved = saved_model(vocabulary, level, eos=eos)
    assert "".join(stream_text(saved, prefix, config)) == continue_text(saved, prefix, config).text


def test_a_stream_ends_at_a_stop_token() -> None:
    saved = saved_model()
    free = added(saved, "ab", GenerateConfig(length=40)).replace("<unk>", "?")
    stop = next(character for character in free[2:] if character != "?")
    config = GenerateConfig(length=40, stop=(stop,))
    assert "".join(stream_text(saved, "ab", config)) == continue_text(saved, "ab", config).text


def test_chinese_bytes_are_shown_when_their_character_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = saved_model(ALL_BYTES, "byte")
    coming = ALL_BYTES[saved.tokenizer.split("旅行者é!")]
    assert len(coming) == 12
    monkeypatch.setattr(generate_module, "continue_ids", lambda *_: iter([[token] for token in coming]))
    pieces = list(stream_text(saved, "时间", GenerateConfig(length=12)))
    assert [piece for piece in pieces if piece] == list("时间旅行者é!")
    assert continue_text(saved, "时间", GenerateConfig(length=12)) == Sample("时间", "时间旅行者é!")


def test_bytes_that_are_no_character_are_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = saved_model(ALL_BYTES, "byte")
    coming = ALL_BYTES[[BYTES[0xE6], BYTES[0x97], BYTES[0x41]]]
    monkeypatch.setattr(generate_module, "continue_ids", lambda *_: iter([[token] for token in coming]))
    config = GenerateConfig(length=3)
    assert continue_text(saved, "a", config).text == "a\ufffdA"
    assert "".join(stream_text(saved, "a", config)) == "a\ufffdA"
    assert continue_text(saved, "a", replace(config, length=2)).text == "a\ufffd"


def test_a_stream_comes_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def counted(*_: object) -> Iterator[list[int]]:
        for token in (1, 2, 3):
            computed.append(token)
            yield [token]

    monkeypatch.setattr(generate_module, "continue_ids", counted)
    pieces = stream_text(saved_model(), "ba", GenerateConfig(length=3))
    assert [next(pieces), next(pieces), len(computed)] == ["b", "a", 0]
    assert [next(pieces), len(computed)] == ["a", 1]
    assert list(pieces) == ["b", "c"]


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
    ids = following(saved.model, [saved.vocabulary["a"], 0, 0], 9, GenerateConfig())
    assert sample == Sample("azà", "azà" + "".join(saved.vocabulary.to_tokens(ids)))


def test_a_known_prefix_warns_of_nothing() -> None:
    warnings: list[str] = []
    continue_text(saved_model(), "abc", GenerateConfig(length=1), warnings.append)
    assert warnings == []


# From the store


def publish(store: Store, built: Any, level: str) -> Handle:
    saved = saved_model(Vocabulary.load(store.open(built.vocabulary)), level)
    with store.draft("model") as draft:
        save_model(draft.folder, saved.model, saved.vocabulary, tokenizer(level), "none", {})
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


@pytest.mark.parametrize(
    ("text", "level", "begins"),
    [
        ("abc abc " * 20, "char", "abc abc "),
        (" \n abc abc " * 20, "char", "abc a"),
        ("想要有" * 50, "byte", "想要"),  # of the third character there are two bytes
        ("?b a b " * 20, "word", "?b a b ?b a b ?b a"),
    ],
)
def test_an_opening_that_can_be_typed(text: str, level: str, begins: str, build: Any, store: Store) -> None:
    built = build(text, level=level)
    assert (
        known_opening(load_model(store.open(publish(store, built, level))), store.open(built.corpus), "train") == begins
    )


def test_an_opening_that_can_be_typed_begins_with_the_first_known_token(build: Any, store: Store) -> None:
    built = build("ab" * 40 + "xayb" * 5)  # x and y are in no training text
    saved = load_model(store.open(publish(store, built, "char")))
    assert opening(saved, store.open(built.corpus), "test").startswith("<unk>b<unk>a")
    assert known_opening(saved, store.open(built.corpus), "test") == "b"


def test_a_split_that_opens_with_unknown_characters_is_read_as_its_tokens(build: Any, store: Store) -> None:
    built = build("ab" * 40 + "xayb" * 5)
    handle = publish(store, built, "char")
    warnings: list[str] = []
    config = GenerateConfig(length=6, unknown="error")
    (sample,) = generate(handle, built.corpus, "test", config, store, warnings.append)
    saved = load_model(store.open(handle))
    a, b = saved.vocabulary["a"], saved.vocabulary["b"]
    opened = [0, b, 0, a, 0, b, 0, a]
    ids = following(saved.model, opened, 6, GenerateConfig())
    assert warnings == []
    assert sample.prefix == "".join(saved.vocabulary.to_tokens(opened))
    assert sample.text == sample.prefix + "".join(saved.vocabulary.to_tokens(ids))


@pytest.mark.parametrize("level", ["byte", "char", "word"])
@pytest.mark.parametrize("beam", [1, 2])
def test_what_is_no_unicode_text_is_refused(level: str, beam: int) -> None:
    saved = saved_model(ALL_BYTES if level == "byte" else WORDS, level)
    with pytest.raises(UsageError, match="prefix is not UTF-8 at position 1"):
        continue_text(saved, "a\udcff", GenerateConfig(length=2))
    with pytest.raises(UsageError, match=r"`generate\.stop` is not UTF-8 at position 0"):
        continue_text(saved, "time", GenerateConfig(length=2, beam=beam, stop=("\udcff",)))


def test_a_stop_among_bytes_is_text_and_not_the_name_of_a_byte() -> None:
    saved = saved_model(ALL_BYTES, "byte")
    assert {"é", "Ġ"} < set(ALL_BYTES.tokens)  # the names of the bytes E9 and 20
    for text in ("é", "Ġ"):
        with pytest.raises(UsageError, match="single tokens"):
            continue_text(saved, "x", GenerateConfig(length=2, stop=(text,)))
    logits = torch.full((len(ALL_BYTES),), -9.0)
    logits[ALL_BYTES["Ġ"]] = 9.0
    assert added(memoryless(logits, ALL_BYTES, level="byte"), "x", GenerateConfig(length=3, stop=(" ",))) == ""


@pytest.mark.parametrize("temperature", [1e-308, 5e-324])
def test_the_smallest_temperature_is_nearly_greedy(temperature: float) -> None:
    assert probabilities(torch.tensor([1.0, 3.0, 2.0]), temperature).tolist() == [0, 1, 0]


# Ending a work from outside


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("step", [1, 2, 7])
def test_what_a_check_raises_ends_the_work_at_its_step(beam: int, step: int) -> None:
    saved, checks = saved_model(), 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == step:
            raise TimeoutError(step)

    with pytest.raises(TimeoutError):
        list(stream_text(saved, "abba", GenerateConfig(length=20, beam=beam), check=check))
    assert checks == step


@pytest.mark.parametrize("cell", CELLS)
def test_a_long_prefix_is_read_in_parts_as_if_it_were_at_once(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, config = saved_model(cell=cell), GenerateConfig(length=20)
    prefix = "abba cab " * 5
    whole = continue_text(saved, prefix, config)
    monkeypatch.setattr(generate_module, "WARM_UP_TOKENS", 4)
    checks: list[None] = []
    assert "".join(stream_text(saved, prefix, config, check=lambda: checks.append(None))) == whole.text
    assert len(checks) == -(-len(prefix) // 4) + 20  # one per part, one per token
