"""The loop over the steps of one recurrent layer, with its gradients written out: back-propagation through time.

Automatic differentiation would record some ten operations per step and replay them; here a step back is one product
and one pass over the gates, and the gradient of the recurrent weights is a single product after the loop. The
mathematics is that of `cells.py`, which stays the reference: the tests compare both in double precision.

Three ways to run it, by the environment's `RNNLM_RECURRENCE`:

- `native`: `recurrence.cpp`, built by the machine's own compiler (float32 and float64 on the CPU);
- `torch`: the same in PyTorch's operations, on any device;
- `autograd`: the steps of `cells.py`, differentiated automatically;
- `auto` (the default): native where it can be had, else torch.

The last digits of the three differ. The cache does not know which one made a model.
"""

import ctypes
import functools
import os
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core import cores, native
from rnnlm_core.cells import STEPS, State, gru_step_reset_before
from rnnlm_core.errors import ResourceError, UsageError

Kind = Literal["rnn", "gru", "gru-before", "lstm"]
"""The cells; the GRU twice, by the place of its reset gate."""
KINDS: tuple[Kind, ...] = ("rnn", "gru", "gru-before", "lstm")
WAYS = ("auto", "native", "torch", "autograd")
FEWEST_ROWS = 64
"""Steps times rows from which laying out the weights for the native kernel pays."""
FEWEST_ROWS_OF_A_CORE = 8


def way() -> str:
    """Return the way that `RNNLM_RECURRENCE` asks for; raises `UsageError` for an unknown one."""
    chosen = os.environ.get("RNNLM_RECURRENCE", "auto")
    if chosen not in WAYS:
        raise UsageError(f"`RNNLM_RECURRENCE` must be one of {', '.join(WAYS)}", chosen, "correct or unset it")
    return chosen


@functools.cache
def why_not_native() -> str:
    """Return why this machine has no native kernel, or ""."""
    try:
        native.load()
    except native.NotBuiltError as error:
        return str(error)
    return ""


def settled(device: torch.device | str = "cpu") -> str:
    """Return the way that layers of single or double precision run on a device: native, torch or autograd.

    Raises `ResourceError` if the native kernel was asked for and cannot be had.
    """
    chosen = way()
    if chosen in ("torch", "autograd"):
        return chosen
    if torch.device(device).type != "cpu":
        return "torch"
    if reason := why_not_native():
        if chosen == "native":
            raise ResourceError("no native kernel", reason, "unset RNNLM_RECURRENCE, or install a C++ compiler")
        return "torch"
    return "native"


