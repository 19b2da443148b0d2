"""The update that a GPU captures, run one by one beside the plain loop; the capture itself where there is a GPU."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnlm_core import cuda_graph
from rnnlm_core.checkpoint import Checkpoints, Snapshot
from rnnlm_core.config import CELLS, ModelConfig, TrainConfig
from rnnlm_core.errors import Diverged, ResourceError
from rnnlm_core.model import LanguageModel
from rnnlm_core.outcomes import Epoch
from rnnlm_core.precision import ready
from rnnlm_core.snapshot import restore, take_snapshot
from rnnlm_core.store import Store
from rnnlm_core.train import fit
from rnnlm_core.trainer import Trainer

V = 11
MODEL = ModelConfig(hidden_size=8)
DEEP = ModelConfig(hidden_size=8, num_layers=2, embedding_size=5, dropout=0.3)
TIED = ModelConfig(hidden_size=8, embedding_size=8, tie_weights=True, implementation="scratch")
MASKED = ModelConfig(
    hidden_size=8, num_layers=2, embedding_size=5, tie_weights=True, dropout=0.3, variational_dropout=True,
    dropout_embedding=0.2, weight_drop=0.4,
)  # fmt: skip
CONFIG = TrainConfig(epochs=3, batch_size=4, num_steps=5, seed=3, learning_rate=0.02, device="cpu")
CPU = torch.device("cpu")
every_cell = pytest.mark.parametrize("cell", CELLS)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here: the capture itself is not tested")


def noise(length: int, seed: int) -> Tensor:
    return torch.randint(0, V, (length,), generator=torch.Generator().manual_seed(seed)).int()


TRAIN, VALID = noise(150, 1), noise(60, 2)


@pytest.fixture
def _double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


double = pytest.mark.usefixtures("_double")


def training(
    in_place: bool, cell: str = "gru", model: ModelConfig = MODEL, config: TrainConfig = CONFIG, **more: Any
) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(cell, V, TRAIN, VALID, model, config, CPU, in_place=in_place, **more)


def epochs(made: Trainer, number: int = 3, before_update: Callable[[], None] = lambda: None) -> list[Epoch]:
    """Train that many epochs, whatever the config says."""
    torch.manual_seed(7)  # of the dropout
    return [made.run_epoch(before_update) for _ in range(number)]


def assert_close(ours: Trainer, theirs: Trainer, tolerance: float) -> None:
    assert len(ours.history) == len(theirs.history)
    for one, other in zip(ours.history, theirs.history, strict=True):
        for figure in ("train_loss", "valid_loss", "learning_rate", "gradient_norm"):
            assert getattr(one, figure) == pytest.approx(getattr(other, figure), rel=tolerance, abs=tolerance), figure
    weights = theirs.model.state_dict()
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=tolerance, atol=tolerance)


# The same numbers as the plain loop


SETTINGS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "adamw": (MODEL, {}),
    "adam, decay, no clipping": (MODEL, {"optimizer": "adam", "weight_decay": 0.1, "clip_norm": 0.0}),
    "sgd": (MODEL, {"optimizer": "sgd", "learning_rate": 0.5, "clip_norm": 0.3}),
    "sgd, momentum, decay": (
        MODEL,
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.1, "clip_norm": 0.0},
    ),
    "several minibatches an update, fewer at the end": (MODEL, {"accumulate": 3}),
    "more minibatches an update than there are": (MODEL, {"accumulate": 100}),
    "dropout, layers, embedding": (DEEP, {"accumulate": 2, "optimizer": "adam"}),
    "tied, scratch": (TIED, {"optimizer": "sgd", "momentum": 0.5, "learning_rate": 0.1}),
    "cosine after a warm-up": (MODEL, {"schedule": "cosine", "warmup_steps": 5, "accumulate": 2}),
    "plateau": (MODEL, {"schedule": "plateau", "decay": 4.0, "learning_rate": 0.05}),
    "loss of the steps": (DEEP, {"loss": "steps", "clip_norm": 2.0}),
    "masks of a minibatch": (MASKED, {"accumulate": 2}),
    "activation regularisation": (
        DEEP,
        {"activation_regularization": 2.0, "temporal_activation_regularization": 1.0, "loss": "steps"},
    ),
    "mixture, sizes apart": (replace(MASKED, mixture=3), {}),
}


@double
@pytest.mark.parametrize("partition", ["sequential", "random"])
@pytest.mark.parametrize("name", SETTINGS)
@every_cell
def test_updates_in_place_are_those_of_the_plain_loop(cell: str, name: str, partition: str) -> None:
    model, changes = SETTINGS[name]
    config = replace(CONFIG, partition=partition, **changes)
    ours, theirs = (training(in_place, cell, model, config) for in_place in (True, False))
    epochs(ours)
    epochs(theirs)
    assert_close(ours, theirs, 1e-12)
    assert theirs.history[0].train_loss != theirs.history[1].train_loss


@double
def test_averages_of_updates_in_place_are_those_of_the_plain_loop() -> None:
    config = replace(CONFIG, optimizer="nt-asgd", non_monotone=1, learning_rate=6.0, accumulate=2)
    ours, theirs = (training(in_place, "lstm", MODEL, config) for in_place in (True, False))
    epochs(ours, 7)
    epochs(theirs, 7)
    assert_close(ours, theirs, 1e-9)
    assert ours.average is not None
    assert theirs.average is not None
    assert ours.average.num_updates == theirs.average.num_updates >= 4
    for name, mean in theirs.average.means.items():
        torch.testing.assert_close(ours.average.means[name], mean, rtol=1e-9, atol=1e-9)


@every_cell
def test_in_single_precision_they_are_the_same_to_its_digits(cell: str) -> None:
    ours, theirs = (training(in_place, cell, DEEP) for in_place in (True, False))
    epochs(ours)
    epochs(theirs)
    assert_close(ours, theirs, 1e-4)


def test_nothing_that_an_update_touches_moves() -> None:
    """A graph knows addresses: another tensor in the place of one of them would be trained beside it."""
    made = training(True, "lstm", DEEP, replace(CONFIG, optimizer="adam", accumulate=2))
    assert made.updates is not None

    def addresses() -> list[int]:
        assert made.updates is not None
        buffers = made.updates.buffers
        held = [buffers.ids, buffers.starts, buffers.rates, *buffers.written(), *made._written()]
        return [tensor.data_ptr() for tensor in held]

    before = addresses()
    epochs(made, 2)
    snapshot = take_snapshot(made)
    restore(made, Snapshot({k: v.clone() for k, v in snapshot.tensors.items()}, snapshot.facts))
    epochs(made, 1)
    assert addresses() == before
    assert made.optimizer.param_groups[0]["lr"] is made.updates.buffers.rate


@pytest.mark.parametrize("model", [DEEP, MASKED, replace(MASKED, mixture=3)], ids=["deep", "masked", "mixture"])
def test_an_update_asks_the_device_for_no_value(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes a number of Python's would make the host wait, and fail the capture."""
    regularised = {"activation_regularization": 2.0, "temporal_activation_regularization": 1.0}
    made = training(True, "lstm", model, replace(CONFIG, accumulate=2, **regularised))
    epochs(made, 1)
    assert made.updates is not None
    monkeypatch.setattr("rnnlm_core.recurrence.settled", lambda _: "torch")  # what a GPU runs
    made.updates.buffers.minibatch.zero_()
    made.updates.buffers.update.zero_()

    def refuse(*_: object) -> None:
        raise AssertionError("a value was read")

    for name in ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, refuse)
    # The fused optimizers of the CPU read their rate; those of a GPU get its address.
    monkeypatch.setattr(made.optimizer, "step", lambda: None)
    made.model.embedding.forward = lambda ids: torch.nn.functional.embedding(ids, made.model.embedding.weight)
    monkeypatch.setattr("rnnlm_core.recurrence.native.load", refuse)
    made.updates.run(2)


