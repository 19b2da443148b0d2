"""The precision of the products: on the CPU what bfloat16 comes to, for a GPU what is told and refused beforehand."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnlm_core import precision as precision_module
from rnnlm_core.checkpoint import Checkpoints
from rnnlm_core.config import CELLS, ModelConfig, TrainConfig
from rnnlm_core.errors import Stopped
from rnnlm_core.model import LanguageModel
from rnnlm_core.precision import float32_products, kernel_names, lowered, slowness
from rnnlm_core.recurrence import recur
from rnnlm_core.store import Store
from rnnlm_core.train import Fitted, fit

V = 11
CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=4, batch_size=8, num_steps=10, seed=3, learning_rate=0.02, device="cpu")
MODELS = {
    "one-hot": ModelConfig(hidden_size=24),
    "embedding, layers": ModelConfig(hidden_size=24, num_layers=2, embedding_size=12),
    "scratch": ModelConfig(hidden_size=24, embedding_size=12, implementation="scratch", init="torch"),
}
every_cell = pytest.mark.parametrize("cell", CELLS)
IDS = torch.arange(1500).square().remainder(V).int()  # can be learnt


def fit_squares(cell: str, model: ModelConfig, **changes: Any) -> Fitted:
    return fit(cell, V, IDS, IDS[:200], model, replace(CONFIG, **changes))


def losses(fitted: Fitted) -> list[float]:
    return [epoch.train_loss for epoch in fitted.history]


@pytest.mark.parametrize("way", ["torch", "autograd"])
@pytest.mark.parametrize("name", MODELS)
@every_cell
def test_bfloat16_learns_as_float32_does(cell: str, name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    lower, full = (fit_squares(cell, MODELS[name], precision=one) for one in ("bfloat16", "float32"))
    assert losses(lower) == pytest.approx(losses(full), rel=0.03)
    assert losses(lower) != pytest.approx(losses(full), rel=1e-5)
    assert losses(lower)[-1] < 0.7 * losses(lower)[0]


@every_cell
def test_weights_and_measured_figures_stay_in_float32(cell: str) -> None:
    fitted = fit_squares(cell, MODELS["embedding, layers"], precision="bfloat16", epochs=1)
    assert {value.dtype for value in fitted.model.state_dict().values()} == {torch.float32}
    rounded = [value.bfloat16().float() for value in fitted.model.state_dict().values()]
    assert not any(torch.equal(a, b) for a, b in zip(rounded, fitted.model.state_dict().values(), strict=True))


@every_cell
def test_a_training_in_bfloat16_ends_with_the_same_bits(cell: str, store: Store) -> None:
    model, config = replace(MODELS["embedding, layers"], dropout=0.2), replace(CONFIG, precision="bfloat16", epochs=2)
    whole = fit(cell, V, IDS, None, model, config)
    calls = 0

    def stop_at_the_third() -> bool:
        nonlocal calls
        calls += 1
        return calls == 3

    checkpoints = Checkpoints(store, "key")
    with pytest.raises(Stopped):
        fit(cell, V, IDS, None, model, config, checkpoints=checkpoints, should_stop=stop_at_the_third)
    again = fit(cell, V, IDS, None, model, config, checkpoints=checkpoints)
    assert losses(again) == losses(whole)


@pytest.mark.parametrize("dense", [True, False])
@every_cell
def test_the_loop_of_our_own_keeps_the_precision_of_the_weights(cell: Any, dense: bool) -> None:
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell] * 6
    torch.manual_seed(0)
    inputs = torch.randn(20, 5, gates).bfloat16() if dense else torch.randn(V, gates)
    ids = None if dense else torch.randint(V, (20, 5))
    W, state = torch.randn(6, gates, requires_grad=True), tuple(torch.zeros(5, 6) for _ in range(1 + (cell == "lstm")))
    found = []
    for lower in (True, False):
        with lowered("bfloat16" if lower else "float32", CPU):
            outputs, last = recur(cell, inputs if lower else inputs.float(), state, W, ids=ids)
        (gradient,) = torch.autograd.grad(outputs.sum() + last[0].sum(), W)
        found.append((outputs, *last, gradient))
    for lower_one, full_one in zip(*found, strict=True):
        assert lower_one.dtype == torch.float32
        assert torch.equal(lower_one, full_one)


@every_cell
def test_a_layer_of_torch_nn_multiplies_in_bfloat16(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As autocast alone would not: cuDNN's layers run in float16 under it, and nothing scales the loss for that."""
    monkeypatch.setenv("RNNLM_RECURRENCE", "autograd")  # the layers of torch.nn
    torch.manual_seed(0)
    model = LanguageModel(cell, V, MODELS["embedding, layers"])
    seen: list[torch.dtype] = []
    real = {name: getattr(torch, name) for name in ("lstm", "gru", "rnn_tanh")}

    def watch(name: str) -> Any:
        def run(inputs: Tensor, *rest: Any) -> Any:
            assert not torch.is_autocast_enabled("cpu")
            seen.append(inputs.dtype)
            return real[name](inputs, *rest)

        return run

    for name in real:
        monkeypatch.setattr(torch, name, watch(name))
    ids = torch.randint(V, (4, 9))
    with lowered("bfloat16", CPU):
        logits, state = model(ids, model.initial_state(4))
    assert seen == [torch.bfloat16] * 2
    full, full_state = model(ids, model.initial_state(4))
    assert seen == [torch.bfloat16] * 2
    torch.testing.assert_close(logits.float(), full, rtol=0.05, atol=0.02)
    for one, other in zip(state[1], full_state[1], strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.02)


