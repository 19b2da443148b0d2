"""A training's update over buffers that stay where they are: what a GPU captures once as a CUDA graph and replays.

An update of a small network is some hundred short kernels; launching them one by one takes longer than they run. The
graph holds the whole of it: minibatch, forward, backward, clipping, optimizer. Nothing in `one_update` asks the device
for a value, so an epoch is put in line without waiting. All but capture and replay runs on any device.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rnnlm_core.cells import State
from rnnlm_core.errors import ResourceError
from rnnlm_core.partition import cut_out

REHEARSALS = 3
"""Updates before a capture: cuBLAS and cuDNN choose their ways and take their memory, which a graph must not."""

AddGradients = Callable[[Tensor, Tensor, list[State], int], tuple[Tensor, list[State]]]
"""(x, y, state, number of minibatches of the update) -> loss of the minibatch and the state after it."""


@dataclass
class Buffers:
    """What an update reads and writes; a graph knows the addresses, so contents change and tensors do not.

    Args:
        ids: the whole training split.
        batch_size: rows of a minibatch.
        num_steps: tokens of a row.
        accumulate: minibatches of an update.
        state: of each layer, zero.
    """

    ids: Tensor
    batch_size: int
    num_steps: int
    accumulate: int
    state: list[State]
    places: Tensor = field(init=False)
    starts: Tensor = field(init=False)
    """(minibatches, batch_size): where the rows of an epoch's minibatches begin."""
    rates: Tensor = field(init=False)
    """The learning rate of each update of an epoch."""
    rate: Tensor = field(init=False)
    """The one of this update: the optimizer holds it."""
    losses: Tensor = field(init=False)
    norms: Tensor = field(init=False)
    minibatch: Tensor = field(init=False)
    """The number of minibatches done in the epoch."""
    update: Tensor = field(init=False)
    """The number of updates done in the epoch."""

    def __post_init__(self) -> None:
        device = self.ids.device
        # No offset of a partition leaves more than the offset 0.
        minibatches = (len(self.ids) - 1) // (self.batch_size * self.num_steps)
        updates = -(-minibatches // self.accumulate)
        self.state = [tuple(part.clone() for part in layer) for layer in self.state]
        self.places = torch.arange(self.num_steps + 1, device=device)
        self.starts = torch.zeros(minibatches, self.batch_size, dtype=torch.int64, device=device)
        self.losses = torch.zeros(minibatches, device=device)
        self.norms, self.rates = torch.zeros(updates, device=device), torch.zeros(updates, device=device)
        self.rate = torch.zeros((), device=device)
        self.minibatch, self.update = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))

    def written(self) -> Iterator[Tensor]:
        """Yield what an update writes."""
        yield from (self.rate, self.losses, self.norms, self.minibatch, self.update)
        for layer in self.state:
            yield from layer

    def begin(
        self,
        starts: Tensor,
        rates: Sequence[float],
        losses: Tensor,
        norms: Tensor,
        state: Sequence[State],
        minibatch: int,
        update: int,
    ) -> tuple[Tensor, Tensor, list[State]]:
        """Take in an epoch, begun or new, and return its losses, norms and state as they will be written."""
        self.starts[: len(starts)].copy_(starts)
        self.rates[: len(rates)].copy_(torch.tensor(rates))
        own_losses, own_norms = self.losses[: len(losses)], self.norms[: len(norms)]
        own_losses.copy_(losses)
        own_norms.copy_(norms)
        for own, given in zip(self.state, state, strict=True):
            for part, value in zip(own, given, strict=True):
                part.copy_(value)
        self.minibatch.fill_(minibatch)
        self.update.fill_(update)
        return own_losses, own_norms, self.state


