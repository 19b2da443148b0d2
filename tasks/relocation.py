"""A home that was moved: MLflow's database names every place in full, and is told the new ones.

MLflow stores absolute addresses (mlflow#3144): in a moved home nothing that was logged would load, and what is logged
anew would be written to where the home was. Both are refused until `relocate` has set the places right. SQL alone:
this is settled before MLflow opens the database.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rnnlm_core.errors import IntegrityError
from rnnlm_core.store import check_space, sync_file
from tasks import workspace
from tasks.patience import PatientConnection

EXPERIMENT = "rnnlm"
PLACES = (
    ("experiments", "artifact_location", "experiment"),
    ("runs", "artifact_uri", "run"),
    ("logged_models", "artifact_location", "logged model"),
    ("model_versions", "storage_location", "model version"),
    ("model_versions", "source", "source of a model version"),
    ("datasets", "dataset_source", "dataset"),
    ("trace_tags", "value", "trace"),
)
"""Every column of MLflow's that holds an address of ours, and what it is the address of."""
HOLD_FILES = ("runs", "logged_models")


@dataclass(frozen=True)
class Move:
    """A home that was at `old` when its database was written, and is at `new`."""

    database: Path
    old: Path
    new: Path

    def address(self, text: str | None) -> str | None:
        """Return an address (a path, a `file:` address, or JSON that holds such) as it is after the move."""
        if text is None:
            return None
        if text.startswith("{"):
            return self._json(text)
        if text.startswith("/"):
            return str(self._place(Path(text)))
        parts = urlsplit(text)
        if parts.scheme != "file":
            return text
        before = Path(unquote(parts.path))
        after = self._place(before)
        return text if after == before else after.as_uri()

    def _place(self, place: Path) -> Path:
        return self.new / place.relative_to(self.old) if place.is_relative_to(self.old) else place

    def _json(self, text: str) -> str:
        try:
            content = json.loads(text)
        except ValueError:  # somebody else's text
            return text
        moved = {key: self.address(part) if isinstance(part, str) else part for key, part in content.items()}
        return text if moved == content else json.dumps(moved)

    def error(self) -> IntegrityError:
        """Return what stands against any work here."""
        return IntegrityError(
            "the folder was moved",
            f"{self.database} still names {self.old}",
            "run `rnnlm doctor`, which tells it the new place (`--dry-run` shows what it would change)",
        )


def find_move() -> Move | None:
    """Return the move of the present home, or None: it was not moved, or its runs are not kept in its `mlflow.db`."""
    home = workspace.home()
    database = home / "mlflow.db"
    if not database.exists() or workspace.tracking_uri() != f"sqlite:///{database}":
        return None
    with closing(_connect(database)) as connection:
        return move_of(connection, database, home)


