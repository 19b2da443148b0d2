"""The loss of the output layer is cross-entropy, whatever computes it."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core import cores, output_loss
from rnnlm_core.recurrence import why_not_native

WAYS = ["torch", pytest.param("native", marks=pytest.mark.skipif(bool(why_not_native()), reason=why_not_native()))]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch with one thread, every size written out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(output_loss, "FEWEST_LOGITS", 0)
    yield
    torch.set_num_threads(before)
    cores.use(0)


def inputs(tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype, spread: float = 1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(tokens, hidden), (vocabulary, hidden), (vocabulary,)]
    free = [torch.randn(*s, generator=draw, dtype=torch.float64).mul(spread).to(dtype).requires_grad_() for s in shapes]
    return [*free, torch.randint(vocabulary, (tokens,), generator=draw)]


def found(given: list[Tensor], scale: float = 1.0) -> list[Tensor]:
    """Return loss and gradients."""
    *free, targets = given
    loss = output_loss.output_loss(free[0], free[1], free[2], targets, scale)
    return [loss.detach(), *torch.autograd.grad(loss, free)]


def expected(given: list[Tensor], scale: float = 1.0) -> list[Tensor]:
    *free, targets = (one.double() if one.is_floating_point() else one for one in given)
    loss = F.cross_entropy(F.linear(*free), targets) * scale
    return [loss.detach(), *torch.autograd.grad(loss, free)]


def assert_equal(one: list[Tensor], other: list[Tensor], tolerance: float) -> None:
    for here, there in zip(one, other, strict=True):
        assert (here - there).abs().max() <= tolerance * there.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("way", WAYS)
@given(
    tokens=st.integers(1, 50),
    vocabulary=st.integers(1, 70),
    hidden=st.integers(1, 40),
    most=st.integers(1, 400),
    scale=st.sampled_from([1.0, 35.0, 1 / 3]),
)
@settings(max_examples=40, deadline=None)
def test_it_is_cross_entropy_with_its_gradients(
    way: str, tokens: int, vocabulary: int, hidden: int, most: int, scale: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNLM_RECURRENCE", way)
        patch.setattr(output_loss, "MOST_LOGITS", most)  # blocks of one token and more
        exact = inputs(tokens, vocabulary, hidden, torch.float64)
        assert_equal(found(exact, scale), expected(exact, scale), 1e-12)
        single = [one.detach().float().requires_grad_() if one.is_floating_point() else one for one in exact]
        assert_equal(found(single, scale), expected(single, scale), 2e-5)


@pytest.mark.parametrize("way", WAYS)
def test_logits_far_apart_neither_overflow_nor_become_zero_losses(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    given = inputs(64, 100, 20, torch.float32, spread=20.0)
    assert_equal(found(given), expected(given), 2e-5)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_number_stays_none(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    for wrong in (float("nan"), float("inf")):
        given = inputs(5, 40, 6, torch.float32)
        with torch.no_grad():
            given[0][2, 3] = wrong
        assert not torch.isfinite(found(given)[0])


@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_cores_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    given = inputs(301, 700, 130, torch.float32)
    monkeypatch.setattr(output_loss, "MOST_LOGITS", 200 * 700)
    bits = []
    for number in (1, 2, 3):
        cores.use(number)
        bits.append(found(given))
    for other in bits[1:]:
        assert all(torch.equal(one, two) for one, two in zip(bits[0], other, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", [-1, 9])
def test_a_target_outside_of_the_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch, way: str, target: int) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    *free, targets = inputs(5, 9, 6, torch.float32)
    targets[3] = target
    with pytest.raises(IndexError, match=f"{target}"):
        found([*free, targets])


def test_no_block_holds_more_logits_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", "torch")
    largest = 0
    compute = output_loss._in_torch

    def seen(logits: Tensor, *more: object) -> Tensor:
        nonlocal largest
        largest = max(largest, logits.numel())
        return compute(logits, *more)

    monkeypatch.setattr(output_loss, "_in_torch", seen)
    monkeypatch.setattr(output_loss, "MOST_LOGITS", 1000)
    found(inputs(40, 150, 8, torch.float32))
    assert largest == 6 * 150
