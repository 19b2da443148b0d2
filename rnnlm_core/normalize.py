"""Reading a text in bounded memory, and the rules that turn it into the text that is modelled.

A text comes as blocks of whole lines. A normaliser maps block to block; what it does at the seam of two blocks is
part of its definition, so that the result does not depend on where the seams are.
"""

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rnnlm_core.config import known_names
from rnnlm_core.errors import DataError, UsageError, unknown_name
from rnnlm_core.extensions import extensions

BLOCK_BYTES = 1 << 20
"""A block is about this long: large enough to be fast, small enough for any machine."""

_HEAD = 4096
"""Bytes by which a format is told."""
_NOT_LETTERS = re.compile("[^A-Za-z]+")
FEW = 1000
"""Characters up to which a regular expression is faster than arrays are."""
_SPACE, _LINE_END = 0x20, 0x0A
_LETTERS = bytes(ord(chr(byte).lower()) if byte < 0x80 and chr(byte).isalpha() else _SPACE for byte in range(256))
_TABLES = {False: _LETTERS, True: _LETTERS[:_LINE_END] + b"\n" + _LETTERS[_LINE_END + 1 :]}
_FOREIGN = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"PAR1": "Parquet",
    b"{\\rtf": "RTF",
    b"%PDF": "PDF",
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Normalizer:
    """A named rule. `joins_lines`: lines that end up separate in words follow each other directly in characters."""

    name: str
    blocks: Callable[[Iterable[str]], Iterator[str]]
    prefix: Callable[[str], str]
    """The same rule for the start of a text that goes on: nothing is stripped from its end."""
    joins_lines: bool = False


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """Yield the UTF-8 text of a file in blocks that end at line ends (or, in very long lines, at white space).

    Bytes [start, stop) alone can be read, where they begin and end with a line.

    Only a single word longer than eight blocks is cut. Where a block ends depends on the characters alone: files that
    differ in their line ends or their mark have the same blocks.

    A byte-order mark is dropped; CR LF and CR become LF; every other character, NUL, NEL and U+2028 among them, is
    kept as it is (between words, all that Unicode calls white space is the same). Raises `DataError` with the byte
    offset when the file is not UTF-8, and with the likely format when it is not text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    offset, rest, held = 0, "", ""
    with path.open("rb") as file:
        if not start:
            _refuse_foreign(path, file.read(_HEAD))
        file.seek(start)
        while True:
            most = block_bytes if offset else max(block_bytes, len(codecs.BOM_UTF8))
            raw = file.read(most if stop is None else min(most, stop - start - offset))
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                at = start + offset - waiting + error.start
                raise DataError(
                    f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {at}",
                    path,
                    "convert the file to UTF-8",
                ) from None
            if start == offset == 0:
                text = text.removeprefix("\ufeff")
            offset += len(raw)
            text = held + text
            # A CR at the end of what was read may be half of a CR LF.
            held = "\r" if raw and text.endswith("\r") else ""
            rest += unix_line_ends(text.removesuffix(held))
            while cut := _block_end(rest, block_bytes, last=not raw):
                yield rest[:cut]
                rest = rest[cut:]
            if not raw:
                return


def unix_line_ends(text: str) -> str:
    """Return a text whose lines end in LF: CR LF and CR are line ends as well."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _block_end(text: str, size: int, last: bool) -> int:
    """Return where the first block of `text` ends, or 0 when that is not known before more is read."""
    if len(text) <= size:
        return len(text) if last else 0
    if cut := text.rfind("\n", 0, size) + 1 or text.find("\n", size, 8 * size) + 1:
        return cut
    if len(text) <= 8 * size:
        return len(text) if last else 0
    return _last_word(text[: 8 * size]) or 8 * size


def _last_word(text: str) -> int:
    """Return where the last word of `text` starts; its end when that is white space."""
    return len(text) if text[-1].isspace() else len(text) - len(text.rsplit(maxsplit=1)[-1])


def _refuse_foreign(path: Path, head: bytes) -> None:
    name = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), "")
    if not name and _HTML.match(head):
        name = "HTML"
    if not name and _is_utf16(head):
        name = "UTF-16"
    if name:
        raise DataError(f"not a plain text, looks like {name}", path, "unpack or convert it to UTF-8 text")


