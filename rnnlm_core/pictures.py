"""Pictures as files: a PNG for every viewer, and an SVG that stays sharp at any size and in print."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a figure as `path`, a PNG on white, and beside it as SVG without a background; equal figures, equal bytes.

    Raises `OSError` where a file cannot be written.
    """
    import matplotlib as mpl

    figure.savefig(path, metadata={"Software": None})
    with mpl.rc_context({"svg.hashsalt": path.stem}):  # otherwise the names inside are drawn by lot
        figure.savefig(vector(path), transparent=True, metadata={"Date": None, "Creator": None})


def vector(path: Path) -> Path:
    """Return where the SVG of a picture lies."""
    return path.with_suffix(".svg")