def move_of(connection: sqlite3.Connection, database: Path, home: Path) -> Move | None:
    """Return the move of a home whose database is open."""
    try:
        found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", [EXPERIMENT]).fetchone()
    except sqlite3.OperationalError:  # no database of MLflow's: that is told where it is opened
        return None
    parts = urlsplit(found[0] or "") if found else urlsplit("")
    place = Path(unquote(parts.path))
    ours = workspace.artifacts().relative_to(workspace.home()) / "mlflow"
    if parts.scheme != "file" or not str(place).endswith(f"/{ours}"):  # chosen by somebody: theirs to keep
        return None
    old = place.parents[len(ours.parts) - 1]
    here = home / ours.parts[0]
    if old == home or (old.exists() and here.exists() and _is_same(old / ours.parts[0], here)):
        return None
    return Move(database, old, home)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names lead to one folder: through a link, or a disk mounted twice."""
    return one.exists() and one.samefile(other)


def plan(move: Move) -> Iterator[str]:
    """Yield what `relocate` would do, one line each; nothing is changed."""
    with closing(_connect(move.database)) as connection:
        _teach(connection, move)
        _refuse_if_left_behind(connection, move)
        yield f"would copy {move.database} to {_backup_name(move.database)}"
        for (_, _, what), number in _count(connection).items():
            yield f"would tell MLflow the new place of {number} {what}{'s' * (number != 1)}: {move.old} → {move.new}"


def relocate(move: Move) -> Iterator[str]:
    """Copy the database, then rewrite every address in it, all or none; yield what was done, one line each.

    Raises `IntegrityError` if files of a run are still where the home was and not here.
    """
    with closing(_connect(move.database)) as connection:
        _teach(connection, move)
        connection.execute("BEGIN IMMEDIATE")  # from here on nobody else writes
        if move_of(connection, move.database, move.new) != move:  # another process has just done it
            connection.rollback()
            return
        _refuse_if_left_behind(connection, move)
        yield f"copied {move.database} to {_back_up(move.database)}"
        numbers = _count(connection)
        try:
            for table, column, _ in numbers:
                connection.execute(f"UPDATE {table} SET {column} = moved({column}) WHERE {_changes(table, column)}")  # noqa: S608
            connection.commit()
        except BaseException:  # closing alone leaves the lock as long as somebody holds a statement
            connection.rollback()
            raise
        for (_, _, what), number in numbers.items():
            yield f"told MLflow the new place of {number} {what}{'s' * (number != 1)}: {move.old} → {move.new}"


def _connect(database: Path) -> sqlite3.Connection:
    address = f"{database.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(address, uri=True, factory=PatientConnection, isolation_level=None)


def _teach(connection: sqlite3.Connection, move: Move) -> None:
    connection.create_function("moved", 1, move.address, deterministic=True)


def _places(connection: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """Yield those of `PLACES` that the database has: other versions of MLflow have fewer."""
    for table, column, what in PLACES:
        if connection.execute("SELECT 1 FROM pragma_table_info(?) WHERE name = ?", [table, column]).fetchone():
            yield table, column, what


def _changes(table: str, column: str) -> str:
    """Return the SQL condition for the rows of a column that a move changes."""
    only = "key = 'mlflow.artifactLocation' AND " if table == "trace_tags" else ""
    return f"{only}{column} != moved({column})"


def _count(connection: sqlite3.Connection) -> dict[tuple[str, str, str], int]:
    """Return how many rows of each column a move changes, where it changes any."""
    numbers = {}
    for table, column, what in _places(connection):
        (number,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {_changes(table, column)}").fetchone()  # noqa: S608
        if number:
            numbers[table, column, what] = number
    return numbers


def _refuse_if_left_behind(connection: sqlite3.Connection, move: Move) -> None:
    left: list[Any] = []
    for table, column, _ in _places(connection):
        if table in HOLD_FILES:
            rows = connection.execute(f"SELECT {column}, moved({column}) FROM {table} WHERE {_changes(table, column)}")  # noqa: S608
            left += [old for old, new in rows if _path(old).exists() and not _path(new).exists()]
    if left:
        raise IntegrityError(
            "only a part of the folder was moved",
            f"{len(left)} folders of runs are still at the old place, {left[0]} for one",
            f"move {move.old / 'artifacts'} as well, or move {move.database.name} back",
        )


def _path(address: str) -> Path:
    return Path(unquote(urlsplit(address).path) if address.startswith("file:") else address)


def _backup_name(database: Path) -> Path:
    return database.with_name(f"{database.name}.before-move-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


def _back_up(database: Path) -> Path:
    """Copy the database as a whole, on the disk before anything is changed; return the copy."""
    check_space(database.parent, database.stat().st_size)
    target = _backup_name(database)
    draft = database.with_name(f".{target.name}.tmp")  # half a copy is swept like a half-made database
    try:
        with closing(_connect(database)) as source, closing(sqlite3.connect(draft)) as copy:
            source.backup(copy)
        sync_file(draft)
        draft.replace(target)
        sync_file(target.parent)
    finally:
        draft.unlink(missing_ok=True)
    return target