def _is_utf16(head: bytes) -> bool:
    """Say whether bytes without a mark are UTF-16 of Latin text: valid UTF-8, with a NUL at every other place."""
    pairs = len(head) // 2
    even, odd = head[: 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    return pairs >= 8 and min(even, odd) == 0 and max(even, odd) > 0.7 * pairs


def _as_it_is(blocks: Iterable[str]) -> Iterator[str]:
    yield from blocks


def _letters(text: str) -> str:
    """Return the letters a to z in small, and a space for each run of anything else."""
    if len(text) < FEW:
        return _NOT_LETTERS.sub(" ", text).lower()
    found = _look_up(text, line_ends=False)
    return _text_of(found[_starts_or_goes_on(found)])


def _lines_of_letters(text: str) -> str:
    """Return `_letters` of each line, stripped, the line ends kept."""
    if len(text) < FEW:
        return "\n".join(_letters(line).strip() for line in text.split("\n"))
    found = _look_up(text, line_ends=True)
    kept = found != _SPACE
    kept[:-1] |= found[1:] > _SPACE  # of a run the last, where a letter follows
    found = found[kept]
    kept = found != _SPACE
    kept[1:] |= found[:-1] != _LINE_END
    return _text_of(found[kept]).removeprefix(" ")


def _look_up(text: str, line_ends: bool) -> np.ndarray:
    """Return each byte as a small letter or a space; the bytes of one character that is no letter are as many."""
    return np.frombuffer(text.encode("utf-8", "surrogatepass").translate(_TABLES[line_ends]), dtype=np.uint8)


def _starts_or_goes_on(found: np.ndarray) -> np.ndarray:
    """Say of each byte whether it is no space, or the first of its run."""
    kept: np.ndarray = found != _SPACE
    kept[1:] |= found[:-1] != _SPACE
    kept[:1] = True
    return kept


def _text_of(found: np.ndarray) -> str:
    return found.tobytes().decode("ascii")


def _letters_whole(blocks: Iterable[str]) -> Iterator[str]:
    """Runs of non-letters become one space, also across blocks; nothing is stripped (the book's edition 1.0)."""
    spaced = False
    for block in blocks:
        text = _letters(block)
        if spaced and text.startswith(" "):
            text = text[1:]
        if text:
            spaced = text.endswith(" ")
            yield text


def _letters_stripped(blocks: Iterable[str]) -> Iterator[str]:
    """As `_letters_whole`, without the space at the start and at the end."""
    started, held = False, ""
    for block in _letters_whole(blocks):
        text = held + block if started else block.lstrip(" ")
        if not text:
            continue
        started = True
        held = " " if text.endswith(" ") else ""
        yield text.removesuffix(" ")


def _letters_by_line(blocks: Iterable[str]) -> Iterator[str]:
    """Each line by itself, stripped (the book's edition 2.0); lines stay apart here, and meet in characters."""
    # What the unfinished line holds so far: nothing, something that ends in a letter, or in a space.
    before: Literal["", "x", "x "] = ""
    for block in blocks:
        text = before + block
        yield _lines_of_letters(text)[1 if before else 0 :]
        last = _letters(text[text.rfind("\n") + 1 :])
        before = "" if not last.strip() else "x " if last.endswith(" ") else "x"


def _without_line_ends(blocks: Iterable[str]) -> Iterator[str]:
    for block in blocks:
        yield block.replace("\n", " ")


def _composed(blocks: Iterable[str]) -> Iterator[str]:
    """Normal form C. What may go on in the next block, a letter that marks can follow, waits for it."""
    held = ""
    for block in blocks:
        text = held + block
        cut = len(text)
        while cut and not (text[cut - 1].isspace() or (cut < len(text) and _starts_anew(text[cut]))):
            cut -= 1
        if cut:
            yield unicodedata.normalize("NFC", text[:cut])
        held = text[cut:]
    if held:
        yield unicodedata.normalize("NFC", held)


def _starts_anew(character: str) -> bool:
    """Say whether composing a character leaves what is before it alone: no mark, nor the rest of a Hangul syllable."""
    return unicodedata.category(character)[0] != "M" and not "\u1160" <= character <= "\u11ff"


NORMALIZERS: dict[str, Normalizer] = {
    n.name: n
    for n in (
        Normalizer("none", _as_it_is, lambda text: text),
        Normalizer("nfc", _composed, lambda text: unicodedata.normalize("NFC", text)),
        Normalizer("letters", _letters_stripped, lambda text: _letters(text).lstrip(" ")),
        Normalizer("chinese", _without_line_ends, lambda text: text.replace("\n", " ")),
        Normalizer("d2l-lines", _letters_by_line, lambda text: _letters(text).lstrip(" "), joins_lines=True),
        Normalizer("d2l-whole", _letters_whole, _letters),
    )
}


def normalizer(name: str) -> Normalizer:
    """Return the normaliser called `name`, of this package or of another."""
    others = extensions("normalizer", NORMALIZERS)
    if name in NORMALIZERS:
        return NORMALIZERS[name]
    found = others.get(name)
    if found is None:
        raise unknown_name("normalizer", name, list(known_names("normalizer")))
    rule = found.load()
    if not isinstance(rule, Normalizer) or rule.name != name:
        what = f"the normalizer {name} must be a rnnlm_core.normalize.Normalizer of that name"
        raise UsageError(what, found.place, "mend or uninstall it")
    return rule
