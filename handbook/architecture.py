"""docs/architecture.md: the picture of the imports, what is where, and how long files and functions are."""

import ast
import textwrap
from collections import Counter
from pathlib import Path
from statistics import median
from typing import NamedTuple

import grimp
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from handbook.marks import table

ROOT = Path(__file__).resolve().parent.parent
HEIGHTS = ("flows", "tasks", "rnnlm_core")
CORE = "rnnlm_core."
OTHERS = "others"
SUBJECTS = {
    "runs": "presets inspection search search_space published champion",
    "training": "train train_process child_process training_job trainer optimizer learning_rate weight_average "
    "activation_regularization "
    "precision cuda_graph snapshot checkpoint ranks rank_process process_usage",
    "measuring": "evaluate score dynamic_evaluation dynamic_evaluation_process compare training_plot pictures",
    "writing": "generate onnx_export model_card",
    "network": "model saved_model step_layer cells scratch recurrence output_loss softmax dropout encoder native cores",
    "n-grams": "ngram ngram_counts ngram_training kneser_ney",
    "text": "catalogue download transfer normalize levels tokenize shards pieces splits row_groups indices",
    "corpus": "vocabulary corpus mapped_ids partition statistics",
    "ground": "extensions config config_rules config_values errors outcomes store remote crashpoints",
}
"""The modules of the core by what they are about; those that nobody has put anywhere are `others`."""
ROWS = (
    (("flows", "flows.commands", "flows.service"),),
    (("tasks",),),
    (("runs",), ("training", "measuring", "writing"), ("network", "n-grams"), ("corpus", "text"), ("ground",)),
)
"""The picture from top to bottom: per height, rows of boxes."""
COLOURS = ("#E69F00", "#009E73", "#56B4E9")
ANCHORS = (
    ("Equinox", "133", "7", "a library of neural networks"),
    ("torchtitan, entry file", "79", "", "training of large models"),
    ("basedosdados: tasks, flows, pure code", "50, 130, 545", "", "Prefect 3 in production"),
    ("Kedro's starter, a pipeline file", "under 31", "", "wiring apart from logic"),
)
"""Codebases worth learning from: median lines of a file, and of a function where it was counted."""


def modules() -> dict[str, Path]:
    """Return the files with code by the name of their module."""
    found = {}
    for height in HEIGHTS:
        for path in sorted((ROOT / height).rglob("*.py")):
            if path.name != "__init__.py":
                found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


def group(module: str) -> str:
    """Return the box that a module is in: a subject of the core, or a package above it."""
    if not module.startswith(CORE):
        return module.rpartition(".")[0]
    name = module.removeprefix(CORE)
    return next((subject for subject, names in SUBJECTS.items() if name in names.split()), OTHERS)


def imports() -> Counter[tuple[str, str]]:
    """Count the imports between groups: (who imports, what) to number of imports."""
    graph = grimp.build_graph(*HEIGHTS, cache_dir=None)
    known = modules()
    counted: Counter[tuple[str, str]] = Counter()
    for module in known:
        for imported in graph.find_modules_directly_imported_by(module):
            if imported in known and group(imported) != group(module):
                counted[group(module), group(imported)] += 1
    return counted


def architecture() -> str:
    """Return the generated part of the page."""
    parts = ["## How long things are", _sizes()]
    for height in HEIGHTS:
        rows = [
            [f"[{path.stem}](../{path.relative_to(ROOT)})", _purpose(path), group(module)]
            for module, path in sorted(modules().items(), key=lambda item: (_place(group(item[0])), item[0]))
            if path.is_relative_to(ROOT / height)
        ]
        rows = [row if height == "rnnlm_core" else row[:2] for row in rows]
        heads = ["module", "what", "subject"][: len(rows[0])]
        parts += [f"## {height}/", table(heads, rows)]
    return "\n\n".join(parts)


def _sizes() -> str:
    rows = []
    for height in HEIGHTS:
        files, functions = lengths([path for path in modules().values() if path.is_relative_to(ROOT / height)])
        rows.append(
            [f"`{height}`: {len(files)} files", f"{median(files):.0f}", f"{median(functions):.0f}", _longest(files)]
        )
    rows += [[name, file, function, about] for name, file, function, about in ANCHORS]
    return table(["lines of", "median file", "median function", ""], rows)


def _longest(files: list[int]) -> str:
    return f"longest file {max(files)}"


def lengths(paths: list[Path]) -> tuple[list[int], list[int]]:
    """Return the lines of each file, and of each function in them."""
    texts = [path.read_text(encoding="utf-8") for path in paths]
    functions = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [text.count("\n") for text in texts], functions


def _purpose(path: Path) -> str:
    """Return the first paragraph of a module's docstring, which says what it is, on one line."""
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(words.split("\n\n")[0].split())


def _place(name: str) -> int:
    boxes = [box for rows in ROWS for row in rows for box in row]
    return boxes.index(name) if name in boxes else len(boxes)


