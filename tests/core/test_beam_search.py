"""Beam search against every continuation there is, against a naive beam search, and against greedy."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product

import pytest
import torch

from rnnlm_core.config import CELLS, GenerateConfig, ModelConfig
from rnnlm_core.generate import continue_text, stream_text
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.outcomes import Sample
from rnnlm_core.saved_model import SavedModel
from rnnlm_core.vocabulary import UNKNOWN, Vocabulary

LETTERS = Vocabulary(dict.fromkeys("abc", 1))
V, LENGTH = len(LETTERS), 4
ALL = V**LENGTH
"""A beam as wide as this keeps everything."""


def saved_model(seed: int = 0, cell: str = "gru") -> SavedModel:
    torch.manual_seed(seed)
    model = LanguageModel(cell, V, ModelConfig(hidden_size=6, num_layers=2)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return SavedModel(model, LETTERS, tokenizer("char"), "none", {})


def iid_model(**chances: float) -> SavedModel:
    """A model that draws each token from the same chances, whatever came before."""
    saved = saved_model()
    with torch.no_grad():
        saved.model.output.weight.zero_()
        shares = [chances.get(token, 1e-6) for token in LETTERS.tokens]
        saved.model.output.bias.copy_(torch.tensor(shares).double().log())
    return saved


def log_probabilities(saved: SavedModel, ids: list[int], penalty: float = 1.0) -> list[float]:
    """Those of the next token, everything computed anew."""
    with torch.no_grad():
        logits = saved.model(torch.tensor([ids]), saved.model.initial_state(1))[0][0, -1]
    for token in set(ids):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    return torch.log_softmax(logits, -1).tolist()


def log_probability(saved: SavedModel, prefix: list[int]) -> Callable[[Sequence[int]], float]:
    """Return the function that gives the log-probability of a continuation of the prefix."""
    after = cache(lambda new: log_probabilities(saved, [*prefix, *new]))

    def of(new: Sequence[int]) -> float:
        return sum(after(tuple(new[:i]))[token] for i, token in enumerate(new))

    return of


def sequences(stop: int | None) -> Iterator[tuple[int, ...]]:
    """Every sequence that ends in its only stop token, or has the full length without."""
    others = [token for token in range(V) if token != stop]
    yield from product(others, repeat=LENGTH)
    if stop is not None:
        for length in range(LENGTH):
            yield from ((*new, stop) for new in product(others, repeat=length))


def text_of(ids: list[int] | tuple[int, ...]) -> str:
    return "".join(LETTERS.to_tokens(ids))


@pytest.mark.parametrize("alpha", [0.0, 0.75, 2.0])
@pytest.mark.parametrize("stop", ["c", None])
@pytest.mark.parametrize("cell", CELLS)
def test_a_wide_beam_finds_the_best_of_all_continuations(cell: str, stop: str | None, alpha: float) -> None:
    saved = saved_model(cell=cell)
    prefix, end = LETTERS[list("ab")], None if stop is None else LETTERS[stop]
    score = log_probability(saved, prefix)
    best = max(sequences(end), key=lambda new: score(new) / len(new) ** alpha)
    config = GenerateConfig(length=LENGTH, beam=ALL, stop=() if stop is None else (stop,), length_penalty=alpha)
    assert continue_text(saved, "ab", config) == Sample("ab", "ab" + text_of([token for token in best if token != end]))


def naive_beam_search(saved: SavedModel, prefix: list[int], config: GenerateConfig, stop: int | None) -> list[int]:
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, config.length + 1):
        candidates = [
            (score + gain, [*new, token])
            for score, new in beams
            for token, gain in enumerate(log_probabilities(saved, prefix + new, config.repetition_penalty))
        ]
        beams = []
        for score, new in sorted(candidates, key=lambda entry: -entry[0]):
            if new[-1] == stop:
                ended.append((score / length**config.length_penalty, new[:-1]))
            else:
                beams.append((score, new))
            if len(beams) == config.beam:
                break
    ended += [(score / config.length**config.length_penalty, new) for score, new in beams]
    return max(ended, key=lambda entry: entry[0])[1]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("stop", ["c", None])
@pytest.mark.parametrize("beam", [2, 3])
def test_a_narrow_beam_is_a_naive_beam_search(beam: int, stop: str | None, penalty: float) -> None:
    found = set()
    for seed in range(4):
        saved = saved_model(seed, "lstm")
        config = GenerateConfig(length=7, beam=beam, stop=() if stop is None else (stop,), repetition_penalty=penalty)
        expected = naive_beam_search(saved, LETTERS[list("ab")], config, None if stop is None else LETTERS[stop])
        assert continue_text(saved, "ab", config).text == "ab" + text_of(expected)
        found.add(text_of(expected))
    assert len(found) > 1


def test_a_beam_is_never_less_likely_than_greedy_when_it_holds_everything() -> None:
    better = 0
    for seed in range(12):
        saved, prefix = saved_model(seed), LETTERS[list("ba")]
        scores = []
        for beam in (1, ALL):
            text = continue_text(saved, "ba", GenerateConfig(length=LENGTH, beam=beam)).text.removeprefix("ba")
            new = LETTERS[list(text.replace(UNKNOWN, "?"))]
            assert len(new) == LENGTH
            scores.append(log_probability(saved, prefix)(new))
        assert scores[1] >= scores[0] - 1e-9
        better += scores[1] > scores[0] + 1e-6
    assert better  # else greedy would do


def test_the_length_penalty_decides_between_short_and_long() -> None:
    """log 0.4 = -0.92 for the stop at once; log 0.59³ = -1.58 for three tokens, -0.53 each."""
    saved = iid_model(a=0.59, c=0.4)
    config = {"length": 3, "beam": 4, "stop": ("c",)}
    assert math.log(0.4) > 3 * math.log(0.59)
    assert continue_text(saved, "b", GenerateConfig(**config, length_penalty=0.0)).text == "b"
    assert continue_text(saved, "b", GenerateConfig(**config, length_penalty=1.0)).text == "baaa"


def test_a_stopped_continuation_does_not_use_up_the_beam() -> None:
    saved = iid_model(a=0.3, b=0.1, c=0.6)
    config = GenerateConfig(length=2, beam=2, stop=("c",), length_penalty=9.0)
    assert continue_text(saved, "b", config).text in ("ba", "baa")
    assert (
        continue_text(saved, "b", config).text == "ba"
    )  # log(0.3 * 0.6) / 2^9 is nearer to 0 than log(0.3 * 0.3) / 2^9


def test_where_everything_stops_the_search_ends() -> None:
    saved = iid_model(a=0.5, b=0.3, c=0.2)
    config = GenerateConfig(length=50, beam=3, stop=("a", "b", "c", "<unk>"))
    assert continue_text(saved, "b", config).text == "b"


def test_the_same_search_gives_the_same_text_and_draws_nothing() -> None:
    saved, config = saved_model(3), GenerateConfig(length=12, beam=5)
    before = torch.get_rng_state()
    one = continue_text(saved, "ab", config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert continue_text(saved, "ab", config) == one
    assert "".join(stream_text(saved, "ab", config)) == one.text


def test_equally_likely_continuations_are_told_apart_by_their_ids() -> None:
    saved = saved_model()
    with torch.no_grad():
        saved.model.output.weight.zero_()
        saved.model.output.bias.zero_()
    texts = {continue_text(saved, "a", GenerateConfig(length=3, beam=beam)).text for beam in (2, 3, 7)}
    assert texts == {"a" + 3 * UNKNOWN}
