"""Both READMEs say the same: the same commands, pictures, links and sections, each in its language."""

import re
import shlex
from itertools import pairwise

import pytest
from code_blocks import PROJECT, READMES, blocks_of

VALUES = ("--corpus", "--prefix")
"""Options whose values are texts, of which each language has its own."""


def content(page: str) -> str:
    """Return a README without its blocks."""
    return re.sub(r"^```.*?^```$", "", (PROJECT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(page: str) -> list[str]:
    """Return where the links and pictures of a README lead, but for the book, which has an edition in each language."""
    targets = re.findall(r"\]\((\S+?)\)", content(page))
    return sorted(target for target in targets if target not in {*READMES, "https://d2l.ai", "https://zh.d2l.ai"})


def commands(page: str) -> list[tuple[str, str, list[str]]]:
    """Return language, mark and commands of each block, without comments and without the texts they are about."""
    return [(block.language, block.mark, [_without_texts(line) for line in block.code]) for block in blocks_of(page)]


def _without_texts(line: str) -> str:
    if not line.startswith("rnnlm "):
        return line
    words = shlex.split(line)
    return " ".join([words[0], *("…" if before in VALUES else word for before, word in pairwise(words))])


def test_both_have_the_same_commands() -> None:
    first, second = (commands(page) for page in READMES)
    assert first == second
    assert len(first) >= 8


def test_both_have_the_same_links_and_pictures() -> None:
    first, second = (links(page) for page in READMES)
    assert first == second
    assert len([target for target in first if target.endswith(".png")]) == 3


def test_both_have_the_same_sections() -> None:
    first, second = (re.findall(r"^(#+) ", content(page), flags=re.MULTILINE) for page in READMES)
    assert first == second


def test_each_leads_to_the_other_at_its_top() -> None:
    for page, other in (READMES, reversed(READMES)):
        assert f"]({other})" in "".join((PROJECT / page).read_text(encoding="utf-8").splitlines()[:4])


@pytest.mark.parametrize("page", READMES)
def test_links_lead_to_files_that_are_there(page: str) -> None:
    local = [target.partition("#")[0] for target in links(page) if not target.startswith("http")]
    assert [target for target in local if not (PROJECT / target).exists()] == []
