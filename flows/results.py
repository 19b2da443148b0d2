"""The results page: published figures beside ours, rendered from records (`flows/measured.py`), never written by hand.

What the tracking database has is added to the records first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite, log
from statistics import mean, stdev

from flows.measured import DYNAMIC_KEYS, SEED, Measured, changed, merged, settings_of
from rnnlm_core.config import RunConfig
from rnnlm_core.errors import unknown_name
from rnnlm_core.presets import PRESETS
from rnnlm_core.published import SECTIONS, Published, Section
from tasks import tracked_runs
from tasks.tracked_runs import TrackedRun, finished_cells, train_minutes
from tasks.tracking_database import has_database
from tasks.wording import duration, markdown_text

HEAD = """# Results

Published figures and ours. This page is written by `make results` from `results.json` beside it, which keeps what was
measured on every machine, and from the runs that MLflow has here: of two runs of the same row with the same seed the
newer one is kept. A row that was measured with several seeds shows mean ± standard deviation. Perplexities are per
token, exp of the mean negative log-likelihood; validation and test carry the state over the whole stream. Time is that
of all epochs of one training, on the hardware of the row.

`.venv/bin/rnnlm results --missing Ablations` prints the commands of the rows of a section that are not run yet or lack
a figure (`all`: of every section); to run them, one after the other, and take up each:

<!-- runs: not, hours of training -->
```sh
.venv/bin/rnnlm results --missing Ablations | while read -r row; do .venv/bin/$row < /dev/null; make results; done
```
"""
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Figure:
    """How a figure of the page is found among the metrics of a run, and with how many digits it is shown."""

    of: Callable[[Mapping[str, float]], float]
    form: str
    dynamic: str = ""
    """The split that dynamic evaluation was done on, if that made it."""


def _metric(name: str, form: str, dynamic: str = "") -> Figure:
    return Figure(lambda metrics: metrics[name], form, dynamic)


FIGURES = {
    "train_perplexity": _metric("best/train_perplexity", ".3f"),
    "valid_perplexity": _metric("best/valid_perplexity", ".2f"),
    "test_perplexity": _metric("test/perplexity", ".2f"),
    "test_dynamic_perplexity": _metric("test/dynamic_perplexity", ".2f", dynamic="test"),
    "test_bits_per_char": _metric("test/bits_per_char", ".3f"),
    "test_oov_rate": _metric("test/oov_rate", ".2%"),
    "valid_loss": Figure(lambda metrics: log(metrics["best/valid_perplexity"]), ".4f"),
    "valid_bits_per_char": _metric("valid/bits_per_char", ".3f"),
}


def results_page(records: Sequence[Measured]) -> str:
    """Return the page as Markdown."""
    return "\n".join([HEAD, *(_section(section, records) for section in SECTIONS)])


def with_tracked(records: Sequence[Measured]) -> list[Measured]:
    """Return the records and what the tracking database has of the page's rows, in the order of the page."""
    rows = [row for section in SECTIONS for row in section.rows]
    if has_database():
        records = merged(records, (one for row in rows for one in _tracked(row)))
    configs = [row.config for row in rows]

    def place(record: Measured) -> tuple[int, int]:
        return next((i for i, config in enumerate(configs) if record.is_of(config)), len(rows)), record.seed

    return sorted(records, key=place)


def missing_commands(records: Sequence[Measured], name: str) -> list[str]:
    """Return the commands of the rows that are not run yet or lack a figure, in the order of the page.

    `name` is how the titles of the sections begin, in any case, or "all".
    """
    sections = [s for s in SECTIONS if name == "all" or s.title.lower().startswith(name.lower())]
    if not name or not sections:
        raise unknown_name("section", name, [*(section.title for section in SECTIONS), "all"])
    rows = (row for section in sections for row in section.rows)
    return [_command(row) for row in rows if not any(_asked(row) <= one.figures.keys() for one in _of(row, records))]


def _asked(row: Published) -> set[str]:
    """Return the figures that a measured training of a row must have: all columns of the sections with that row.

    A run with fewer, of another split perhaps, is none of them: as the newest it would take away what was measured.
    """
    names = {
        name
        for section in SECTIONS
        if any((one.preset, one.cell, one.changes) == (row.preset, row.cell, row.changes) for one in section.rows)
        for _, name in section.figures
    }
    return {name for name in names if row.config.evaluate.dynamic_rate or not FIGURES[name].dynamic}


def _of(row: Published, records: Sequence[Measured]) -> list[Measured]:
    """Return the records of a row, by seed."""
    config = row.config
    return sorted((record for record in records if record.is_of(config)), key=lambda record: record.seed)


