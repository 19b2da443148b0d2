"""The course of one training in a picture: perplexity above, learning rate and gradient norm below."""

from pathlib import Path

from rnnlm_core.compare import COLOURS, OTHER_COLOURS, draw_perplexity
from rnnlm_core.outcomes import Trained

PICTURE = "training.png"


def plot_training(trained: Trained, path: Path) -> None:
    """Draw perplexity, learning rate and gradient norm against epoch; the epoch whose weights were kept is marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colour = COLOURS.get(trained.cell, OTHER_COLOURS[0])
    epochs = [epoch.number for epoch in trained.history]
    figure = Figure(figsize=(7, 6.4), dpi=100)  # fixed margins: matplotlib's own layout takes as long as the drawing
    figure.subplots_adjust(left=0.11, right=0.86, bottom=0.08, top=0.97, hspace=0.1)
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    draw_perplexity([trained], above)
    above.axvline(trained.best_epoch, color="0.6", linewidth=1, zorder=0)
    above.set_xlabel("")
    above.legend(loc="upper right", frameon=False)
    below.plot(epochs, [epoch.gradient_norm for epoch in trained.history], color=colour, label="gradient norm")
    below.set(xlabel="epoch", ylabel="gradient norm (mean)")
    below.grid(alpha=0.25)
    rates = below.twinx()
    rates.plot(epochs, [epoch.learning_rate for epoch in trained.history], color="0.35", linestyle="--")
    rates.set_ylabel("learning rate (dashed)")
    figure.savefig(path, metadata={"Software": None})
