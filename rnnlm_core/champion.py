"""Which version of a registered model is its champion: the rule that decides, and the moves there have been.

Knows no registry: versions are numbers and figures, a history is a list of moves.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from rnnlm_core.errors import one_line

PREFIX: Final = "rnnlm-"
PROMOTED: Final = "promoted"
FORCED: Final = "forced"
ROLLED_BACK: Final = "rolled back"
NOTICED: Final = "found moved"
OOV_MARGIN: Final = 0.001
_MOVE = re.compile(rf"version (\d+), ({PROMOTED}|{FORCED}|{ROLLED_BACK}|{NOTICED}) (\S+): (.*)")


@dataclass(frozen=True)
class Candidate:
    """What the rule knows of a version: its validation perplexity, and on what that was measured.

    `corpus_sha256` is the digest of the encoded corpus: ids, splits and vocabulary. `tokenizer` and `split` only tell
    why two digests differ.
    """

    version: int
    valid_perplexity: float | None
    corpus_sha256: str
    tokenizer: str
    split: str
    measured: bool = False
    """Whether it was measured again, on the corpus of another: `measured_again`."""

    def measured_again(self, perplexity: float, other: "Candidate") -> "Candidate":
        """Return this version with the perplexity that it has on the validation split of another one's corpus."""
        return replace(other, version=self.version, valid_perplexity=perplexity, measured=True)


@dataclass(frozen=True)
class Verdict:
    """Whether a version becomes the champion, and why (not), in words."""

    wins: bool
    reason: str


def decide(candidate: Candidate, champion: Candidate | None) -> Verdict:
    """Say whether a version takes the place of the champion.

    It does with a strictly lower validation perplexity on the same encoded corpus, or as the first that has a
    validation perplexity. A figure that is not finite never wins.
    """
    ours = candidate.valid_perplexity
    if ours is None:
        return Verdict(False, "no validation perplexity: no candidate")
    if not math.isfinite(ours):
        return Verdict(False, f"valid perplexity {ours} is no figure to compare with")
    if champion is None:
        return Verdict(True, f"the first with a validation perplexity ({_texts(ours)[0]})")
    holder = f"version {champion.version}" + (", measured on this corpus" if champion.measured else "")
    theirs = champion.valid_perplexity
    if theirs is None or not math.isfinite(theirs):
        figure = "no validation perplexity" if theirs is None else f"valid perplexity {theirs}"
        return Verdict(False, f"champion ({holder}) has {figure}: not comparable")
    if candidate.corpus_sha256 != champion.corpus_sha256:
        return Verdict(False, f"measured {_difference(candidate, champion)}: not comparable")
    our_text, their_text = _texts(ours, theirs)
    if ours < theirs:
        return Verdict(True, f"valid perplexity {our_text} is below {their_text} ({holder})")
    return Verdict(False, f"valid perplexity {our_text} is not below champion's {their_text} ({holder})")


def knows_fewer(ours: float, theirs: float, champion: int) -> str:
    """Return why figures on the same text cannot be compared: the candidate knows fewer of its tokens; "" if they can.

    A rare token is cheap to predict as `<unk>`. `ours` and `theirs` are out-of-vocabulary rates.
    """
    if ours <= theirs + OOV_MARGIN:
        return ""
    return f"{ours:.2%} of the tokens are unknown to it, {theirs:.2%} to champion (version {champion}): not comparable"


def _difference(candidate: Candidate, champion: Candidate) -> str:
    """Return what sets two encoded corpora apart: the tokenizer, the split, or else the text."""
    what, ours, theirs = "on another corpus", candidate.corpus_sha256[:12], champion.corpus_sha256[:12]
    if candidate.split != champion.split:
        what, ours, theirs = "on another split", candidate.split, champion.split
    if candidate.tokenizer != champion.tokenizer:
        what, ours, theirs = "with another tokenizer", candidate.tokenizer, champion.tokenizer
    return f"{what} ({ours}) than champion's ({theirs}, version {champion.version})"


def _texts(*values: float) -> list[str]:
    """Return figures with two decimals, or with as many more as tell different ones apart."""
    for decimals in range(2, 17):
        texts = [f"{value:,.{decimals}f}" for value in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return [repr(value) for value in values]


@dataclass(frozen=True)
class Move:
    """One move of the champion's place: to which version, how, when (ISO, UTC), and why."""

    version: int
    how: str
    at: str
    why: str

    def __str__(self) -> str:
        return f"version {self.version}, {self.how} {self.at}: {one_line(self.why)}"


def read_move(text: str) -> Move | None:
    """Return the move that a text tells, None if it tells none."""
    found = _MOVE.fullmatch(text)
    return Move(int(found[1]), found[2], found[3], found[4]) if found else None


def holders(moves: Sequence[Move]) -> list[int]:
    """Return the versions that a champion can be rolled back to, oldest first, and last the champion itself."""
    stack: list[int] = []
    for move in moves:
        if move.how in (ROLLED_BACK, NOTICED) and move.version in stack:
            while stack[-1] != move.version:
                stack.pop()
        elif stack[-1:] != [move.version]:
            stack.append(move.version)
    return stack


def registered_name(corpus: str) -> str:
    """Return the name of the registered model of a corpus: a name, a path or an address, `rnnlm-book.txt`.

    Of a path and of an address only the last part is kept, so nothing that grants access gets in. What a name loses
    beside ASCII punctuation and capitals is replaced by eight digits of its SHA-256.
    """
    if "://" in corpus:
        parts = urlsplit(corpus)
        corpus = PurePosixPath(parts.path).stem or parts.hostname or "text"
    name = PurePosixPath(corpus).name or "text"
    plain = unicodedata.normalize("NFKD", name.lower())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    slug = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-.")
    if re.search(r"[^\W_]", re.sub(r"[\x00-\x7f]", "", plain)) or not slug:
        slug = "-".join(part for part in (slug, hashlib.sha256(name.encode()).hexdigest()[:8]) if part)
    return f"{PREFIX}{slug}"
