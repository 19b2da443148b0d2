"""A database that another program holds is waited for: with a word, an end, and an ear for the wish to stop.

SQLite waits as long as its connection says (MLflow always says 20 s), mute and deaf, and then the transaction is lost.
These connections ask for the same statement again: a transaction is begun once, so nothing is written twice.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from sqlalchemy import Engine, event

from rnnlm_core.errors import IntegrityError, ResourceError, RnnlmError, Stopped
from tasks import progress
from tasks.stopping import stop_requested

WAIT_SECONDS = 300.0
TELL_SECONDS = 5.0
STOP_SECONDS = 5.0
"""How long a write may still wait once the run is to end: what stays open is closed by the next start."""
POLL_SECONDS = 0.5
RETRY_SECONDS = 0.05  # some refusals come at once

Answer = TypeVar("Answer")


class PatientConnection(sqlite3.Connection):
    """A connection to a database that others use too; what fails for good is told in our words."""

    def __init__(self, database: Any, *arguments: Any, **more: Any) -> None:
        self.database = Path(unquote(urlsplit(database).path) if more.get("uri") else database)
        try:
            super().__init__(database, *arguments, **{**more, "timeout": POLL_SECONDS})
        except sqlite3.DatabaseError as error:
            _raise_unless_taken(error, self.database)
            raise

    def cursor(self, *_: Any) -> sqlite3.Cursor:
        """Return a patient cursor."""
        return super().cursor(PatientCursor)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Execute a statement with a patient cursor."""
        return self.cursor().execute(statement, *values)

    def commit(self) -> None:
        """Commit, when nobody reads any more."""
        patiently(_taken(self.database), super().commit)


class PatientCursor(sqlite3.Cursor):
    """Executes a statement when the database is free."""

    connection: PatientConnection

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Execute a statement; a time-out that is asked for is ours, so that a wish to stop is heard in between."""
        if statement.startswith("PRAGMA busy_timeout"):
            statement = f"PRAGMA busy_timeout = {int(POLL_SECONDS * 1000)}"
        return patiently(_taken(self.connection.database), super().execute, statement, *values)

    def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
        """Execute a statement for many rows, all of them or, while the database is taken, none."""
        return patiently(_taken(self.connection.database), super().executemany, statement, rows)


def be_patient() -> None:
    """Have SQLAlchemy, and so MLflow, open SQLite databases with patient connections."""
    if not event.contains(Engine, "do_connect", _make_patient):
        event.listen(Engine, "do_connect", _make_patient)


def _make_patient(dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
    if dialect.driver == "pysqlite":
        parameters["factory"] = PatientConnection


@dataclass(frozen=True)
class Obstacle:
    """Why a database does not answer now, and what is said of it.

    `check` is given each refusal and raises when asking again cannot help; `given_up` is raised when nothing did.
    """

    what: str
    refusal: type[Exception]
    check: Callable[[Any], None]
    given_up: RnnlmError
    retry_seconds: float


def patiently(obstacle: Obstacle, ask: Callable[..., Answer], *values: Any) -> Answer:
    """Return the answer, when there is one; raises `Stopped` soon after the wish to stop."""
    try:
        return ask(*values)
    except obstacle.refusal as error:
        obstacle.check(error)
    with _waiters.one_more():
        return _ask_again(obstacle, ask, *values)


def _ask_again(obstacle: Obstacle, ask: Callable[..., Answer], *values: Any) -> Answer:
    started = time.monotonic()
    end = started + WAIT_SECONDS
    stopping = False
    while True:
        time.sleep(obstacle.retry_seconds)
        try:
            return ask(*values)
        except obstacle.refusal as error:
            obstacle.check(error)
            now = time.monotonic()
            if stop_requested.is_set() and not stopping:
                end, stopping = min(end, now + STOP_SECONDS), True
            if now >= end:
                if stopping:
                    remedy = "run the same command again to go on"
                    raise Stopped("stopped while waiting", obstacle.what, remedy) from error
                raise obstacle.given_up from error
            if now - started >= TELL_SECONDS and _waiters.first_to_tell():
                progress.warn("database", f"{obstacle.what}: waiting for it")


class _Waiters:
    """The threads that wait: one of them says so, until none waits any more."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = 0
        self.told = False

    @contextmanager
    def one_more(self) -> Iterator[None]:
        with self.lock:
            self.number += 1
        try:
            yield
        finally:
            with self.lock:
                self.number -= 1
                self.told = self.told and self.number > 0

    def first_to_tell(self) -> bool:
        with self.lock:
            first, self.told = not self.told, True
            return first


_waiters = _Waiters()


def _taken(database: Path) -> Obstacle:
    return Obstacle(
        what=f"another program has locked {database}",
        refusal=sqlite3.DatabaseError,
        check=partial(_raise_unless_taken, database=database),
        given_up=ResourceError("the database is locked", database, "end the program that holds it"),
        retry_seconds=RETRY_SECONDS,
    )


def _raise_unless_taken(error: sqlite3.DatabaseError, database: Path) -> None:
    if _is_taken(error):
        return
    if (fault := _ours(error, database)) is not None:
        raise fault from error
    raise error


def _is_taken(error: sqlite3.DatabaseError) -> bool:
    """Whether asking again can help: a reader's outdated view of the database (WAL) stays outdated."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT


def _ours(error: sqlite3.DatabaseError, database: Path) -> RnnlmError | None:
    """Return the error of ours that says what broke, or None for what is no fault of the file or its disk."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    value = f"{database} ({error})"
    if code == sqlite3.SQLITE_FULL:
        return ResourceError("no space left", value, "free some space, then run the same command again")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return ResourceError("the database cannot be used", value, "see to its disk and its permissions")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IntegrityError("not an MLflow database", value, "restore it, or move it away to start anew")
    return None