def one_update(
    buffers: Buffers, together: int, carries_state: bool, add_gradients: AddGradients, step: Callable[[], Tensor]
) -> None:
    """Do one update with the next `together` minibatches.

    `step` clips the gradients, moves the weights, drops the gradients and returns their norm. A state that is not
    carried stays what it is in the buffers: zero.
    """
    buffers.rate.copy_(buffers.rates.index_select(0, buffers.update)[0])
    for _ in range(together):
        starts = buffers.starts.index_select(0, buffers.minibatch)[0]
        x, y = cut_out(buffers.ids, starts, buffers.places)
        loss, after = add_gradients(x, y, buffers.state, together)
        buffers.losses.index_copy_(0, buffers.minibatch, loss.reshape(1).to(buffers.losses.dtype))
        if carries_state:
            for own, new in zip(buffers.state, after, strict=True):
                for part, value in zip(own, new, strict=True):
                    part.copy_(value.detach())
        buffers.minibatch += 1
    buffers.norms.index_copy_(0, buffers.update, step().reshape(1).to(buffers.norms.dtype))
    buffers.update += 1


@contextmanager
def without_trace(
    written: Iterable[Tensor], scaler: "torch.amp.GradScaler | None", device: torch.device
) -> Iterator[None]:
    """Put back what is written inside, the random state of the device and the loss scale among it."""
    tensors = list(written)
    before = [tensor.detach().clone() for tensor in tensors]
    on_gpu = device.type == "cuda"
    random = torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()
    scale = None if scaler is None else scaler.state_dict()
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.detach().copy_(value)
            tensor.grad = None  # of an update that broke off
        if on_gpu:
            torch.cuda.set_rng_state(random, device)
        else:
            torch.set_rng_state(random)
        if scaler is not None and scale is not None:
            scaler.load_state_dict(scale)
            scaler._per_optimizer_states.clear()  # how far in an update it is


class Updates:
    """The updates of a training: replayed from a graph, or done one by one.

    Args:
        buffers: what they read and write.
        carries_state: whether the state goes on from minibatch to minibatch.
        add_gradients, step: see `one_update`.
        written: yields what `step` writes: weights, moments.
        scaler: the loss scale that `step` moves.
        wanted: `on`, `off`, or `auto`: a graph, and without it if it cannot be had.
        warn: is told once why there is none.
    """

    def __init__(
        self,
        buffers: Buffers,
        carries_state: bool,
        add_gradients: AddGradients,
        step: Callable[[], Tensor],
        written: Callable[[], Iterable[Tensor]],
        scaler: "torch.amp.GradScaler | None",
        wanted: str,
        warn: Callable[[str], None],
    ) -> None:
        self.buffers, self.carries_state, self.add_gradients, self.step = buffers, carries_state, add_gradients, step
        self.written, self.scaler, self.wanted, self.warn = written, scaler, wanted, warn
        self.device = buffers.ids.device
        self.captures = wanted != "off" and self.device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, together: int) -> None:
        """Do one update; the one at the end of an epoch may have fewer minibatches, and is done one by one."""
        if self.captures and self.graph is None and together == self.buffers.accumulate:
            self._capture()
        if self.graph is not None and together == self.buffers.accumulate:
            self.graph.replay()
        else:
            self._update(together)

    def rehearse(self) -> None:
        """Do an update that leaves no trace."""
        with self._without_trace():
            self._update(self.buffers.accumulate)

    def _update(self, together: int) -> None:
        one_update(self.buffers, together, self.carries_state, self.add_gradients, self.step)

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        with without_trace([*self.buffers.written(), *self.written()], self.scaler, self.device):
            yield

    def _capture(self) -> None:
        try:
            with torch.cuda.device(self.device):
                self.graph = self._captured()
        except torch.OutOfMemoryError:
            raise  # one by one needs as much
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if self.wanted == "on":
                remedy = "use train.cuda_graph=auto or off"
                raise ResourceError("the update cannot be captured as a CUDA graph", reason, remedy) from error
            self.warn(f"slower than it could be, without a CUDA graph: {reason}")
            self.captures = False

    def _captured(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # On the stream that is captured, so that autograd and the allocator meet one stream alone.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(REHEARSALS):
                self.rehearse()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with self._without_trace(), torch.cuda.graph(graph, stream=stream):
            self._update(self.buffers.accumulate)
        return graph
