"""Figures as people read them."""

import math


def figure(value: float | None) -> str:
    """Return a perplexity or rate with the digits people compare, a dash where there is none."""
    return "–" if value is None else f"{value:.3f}" if value < 100 else f"{value:,.1f}"


def finite_figure(value: float | None) -> str:
    """Return a figure for a page: a dash for what is no number, ∞ for what has none."""
    if value is None or math.isnan(value):
        return "–"
    return figure(value) if math.isfinite(value) else "∞"
