"""The loop with its gradients written out: the same as the steps of `cells.py`, differentiated automatically."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnlm_core import cores, native, recurrence
from rnnlm_core.errors import ResourceError, UsageError
from rnnlm_core.recurrence import KINDS, Kind, recur, settled

GATES = {"rnn": 1, "gru": 3, "gru-before": 3, "lstm": 4}
IDS = 11
no_compiler = pytest.mark.skipif(
    bool(recurrence.why_not_native()), reason=f"no native kernel: {recurrence.why_not_native()}"
)
WAYS = [pytest.param("native", marks=no_compiler), "torch"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    cores.use(0)


def everything(
    kind: Kind,
    dtype: torch.dtype,
    *,
    steps: int,
    batch: int,
    hidden: int,
    with_ids: bool = False,
    biases: tuple[bool, bool] = (True, True),
    transposed: bool = False,
) -> list[Tensor]:
    """Return outputs, last state, and the gradients of all that may have one, for a loss that reaches all of them."""
    draw = torch.Generator().manual_seed(steps + 10 * batch + 100 * hidden)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    width = GATES[kind] * hidden
    inputs = drawn(IDS, width) if with_ids else drawn(steps, batch, width)
    ids = torch.randint(0, IDS, (steps, batch), generator=draw, dtype=torch.int32) if with_ids else None
    W = drawn(hidden, width)
    W = (W / hidden**0.5).detach()
    W = (W.t().contiguous().t() if transposed else W).requires_grad_()
    input_bias, b = (drawn(width) if there else None for there in biases)
    state = tuple(drawn(batch, hidden) for _ in range(2 if kind == "lstm" else 1))
    outputs, last = recur(kind, inputs, state, W, b, ids=ids, input_bias=input_bias)
    loss = sum((one * drawn(*one.shape)).sum() for one in (outputs, *last))
    free = [one for one in (inputs, *state, W, input_bias, b) if one is not None]
    return [outputs.detach(), *(part.detach() for part in last), *torch.autograd.grad(loss, free)]


def by_steps(monkeypatch: pytest.MonkeyPatch, *arguments: object, **more: object) -> list[Tensor]:
    monkeypatch.setenv("RNNLM_RECURRENCE", "autograd")
    return everything(*arguments, **more)  # type: ignore[arg-type]


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients_are_those_of_automatic_differentiation(
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    kind: Kind,
    with_ids: bool,
    biases: tuple[bool, bool],
    transposed: bool,
) -> None:
    sizes = {"steps": 9, "batch": 13, "hidden": 37}
    options = {"with_ids": with_ids, "biases": biases, "transposed": transposed}
    expected = by_steps(monkeypatch, kind, torch.float64, **sizes, **options)
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    assert_equal(everything(kind, torch.float64, **sizes, **options), expected, 1e-13)  # type: ignore[arg-type]
    exact = [one.float() for one in expected]
    assert_equal(everything(kind, torch.float32, **sizes, **options), exact, 3e-5)  # type: ignore[arg-type]


@no_compiler
@pytest.mark.parametrize("kind", KINDS)
@given(steps=st.integers(1, 6), batch=st.integers(1, 40), hidden=st.integers(1, 150), with_ids=st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_size_is_computed_natively(kind: Kind, steps: int, batch: int, hidden: int, with_ids: bool) -> None:
    sizes = {"steps": steps, "batch": batch, "hidden": hidden, "with_ids": with_ids}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(recurrence, "FEWEST_ROWS", 1)
        expected = by_steps(monkeypatch, kind, torch.float64, **sizes)
        monkeypatch.setenv("RNNLM_RECURRENCE", "native")
        assert_equal(everything(kind, torch.float64, **sizes), expected, 1e-12)  # type: ignore[arg-type]


@no_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_ids", [False, True])
def test_any_number_of_cores_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, kind: Kind, with_ids: bool) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", "native")
    found = []
    for number in (1, 2, 3):
        cores.use(number)
        found.append(everything(kind, torch.float32, steps=5, batch=32, hidden=256, with_ids=with_ids))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@no_compiler
def test_a_process_that_forks_goes_on_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os, signal, sys, torch
from rnnlm_core.recurrence import recur
torch.set_num_threads(2)
def run():
    gates = torch.zeros(4, 32, 16, requires_grad=True)
    recur("rnn", gates, (torch.zeros(32, 16),), torch.zeros(16, 16))[0]
run()
child = os.fork()
if not child:
    signal.alarm(60)
    run()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    monkeypatch.setenv("RNNLM_RECURRENCE", "native")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("way", [*WAYS, "autograd"])
@pytest.mark.parametrize(
    "change",
    [
        {"state": torch.zeros(16, 4)},
        {"state": torch.zeros(32, 8)},
        {"W": torch.zeros(4, 8)},
        {"W": torch.zeros(4, 4, dtype=torch.float64)},
        {"b": torch.zeros(3)},
        {"input_bias": torch.zeros(8)},
        {"ids": torch.zeros(4, 8, dtype=torch.int32)},
        {"inputs": torch.zeros(IDS, 8)},
    ],
)
def test_sizes_and_types_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, way: str, change: dict[str, Tensor]
) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    right = {
        "inputs": torch.zeros(IDS, 4, requires_grad=True),
        "state": torch.zeros(32, 4),
        "W": torch.zeros(4, 4),
        "b": torch.zeros(4),
        "ids": torch.zeros(4, 32, dtype=torch.int32),
        "input_bias": torch.zeros(4),
    }
    given = right | change
    with pytest.raises((ValueError, RuntimeError)):
        recur(
            "rnn", given["inputs"], (given["state"],), given["W"], given["b"],
            ids=given["ids"], input_bias=given["input_bias"],
        )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_one_row_of_state_serves_all_rows(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    gates = torch.randn(4, 32, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    one = torch.full((1, 4), 0.5, requires_grad=True)
    outputs, _ = recur("lstm", gates, (one, one), torch.ones(4, 16))
    every, _ = recur("lstm", gates, (one.repeat(32, 1), one.repeat(32, 1)), torch.ones(4, 16))
    assert torch.equal(outputs, every)
    (gradient,) = torch.autograd.grad(outputs.sum(), one)
    assert gradient.shape == (1, 4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_ids_are_of_any_integer_type(monkeypatch: pytest.MonkeyPatch, way: str, dtype: torch.dtype) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    table = torch.randn(IDS, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ids = torch.arange(4 * 32).view(4, 32) % IDS
    outputs, _ = recur("rnn", table, (torch.zeros(32, 4),), torch.eye(4), ids=ids.to(dtype))
    dense, _ = recur("rnn", table.detach()[ids].requires_grad_(), (torch.zeros(32, 4),), torch.eye(4))
    assert torch.equal(outputs, dense)


@no_compiler
def test_squashed_values_are_those_of_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step with weights of 0: the gates are seen through the equations alone, over the whole range of a float."""
    monkeypatch.setenv("RNNLM_RECURRENCE", "native")
    monkeypatch.setattr(recurrence, "FEWEST_ROWS", 1)
    x = torch.cat(
        [torch.linspace(-20, 20, 200_001), torch.logspace(-30, 1, 2000), torch.tensor([-1e30, -88, 88, 1e30])]
    )
    nothing = torch.zeros(1, 1)
    (tanh, _) = recur("rnn", x[None, :, None], (torch.zeros(len(x), 1),), nothing)
    exact = x.double().tanh()
    assert ((tanh[0, :, 0] - exact).abs() <= 3e-7 * exact.abs()).all()
    gates = torch.stack([torch.zeros_like(x), x, torch.zeros_like(x)], dim=1)[None]
    # A GRU whose proposal is 0 hands on the share of its state that the update gate lets through.
    (kept, _) = recur("gru", gates, (torch.ones(len(x), 1),), torch.zeros(1, 3))
    sigmoid = x.double().sigmoid()
    assert ((kept[0, :, 0] - sigmoid).abs() <= 3e-7 * sigmoid + 1e-37).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_stays_none(monkeypatch: pytest.MonkeyPatch, way: str, kind: Kind) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    gates = torch.zeros(3, 64, GATES[kind] * 8)
    gates[1, 5] = torch.nan
    state = (torch.zeros(64, 8),) * (2 if kind == "lstm" else 1)
    outputs, _ = recur(kind, gates, state, torch.full((8, GATES[kind] * 8), 0.1))
    wrong = outputs.isnan().any(dim=2).nonzero().tolist()
    assert wrong == [[1, 5], [2, 5]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [-1, IDS])
