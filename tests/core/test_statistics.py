"""What a text looks like: counts of tokens, pairs and triples, and the exponent of their fall."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnlm_core import statistics as core
from rnnlm_core.download import download, resolve
from rnnlm_core.statistics import FACTS, NUM_TOP, PICTURE, Grams, Statistics, count_grams, statistics, zipf_exponent
from rnnlm_core.store import Store
from rnnlm_core.tokenize import Tokens, tokenize

Describe = Callable[..., Statistics]


@pytest.fixture
def cut(store: Store, tmp_path: Path) -> Callable[..., Tokens]:
    """Return a function that cuts a text into tokens."""

    def cut_text(text: str, level: str = "word", shares: tuple[int, int, int] | None = None) -> Tokens:
        path = tmp_path / "text.txt"
        path.write_text(text, encoding="utf-8")
        handle = download(resolve(str(path)), store).handle
        return tokenize(handle, "none", level, store, bpe_size=300, shares=shares)

    return cut_text


@pytest.fixture
def describe(store: Store, cut: Callable[..., Tokens]) -> Describe:
    """Return a function that describes a text."""
    return lambda text, **options: statistics(cut(text, **options), store)


@pytest.fixture
def novel(mirror: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Statistics:
    """The words of the book's novel, as the book counts them."""
    monkeypatch.setenv("RNNLM_MIRROR", str(mirror))
    return statistics(tokenize(download(resolve("time-machine"), store).handle, "d2l-lines", "word", store), store)


def test_the_words_of_the_novel_are_those_of_the_book(novel: Statistics) -> None:
    words, pairs, triples = novel.grams
    assert novel.num_tokens == 32_775
    assert words.top[:3] == ((("the",), 2261), (("i",), 1267), (("and",), 1245))
    assert words.num_types == 4_579
    assert pairs.top[0] == (("of", "the"), 309)
    assert triples.top[0] == (("the", "time", "traveller"), 59)
    assert [grams.name for grams in novel.grams] == ["unigram", "bigram", "trigram"]


def test_counts_of_the_novel_fall_more_slowly_the_longer_the_sequence(novel: Statistics) -> None:
    words, pairs, triples = (grams.exponent for grams in novel.grams)
    assert words is not None
    assert pairs is not None
    assert triples is not None
    assert 0.9 < words < 1.2
    assert words > pairs > triples > 0


def counted(ids: Sequence[int], n: int) -> list[tuple[tuple[int, ...], int]]:
    """Count with the standard library: `most_common` keeps ties in order of first appearance."""
    return Counter(zip(*(ids[i:] for i in range(n)), strict=False)).most_common()


@pytest.mark.parametrize("num_types", [5, 2**31, 2**40])  # the larger ones do not fit into 64 bits as they are
@given(ids=st.lists(st.integers(0, 4), min_size=3, max_size=60))
def test_grams_are_counted_most_frequent_first_and_ties_as_they_appear(num_types: int, ids: list[int]) -> None:
    for n in (1, 2, 3):
        grams, counts = count_grams(np.array(ids, dtype=np.int32), n, num_types)
        assert grams.shape == (len(counts), n)
        found = [(tuple(gram), count) for gram, count in zip(grams.tolist(), counts.tolist(), strict=True)]
        assert found == counted(ids, n)


def test_large_ids_do_not_run_into_each_other() -> None:
    most = 2**40
    ids = np.array([0, most - 1, 0, most - 1, 1, 0, most - 1, 0], dtype=np.int64)
    for n in (1, 2, 3):
        grams, counts = count_grams(ids, n, most)
        found = [(tuple(gram), count) for gram, count in zip(grams.tolist(), counts.tolist(), strict=True)]
        assert found == counted(ids.tolist(), n)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("ranks", [10, 60, 99, 100, 5000])
def test_the_exponent_of_an_exact_power_law_is_found(alpha: float, ranks: int) -> None:
    counts = 1e12 / np.arange(1, ranks + 1) ** alpha
    assert zipf_exponent(counts) == pytest.approx(alpha, abs=1e-9)