def told(cell: str, model: dict[str, Any], config: dict[str, Any], device: str) -> list[str]:
    made = ModelConfig(**{"hidden_size": 256, "embedding_size": 128, **model})
    settings = replace(CONFIG, **{"batch_size": 32, **config})
    return list(slowness(cell, made.embedding_size or 28, made, settings, torch.device(device)))


@pytest.mark.parametrize(
    ("cell", "model", "batch_size", "missed"),
    [
        ("lstm", {}, 32, ""),
        ("lstm", {"hidden_size": 1024}, 128, ""),
        ("lstm", {"hidden_size": 200}, 32, "make model.hidden_size a multiple of 128, at most 1024 (it is 200)"),
        ("rnn", {"hidden_size": 1152}, 32, "make model.hidden_size a multiple of 128, at most 1024 (it is 1152)"),
        (
            "lstm",
            {"embedding_size": 0},
            32,
            "make model.embedding_size a multiple of 128 (the inputs are 28 wide)",
        ),
        ("lstm", {}, 20, "make train.batch_size a multiple of 8, at most 128 (it is 20)"),
        ("rnn", {}, 136, "make train.batch_size a multiple of 8, at most 128 (it is 136)"),
        ("gru", {"hidden_size": 200}, 20, ""),  # no shape would help
        ("lstm", {"hidden_size": 200, "implementation": "scratch"}, 32, ""),  # not cuDNN's
    ],
)
def test_shapes_that_miss_the_persistent_kernels_are_told(
    cell: str, model: dict[str, Any], batch_size: int, missed: str
) -> None:
    here = told(cell, model, {"precision": "float16", "batch_size": batch_size}, "cuda")
    assert here == ([f"cuDNN's persistent kernels are missed: {missed}"] if missed else [])
    assert told(cell, model, {"precision": "float32", "batch_size": batch_size}, "cuda") == []


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_on_a_processor_without_it_is_told(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able, "avx2": True})
    slower = ["this processor has no bfloat16 products: train.precision=float32 is faster"]
    assert told("lstm", {}, {"precision": "bfloat16"}, "cpu") == ([] if able else slower)
    assert told("lstm", {}, {"precision": "bfloat16"}, "cuda") == []
    assert told("lstm", {}, {"precision": "float32"}, "cpu") == []
    warnings: list[str] = []
    fit("rnn", V, IDS, None, MODELS["one-hot"], replace(CONFIG, precision="bfloat16", epochs=1), warn=warnings.append)
    assert [text for text in warnings if "bfloat16" in text] == ([] if able else slower)


def tf32() -> list[Any]:
    """What PyTorch says of products of float32 on a GPU, by all its names."""
    newer: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn]
    older: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    return [place.fp32_precision == "tf32" for place in newer] + [place.allow_tf32 for place in older]


@pytest.mark.parametrize(("name", "meant"), [("float32", False), ("tf32", True), ("float16", False)])
def test_a_gpu_multiplies_float32_as_asked_and_afterwards_as_before(name: str, meant: bool) -> None:
    before = tf32()
    with suppress(ZeroDivisionError), float32_products(name, torch.device("cuda")):
        assert tf32() == [meant] * 4
        raise ZeroDivisionError
    assert tf32() == before == [False, True, False, True]  # PyTorch's own: cuDNN alone
    with float32_products(name, CPU):
        assert tf32() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here: which kernels cuDNN chooses is not tested")
@pytest.mark.parametrize(("hidden", "persists"), [(256, True), (200, False)])
def test_float16_runs_the_persistent_kernels_where_the_shapes_fit(hidden: int, persists: bool) -> None:
    assert precision_module.PERSISTENT_UNIT == 128
    model = LanguageModel("lstm", V, ModelConfig(hidden_size=hidden, embedding_size=128)).cuda()
    ids = torch.randint(V, (32, 35), device="cuda")

    def step() -> None:
        with lowered("float16", torch.device("cuda")):
            model(ids, model.initial_state(32))[0].sum().backward()

    step()
    assert any("persist" in name.lower() for name in kernel_names(step)) == persists