# Rehearsals leave no trace


@double
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("partition", ["sequential", "random"])
def test_a_rehearsal_leaves_no_trace(partition: str, optimizer: str) -> None:
    config = replace(
        CONFIG, partition=partition, optimizer=optimizer, momentum=0.9 * (optimizer == "sgd"), accumulate=2
    )
    ours, theirs = (training(True, "lstm", DEEP, config) for _ in range(2))
    done = 0

    def rehearse() -> None:
        nonlocal done
        assert ours.updates is not None
        assert ours.place is not None
        if ours.place.batches + 2 > len(ours.place.losses):  # too few are left, as when a graph is not replayed
            return
        done += 1
        for _ in range(cuda_graph.REHEARSALS):
            ours.updates.rehearse()

    epochs(ours, before_update=rehearse)
    epochs(theirs)
    assert done >= 6
    assert_close(ours, theirs, 0.0)


def test_a_rehearsal_that_fails_leaves_no_trace_either() -> None:
    made = training(True)
    epochs(made, 1)
    assert made.updates is not None
    made.updates.buffers.minibatch.zero_()
    made.updates.buffers.update.zero_()
    before = [tensor.clone() for tensor in (*made._written(), *made.updates.buffers.written())]
    made.updates.step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        made.updates.rehearse()
    after = [*made._written(), *made.updates.buffers.written()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in made.model.parameters())


