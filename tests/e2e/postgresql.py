"""A PostgreSQL server of this machine's binaries, for the length of a test.

    from postgresql import postgresql_server

    with postgresql_server() as server:  # skips the test, and says so, where PostgreSQL is not installed
        server.url                       # "postgresql://rnnlm:sesame@127.0.0.1:PORT"
        server.new_database()            # the same with the name of an empty database, another each time
        server.stop(), server.start()    # for what is to survive a restart: same address, same data

Prefect takes the address with its driver: `asynchronous(server.new_database())`. The server listens on loopback alone,
asks for a password, and ends with the block, or with the test's process however that ends; its folder goes with it.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

USER, PASSWORD = "rnnlm", "sesame"
PATIENCE = 120.0
# Fast shutdown as soon as standard input closes: also when the test's process is killed.
END_WITH_PARENT = '"$@" </dev/null & server=$!; cat >/dev/null; kill -INT $server; wait $server'


class Server:
    """A PostgreSQL server in a folder of its own."""

    def __init__(self, binaries: Path, folder: Path, owner: str | None) -> None:
        self.binaries, self.folder, self.owner = binaries, folder, owner
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}"
        self.numbers = count(1)
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "password").write_text(PASSWORD)
        self._run(
            "initdb", "--pgdata=data", f"--username={USER}", "--pwfile=password", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            str(self.binaries / "postgres"), "-D", "data", "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
            "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", END_WITH_PARENT, "sh", *command],
                user=self.owner, cwd=self.folder, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        ready = [self.binaries / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={self.port}"]
        while subprocess.run(ready, check=False).returncode:
            said = (self.folder / "log").read_text()
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, cutting every connection, as `systemctl stop` does."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(PATIENCE)
            self.process = None

    def new_database(self) -> str:
        """Make an empty database and return its address."""
        name = f"database{next(self.numbers)}"
        self.sql(f"CREATE DATABASE {name}", "postgres")
        return f"{self.url}/{name}"

    def sql(self, statement: str, database: str) -> list[list[str]]:
        """Have a statement done in a database, given by name or address; return what it answers, row by row."""
        name = database.rpartition("/")[2]
        said = self._run(
            "psql", "--no-psqlrc", "--tuples-only", "--no-align", "--field-separator=\t", "--set=ON_ERROR_STOP=1",
            f"--dbname={self.url}/{name}", f"--command={statement}",
        )  # fmt: skip
        return [line.split("\t") for line in said.splitlines()]

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            user=self.owner, cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def postgresql_server() -> Iterator[Server]:
    """A running server with no databases yet."""
    binaries = _binaries()
    owner = _owner()
    # Not pytest's folder: root's is closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="rnnlm-postgresql-"))
    try:
        if owner is not None:
            shutil.chown(folder, owner)
        server = Server(binaries, folder, owner)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def asynchronous(url: str) -> str:
    """Return an address as Prefect takes it."""
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)


def _binaries() -> Path:
    """Return the folder of the newest PostgreSQL here; Debian has the server's programs outside of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda place: float(place.parts[-3]))
    found = places[-1] if places else shutil.which("postgres")
    if found is None:
        pytest.skip("PostgreSQL is not installed here: apt-get install postgresql (Debian, as root)")
    return Path(found).resolve().parent


def _owner() -> str | None:
    """Return who the server runs as, None for this user: PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    pytest.skip("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` here")
