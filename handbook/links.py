"""MkDocs' hook: a link that works in the repository works on the site.

README, changelog and the rules for contributors lie above `docs/` and are pages of the site all the same; a source
file that a page links to goes along as plain text. A link to what is not there is left as it is: MkDocs warns of it,
and the build fails.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
DOCS = "docs"
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh-CN.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files of the root that are pages, and what they are on the site."""
SOURCES = PurePosixPath("source")
_FENCE = re.compile(r"^\s*(```|~~~)")
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:")


def on_files(files: Files, *, config: Any) -> Files:
    """Take the pages of the root up."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn the links of a page into those of the site."""
    place = page.file.src_uri
    written = next((name for name, on_site in PAGES.items() if on_site == place), f"{DOCS}/{place}")

    def target(path: str) -> str:
        found = site_path(path)
        if found is None:
            return ""
        if found.startswith(f"{SOURCES}/") and files.get_file_from_path(found) is None:
            text = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, found, content=text, inclusion=InclusionLevel.INCLUDED))
        return found

    return rewrite(markdown, written, place, target)


def site_path(path: str) -> str | None:
    """Return where on the site a path of the repository is; None for what is not there."""
    place = ROOT / path
    if place.is_dir():
        path, place = f"{path}/README.md", place / "README.md"
    if path in PAGES:
        return PAGES[path]
    if not place.is_file():
        return None
    return path.removeprefix(f"{DOCS}/") if path.startswith(f"{DOCS}/") else f"{SOURCES / path}.txt"


def rewrite(markdown: str, written: str, place: str, target: Callable[[str], str]) -> str:
    """Return a page with its relative links made those of the site; code blocks are left alone.

    Args:
        markdown: the page.
        written: its path in the repository, which its links start from.
        place: its path on the site.
        target: where on the site a path of the repository is; "" for what is not there.
    """

    def replaced(match: re.Match[str]) -> str:
        opening, link, anchor, closing = match.groups()
        if _ELSEWHERE.match(link) or link.startswith("/"):
            return match.group()
        path = os.path.normpath(PurePosixPath(written).parent / link)
        found = target(path)
        if not found:
            return match.group()
        kept = "" if found.startswith(f"{SOURCES}/") else anchor or ""  # line numbers are GitHub's
        return f"{opening}{os.path.relpath(found, PurePosixPath(place).parent)}{kept}{closing}"

    lines, code = [], False
    for line in markdown.split("\n"):
        code ^= bool(_FENCE.match(line))
        lines.append(line if code else _LINK.sub(replaced, line))
    return "\n".join(lines)