def test_the_most_frequent_few_and_the_tail_of_ones_do_not_bend_the_exponent() -> None:
    counts = 1e6 / np.arange(1, 2001)
    bent = np.concatenate([np.full(9, counts[0]), counts[9:], np.ones(50_000)])
    assert zipf_exponent(bent) == pytest.approx(1, abs=1e-9)


def test_equal_counts_have_exponent_zero() -> None:
    assert zipf_exponent([3] * 20) == pytest.approx(0, abs=1e-12)
    assert zipf_exponent([1] * 20) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("ranks", range(10))
def test_too_few_ranks_have_no_exponent(ranks: int) -> None:
    assert zipf_exponent([100 - i for i in range(ranks)]) is None
    assert zipf_exponent([100 - i for i in range(10)]) is not None


def test_a_text_of_one_token_has_neither_pairs_nor_exponent(describe: Describe, store: Store) -> None:
    found = describe("alone")
    assert found.num_tokens == 1
    assert found.grams == (Grams(1, 1, None, ((("alone",), 1),)),)
    assert picture(found, store).startswith(b"\x89PNG")


def test_a_text_of_two_tokens_has_one_pair_and_no_triple(describe: Describe) -> None:
    words, pairs = describe("not alone").grams
    assert words.top == ((("not",), 1), (("alone",), 1))
    assert pairs == Grams(2, 1, None, ((("not", "alone"), 1),))


def test_only_the_first_tokens_of_a_long_text_are_counted(describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MOST_TOKENS", 5)
    found = describe("a b a b a c c c c")
    assert found.num_tokens == 5
    assert found.grams[0].top == ((("a",), 3), (("b",), 2))
    assert found.grams[1].top == ((("a", "b"), 2), (("b", "a"), 2))


def test_the_limit_may_fall_into_a_later_row_group(describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnlm_core.tokenize.ROW_GROUP", 4)
    monkeypatch.setattr(core, "MOST_TOKENS", 6)
    found = describe("abcdbbbb", level="char")
    assert found.num_tokens == 6
    assert found.grams[0].top == ((("b",), 3), (("a",), 1), (("c",), 1), (("d",), 1))


def test_only_so_many_are_named_and_all_are_counted(describe: Describe) -> None:
    (letters, *_) = describe("".join(chr(97 + i) * (30 - i) for i in range(20)), level="char").grams
    assert letters.num_types == 20
    assert letters.top == tuple(((chr(97 + i),), 30 - i) for i in range(NUM_TOP))


def test_of_a_text_that_comes_divided_the_training_part_is_counted(describe: Describe) -> None:
    text = "ab" * 40 + "cd" * 10 + "ef" * 10
    (tokens, *_) = describe(text, level="bpe", shares=(80, 10, 10)).grams
    seen = "".join(token for (token,), _ in tokens.top)
    assert set(seen) <= set("abcd")
    assert "e" not in seen


def test_facts_and_picture_are_in_the_artifact(describe: Describe, store: Store) -> None:
    found = describe("the cat and the dog and 中 the end " * 3)
    assert store.fault(found.handle) == ""
    facts = json.loads((store.path(found.handle) / FACTS).read_text(encoding="utf-8"))
    assert facts["num_tokens"] == found.num_tokens == 27
    assert [grams["num_types"] for grams in facts["grams"]] == [grams.num_types for grams in found.grams]
    assert facts["grams"][0]["top"][0] == [["the"], 9]
    assert picture(found, store).startswith(b"\x89PNG\r\n\x1a\n")


def test_the_same_text_has_the_same_artifact(cut: Callable[..., Tokens], tmp_path: Path, store: Store) -> None:
    tokens = cut("the time traveller spoke and the lamps burned low " * 20)
    first = statistics(tokens, store)
    before = hashlib.sha256(picture(first, store)).hexdigest()
    second = statistics(tokens, store)
    assert first == second
    assert hashlib.sha256(picture(second, store)).hexdigest() == before


def test_another_text_has_another_picture(describe: Describe, store: Store) -> None:
    first, second = describe("a a a b b c " * 9), describe("a b c d e f g " * 9)
    assert picture(first, store) != picture(second, store)


def picture(found: Statistics, store: Store) -> bytes:
    return (store.path(found.handle) / PICTURE).read_bytes()
