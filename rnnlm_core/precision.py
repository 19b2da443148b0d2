"""In which precision a training multiplies: the weights and the loss stay in float32 whatever it is.

`float32` and `tf32` are the two ways in which a GPU multiplies float32; `bfloat16` and `float16` are `torch.autocast`,
for layers of `torch.nn` and the products between them. The loop of `recurrence.py` keeps the precision of the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.errors import ResourceError

PERSISTENT_UNIT = 128
"""cuDNN's persistent kernels take hidden and input widths that are multiples of it (PyTorch's `cudnn/RNN.cpp`)."""
PERSISTENT_ROWS = 8
MOST_PERSISTENT_ROWS = 128
MOST_PERSISTENT_UNITS = 1024
_LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_device(config: TrainConfig, device: torch.device) -> None:
    """Raise `ResourceError` if the settings need a GPU and the device is none."""
    if device.type == "cuda":
        return
    if config.precision in ("tf32", "float16"):
        remedy = "use `--set train.precision=float32`"
        raise ResourceError("this precision needs a GPU", f"train.precision={config.precision}", remedy)
    if config.cuda_graph == "on":
        raise ResourceError("a CUDA graph needs a GPU", "train.cuda_graph=on", "use `--set train.cuda_graph=auto`")


def slowness(
    cell: str, input_size: int, model: ModelConfig, config: TrainConfig, device: torch.device
) -> Iterator[str]:
    """Yield why the precision is slower than it could be, with the remedy; `input_size` is the first layer's."""
    if config.precision == "bfloat16" and device.type == "cpu" and not _multiplies_bfloat16():
        yield "this processor has no bfloat16 products: train.precision=float32 is faster"
    # The GRU has no persistent kernel on the GPUs of today.
    may_persist = config.precision == "float16" and cell != "gru" and model.implementation == "concise"
    if may_persist and (misfits := list(_not_persistent(input_size, model, config))):
        yield f"cuDNN's persistent kernels are missed: {'; '.join(misfits)}"


def _not_persistent(input_size: int, model: ModelConfig, config: TrainConfig) -> Iterator[str]:
    hidden, rows = model.hidden_size, config.batch_size
    if hidden % PERSISTENT_UNIT or hidden > MOST_PERSISTENT_UNITS:
        yield (
            f"make model.hidden_size a multiple of {PERSISTENT_UNIT}, at most {MOST_PERSISTENT_UNITS} (it is {hidden})"
        )
    if input_size % PERSISTENT_UNIT:
        yield f"make model.embedding_size a multiple of {PERSISTENT_UNIT} (the inputs are {input_size} wide)"
    if rows % PERSISTENT_ROWS or rows > MOST_PERSISTENT_ROWS:
        yield f"make train.batch_size a multiple of {PERSISTENT_ROWS}, at most {MOST_PERSISTENT_ROWS} (it is {rows})"


def _multiplies_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # an older PyTorch does not tell: then there is nothing to warn of
        return True
    able: dict[str, Any] = dict(torch.cpu.get_capabilities())
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def lowered(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass is computed."""
    dtype = _LOWER.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def loss_scaler(precision: str, device: torch.device) -> "torch.amp.GradScaler | None":
    """Return what keeps the gradients of float16 from becoming zero, ready to be captured; None for the others."""
    if precision != "float16":
        return None
    return ready(torch.amp.GradScaler(device.type), device)


def ready(scaler: "torch.amp.GradScaler", device: torch.device) -> "torch.amp.GradScaler":
    """Return the scaler with its tensors made, which it would do at its first loss."""
    scaler.scale(torch.zeros((), device=device))
    return scaler


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 as TF32 for `tf32`, and exactly otherwise; afterwards as before.

    PyTorch's own default differs between cuDNN's layers (TF32) and everything else (exact).
    """
    if device.type != "cuda":
        yield
        return
    # By their older names, which keep the newer ones (`fp32_precision`) in step: PyTorch refuses a mixture.
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def kernel_names(work: Callable[[], object]) -> list[str]:
    """Return the names of the GPU kernels that `work` runs, each once; cuDNN's persistent ones say `persist`."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    events: Any = seen.events()
    return sorted({event.name for event in events if event.device_type.name == "CUDA"})
