"""What a smoke run came to, in Markdown: for the summary of a CI job."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.comparison import CellFigures, markdown_table, of_runs
from flows.report import versions
from flows.summary import PartlyDoneError
from rnnlm_core.errors import ResourceError, RnnlmError, one_line
from tasks.tracked_registry import champions
from tasks.tracked_runs import find_model_run
from tasks.wording import duration, markdown_block, markdown_text


def of_outcome(outcome: Mapping[str, Any]) -> str:
    """Return the summary of what the smoke flow returned."""
    return render(outcome["checks"], outcome["runs"], _figures(outcome["runs"][0]), versions())


def of_error(error: Exception) -> str:
    """Return the summary of a smoke flow that ended with an error; cells that are done are shown."""
    runs = [error.summary.as_json()] if isinstance(error, PartlyDoneError) else []
    message = str(error) if isinstance(error, RnnlmError) else f"{type(error).__name__}: {one_line(error)}"
    return render([], runs, _figures(runs[0]) if runs else [], versions(), message)


def _figures(run: Mapping[str, Any]) -> list[CellFigures]:
    runs = [find_model_run(cell["run_id"]) for cell in run["cells"].values()]
    return [cell.figures for cell in of_runs(runs, {one.run_id for one in champions().values()})]


def render(
    checks: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    figures: Sequence[CellFigures],
    installed: Mapping[str, str],
    error: str = "",
) -> str:
    """Return the summary: verdict, table of the cells, effort of each run, checks, a sample per cell, versions."""
    parts = [f"## {_verdict(checks, error)}"]
    if error:
        parts.append(markdown_block(error))
    if figures:
        parts += [markdown_table(figures).strip(), "*train*, *valid* and *test* are perplexities."]
    if runs:
        parts.append("\n".join(f"- run {number}: {_effort(run)}" for number, run in enumerate(runs, 1)))
    if checks:
        parts += ["### Checks", "\n".join(f"- {_mark(one['held'])} {markdown_text(one['what'])}" for one in checks)]
    if runs:
        parts.append("### Samples")
        for cell, found in runs[0]["cells"].items():
            parts += [f"**{markdown_text(cell)}**", markdown_block(found["samples"][0])]
    parts.append(" · ".join(f"{markdown_text(name)} {markdown_text(version)}" for name, version in installed.items()))
    return "\n\n".join(parts) + "\n"


def _verdict(checks: Sequence[Mapping[str, Any]], error: str) -> str:
    failed = sum(not one["held"] for one in checks)
    if error:
        return f"{_mark(False)} rnnlm smoke: ended with an error"
    return f"{_mark(not failed)} rnnlm smoke: " + (
        f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks hold"
    )


def _mark(held: bool) -> str:
    return "✓" if held else "✗"


def _effort(run: Mapping[str, Any]) -> str:
    done, found = run["tasks"]["executed"], run["tasks"]["cached"]
    return f"{done} stages done, {found} cached, {duration(run['seconds'])}"


def append(path: Path, page: str) -> None:
    """Add a summary to the end of a file, which is made if it is not there; raises `ResourceError`."""
    try:
        with path.open("ab") as file:
            # A heading begins a line, whatever the text before it ended with.
            file.write((("\n" if file.tell() else "") + page).encode())
    except OSError as error:
        remedy = "free some space, or give the name of a file that takes more"
        raise ResourceError("cannot write the summary", f"{path} ({error.strerror})", remedy) from error
