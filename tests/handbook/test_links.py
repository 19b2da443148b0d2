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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built handbook: `strict: true` makes an error of every warning."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    renamed = {Path("decisions/index") if page == Path("decisions/README") else page for page in pages}
    above = {Path(name) for name in ("index", "index.zh-CN", "changelog", "contributing", "404")}
    assert renamed | above == built


def test_the_sources_that_a_page_links_to_go_along(site: Path) -> None:
    assert "cells as equations" in (site / "source" / "rnnlm_core" / "cells.py.txt").read_text(encoding="utf-8")


def test_the_site_asks_nothing_of_the_network(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    loaded = [part.split(">")[0] for tag in ("<script", "<link", "<img") for part in page.split(tag)[1:]]
    assert loaded
    assert [part for part in loaded if "://" in part] == []


def test_a_dead_link_or_anchor_fails_the_build(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    (tmp_path / "docs").mkdir()
    changes = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site")}

    def build_with(link: str) -> None:
        (tmp_path / "docs" / "page.md").write_text(f"# A page\n\n[a link]({link})\n")
        build(load_config(str(ROOT / "mkdocs.yml"), nav=["page.md"], hooks=[], extra_css=[], **changes))

    build_with("page.md#a-page")
    for dead in ("nowhere.md", "page.md#nowhere", "../rnnlm_core/nowhere.py"):
        with pytest.raises(Abort):
            build_with(dead)
