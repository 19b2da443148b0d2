"""The champion of each registered model: the alias `champion`, and what tells why it is where it is.

A version without verdict, left by a kill, is judged by the next run that comes. Each move of the alias is a tag
`rnnlm.move.NNNN` of the registered model. One process at a time decides about a name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from rnnlm_core.champion import FORCED, NOTICED, PROMOTED, ROLLED_BACK, Move, Verdict, decide, holders, read_move
from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.errors import UsageError
from tasks import tracked_registry
from tasks.locking import KernelLocks
from tasks.tracked_registry import CHAMPION, LOST, OVER, WON, Version
from tasks.tracking_database import client

MOVE = "rnnlm.move."
BY_HAND = "by hand in MLflow, or by a command that was killed"
NEWEST = 50
"""So many versions are looked through for one that a kill has left without verdict."""


def register(run_id: str, preset: str, corpus: str) -> Version:
    """Make the model of a run a version, unless it is one, and decide whether it is the champion; return it."""
    name = tracked_registry.name_for(preset, corpus)
    with _alone(name):
        number = _enrol(run_id, name, corpus)
        book = _Book(name)
        version = book.version(number)
        if version.judged:
            return version
        for one in book.unjudged():
            book.judge(one)
        return book.version(number)


def enrol(run_id: str) -> Version:
    """Make the model of any run a version of its corpus's model, unless it is one, without judging it."""
    tags = client().get_run(run_id).data.tags
    corpus = tags.get("rnnlm.corpus", "")
    name = tracked_registry.name_for(tags.get("rnnlm.preset", ""), corpus)
    with _alone(name):
        number = _enrol(run_id, name, corpus)
        return _Book(name).version(number)


def promote(name: str, number: int, *, force: bool = False) -> Verdict:
    """Apply the rule to a version, again if need be; `force` moves the alias against it, and notes that."""
    with _alone(name):
        book = _Book(name)
        version = book.version(number)
        if version.champion and version.judged:
            return Verdict(True, "it is the champion already")
        verdict = book.judge(version, force=force)
        return Verdict(True, "it is the champion already") if version.champion else verdict


def judge_measured(name: str, number: int, champion: int, perplexity: float) -> Version:
    """Apply the rule to a version once the champion was measured on its corpus; return it as it then stands.

    If another has become the champion in between, that one is the rival, as far as it can be compared.
    """
    with _alone(name):
        book = _Book(name)
        version = book.version(number)
        if not version.champion:
            book.judge(version, measured={champion: perplexity})
        return book.version(number)


def keep_champion(name: str, number: int, reason: str) -> Version:
    """Note why a version is not the champion; return it."""
    with _alone(name):
        book = _Book(name)
        if not book.version(number).champion:
            book.lose(number, reason)
        return book.version(number)


def roll_back(name: str) -> tuple[Version, Version]:
    """Give the place back to the last holder that still exists; return who had it and who has it now.

    Raises `UsageError` if there is none.
    """
    with _alone(name):
        book = _Book(name)
        book.notice()
        earlier = book.held_before(book.champion)
        if book.champion is None or not earlier:
            value = f"{name} (" + (f"champion: version {book.champion}" if book.champion else "no champion") + ")"
            raise UsageError("nothing to roll back to", value, "`rnnlm models` lists the versions, `promote` takes one")
        before, now = book.champion, earlier[-1]
        book.move(book.version(now), ROLLED_BACK, f"from version {before}")
        return book.version(before), book.version(now)


def _enrol(run_id: str, name: str, corpus: str) -> int:
    run = client().get_run(run_id)
    number = tracked_registry.find_version(name, run)
    return tracked_registry.create_version(name, run, corpus) if number is None else number


class _Book:
    """A registered model as it stands, while nobody else decides about it."""

    def __init__(self, name: str) -> None:
        self.name = name
        model = tracked_registry.registered_model(name)
        self.champion = tracked_registry.champion_of(model)
        told = [read_move(model.tags[key]) for key in sorted(model.tags) if key.startswith(MOVE)]
        self.noted = len(told)
        self.moves = [move for move in told if move is not None]

    def version(self, number: int) -> Version:
        """Return one of its versions."""
        return tracked_registry.version(self.name, number, self.champion)

    def unjudged(self) -> list[Version]:
        """Return the newest versions that nobody has judged, oldest first."""
        newest = client().search_model_versions(
            f"name = '{self.name}'", max_results=NEWEST, order_by=["version_number DESC"]
        )
        found = [tracked_registry.as_version(one, self.champion) for one in reversed(newest)]
        return [one for one in found if not one.judged]

    def judge(self, version: Version, *, force: bool = False, measured: Mapping[int, float] | None = None) -> Verdict:
        """Apply the rule to a version and write down what came of it.

        `measured` holds, by number, the perplexities that rivals have on the validation split of this version.
        """
        if self.champion == version.number:  # moved, and not told: by a kill, or in MLflow
            rival = next(reversed(self.held_before(version.number)), None)
        else:
            self.notice()
            rival = self.champion
        holder = self.version(rival).candidate if rival else None
        if holder is not None and measured and rival in measured:
            holder = holder.measured_again(measured[rival], version.candidate)
        verdict = decide(version.candidate, holder)
        if verdict.wins:
            self.move(version, PROMOTED, verdict.reason)
        elif force:
            self.move(version, FORCED, f"against the rule: {verdict.reason}")
        elif self.champion == version.number:
            self.move(version, NOTICED, BY_HAND)
        else:
            self.lose(version.number, verdict.reason)
        return verdict

    def lose(self, number: int, reason: str) -> None:
        """Note why a version is not the champion."""
        self._tag(number, LOST, reason)

    def notice(self) -> None:
        """Note that the alias is not where the last move has left it."""
        if self.champion is not None and holders(self.moves)[-1:] != [self.champion]:
            self.move(self.version(self.champion), NOTICED, BY_HAND)

    def held_before(self, number: int | None) -> list[int]:
        """Return the versions that have had the place before a version, oldest first, and still exist."""
        there = {one.number for one in tracked_registry.versions(self.name)}
        return [one for one in holders(self.moves) if one in there and one != number]

    def move(self, version: Version, how: str, why: str) -> None:
        """Give a version the place: the alias first, which is what counts, then what tells of it."""
        number, at = version.number, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        client().set_registered_model_alias(self.name, CHAMPION, str(number))
        crashpoint("champion moved")
        self.champion = number
        before = self.held_before(number)[-1:]
        if holders(self.moves)[-1:] != [number]:
            self.moves.append(Move(number, how, at, why))
            self.noted += 1
            client().set_registered_model_tag(self.name, f"{MOVE}{self.noted:04}", str(self.moves[-1]))
        for key in version.tags.keys() & {LOST, OVER}:
            client().delete_model_version_tag(self.name, str(number), key)
        for one in before:
            words = "rolled back to" if how == ROLLED_BACK else "replaced by"
            self._tag(one, OVER, f"{words} version {number} on {at}")
        if how != ROLLED_BACK or WON not in version.tags:
            self._tag(number, "rnnlm.promoted_at", at)
            self._tag(number, "rnnlm.previous_champion", f"version {before[0]}" if before else "none")
            self._tag(number, WON, why)

    def _tag(self, number: int, key: str, value: str) -> None:
        client().set_model_version_tag(self.name, str(number), key, value)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Hold a name while this process decides about it."""
    locks, key = KernelLocks(), f"registry-{name}"
    locks.acquire_lock(key, name)
    try:
        yield
    finally:
        locks.release_lock(key, name)
