"""The code blocks of the pages, and what the comment above each says of it.

No comment: the block runs in `make test`. `<!-- runs: slow -->`: in `make test-all` alone.
`<!-- runs: until ADDRESS -->`: it serves; started, waited for until the address answers, stopped at the end of the
page (`slow, until ADDRESS` is both). `<!-- runs: as FILE -->`: the reader saves it under this name; blocks after it
use it. `<!-- runs: not, REASON -->`.
"""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import flows.cli

PROJECT = Path(flows.cli.__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
RECORDS = ("log.md",)
"""Pages that tell what was done once, not what to do."""
LANGUAGES = ("sh", "python", "yaml", "json", "toml", "text")

_FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,})(?P<info>.*)")
_COMMENT = re.compile(r"\s*<!-- runs: (.*) -->")
_MARK = re.compile(r"slow|not, \S.*|(slow, )?until http://\S+|as [\w-]+\.\w+")


@dataclass(frozen=True)
class Block:
    """A fenced block, and how it runs: a reason why not, the address that a server answers at, or to its end."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""

    @property
    def slow(self) -> bool:
        """Whether only `make test-all` runs it."""
        return self.mark.startswith("slow")

    @property
    def address(self) -> str:
        """Where a server answers that the block starts, "" if it starts none."""
        return "" if self.reason else self.mark.partition("until ")[2]

    @property
    def file(self) -> str:
        """The name under which the reader saves the block, "" if it is to be run."""
        return self.mark.removeprefix("as ") if self.mark.startswith("as ") else ""

    @property
    def reason(self) -> str:
        """Why the block is not run, "" if it is."""
        return self.mark.removeprefix("not, ") if self.mark.startswith("not, ") else ""

    @property
    def fault(self) -> str:
        """What is wrong with how the block is written, "" if nothing is."""
        if self.language not in LANGUAGES:
            return f"language {self.language!r}: write one of {', '.join(LANGUAGES)}"
        if self.mark and not _MARK.fullmatch(self.mark):
            return f"`runs: {self.mark}`: write `slow`, `until ADDRESS`, `as FILE` or `not, REASON`"
        return ""

    @property
    def code(self) -> list[str]:
        """The lines without comments, blanks and indentation by taste: what two languages' pages have in common."""
        if self.language == "sh":
            return [shlex.join(shlex.split(line, comments=True)) for line in _whole_lines(self.text)]
        lines = (re.sub(r"(^|\s)#\s.*", "", line).rstrip() for line in self.text.splitlines())
        return [line for line in lines if line]


def pages() -> list[str]:
    """Return the names of the pages whose blocks run, the README first: who reads the others has been there."""
    guides = sorted(path.name for path in (PROJECT / "docs").glob("*.md") if path.name not in RECORDS)
    return [*READMES, *(f"docs/{name}" for name in guides)]


def blocks_of(page: str, text: str | None = None) -> list[Block]:
    """Return the blocks of a page in their order."""
    return list(_read(page, (PROJECT / page).read_text(encoding="utf-8") if text is None else text))


def _read(page: str, text: str) -> Iterator[Block]:
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        found = _FENCE.fullmatch(lines[number])
        if not found:
            number += 1
            continue
        start = number
        number += 1
        while lines[number].strip() != found["fence"]:
            number += 1
        comment = _COMMENT.fullmatch(lines[start - 1]) if start else None
        language = (found["info"].split() or [""])[0]
        content = textwrap.dedent("\n".join(lines[start + 1 : number])) + "\n"
        yield Block(page, start + 1, language, content, comment[1] if comment else "")
        number += 1


def _whole_lines(text: str) -> list[str]:
    """Return the commands of a shell block, those that go on after a backslash as one line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