def recur(
    kind: Kind,
    inputs: Tensor,
    state: State,
    W: Tensor,
    b: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run a layer over all steps and return its hidden states and its last state.

    Args:
        kind: the cell.
        inputs: (steps, batch, G * hidden), the input's share of the gates (`cells.py` has their order); with `ids`,
            (ids, G * hidden): a row for each id, which is the product of its one-hot row with the input weights.
        state: each part (batch, hidden), or one row for all.
        W: (hidden, G * hidden) recurrent weights.
        b: (G * hidden) recurrent bias, inside the GRU's reset gate; None for 0.
        ids: (steps, batch) of any integer type.
        input_bias: (G * hidden), of the input's share; None for 0.

    Returns:
        (steps, batch, hidden), not to be written to, and the parts of the last state.

    Raises IndexError for an id that has no row, ValueError for sizes that do not fit.
    """
    if torch.is_autocast_enabled(inputs.device.type):
        # What goes round and round keeps the precision of the weights.
        with torch.autocast(inputs.device.type, enabled=False):
            state = tuple(part.to(W.dtype) for part in state)
            return recur(kind, inputs.to(W.dtype), state, W, b, ids=ids, input_bias=input_bias)
    steps, batch = inputs.shape[:2] if ids is None else ids.shape
    state = tuple(part.expand(batch, -1) if len(part) == 1 else part for part in state)
    chosen = settled(inputs.device)
    here = chosen == "native" and steps * batch >= FEWEST_ROWS
    plain = not here and not torch.is_grad_enabled()  # without a way back there is nothing to be written out
    if not steps or plain or chosen == "autograd" or inputs.dtype not in (torch.float32, torch.float64):
        return _differentiated(kind, _gates(inputs, ids, input_bias), state, W, b)
    _check(kind, inputs, state, W, (b, input_bias), (steps, batch))
    if ids is not None:
        if ids.device.type == "cpu" and ids.numel():
            lowest, highest = ids.aminmax()
            if lowest < 0 or highest >= len(inputs):
                raise IndexError(f"ids from {int(lowest)} to {int(highest)}, of {len(inputs)}")
        ids = ids.to(torch.int32)
    cell = state[1] if kind == "lstm" else None
    outputs, cells = _Recurrence.apply(kind, here, inputs, ids, input_bias, state[0], cell, W, b)  # type: ignore[no-untyped-call]
    last = outputs[-1].clone()  # a view would keep the states of all steps
    return outputs, (last, cells) if kind == "lstm" else (last,)


def _check(
    kind: Kind,
    inputs: Tensor,
    state: State,
    W: Tensor,
    biases: tuple[Tensor | None, ...],
    sizes: tuple[int, int],
) -> None:
    """Raise ValueError unless all sizes, types and devices fit each other: the kernel believes them."""
    (steps, batch), hidden = sizes, W.shape[0]
    width = hidden * (1 if kind == "rnn" else 4 if kind == "lstm" else 3)
    fits = len(state) == (2 if kind == "lstm" else 1) and all(part.shape == (batch, hidden) for part in state)
    fits &= W.shape == (hidden, width) and inputs.shape[-1] == width and (inputs.dim() == 2 or inputs.dim() == 3)
    tensors = [inputs, *state, W, *(bias for bias in biases if bias is not None)]
    fits &= all(bias.shape == (width,) for bias in biases if bias is not None)
    fits &= all(one.dtype == W.dtype and one.device == W.device for one in tensors)
    if not fits:
        told = ", ".join(f"{tuple(one.shape)} {one.dtype}" for one in tensors)
        raise ValueError(f"{kind}: sizes or types do not fit for {steps} steps of {batch} rows: {told}")


def _gates(inputs: Tensor, ids: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the input's share of the gates, looked up and with its bias."""
    gates = inputs if ids is None else F.embedding(ids, inputs)
    return gates if bias is None else gates + bias


def _differentiated(kind: Kind, gates: Tensor, state: State, W: Tensor, b: Tensor | None) -> tuple[Tensor, State]:
    step = gru_step_reset_before if kind == "gru-before" else STEPS[kind]
    hidden = []
    for now in gates.unbind(0):
        state = step(now, state, W, b)
        hidden.append(state[0])
    return torch.stack(hidden) if hidden else gates.new_empty(0, *state[0].shape), state


class _Values:
    """What the way forward leaves for the way back, all (steps, batch, …).

    `states` and `cells` begin with those before the first step; `gates` holds the gates' values, `more` the
    candidate's recurrent share (`gru`) or R ⊙ H (`gru-before`), `tanhs` the LSTM's tanh(C).
    """

    def __init__(self, kind: Kind, like: Tensor, steps: int, H: Tensor, C: Tensor | None) -> None:
        batch, hidden = H.shape
        self.states = like.new_empty(steps + 1, batch, hidden)
        # The simple cell's one gate is its state.
        self.gates = self.states[1:] if kind == "rnn" else like.new_empty(steps, batch, like.shape[-1])
        self.states[0] = H
        self.cells = self.more = self.tanhs = None
        if C is not None:
            self.cells, self.tanhs = torch.empty_like(self.states), like.new_empty(steps, batch, hidden)
            self.cells[0] = C
        elif kind != "rnn":
            self.more = like.new_empty(steps, batch, hidden)

    def saved(self) -> tuple[Tensor | None, ...]:
        return self.gates, self.states, self.cells, self.more, self.tanhs

    @classmethod
    def of(cls, saved: tuple[Any, ...]) -> "_Values":
        values = cls.__new__(cls)
        values.gates, values.states, values.cells, values.more, values.tanhs = saved
        return values


class _Gradients:
    """Gradients of input shares and recurrent shares, of the first state, of looked-up rows."""

    def __init__(self, kind: Kind, values: _Values, last_cell: Tensor) -> None:
        self.gates = torch.empty_like(values.gates)
        # The candidate of this GRU scales its recurrent share, which has therefore gradients of its own.
        self.shares = torch.empty_like(values.gates) if kind == "gru" else self.gates
        self.H = torch.zeros_like(values.states[0])
        self.C = last_cell.clone(memory_format=torch.contiguous_format) if kind == "lstm" else None
        self.table: Tensor | None = None


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        here: bool,
        inputs: Tensor,
        ids: Tensor | None,
        input_bias: Tensor | None,
        H: Tensor,
        C: Tensor | None,
        W: Tensor,
        b: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        inputs = inputs.contiguous()
        ids, input_bias, b = (None if one is None else one.contiguous() for one in (ids, input_bias, b))
        values = _Values(kind, inputs, len(inputs) if ids is None else len(ids), H, C)
        (_native_forward if here else _forward)(kind, inputs, ids, input_bias, W, b, values)
        ctx.kind, ctx.here, ctx.num_rows = kind, here, len(inputs)
        ctx.has_biases = (input_bias is not None, b is not None)
        ctx.save_for_backward(ids, W, *values.saved())
        return values.states[1:], H.new_empty(0) if values.cells is None else values.cells[-1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor, last_cell: Tensor) -> tuple[Tensor | None, ...]:
        kind: Kind = ctx.kind
        ids, W, *saved = ctx.saved_tensors
        values = _Values.of(tuple(saved))
        found = _Gradients(kind, values, last_cell)
        if ids is not None:
            found.table = above.new_zeros(ctx.num_rows, W.shape[1])
        (_native_backward if ctx.here else _backward)(kind, above.contiguous(), W, ids, values, found)
        d_inputs, d_bias = found.gates if found.table is None else found.table, None
        of_inputs, of_shares = ctx.has_biases
        if of_inputs or (of_shares and kind != "gru"):
            # Every row of the gates went to one row of the table: the fewer are added up.
            few = d_inputs if ids is not None and ctx.num_rows < ids.numel() else found.gates
            d_bias = few.sum(tuple(range(few.dim() - 1)))
        db = d_bias if of_shares else None
        if of_shares and kind == "gru":
            hidden = W.shape[0]
            known = d_bias[: 2 * hidden] if d_bias is not None else found.gates[..., : 2 * hidden].sum((0, 1))
            db = torch.cat([known, found.shares[..., 2 * hidden :].sum((0, 1))])
        dW = _weights_gradient(kind, W, values, found)
        return None, None, d_inputs, None, d_bias if of_inputs else None, found.H, found.C, dW, db


def _weights_gradient(kind: Kind, W: Tensor, values: _Values, found: _Gradients) -> Tensor:
    """Return the gradient of the recurrent weights, laid out as they are: one product over all steps and rows."""
    hidden = W.shape[0]
    before, shares = values.states[:-1].flatten(0, 1), found.shares.flatten(0, 1)
    if kind != "gru-before":
        return cores.product(before.t(), shares) if W.stride(1) == 1 else cores.product(shares.t(), before).t()
    assert values.more is not None
    reset = values.more.flatten(0, 1)
    gates, candidate = shares[:, : 2 * hidden], shares[:, 2 * hidden :]
    return torch.cat([cores.product(before.t(), gates), cores.product(reset.t(), candidate)], dim=1)


# --- in PyTorch ---------------------------------------------------------------------------------------------------


def _forward(
    kind: Kind, inputs: Tensor, ids: Tensor | None, input_bias: Tensor | None, W: Tensor, b: Tensor | None, v: _Values
) -> None:
    hidden = W.shape[0]
    gates = _gates(inputs, ids, input_bias)
    if b is not None and kind != "gru":
        gates = gates + b
    for t, now in enumerate(gates):
        values, H, output = v.gates[t], v.states[t], v.states[t + 1]
        if kind == "rnn":
            torch.addmm(now, H, W, out=values).tanh_()
            output.copy_(values)
        elif kind == "lstm":
            assert v.cells is not None
            assert v.tanhs is not None
            torch.addmm(now, H, W, out=values)
            values[:, : 2 * hidden].sigmoid_()
            values[:, 3 * hidden :].sigmoid_()
            i, f, c, o = values.chunk(4, dim=1)
            c.tanh_()
            torch.mul(f, v.cells[t], out=v.cells[t + 1]).addcmul_(i, c)
            torch.tanh(v.cells[t + 1], out=v.tanhs[t])
            torch.mul(o, v.tanhs[t], out=output)
        elif kind == "gru":
            assert v.more is not None
            share = H @ W if b is None else torch.addmm(b, H, W)
            torch.add(now[:, : 2 * hidden], share[:, : 2 * hidden], out=values[:, : 2 * hidden]).sigmoid_()
            r, z, n = values.chunk(3, dim=1)
            v.more[t].copy_(share[:, 2 * hidden :])
            torch.addcmul(now[:, 2 * hidden :], r, v.more[t], out=n).tanh_()
            torch.lerp(n, H, z, out=output)
        else:
            assert v.more is not None
            torch.addmm(now[:, : 2 * hidden], H, W[:, : 2 * hidden], out=values[:, : 2 * hidden]).sigmoid_()
            r, z, n = values.chunk(3, dim=1)
            torch.mul(r, H, out=v.more[t])
            torch.addmm(now[:, 2 * hidden :], v.more[t], W[:, 2 * hidden :], out=n).tanh_()
            torch.lerp(n, H, z, out=output)


def _backward(kind: Kind, above: Tensor, W: Tensor, ids: Tensor | None, v: _Values, found: _Gradients) -> None:
    hidden, back, dH = W.shape[0], W.t(), found.H
    for t in range(len(above) - 1, -1, -1):
        values, d, last = v.gates[t], found.gates[t], v.states[t]
        dH += above[t]
        if kind == "rnn":
            torch.mul(values, values, out=d).neg_().add_(1).mul_(dH)
            torch.mm(d, back, out=dH)
            continue
        number = 4 if kind == "lstm" else 3
        slopes, parts = values.chunk(number, dim=1), d.chunk(number, dim=1)
        if kind == "lstm":
            assert found.C is not None
            assert v.cells is not None
            assert v.tanhs is not None
            i, f, c, o = slopes
            di, df, dc, do = parts
            dC = found.C.add_(dH * o * (1 - v.tanhs[t] * v.tanhs[t]))
            torch.mul(dC, c * i * (1 - i), out=di)
            torch.mul(dC, v.cells[t] * f * (1 - f), out=df)
            torch.mul(dC, i * (1 - c * c), out=dc)
            torch.mul(dH, v.tanhs[t] * o * (1 - o), out=do)
            dC *= f
            torch.mm(d, back, out=dH)
            continue
        assert v.more is not None
        r, z, n = slopes
        dr, dz, dn = parts
        torch.mul(dH, (1 - z) * (1 - n * n), out=dn)
        torch.mul(dH, (last - n) * z * (1 - z), out=dz)
        if kind == "gru":
            torch.mul(dn, v.more[t] * r * (1 - r), out=dr)
            found.shares[t].copy_(d)
            found.shares[t][:, 2 * hidden :].mul_(r)
            dH.mul_(z).addmm_(found.shares[t], back)
        else:
            through = dn @ back[2 * hidden :]
            torch.mul(through, last * r * (1 - r), out=dr)
            dH.mul_(z).addcmul_(through, r).addmm_(d[:, : 2 * hidden], back[: 2 * hidden])
    if ids is not None and found.table is not None:
        found.table.index_add_(0, ids.flatten(), found.gates.flatten(0, 1))


# --- in the native kernel -----------------------------------------------------------------------------------------


class _Rows(ctypes.Structure):
    """How the arguments of both ways begin."""

    _fields_ = [(name, ctypes.c_int64) for name in ("cell", "steps", "batch", "hidden", "begin", "upto")]


class _ForwardArguments(_Rows):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("gates", "ids", "input_bias", "weights")],
        *[(name, ctypes.c_int64) for name in ("down", "right")],
        *[(name, ctypes.c_void_p) for name in ("bias", "first", "first_cell", "outputs", "kept", "more", "tanhs")],
    ]


