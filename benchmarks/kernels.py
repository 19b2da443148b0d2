"""Which kernels a training runs on a GPU, `python -m benchmarks kernels`: whether cuDNN took its persistent ones."""

from typing import Annotated

import typer


def kernels(
    cell: Annotated[str, typer.Option(help="rnn, gru or lstm.")] = "lstm",
    precision: Annotated[str, typer.Option(help="float32, tf32, bfloat16 or float16.")] = "float16",
    hidden: Annotated[int, typer.Option(help="Units.")] = 256,
    embedding: Annotated[int, typer.Option(help="Width of the inputs; 0 = one-hot.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Rows of a minibatch.")] = 32,
    device: Annotated[str, typer.Option(help="cuda or cuda:N.")] = "cuda",
) -> None:
    """Print the kernels of a short training on noise, those of the recurrence among them."""
    import torch

    from rnnlm_core.config_values import override
    from rnnlm_core.errors import UsageError
    from rnnlm_core.model import pick_device
    from rnnlm_core.precision import kernel_names
    from rnnlm_core.presets import d2l_time_machine
    from rnnlm_core.train import fit

    if pick_device(device).type == "cpu":
        raise UsageError("only a GPU runs kernels", device, "give --device cuda or cuda:N")
    settings = {"cells": cell, "model.hidden_size": hidden, "model.embedding_size": embedding}
    settings |= {"train.batch_size": batch_size, "train.precision": precision, "train.device": device}
    # One by one: what runs is the same, and the profiler names what a graph would hide.
    settings |= {"train.epochs": 1, "train.cuda_graph": "off"}
    config = override(d2l_time_machine(), settings)
    ids = torch.randint(28, (4 * config.train.fewest_tokens,), dtype=torch.int32)

    def warn(text: str) -> None:
        typer.echo(f"warning: {text}", err=True)

    names = kernel_names(lambda: fit(cell, 28, ids, None, config.model, config.train, warn=warn))
    typer.echo("\n".join(names))
    persistent = [name for name in names if "persist" in name.lower()]
    typer.echo(f"persistent: {len(persistent)} of {len(names)} kernels")
