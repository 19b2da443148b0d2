"""A PostgreSQL database that processes of several hosts share: filled by one of them, waited for while it restarts.

MLflow fills an empty database with a hundred steps and no lock: of several processes that begin together one survives.
Its pool notices connections that a restart has cut and asks for new ones: here it waits until there are any.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from rnnlm_core.download import without_password
from rnnlm_core.errors import IntegrityError, ResourceError, Stopped
from tasks import patience
from tasks.stopping import stop_requested

DRIVERS = ("psycopg2", "psycopg")
CONNECT_SECONDS = 10
RETRY_SECONDS = 0.5
TURN = 0x726E6E6C6D
"""The advisory lock of those who fill a database; a database has its own, whatever else the server holds."""

_answered: set[str] = set()
"""The databases that have answered: one that never did is not waited for."""


class Cut(ResourceError):  # noqa: N818 - it says what happened
    """A connection that was cut in the middle of a transaction.

    `undone` says that nothing of the transaction was done; otherwise it was cut while it was committed.
    """

    def __init__(self, what: str, value: object, remedy: str, undone: bool = False) -> None:
        super().__init__(what, value, remedy)
        self.undone = undone


def is_postgresql(uri: str) -> bool:
    """Whether an address is one of PostgreSQL."""
    return uri.partition("://")[0].partition("+")[0] == "postgresql"


def prepare(uri: str, version: str, fill: Callable[[], object]) -> None:
    """Have `fill` make the tables of this `version`, unless they are there; one process of all hosts at a time does.

    Raises `ResourceError` if the database does not answer, `IntegrityError` if what it holds is something else.
    """
    if not event.contains(Engine, "do_connect", _connect):
        event.listen(Engine, "do_connect", _connect)
        event.listen(Engine, "handle_error", _tell)
    engine = create_engine(uri, poolclass=NullPool)
    try:
        if _is_filled(engine, version):
            return
        # The lock is its transaction's: it ends with this process, however that ends, and passes a pooler in between.
        with engine.connect() as holder:
            _take_turn(holder)
            if not _is_filled(engine, version):
                fill()
    except DBAPIError as error:
        where = f"{_shown(engine)} ({_first_line(error.orig)})"
        raise ResourceError("the database cannot be used", where, "see to the rights of its user") from error


def _is_filled(engine: Engine, version: str) -> bool:
    """Whether the tables are there; raises `IntegrityError` when they are not MLflow's, or another MLflow's."""
    with engine.connect() as connection:
        tables = inspect(connection).get_table_names()
        marked = "alembic_version" in tables
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if marked else None
    if found in (None, version):  # None: empty, or begun by a process that was killed; MLflow goes on with that
        return found is not None
    where = _shown(engine)
    if "experiments" not in tables:
        raise IntegrityError("not an MLflow database", where, "give MLflow a database of its own")
    raise IntegrityError(
        "an MLflow database of another version",
        f"{where} ({found}, this MLflow has {version})",
        "use the MLflow that wrote it, or back it up and try `mlflow db upgrade`, or give another database",
    )


def _take_turn(holder: Connection) -> None:
    # Not by waiting inside the database: Ctrl-C is not heard there.
    while not holder.execute(text("SELECT pg_try_advisory_xact_lock(:turn)"), {"turn": TURN}).scalar():
        if stop_requested.is_set():
            raise Stopped(
                "stopped while waiting", "another process makes MLflow's tables", "run the same command again"
            )
        time.sleep(RETRY_SECONDS)


def _connect(dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
    """Return a connection, when there is one."""
    if dialect.driver not in DRIVERS:
        return None
    parameters.setdefault("connect_timeout", CONNECT_SECONDS)
    where = _where(parameters)

    connect = partial(dialect.connect, *arguments, **parameters)
    try:
        connection = patience.patiently(_absence(where, dialect), connect) if where in _answered else connect()
    except dialect.loaded_dbapi.OperationalError as error:
        raise _no_answer(where, error) from error
    except ResourceError:
        _answered.discard(where)  # who comes after us does not wait as long once more
        raise
    _answered.add(where)
    return connection


def _absence(where: str, dialect: Any) -> patience.Obstacle:
    return patience.Obstacle(
        what=f"{where} does not answer",
        refusal=dialect.loaded_dbapi.OperationalError,
        check=lambda _error: None,
        given_up=_no_answer(where, "waited in vain"),
        retry_seconds=RETRY_SECONDS,
    )


def _shown(engine: Engine) -> str:
    return without_password(str(engine.url))


def _where(parameters: dict[str, Any]) -> str:
    """Return what is connected to, without who does."""
    host, port = parameters.get("host", "localhost"), parameters.get("port", 5432)
    return f"postgresql://{host}:{port}/{parameters.get('dbname', '')}"


def _no_answer(where: str, reason: object) -> ResourceError:
    where = f"{where} ({_first_line(reason)})"
    return ResourceError("the database does not answer", where, "see that it runs, and to MLFLOW_TRACKING_URI")


def _first_line(reason: object) -> str:
    return str(reason).strip().partition("\n")[0]


def _tell(context: ExceptionContext) -> None:
    """Raise `Cut` for a transaction that a restart of the server has ended."""
    if context.dialect.driver in DRIVERS and context.is_disconnect and not context.is_pre_ping:
        undone = context.statement is not None
        where = "" if context.engine is None else _shown(context.engine)
        raise Cut("the database has cut the connection", where, "run the same command again to go on", undone)