class _BackwardArguments(_Rows):
    _fields_ = [
        ("weights", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("down", "right")],
        *[(name, ctypes.c_void_p) for name in ("first", "first_cell", "outputs", "kept", "more", "tanhs")],
        *[(name, ctypes.c_void_p) for name in ("above", "state", "cell_state", "gates", "recurrent", "ids", "table")],
    ]


def _native_forward(
    kind: Kind, inputs: Tensor, ids: Tensor | None, input_bias: Tensor | None, W: Tensor, b: Tensor | None, v: _Values
) -> None:
    outputs = (b, *_before(v), v.states[1:], v.gates, _after(v), v.tanhs)
    arguments = (inputs, ids, input_bias, W, *W.stride(), *outputs)
    _call("forward", _ForwardArguments, kind, v, arguments, _num_parts(v))


def _native_backward(kind: Kind, above: Tensor, W: Tensor, ids: Tensor | None, v: _Values, found: _Gradients) -> None:
    own = found.shares if found.shares is not found.gates else None
    parts = _num_parts(v)
    table = found.table if parts == 1 else None  # threads must not add to the same row
    kept = (*_before(v), v.states[1:], v.gates, _after(v), v.tanhs)
    gradients = (above, found.H, found.C, found.gates, own, ids, table)
    _call("backward", _BackwardArguments, kind, v, (W, *W.stride(), *kept, *gradients), parts)
    if ids is not None and found.table is not None and table is None:
        _add_rows_looked_up(ids, found.gates, found.table)


