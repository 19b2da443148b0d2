"""Prefect's own server for the length of one command, when no other is configured.

Prefect would start one by itself, but only after our imports, and would leave it behind if we are killed. This one
starts beside the imports, which halves the wait, and ends with its parent: `python -m flows.server` serves until its
standard input closes.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rnnlm_core.download import without_password
from rnnlm_core.errors import ResourceError

if TYPE_CHECKING:
    from prefect.settings import Settings

STARTUP_SECONDS = 120
MOST_REVIVALS = 3
TURN = 0x726E6E6C70
"""The advisory lock of the servers that start on one PostgreSQL database."""


@contextmanager
def prefect_api() -> Iterator["Api"]:
    """Start what is needed to reach a Prefect API; `Api.ready()` waits for it."""
    from prefect.settings import get_current_settings

    configured = get_current_settings().api.url
    yield Api(configured) if configured else OwnApi()


class Api:
    """A Prefect API that somebody else runs."""

    own = False

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Check that the API answers; Prefect uses it by itself."""
        self.check()
        yield

    def check(self) -> None:
        """Raise `ResourceError` if the API does not answer; Prefect itself would try for minutes."""
        import httpx

        try:
            httpx.get(f"{self.url}/health", timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            raise ResourceError(
                "the Prefect server does not answer",
                f"{without_password(self.url)} ({type(error).__name__})",
                "start it with `prefect server start`, or unset PREFECT_API_URL to run without one",
            ) from error


class OwnApi(Api):
    """A Prefect API that lives as long as this process."""

    own = True

    def __init__(self) -> None:
        self.process, port = _start_server(0)
        # Registered before Prefect's own exit handlers, so it runs after them: their last events still arrive.
        atexit.register(self.stop)
        super().__init__(f"http://127.0.0.1:{port}/api")
        self.port = port
        self.answered = False
        self.stopping = threading.Event()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Wait until the server answers, and have flows use it."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from tasks import run_origin

        run_origin.note_own_server(self.url)
        deadline = time.monotonic() + STARTUP_SECONDS
        while not _healthy(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                assert self.process.stdout is not None
                if self.process.poll() is not None and (told := self.process.stdout.read()):
                    raise ResourceError(told)
                raise ResourceError(
                    "Prefect's own server did not start",
                    f"exit code {self.process.poll()}",
                    "run `prefect server start` to see why, and set PREFECT_API_URL to use it",
                )
            time.sleep(0.1)
        self.answered = True
        threading.Thread(target=self._revive, daemon=True).start()
        with temporary_settings({PREFECT_API_URL: self.url}):
            yield

    def _revive(self) -> None:
        """Start the server again when it dies: Prefect's client asks again for longer than that takes."""
        for _ in range(MOST_REVIVALS):
            self.process.wait()
            if self.stopping.is_set():
                return
            print("warning: Prefect's own server has died: starting it again …", file=sys.stderr)
            _close_pipes(self.process)
            self.process, _port = _start_server(self.port)

    def stop(self) -> None:
        """End the server and wait for it; Ctrl-C ends the waiting."""
        signal.signal(signal.SIGINT, lambda *_: self.process.kill())
        self.stopping.set()
        assert self.process.stdin is not None
        self.process.stdin.close()
        if not self.answered:
            self.process.kill()  # still importing: it has nothing to finish, and would not hear us
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _close_pipes(self.process)
        # Nothing is left to end: the exit code is to be that of the command.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _start_server(port: int) -> "tuple[subprocess.Popen[str], int]":
    """Start a server on a port of this machine (0: any that is free); return it and its port."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.server", str(port)],  # -P: whatever lies in the current folder is not ours
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us, and the server must outlive what we still have to tell it
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().strip() or 0)


def _close_pipes(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


def _healthy(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def turn_to_start() -> Iterator[None]:
    """Wait for one's turn, and hold it: servers that start together break each other's tables.

    It is a lock of Prefect's home, and for a PostgreSQL database, which other hosts may use, one of the database too.
    """
    from filelock import FileLock
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    settings.home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as turn:
        turn.enter_context(FileLock(settings.home / "starting.lock", thread_local=False))
        address = _database(settings)
        if address.startswith("postgresql"):
            turn.enter_context(_turn_in_database(address))
        yield


@contextmanager
def _turn_in_database(address: str) -> Iterator[None]:
    """Hold an advisory lock; it is its connection's, so it ends with this process."""
    import asyncio

    from asyncpg import PostgresError
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    with asyncio.Runner() as runner:
        connection = create_async_engine(address, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()
        try:
            runner.run(connection.start())
        except (OSError, PostgresError, SQLAlchemyError) as error:
            where = f"{without_password(address)} ({str(error) or type(error).__name__})"
            remedy = "see that it runs, or unset PREFECT_SERVER_DATABASE_CONNECTION_URL"
            raise ResourceError("Prefect's database does not answer", where, remedy) from error
        try:
            # Outside of any transaction, and not by waiting in the database: some steps wait for all others to end.
            take = text("SELECT pg_try_advisory_lock(:turn)")
            while not runner.run(connection.execute(take, {"turn": TURN})).scalar():
                time.sleep(0.2)
            yield
        finally:
            runner.run(connection.close())


def _database(settings: "Settings") -> str:
    """Return the address of the server's database, "" for the one in Prefect's home."""
    chosen = settings.server.database.connection_url
    return chosen.get_secret_value() if chosen is not None else ""


def main() -> None:
    """Be the server."""
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    print(listener.getsockname()[1], flush=True)
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import uvicorn
    from prefect.server.api.server import create_app

    turn = ExitStack()
    try:
        turn.enter_context(turn_to_start())
    except ResourceError as error:
        parent.write("\n".join(error.lines))
        parent.close()
        sys.exit(error.exit_code)
    parent.close()
    app = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))

    def end_with_parent() -> None:
        sys.stdin.read()
        server.should_exit = True

    def end_turn_when_started() -> None:
        while not server.started:
            time.sleep(0.05)
        turn.close()

    threading.Thread(target=end_with_parent, daemon=True).start()
    threading.Thread(target=end_turn_when_started, daemon=True).start()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
