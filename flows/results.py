"""The results page: published figures beside ours, read from the tracked runs, never written by hand."""

import math
from datetime import UTC, datetime

from rnnlm_core.config import PLACE, RunConfig, flatten
from rnnlm_core.presets import PRESETS, run_config
from rnnlm_core.published import SECTIONS, Published, Section
from tasks.tracked_runs import TrackedRun, curve, finished_cells
from tasks.tracking import TRAINING_KEYS
from tasks.wording import duration, parameter_text

HEAD = """# Results

Published figures and ours, each from one tracked run. This page is written by `make results` from MLflow; a row is
filled when its command has been run. Perplexities are per token, exp of the mean negative log-likelihood; validation
and test carry the state over the whole stream. Training time is the sum of the epochs, on the machine of the run.
"""


def results_page() -> str:
    """Return the page as Markdown."""
    return "\n".join([HEAD, *(_section(section) for section in SECTIONS)])


def _section(section: Section) -> str:
    heads = [
        "system",
        "theirs",
        *(head for head, _ in section.figures),
        "settings",
        "seed",
        "date",
        "time",
        "MLflow run",
    ]
    lines = [f"## {section.title}", "", section.text, "", _row(heads), _row(["---"] * len(heads))]
    missing = []
    for row in section.rows:
        run = _find(row)
        if run is None:
            missing.append(row)
            continue
        seconds = sum(value for _, value in curve(run.run_id, "perf/epoch_seconds"))
        date = datetime.fromtimestamp(run.started, UTC)
        values = [_figure(name, run.metrics) for _, name in section.figures]
        about = [
            _settings(row),
            str(run.parameters.get("train.seed", RunConfig().train.seed)),
            f"{date:%Y-%m-%d}",
            duration(seconds),
            f"`{run.run_id}`",
        ]
        lines.append(_row([row.system, row.theirs, *values, *about]))
    if missing:
        lines += ["", "Not run here:", "", *(f"- {row.system}: `{_command(row)}`" for row in missing)]
    return "\n".join([*lines, ""])


def _find(row: Published) -> TrackedRun | None:
    """Return the newest finished training with exactly the settings of a row, rather one that was measured."""
    wanted = _training_parameters(run_config(row.preset, cells=[row.cell], changes=row.changes))
    defaults = _training_parameters(RunConfig())
    found = [
        run
        for run in finished_cells(row.preset, row.cell)
        # A run from before a key existed has what is that key's default.
        if all(run.parameters.get(key, defaults[key]) == value for key, value in wanted.items())
    ]
    measured = [run for run in found if "perplexity" in run.metrics]  # a sweep's trainings are not
    return next(iter(measured or found), None)


def _training_parameters(config: RunConfig) -> dict[str, str]:
    return {
        key: parameter_text(value)
        for key, value in flatten(config).items()
        if key.split(".")[0] in TRAINING_KEYS and key not in PLACE
    }


def _settings(row: Published) -> str:
    """Return preset and changed keys, the way they are typed."""
    return f"`{_command(row).removeprefix('rnnlm run --preset ')}`"


def _command(row: Published) -> str:
    changes = "".join(f" --set {key}={value}" for key, value in row.changes.items())
    cells = "" if PRESETS[row.preset]().cells == (row.cell,) else f" --cells {row.cell}"
    return f"rnnlm run --preset {row.preset}{cells}{changes}"


def _figure(name: str, metrics: dict[str, float]) -> str:
    value = {
        "train_perplexity": lambda m: f"{m['best/train_perplexity']:.3f}",
        "valid_perplexity": lambda m: f"{m['best/valid_perplexity']:.2f}",
        "test_perplexity": lambda m: f"{m['test/perplexity']:.2f}",
        "test_bits_per_char": lambda m: f"{m['test/bits_per_char']:.3f}",
        "test_oov_rate": lambda m: f"{m['test/oov_rate']:.2%}",
        "valid_loss": lambda m: f"{math.log(m['best/valid_perplexity']):.4f}",
        "valid_bits_per_char": lambda m: f"{m['valid/bits_per_char']:.3f}",
        "parameters": lambda m: f"{m['model/parameters']:,.0f}",
    }[name]
    try:
        return value(metrics)
    except KeyError:  # trained, and not measured
        return "–"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