# Stopping and going on


@double
@pytest.mark.parametrize("partition", ["sequential", "random"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_in_place_goes_on_from_between_any_two_updates(optimizer: str, partition: str, store: Store) -> None:
    config = replace(
        CONFIG, partition=partition, optimizer=optimizer, momentum=0.5 * (optimizer == "sgd"), accumulate=2
    )
    whole = training(True, "lstm", DEEP, config)
    checkpoints, taken = Checkpoints(store, "key"), []

    def keep() -> None:
        checkpoints.save(take_snapshot(whole))
        snapshot, _ = checkpoints.load()
        taken.append(snapshot)

    epochs(whole, 2, keep)
    assert len(taken) == 8
    for snapshot in taken:
        resumed = training(True, "lstm", DEEP, config)
        restore(resumed, snapshot)
        while len(resumed.history) < 2:
            resumed.run_epoch(lambda: None)
        assert_close(resumed, whole, 0.0)


@double
@pytest.mark.parametrize("to_in_place", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_goes_on_from_the_plain_loop_and_back(optimizer: str, to_in_place: bool) -> None:
    """A checkpoint of the CPU on a GPU, and the other way round."""
    config = replace(CONFIG, optimizer=optimizer, momentum=0.5 * (optimizer == "sgd"))
    whole, first = training(False, config=config), training(not to_in_place, config=config)
    epochs(whole, 2)
    taken: list[Snapshot] = []

    def keep() -> None:
        taken.append(take_snapshot(first))
        taken[-1].tensors.update({k: v.clone() for k, v in taken[-1].tensors.items()})

    epochs(first, 2, keep)
    second = training(to_in_place, config=config)
    restore(second, taken[3])
    while len(second.history) < 2:
        second.run_epoch(lambda: None)
    assert_close(second, whole, 1e-12)


# A loss that is scaled


def scaled(start: float, **changes: Any) -> Trainer:
    made = training(True, config=replace(CONFIG, **changes))
    made.scaler = ready(torch.amp.GradScaler("cpu", init_scale=start, growth_interval=1000), CPU)
    assert made.updates is not None
    made.updates.scaler = made.scaler
    return made


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_scaled_loss_gives_the_same_updates(optimizer: str) -> None:
    """The scale is a power of two: it changes no digit."""
    config = replace(CONFIG, optimizer=optimizer)
    ours, theirs = scaled(1024.0, optimizer=optimizer), training(True, config=config)
    epochs(ours)
    epochs(theirs)
    assert_close(ours, theirs, 1e-7)


def test_an_update_that_cannot_be_held_is_left_out_and_the_scale_lowered() -> None:
    made = scaled(2.0**127, optimizer="sgd", momentum=0.9, loss="steps")  # times 5 steps it is infinite in float32
    assert made.scaler is not None
    scales, weights = [], []

    def look() -> None:
        assert made.scaler is not None
        scales.append(made.scaler.get_scale())
        weights.append(made.model.output.weight.detach().clone())

    (epoch,) = epochs(made, 1, look)
    assert scales[:4] == [2.0**127, 2.0**126, 2.0**125, 2.0**125]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert math.isfinite(epoch.train_loss)
    assert math.isfinite(epoch.gradient_norm)


def test_the_scale_goes_on_where_it_was() -> None:
    made = scaled(4096.0)
    epochs(made, 1)
    snapshot = take_snapshot(made)
    other = scaled(2.0)
    restore(other, snapshot)
    assert other.scaler is not None
    assert made.scaler is not None
    assert other.scaler.state_dict() == made.scaler.state_dict()
    assert other.scaler.state_dict()["_growth_tracker"] == 7


def test_a_loss_that_is_none_ends_a_scaled_training_too() -> None:
    made = scaled(1024.0)
    with torch.no_grad():
        made.model.output.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="training diverged in epoch 1 at step 1: loss nan"):
        epochs(made, 1)


# What is told


def test_a_capture_that_fails_is_told_once_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    made, plain = training(True, warn=told.append), training(True)
    assert made.updates is not None
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())

    def fail() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more lines")

    made.updates.captures = True
    monkeypatch.setattr(made.updates, "_captured", fail)
    epochs(made)
    epochs(plain)
    reason = "operation not permitted when stream is capturing"
    assert told == [f"slower than it could be, without a CUDA graph: {reason}"]
    assert_close(made, plain, 0.0)

    made.updates.captures, made.updates.wanted = True, "on"
    with pytest.raises(ResourceError, match=f"cannot be captured as a CUDA graph: {reason}: use train.cuda_graph=auto"):
        epochs(made, 1)


def test_a_replay_is_for_whole_groups_and_the_rest_is_done_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made, plain = (training(True, config=replace(CONFIG, accumulate=3)) for _ in range(2))
    assert made.updates is not None
    updates, replays = made.updates, []

    class Graph:
        def replay(self) -> None:
            replays.append(3)
            updates._update(3)

    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    monkeypatch.setattr(updates, "_captured", Graph)
    updates.captures = True
    epochs(made)
    epochs(plain)
    assert replays == [3] * 6  # 7 minibatches an epoch: two groups, and one of a single minibatch
    assert_close(made, plain, 0.0)


def test_a_capture_is_rehearsed_on_its_stream_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things alone: the names of `torch.cuda` stand for what a GPU does."""
    made, plain = (training(True, "lstm", DEEP, replace(CONFIG, accumulate=2)) for _ in range(2))
    assert made.updates is not None
    updates, done = made.updates, []
    update = updates._update

    class Stream:
        def wait_stream(self, _: object) -> None:
            done.append("wait")

    class Graph:
        def replay(self) -> None:
            update(2)

    class Capture(nullcontext[None]):
        def __init__(self, graph: object, stream: Stream) -> None:
            super().__init__()
            assert isinstance(graph, Graph)
            assert isinstance(stream, Stream)
            done.append("capture")

    def work(together: int) -> None:
        done.append(f"update of {together}")
        update(together)

    stand_ins: dict[str, Any] = {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "graph": Capture}
    stand_ins |= {"device": lambda _: nullcontext(), "stream": lambda _: nullcontext()}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(updates, "_update", work)
    updates.captures = True
    epochs(made)
    epochs(plain)
    rehearsals = ["update of 2"] * cuda_graph.REHEARSALS
    assert done == ["wait", *rehearsals, "wait", "capture", "update of 2", *["update of 1"] * 3]
    assert_close(made, plain, 0.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cuda_graph": "on"}, "a CUDA graph needs a GPU: train.cuda_graph=on: use `--set train.cuda_graph=auto`"),
        (
            {"precision": "float16"},
            "this precision needs a GPU: train.precision=float16: use .*train.precision=float32",
        ),
        ({"precision": "tf32"}, "this precision needs a GPU: train.precision=tf32: use"),
    ],
)
def test_what_needs_a_gpu_is_refused_without(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ResourceError, match=told):
        fit("gru", V, TRAIN, VALID, MODEL, replace(CONFIG, **changes))


def test_a_graph_refused_on_the_cpu_is_an_option_without_effect() -> None:
    told: list[str] = []
    fit("gru", V, TRAIN, None, MODEL, replace(CONFIG, cuda_graph="off", epochs=1), warn=told.append)
    assert [text for text in told if "cuda_graph" in text] == ["`train.cuda_graph` has no effect on the cpu: off"]


# On a GPU

GPU = replace(CONFIG, device="cuda", accumulate=2, warmup_steps=3, schedule="cosine")


@on_a_gpu
@pytest.mark.parametrize("partition", ["sequential", "random"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@every_cell
def test_a_captured_update_gives_what_it_gives_one_by_one(cell: str, optimizer: str, partition: str) -> None:
    config = replace(GPU, optimizer=optimizer, partition=partition)
    told: list[str] = []
    captured, eager = (
        fit(cell, V, TRAIN, VALID, DEEP, replace(config, cuda_graph=wanted), warn=told.append)
        for wanted in ("on", "off")
    )
    assert told == []
    for one, other in zip(captured.history, eager.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert one.valid_loss == pytest.approx(other.valid_loss, rel=1e-5)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


@on_a_gpu
@every_cell
def test_a_gpu_gives_what_the_cpu_gives(cell: str) -> None:
    """Without dropout, whose draws differ between devices."""
    model = replace(DEEP, dropout=0.0)
    there, here = (fit(cell, V, TRAIN, VALID, model, replace(GPU, device=name)) for name in ("cuda", "cpu"))
    for one, other in zip(there.history, here.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)


@on_a_gpu
@every_cell
def test_an_epoch_on_a_gpu_waits_for_nothing(cell: str) -> None:
    made = Trainer(cell, V, TRAIN.cuda(), None, DEEP, GPU, torch.device("cuda"))
    made.run_epoch(lambda: None)
    assert made.updates is not None
    assert made.updates.graph is not None
    made.updates.buffers.minibatch.zero_()
    made.updates.buffers.update.zero_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.updates.run(GPU.accumulate)
        made.updates.run(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
@every_cell
def test_a_captured_training_in_lower_precision_learns_the_same(cell: str, precision: str) -> None:
    model = ModelConfig(hidden_size=128, embedding_size=128)
    config = replace(GPU, batch_size=8, epochs=5, accumulate=1, learning_rate=5e-3, cuda_graph="on")
    lower, full = (fit(cell, V, TRAIN, None, model, replace(config, precision=name)) for name in (precision, "float32"))
    assert lower.history[-1].train_loss == pytest.approx(full.history[-1].train_loss, rel=0.05)


@on_a_gpu
def test_a_weight_lies_on_the_gpu_after_a_training_as_before() -> None:
    fitted = fit("lstm", V, TRAIN, VALID, DEEP, GPU)
    assert isinstance(fitted.model, LanguageModel)
    assert fitted.model.output.weight.device.type == "cuda"
    assert all(torch.isfinite(value).all() for value in fitted.model.state_dict().values())
