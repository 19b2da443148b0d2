"""`rnnlm export`: a trained model as a file for other runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.generate import load_tracked, tell_whose
from flows.commands.screen import check_writable, news_on_screen


def export(
    model: Annotated[str, typer.Option(help="A cell (gru: the newest one), an MLflow run id, or models:/NAME@ALIAS.")],
    output: Annotated[Path, typer.Option(help="Where to put the ONNX file.")],
) -> None:
    """Write a trained model as an ONNX file, checked against the model before it is written."""
    check_writable(output)
    from rnnlm_core.onnx_export import check_installed, check_onnx, export_onnx
    from rnnlm_core.store import write_atomically

    check_installed()
    with news_on_screen():
        saved, run = load_tracked(model)
    data = export_onnx(saved)
    difference = check_onnx(data, saved)
    tell_whose(model, run)
    write_atomically(output.resolve(), data)
    typer.echo(f"{output}: {len(data):,} bytes, {saved.model.cell}, {len(saved.vocabulary):,} {saved.tokenizer.noun}")
    typer.echo(f"largest difference of a logit from the model: {difference:.2g}")
