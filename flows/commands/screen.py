"""What every command shares: news and tables on the screen, a Prefect API at hand, files that can be written."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from rnnlm_core.errors import ResourceError, one_line


def show(table: Any) -> None:
    from rich.console import Console

    # As wide as it is: a terminal wraps what a table that shrinks would hide. Tokens and names are shown as they are.
    Console(width=1000, highlight=False, markup=False, emoji=False).print(table)


def warn(text: str) -> None:
    typer.echo(f"warning: {one_line(text)}", err=True)


def check_writable(path: Path) -> None:
    """Raise `ResourceError` if no file of this name can be written; tried out, because permissions are not all."""
    try:
        place = path.resolve()
        if place.exists() and not place.is_file():  # what is written takes the place of what is there
            raise OSError(errno.EINVAL, "Is a directory" if place.is_dir() else "no regular file")
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        remedy = "give the name of a file in a folder that exists"
        raise ResourceError("cannot write the results", f"{path} ({error.strerror})", remedy) from error


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
