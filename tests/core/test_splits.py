from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnlm_core.splits import split_lengths

Shares = tuple[int, int, int]


@given(st.integers(0, 10**9), st.tuples(st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 1000)))
def test_split_lengths_add_up_and_are_as_near_to_the_shares_as_whole_tokens_allow(size: int, shares: Shares) -> None:
    lengths = split_lengths(size, shares)
    assert list(lengths) == ["train", "valid", "test"]
    assert sum(lengths.values()) == size
    for length, share in zip(lengths.values(), shares, strict=True):
        assert abs(length - size * share / sum(shares)) <= 1
        assert share or not length


@pytest.mark.parametrize(
    ("size", "shares", "expected"),
    [
        (1_115_394, (90, 10, 0), (1_003_854, 111_540, 0)),
        (10, (100, 0, 0), (10, 0, 0)),
        (10, (90, 0, 10), (9, 0, 1)),
        (101, (90, 5, 5), (90, 5, 6)),
        (0, (90, 5, 5), (0, 0, 0)),
        (7, (1, 0, 0), (7, 0, 0)),
    ],
)
def test_split_lengths_round_towards_the_last(size: int, shares: Shares, expected: Shares) -> None:
    assert tuple(split_lengths(size, shares).values()) == expected


@given(st.integers(0, 10**6), st.tuples(st.integers(1, 99), st.integers(0, 99), st.integers(0, 99)), st.integers(2, 9))
def test_only_the_proportion_of_the_shares_matters(size: int, shares: Shares, factor: int) -> None:
    first, second, third = shares
    assert split_lengths(size, shares) == split_lengths(size, (first * factor, second * factor, third * factor))


def test_a_corpus_in_one_file_has_shares() -> None:
    split: Callable[..., object] = split_lengths
    with pytest.raises(AssertionError, match="divided by shares"):
        split(10, None)
