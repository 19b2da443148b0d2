"""The messages that the troubleshooting page explains are messages of the code."""

import re

from handbook.architecture import ROOT
from handbook.marks import DOCS

WORDED_ELSEWHERE = ("No such option", "unknown preset")
"""What Typer says, and what is put together of a kind and a name."""


def messages() -> list[str]:
    """Return what stands in the first column of the tables headed `message`, as it is written there."""
    found, inside = [], False
    for line in (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines():
        inside = line.startswith("| message") or (inside and line.startswith("|"))
        if inside and not line.startswith(("| message", "| ---")):
            found += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return found


def test_every_message_on_the_page_is_one_of_the_code() -> None:
    folders = ("flows", "tasks", "rnnlm_core")
    code = "\n".join(path.read_text(encoding="utf-8") for name in folders for path in (ROOT / name).rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a text over two lines is one
    code = code.replace("`", "").lower()
    strange = [
        (message, part)
        for message in messages()
        if message not in WORDED_ELSEWHERE
        for part in message.lower().split("…")
        if len(part.strip()) > 3 and part.strip(" :") not in code
    ]
    assert strange == []


def test_every_exit_code_of_the_code_has_its_section() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    errors = (ROOT / "rnnlm_core" / "errors.py").read_text(encoding="utf-8")
    codes = set(re.findall(r"exit_code = (\d+)", errors))
    assert codes == set(re.findall(r"^## (\d+)", page, re.MULTILINE))
