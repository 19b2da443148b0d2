"""What a person sees while a run works: a line per stage and, in a terminal, a moving bar per cell.

Everything goes to standard error. Without a terminal there are no moving parts: about ten lines per cell.
"""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rnnlm_core.outcomes import Epoch
from tasks.progress import News
from tasks.wording import duration

LINES_PER_CELL = 10


class Display:
    """Listens to the news of a run and shows them; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.seconds: dict[str, float] = {}
        if self.console.is_terminal:
            self.bars = Progress(
                TextColumn("  {task.fields[cell]:<5}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[state]}"),
                console=self.console,
            )

    def __enter__(self) -> "Display":
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def line(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def hear(self, news: News) -> None:
        """Show one piece of news."""
        name = f"{news.stage} {news.cell}".strip()
        if news.warning:
            self.line(f"warning: {name}: {news.warning}")
        elif news.done:
            if news.stage == "trial":
                self._drop(news.cell)
            self.line(f"{name:<14} {news.done}")
        elif news.epoch is not None:
            self._epoch(news.cell, news.epoch, news.earlier)

    def _drop(self, cell: str) -> None:
        """Take away the bar of a training: a sweep has more of them than a screen has lines."""
        if self.bars is not None and cell in self.tasks:
            self.bars.remove_task(self.tasks.pop(cell))

    def _epoch(self, cell: str, epoch: Epoch, earlier: bool) -> None:
        self.seconds[cell] = self.seconds.get(cell, 0.0) + epoch.seconds
        left = self.seconds[cell] / epoch.number * (epoch.epochs - epoch.number)
        measured = epoch.valid_perplexity
        which, value = ("valid", measured) if measured is not None else ("train", epoch.train_perplexity)
        state = (
            f"epoch {epoch.number}/{epoch.epochs}  {which} perplexity {value:.4g}  "
            f"{epoch.tokens_per_second:,.0f} tokens/s  {duration(left)} left"
        )
        if self.bars is not None:
            if cell not in self.tasks:
                self.tasks[cell] = self.bars.add_task("", total=epoch.epochs, cell=cell, state="")
            self.bars.update(self.tasks[cell], completed=epoch.number, state=state)
        elif earlier:  # it has been shown when it was new
            return
        elif epoch.number % max(1, epoch.epochs // LINES_PER_CELL) == 0 or epoch.number == epoch.epochs:
            self.line(f"train {cell:<8} {state}")
