"""Figures, times and commands in words, the same wherever people read them."""

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

from rnnlm_core.config import flatten
from rnnlm_core.errors import one_line
from rnnlm_core.presets import PRESETS, run_config

LONGEST_PARAMETER = 6000


def figure(value: float | None) -> str:
    """Return a perplexity or rate with the digits people compare, a dash where there is none."""
    return "–" if value is None else f"{value:.3f}" if value < 100 else f"{value:,.1f}"


def finite_figure(value: float | None) -> str:
    """Return a figure for a page: a dash for what is no number, ∞ for what has none."""
    if value is None or math.isnan(value):
        return "–"
    return figure(value) if math.isfinite(value) else "∞"


def duration(seconds: float) -> str:
    """Return a time in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def markdown_text(text: str) -> str:
    """Return a text on one line that Markdown shows as it is, in a cell of a table too: nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", one_line(text))


def markdown_block(text: str) -> str:
    """Return a text as a block of Markdown that shows it as it is; no fence in it is as long as the block's own."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def parameter_text(value: Any) -> str:
    """Return a value of the config as MLflow keeps it."""
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= LONGEST_PARAMETER else text[: LONGEST_PARAMETER - 1] + "…"


def command(preset: str, parameters: Mapping[str, str], cell: str = "") -> str:
    """Return the command that does a run again, from its parameters in MLflow; "" if its preset is no more.

    Parameters that a run does not depend on may be missing; `cell` asks for that one alone.
    """
    if preset not in PRESETS:
        return ""
    corpus = parameters.get("corpus.name", run_config(preset).corpus.name)
    other = corpus != run_config(preset).corpus.name
    usual = {key: parameter_text(value) for key, value in flatten(run_config(preset, corpus)).items()}
    words = ["rnnlm", "run", "--preset", preset, *(["--corpus", corpus] if other else [])]
    cells = cell or parameters.get("cells", usual["cells"])
    words += ["--cells", cells] if cells != usual["cells"] else []
    for key, value in parameters.items():
        if key not in ("cells", "corpus.name") and usual.get(key, value) != value:
            # MLflow shows True and False, which are typed true and false.
            words += ["--set", f"{key}={value.lower() if value in ('True', 'False') else value}"]
    return shlex.join(words)
