"""What every command shares: news and tables on the screen, a Prefect API at hand, files that can be written."""

import errno
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from rnnlm_core.errors import ResourceError, one_line


def show(table: Any) -> None:
    from flows.tables import plain_console

    plain_console().print(table)  # as wide as it is: a terminal wraps what a table that shrinks would hide


def terminal_width() -> int | None:
    """Return how wide the terminal is that results go to; None for files and pipes, which take everything."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def warn(text: str) -> None:
    typer.echo(f"warning: {one_line(text)}", err=True)


def check_writable(path: Path, append: bool = False) -> None:
    """Raise `ResourceError` if no file of this name can be written; tried out, because permissions are not all.

    With `append` a file that is there is kept and must take more; without, it is replaced.
    """
    try:
        place = path.resolve()
        if place.exists() and not place.is_file():  # a replaced device is gone, a pipe waits for its reader
            raise OSError(errno.EINVAL, "Is a directory" if place.is_dir() else "no regular file")
        with place.open("ab") if append and place.exists() else tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        remedy = "give the name of a file in a folder that exists"
        raise ResourceError("cannot write the results", f"{path} ({error.strerror})", remedy) from error


def not_finite(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Yield (dotted place, value) of every infinity and NaN in plain data."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from not_finite(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from not_finite(part, f"{place}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, value


def write_json(path: Path | None, summary: dict[str, Any]) -> None:
    """Write plain data to a file, if one is asked for; what JSON has no number for is `null`, and told."""
    from rnnlm_core.compare import finite
    from rnnlm_core.store import write_atomically

    if path is not None:
        # `null` alone would look like a figure that nobody asked for.
        flag = {place: str(value) for place, value in not_finite(summary)}
        content = {**finite(summary), **({"not_finite": flag} if flag else {})}
        write_atomically(path.resolve(), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def flows_ready() -> Iterator[None]:
    """Have a Prefect API at hand and the news of the flow on the screen."""
    from flows.server import prefect_api

    with prefect_api() as api:
        if api.own:
            typer.echo("starting Prefect's own server (5 to 30 s) …", err=True)
        else:
            api.check()
        from prefect import tags

        import flows.language_model  # noqa: F401 - heavy: imported while the server starts
        from tasks import processes, tracking_database

        with news_on_screen():
            tracking_database.experiment_id()  # opens MLflow's database, also while the server starts
            with api.ready(), tags(processes.flow_run_tag()):
                yield


@contextmanager
def news_on_screen() -> Iterator[None]:
    """Show what is told while something works or waits."""
    from flows.display import Display
    from tasks.progress import listening

    with Display() as display, listening(display.hear):
        yield