def _before(v: _Values) -> tuple[Tensor, Tensor | None]:
    return v.states[0], None if v.cells is None else v.cells[0]


def _after(v: _Values) -> Tensor | None:
    return v.more if v.cells is None else v.cells[1:]


def _call(
    name: str, layout: Any, kind: Kind, v: _Values, arguments: tuple[Tensor | int | None, ...], parts: int
) -> None:
    """Compute the rows of a minibatch in parts, side by side: rows know nothing of each other."""
    call = native.function(name, v.gates.dtype == torch.float32)
    steps, batch, hidden = len(v.gates), *v.states[0].shape
    plain = [one.data_ptr() if isinstance(one, Tensor) else one for one in arguments]

    def compute(part: int) -> int:
        rows = part * batch // parts, (part + 1) * batch // parts
        return call(ctypes.byref(layout(KINDS.index(kind), steps, batch, hidden, *rows, *plain)))

    if any(cores.each(compute, parts)):
        raise MemoryError(f"not enough memory for the weights of {hidden} units")


def _num_parts(v: _Values) -> int:
    return max(1, min(cores.number(), v.states.shape[1] // FEWEST_ROWS_OF_A_CORE))


class _TableArguments(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("steps", "batch", "width", "begin", "upto")],
        *[(name, ctypes.c_void_p) for name in ("ids", "gates", "table")],
    ]


def _add_rows_looked_up(ids: Tensor, gates: Tensor, table: Tensor) -> None:
    """Add the gradients of all rows to the table, each core some columns: in the order of one, so to the same bits."""
    call = native.function("table", gates.dtype == torch.float32)
    (steps, batch), width, parts = ids.shape, table.shape[1], cores.number()

    def compute(part: int) -> int:
        columns = part * width // parts, (part + 1) * width // parts
        sizes = (steps, batch, width, *columns)
        return call(ctypes.byref(_TableArguments(*sizes, ids.data_ptr(), gates.data_ptr(), table.data_ptr())))

    cores.each(compute, parts)
