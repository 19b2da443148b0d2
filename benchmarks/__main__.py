"""The command: `python -m benchmarks [CASE ...] [--json FILE]`, and `python -m benchmarks render FILE`, `kernels`."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import render as page
from benchmarks.cases import CASES, OF_THE_NOVEL
from benchmarks.kernels import kernels
from benchmarks.machine import load, machine
from benchmarks.rows import Setting
from benchmarks.texts import novel
from rnnlm_core.errors import DataError, RnnlmError, UsageError, unknown_name
from rnnlm_core.store import write_atomically


def measure(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help=f"{', '.join(CASES)}; none = all.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go, after each case.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: does it all work? No figures.")] = False,
) -> None:
    """Measure rnnlm beside the book's packages; tables on standard output. `render FILE` writes the page."""
    chosen = list(dict.fromkeys(cases or CASES))
    for name in chosen:
        if name not in CASES:
            raise unknown_name("case", name, list(CASES))
    _check_device(device)
    if OF_THE_NOVEL.intersection(chosen):
        with tempfile.TemporaryDirectory(prefix="rnnlm-bench-") as folder:
            novel(Path(folder))  # what cannot be had is said now, not after minutes
    results: dict[str, Any] = {"machine": machine(device), "quick": quick, "cases": {}, "rows": []}
    for name in chosen:
        typer.echo(f"{name} …", err=True)
        about = {"load_before": load()}
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="rnnlm-bench-") as folder:
            for row in CASES[name](Setting(Path(folder), device, quick)):
                results["rows"].append(row.as_json())
                ratio = "" if row.ratio is None else f": {row.ratio:.2f}"
                typer.echo(f"  {row.name} | {row.peer_name}{ratio}", err=True)
        results["cases"][name] = {**about, "load_after": load(), "seconds": time.monotonic() - started}
        if json_file is not None:
            write_atomically(json_file, json.dumps(results, indent=1).encode())
    typer.echo(page.tables(results))


def render(
    file: Annotated[Path, typer.Argument(help="What `--json` wrote.")],
    output: Annotated[Path, typer.Option(help="The page with the marks.")] = page.PAGE,
) -> None:
    """Write the tables of a run into docs/performance.md, between its marks."""
    try:
        results, text = json.loads(file.read_text(encoding="utf-8")), output.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError("cannot read the figures or the page", f"{file}, {output}", str(error)) from error
    write_atomically(output, page.render(results, text).encode())
    typer.echo(output)


def _check_device(device: str) -> None:
    if device != "cpu" and not device.startswith("cuda"):
        raise UsageError("unknown device", device, "give cpu, cuda or cuda:N")
    from rnnlm_core.model import pick_device

    pick_device(device)


def main() -> None:
    """Run the command; what a user can mend is one line and an exit code."""
    others: dict[str, Callable[..., None]] = {"render": render, "kernels": kernels}
    other = others.get("".join(sys.argv[1:2]))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(other or measure)
    try:
        app(args=sys.argv[2:] if other else sys.argv[1:], prog_name="python -m benchmarks")
    except RnnlmError as error:
        typer.echo("\n".join(f"error: {line}" for line in error.lines), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
