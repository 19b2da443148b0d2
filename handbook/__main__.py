"""The command `python -m handbook`: writes the pages that are made of the code."""

from handbook import architecture, configuration
from handbook.marks import DOCS, filled
from rnnlm_core.store import write_atomically


def main() -> None:
    """Write docs/configuration.md, docs/architecture.md and its picture."""
    architecture.draw(DOCS / "images" / "architecture.svg")
    for name, made in (
        ("configuration.md", configuration.configuration()),
        ("architecture.md", architecture.architecture()),
    ):
        page = DOCS / name
        write_atomically(page, filled(page.read_text(encoding="utf-8"), made).encode())
        print(page)


if __name__ == "__main__":
    main()
