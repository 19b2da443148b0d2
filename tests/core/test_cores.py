"""Products are cut by their sizes alone: any number of cores gives the same bits."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm_core import cores


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    cores.use(0)


@given(rows=st.integers(1, 700), depth=st.integers(1, 90), columns=st.integers(1, 700), turned=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_product_has_the_bits_of_one_core(rows: int, depth: int, columns: int, turned: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores, "SMALLEST_PART", 1 << 12)
        draw = torch.Generator().manual_seed(0)
        a, b = torch.randn(rows, depth, generator=draw), torch.randn(depth, columns, generator=draw)
        if turned:
            a = a.t().contiguous().t()
        bits = []
        for number in (1, 2, 3):
            cores.use(number)
            bits.append(cores.product(a, b))
    assert all(torch.equal(one, bits[0]) for one in bits)
    assert (bits[0].double() - a.double() @ b.double()).abs().max() <= 1e-4


def test_parts_are_computed_side_by_side() -> None:
    from threading import Barrier

    met = Barrier(2, timeout=20)
    cores.use(2)
    assert sorted(cores.each(lambda part: (met.wait(), part)[1], 2)) == [0, 1]


def test_what_a_part_raises_is_raised() -> None:
    cores.use(2)
    with pytest.raises(ZeroDivisionError):
        cores.each(lambda part: 1 // part, 3)


def test_without_a_choice_the_cores_are_the_threads_of_pytorch() -> None:
    torch.set_num_threads(2)
    assert cores.number() == 2
    cores.use(5)
    assert cores.number() == 5


def test_parts_are_computed_in_the_mode_of_whoever_asks() -> None:
    cores.use(2)
    with torch.inference_mode():
        assert cores.each(lambda _: torch.is_inference_mode_enabled(), 2) == [True, True]
        assert torch.equal(cores.product(torch.ones(700, 64), torch.ones(64, 700)), torch.full((700, 700), 64.0))
    assert cores.each(lambda _: torch.is_inference_mode_enabled(), 2) == [False, False]


@pytest.mark.parametrize("turned", [False, True])
def test_a_product_with_weights_has_the_gradients_of_automatic_differentiation(turned: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores, "SMALLEST_PART", 1)
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(5, 7, 6, generator=draw, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(6, 9, generator=draw, dtype=torch.float64)
        weights = (weights.t().contiguous().t() if turned else weights).requires_grad_()
        above = torch.randn(5, 7, 9, generator=draw, dtype=torch.float64)
        found = torch.autograd.grad(cores.linear(inputs, weights), (inputs, weights), above)
        expected = torch.autograd.grad(inputs @ weights, (inputs, weights), above)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert found[1].stride() == weights.stride()
