"""Figures as people read them."""


def figure(value: float | None) -> str:
    """Return a perplexity or rate with the digits people compare, a dash where there is none."""
    return "–" if value is None else f"{value:.3f}" if value < 100 else f"{value:,.1f}"
