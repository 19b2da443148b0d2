"""The part of a page that is made of the code, between two marks; what stands around it is written by hand."""

from pathlib import Path

from rnnlm_core.errors import DataError

DOCS = Path(__file__).resolve().parent.parent / "docs"
START = "<!-- made of the code: begin, written by `make docs` -->"
END = "<!-- made of the code: end -->"


def filled(page: str, made: str) -> str:
    """Return a page with `made` between its marks.

    Raises `DataError` when the page has no marks.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise DataError("the page has no place for what is made of the code", "", f"put `{START}` and `{END}` into it")
    return f"{before}{START}\n\n{made.strip()}\n\n{END}{after}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
