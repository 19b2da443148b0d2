"""Links of the handbook: written for the repository, and right on the site."""

from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="`make docs` installs it")
from handbook.links import ROOT, rewrite, site_path


def on_site(markdown: str, written: str, place: str) -> str:
    return rewrite(markdown, written, place, lambda path: site_path(path) or "")


@pytest.mark.parametrize(
    ("written", "place", "link", "expected"),
    [
        ("README.md", "index.md", "docs/scale.md", "scale.md"),
        ("README.md", "index.md", "docs/growing-up.md#1-postgresql", "growing-up.md#1-postgresql"),
        ("README.md", "index.md", "docs/images/report.png", "images/report.png"),
        ("README.md", "index.md", "docs/decisions", "decisions/README.md"),
        ("README.md", "index.md", "CHANGELOG.md", "changelog.md"),
        ("docs/scale.md", "scale.md", "log.md", "log.md"),
        ("docs/scale.md", "scale.md", "../README.md#gpu", "index.md#gpu"),
        ("docs/scale.md", "scale.md", "../rnnlm_core/cells.py#L20", "source/rnnlm_core/cells.py.txt"),
        ("docs/decisions/0012-shards.md", "decisions/0012-shards.md", "../scale.md", "../scale.md"),
        ("docs/decisions/0012-shards.md", "decisions/0012-shards.md", "../../README.md", "../index.md"),
    ],
)
def test_a_link_of_the_repository_becomes_that_of_the_site(written: str, place: str, link: str, expected: str) -> None:
    assert on_site(f"see [this]({link}).", written, place) == f"see [this]({expected})."


@pytest.mark.parametrize("link", ["https://d2l.ai", "mailto:a@b.c", "#gpu", "docs/not-there.md", "/absolute.md"])
def test_other_links_stay_as_they_are(link: str) -> None:
    """What is not there is MkDocs' to complain of."""
    assert on_site(f"[x]({link})", "README.md", "index.md") == f"[x]({link})"


def test_code_is_no_text() -> None:
    page = "```python\nlinks[a](README.md)\n```\n[a](README.md)"
    assert on_site(page, "CONTRIBUTING.md", "contributing.md") == page.removesuffix("(README.md)") + "(index.md)"


def test_the_site_is_built_with_every_page_and_no_dead_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))  # `strict: true`: a warning is an error
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(tmp_path).with_suffix("") for path in tmp_path.rglob("*.html")}
    renamed = {Path("decisions/index") if page == Path("decisions/README") else page for page in pages}
    assert renamed | {Path("index"), Path("changelog"), Path("contributing"), Path("404")} == built


def test_the_site_asks_nothing_of_the_network(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    loaded = [part.split(">")[0] for tag in ("<script", "<link", "<img") for part in page.split(tag)[1:]]
    assert loaded
    assert [part for part in loaded if "://" in part] == []
