"""News of a run on their way to whoever shows them: the command line's display, or a worker's log.

Tasks publish, displays subscribe. Without a subscriber the news go to the Prefect log of the task.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rnnlm_core.errors import one_line
from rnnlm_core.outcomes import Epoch


@dataclass(frozen=True)
class News:
    """Something that happened in a `stage` (and `cell`): an epoch ended, a warning, a stage done or found done.

    An `earlier` epoch is one of a checkpoint, from before the training was interrupted.
    """

    stage: str
    cell: str = ""
    epoch: Epoch | None = None
    warning: str = ""
    done: str = ""
    earlier: bool = False


@dataclass
class _Board:
    listeners: list[Callable[[News], None]] = field(default_factory=list)


_board = _Board()


@contextmanager
def listening(listener: Callable[[News], None]) -> Iterator[None]:
    """Have `listener` called with all news, from whichever thread they come."""
    _board.listeners.append(listener)
    try:
        yield
    finally:
        _board.listeners.remove(listener)


def publish(news: News) -> None:
    """Tell the listeners; without any, write a line to the log."""
    for listener in list(_board.listeners):
        listener(news)
    if not _board.listeners:
        _log(news)


def warn(stage: str, text: str, cell: str = "") -> None:
    """Publish a warning; what of it came from outside forges no line of a log and fills no screen."""
    publish(News(stage, cell, warning=one_line(text)))


def _log(news: News) -> None:
    from prefect.logging import get_logger

    log = get_logger("rnnlm")
    if news.done:
        log.info("%s: %s", f"{news.stage} {news.cell}".strip(), news.done)
    elif news.warning:
        log.warning("%s %s: %s", news.stage, news.cell, news.warning)
    elif news.epoch is not None and not news.earlier:
        epoch = news.epoch
        log.info(
            "%s %s: epoch %d/%d, train perplexity %.4g, valid perplexity %s, %.0f tokens/s",
            news.stage,
            news.cell,
            epoch.number,
            epoch.epochs,
            epoch.train_perplexity,
            "-" if epoch.valid_perplexity is None else f"{epoch.valid_perplexity:.4g}",
            epoch.tokens_per_second,
        )