def test_an_id_without_a_row_is_refused(monkeypatch: pytest.MonkeyPatch, way: str, wrong: int) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    ids = torch.full((2, 64), wrong, dtype=torch.int32)
    with pytest.raises(IndexError, match=rf"ids from {wrong} to {wrong}, of {IDS}"):
        recur("rnn", torch.zeros(IDS, 4, requires_grad=True), (torch.zeros(64, 4),), torch.zeros(4, 4), ids=ids)


def test_no_steps_leave_the_state_as_it_was() -> None:
    state = (torch.ones(2, 4), torch.full((2, 4), 2.0))
    outputs, last = recur("lstm", torch.zeros(0, 2, 16), state, torch.zeros(4, 16))
    assert outputs.shape == (0, 2, 4)
    assert all(torch.equal(one, other) for one, other in zip(last, state, strict=True))


def test_an_unknown_way_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", "nativ")
    with pytest.raises(UsageError, match=r"`RNNLM_RECURRENCE` must be one of auto, native, torch, autograd: nativ: "):
        settled()


def test_without_a_compiler_it_is_torch_unless_native_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "why_not_native", lambda: "no C++ compiler here")
    monkeypatch.setenv("RNNLM_RECURRENCE", "auto")
    assert settled() == "torch"
    monkeypatch.setenv("RNNLM_RECURRENCE", "native")
    with pytest.raises(ResourceError, match=r"no native kernel: no C\+\+ compiler here: unset RNNLM_RECURRENCE"):
        settled()


def test_a_gpu_takes_no_kernel_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", "auto")
    assert settled("cuda") == "torch"


def test_kinds_are_numbered_as_in_the_kernel() -> None:
    source = (native.FOLDER / "recurrence.cpp").read_text()
    assert "enum Cell { RNN = 0, GRU = 1, GRU_BEFORE = 2, LSTM = 3 };" in source
    assert KINDS == ("rnn", "gru", "gru-before", "lstm")