def draw(path: Path) -> None:
    """Write the picture of the three heights: a box per group, an arrow from who imports to what is imported.

    Arrows stay between neighbours, so that the names can be read: side by side, or one row down. What goes further is
    told as a number, height by height.
    """
    figure = Figure(figsize=(11, 9))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    boxes = _boxes(axes)
    counted = imports()
    rows = sorted({box.top for box in boxes.values()}, reverse=True)
    for (above, below), number in sorted(counted.items()):
        if above in boxes and below in boxes and abs(rows.index(boxes[above].top) - rows.index(boxes[below].top)) <= 1:
            _arrow(axes, boxes[above], boxes[below], number)
    _between_heights(axes, boxes, counted)
    # Text stays text, in the reader's own font: it can be searched for, and the file is small.
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")


class Box(NamedTuple):
    """Where a group is drawn, from 0 to 1 from the left and from below."""

    left: float
    bottom: float
    right: float
    top: float


def _boxes(axes: Axes) -> dict[str, Box]:
    """Draw the boxes row by row; return where they are."""
    named: dict[str, list[str]] = {}
    for module in modules():
        named.setdefault(group(module), []).append(module.rpartition(".")[2])
    core = (*ROWS[2], (OTHERS,)) if OTHERS in named else ROWS[2]
    placed: dict[str, Box] = {}
    top = 0.99
    for rows, colour in zip((*ROWS[:2], core), COLOURS, strict=True):
        for row in rows:
            texts = [textwrap.wrap(", ".join(named[name]), 126 // len(row), break_on_hyphens=False) for name in row]
            height = 0.038 + 0.0165 * max(len(text) for text in texts)
            width = 0.92 / len(row)
            for i, (name, text) in enumerate(zip(row, texts, strict=True)):
                left = 0.02 + i * width
                box = placed[name] = Box(left, top - height, left + width - 0.02, top)
                axes.add_patch(
                    FancyBboxPatch(
                        (left, box.bottom), box.right - left, height, boxstyle="round,pad=0,rounding_size=0.008",
                        facecolor=colour, alpha=0.3, edgecolor="none",
                    )
                )  # fmt: skip
                axes.text(left + 0.008, top - 0.007, name, va="top", fontsize=11, fontweight="bold")
                axes.text(left + 0.008, top - 0.033, "\n".join(text), va="top", fontsize=8.5, linespacing=1.25)
            top -= height + 0.035
        top -= 0.02
    axes.set_xlim(0, 1)
    axes.set_ylim(top + 0.05, 1)
    return placed


def _arrow(axes: Axes, above: Box, below: Box, number: int) -> None:
    """Draw an arrow between the facing sides of two boxes; in red where it goes upwards."""
    if above.top == below.top:
        right = above.left < below.left
        y = (above.bottom + above.top) / 2 + (0.006 if right else -0.006)  # two that import each other: two arrows
        ends = [(above.right if right else above.left, y), (below.left if right else below.right, y)]
    else:
        down = above.top > below.top
        # A box as wide as the page meets the other one where that is; those that go up stand beside those that go down.
        middles = [(box.left + box.right) / 2 + (0 if down else 0.03) for box in (above, below)]
        widths = [box.right - box.left for box in (above, below)]
        if max(widths) > 0.8:
            middles = [middles[widths.index(min(widths))]] * 2
        ends = [(middles[0], above.bottom if down else above.top), (middles[1], below.top if down else below.bottom)]
    colour = "#D55E00" if above.top < below.top else "#444444"
    style = {"arrowstyle": "-|>", "linewidth": 0.6 + number**0.5 / 3, "color": colour, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", ends[1], ends[0], arrowprops=style)


def _between_heights(axes: Axes, boxes: dict[str, Box], counted: Counter[tuple[str, str]]) -> None:
    """Draw the imports from height to height beside the boxes, with their numbers."""
    totals: Counter[tuple[str, str]] = Counter()
    for (above, below), number in counted.items():
        totals[_height(above), _height(below)] += number
    middles = {}
    for height in HEIGHTS:
        held = [box for name, box in boxes.items() if _height(name) == height]
        middles[height] = (min(box.bottom for box in held), max(box.top for box in held))
    for i, (above, below) in enumerate((("flows", "tasks"), ("tasks", "rnnlm_core"), ("flows", "rnnlm_core"))):
        x = 0.935 + 0.035 * (i == 2)
        start = middles[above][0] + 0.03
        end = middles[below][1] - 0.03
        style = {"arrowstyle": "-|>", "linewidth": 1.5, "color": "#444444"}
        axes.annotate("", (x, end), (x, start), arrowprops=style)
        axes.text(x + 0.006, (start + end) / 2, f"{totals[above, below]} imports", rotation=90, va="center", fontsize=8)


def _height(name: str) -> str:
    package = name.partition(".")[0]
    return package if package in HEIGHTS else "rnnlm_core"