def _tracked(row: Published) -> Iterator[Measured]:
    """Yield the newest run of each seed with exactly the settings of a row and all its figures."""
    settings, asked, seeds = settings_of(row.config), _asked(row), set()
    dynamic = {key: value for key, value in settings.items() if key.startswith(DYNAMIC_KEYS)}
    training = {key: value for key, value in settings.items() if key not in dynamic}
    for run in finished_cells(row.preset, row.cell):
        seed = run.parameters.get(SEED, str(RunConfig().train.seed))
        # A sweep's trainings are not measured.
        if seed in seeds or "perplexity" not in run.metrics or changed(run.parameters) != training:
            continue
        figures = _figures(run, dynamic)
        if asked <= figures.keys():
            seeds.add(seed)
            yield _measured(row, run, int(seed), figures)


def _figures(run: TrackedRun, dynamic: Mapping[str, str]) -> dict[str, float]:
    """Return the figures of a run; those of dynamic evaluation where it has been done with exactly these settings."""
    figures = {}
    for name, figure in FIGURES.items():
        if figure.dynamic and (not dynamic or _learnt_with(run, figure.dynamic) != dynamic):
            continue
        try:
            figures[name] = round(figure.of(run.metrics), 6)
        except KeyError:  # not measured on that split
            continue
    return figures


def _learnt_with(run: TrackedRun, split: str) -> dict[str, str]:
    """Return with which settings dynamic evaluation was last done on a split."""
    asked = run.tags.get(tracked_runs.dynamic_tag(split), "").split(" ")
    return changed(dict(one.split("=", 1) for one in asked if one.startswith(DYNAMIC_KEYS)))


def _measured(row: Published, run: TrackedRun, seed: int, figures: dict[str, float]) -> Measured:
    parameters = run.metrics.get("model/parameters")
    versions = dict(one.split(" ", 1) for one in run.tags.get(tracked_runs.VERSIONS, "").split(", ") if " " in one)
    revision = run.tags.get(tracked_runs.REVISION)
    device = run.tags.get("rnnlm.device", "?")
    return Measured(
        preset=row.preset,
        cell=row.cell,
        settings=settings_of(row.config),
        seed=seed,
        figures=figures,
        parameters=None if parameters is None else int(parameters),
        hardware=run.tags.get(tracked_runs.PROCESSOR, device) if device == "cpu" else device,
        seconds=round(60 * (train_minutes(run) or 0.0), 1),
        run_id=run.run_id,
        date=datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds"),
        versions=versions | ({"revision": revision} if revision else {}),
    )


def _section(section: Section, records: Sequence[Measured]) -> str:
    figures = [head for head, _ in section.figures]
    heads = ["system", "theirs", *figures, *(["difference"] if section.compared else [])]
    heads += ["parameters", "seeds", "hardware", "time", "date", "command", "MLflow run"]
    baseline = _of(section.rows[0], records)
    lines = [f"## {section.title}", "", section.text, "", _row(heads), _row(["---"] * len(heads))]
    for row in section.rows:
        found = _of(row, records)
        values = [_shown(name, found) for _, name in section.figures]
        if section.compared:
            values.append(_difference(section.compared, row, found, baseline))
        if not found:
            values[0] = NOT_RUN
        lines.append(_row([row.system, row.theirs, *values, *_about(found), f"`{_command(row)}`", _runs(found)]))
    return "\n".join([*lines, ""])


def _shown(name: str, records: Sequence[Measured]) -> str:
    """Return a figure of one training, or mean and standard deviation of several."""
    form = FIGURES[name].form
    values = [record.figures[name] for record in records if name in record.figures]
    if not values:
        return "–"
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 and all(map(isfinite, values)) else ""
    return f"{mean(values):{form}}{spread}"


def _difference(name: str, row: Published, records: Sequence[Measured], baseline: Sequence[Measured]) -> str:
    """Return how much higher a figure is than that of the baseline, on average over the seeds that both have."""
    own = f"{name.replace('_', '_dynamic_', 1)}" if row.config.evaluate.dynamic_rate else name
    theirs = {record.seed: record.figures.get(name) for record in baseline}
    pairs = [(record.figures.get(own), theirs.get(record.seed)) for record in records]
    found = [ours - base for ours, base in pairs if ours is not None and base is not None]
    return f"{mean(found):+{FIGURES[name].form}}" if found and row.changes else "–"


def _about(records: Sequence[Measured]) -> list[str]:
    """Return parameters, seeds, hardware, time and date."""
    if not records:
        return ["–"] * 5
    parameters = records[0].parameters
    newest = max(records, key=lambda record: record.moment)
    return [
        "–" if parameters is None else f"{parameters:,}",
        ", ".join(str(record.seed) for record in records),
        ", ".join(dict.fromkeys(markdown_text(record.hardware) for record in records)),
        duration(mean(record.seconds for record in records)),
        f"{newest.moment:%Y-%m-%d}",
    ]


def _runs(records: Sequence[Measured]) -> str:
    return ", ".join(f"`{record.run_id}`" for record in records) or "–"


def _command(row: Published) -> str:
    """Return the command that runs a row, the way it is typed."""
    changes = "".join(f" --set {key}={value}" for key, value in row.changes.items())
    cells = "" if PRESETS[row.preset]().cells == (row.cell,) else f" --cells {row.cell}"
    return f"rnnlm run --preset {row.preset}{cells}{changes}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
