from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnlm_core.indices import count, look_up, narrow

NUMBERS = st.lists(st.integers(0, 255), max_size=40)


@given(NUMBERS, st.integers(0, 3), st.sampled_from([np.uint8, np.uint16, np.int32]))
def test_numbers_are_counted_as_they_are_met(numbers: list[int], spare: int, kind: Any) -> None:
    kinds = min(max(numbers, default=0) + 1 + spare, 256)
    found = count(np.array(numbers, dtype=kind), kinds)
    assert found.tolist() == [numbers.count(number) for number in range(kinds)]


@given(NUMBERS, st.sampled_from([np.uint8, np.uint16, np.int32]), st.sampled_from([np.uint8, np.uint16]))
def test_a_number_is_replaced_by_what_its_place_of_the_table_holds(numbers: list[int], kind: Any, of: Any) -> None:
    table = np.arange(max(numbers, default=0) + 1)[::-1].astype(of)
    found = look_up(table, np.array(numbers, dtype=kind))
    assert found.dtype == of
    assert found.tolist() == [int(table[number]) for number in numbers]


@pytest.mark.parametrize(("kinds", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.int32)])
def test_numbers_become_bytes_where_all_of_them_fit(kinds: int, dtype: Any) -> None:
    numbers = np.array([0, kinds - 1], dtype=np.int32)
    found = narrow(numbers, kinds)
    assert found.dtype == dtype
    assert found.tolist() == numbers.tolist()
