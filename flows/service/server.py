"""Listening, serving, and ending in order: who stops the server ends what it is writing, and it is no failure."""

import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from rnnlm_core.errors import ResourceError, UsageError

IDLE_SECONDS = 30
"""How long a connection is kept after an answer."""
MOST_CONNECTIONS = 1024
"""More are answered with 503 at once."""
STOPPING_SECONDS = 5
"""How long answers may take to end once the server is asked to stop: they end at the next token."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises `ResourceError` where that is not possible, `UsageError` for no host."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError("no such address of this machine", host, "give 127.0.0.1, ::1 or 0.0.0.0") from error
    try:
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        remedy = "give an address of this machine"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            remedy = "choose another port: `--port 0` takes one that is free"
        raise ResourceError("cannot listen", f"{host}:{port} ({os.strerror(error.errno or 0)})", remedy) from error


def address_of(listener: socket.socket) -> str:
    """Return the address at which a browser finds what listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach what listens."""
    host = listener.getsockname()[0]
    return bool(host == "::1" or host.startswith("127."))


class Server(uvicorn.Server):
    """Uvicorn, which ends the work of our application when it is asked to stop, and then returns."""

    def __init__(self, app: FastAPI, on_start: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app, http="h11", ws="none", lifespan="on", log_config=None, log_level="error", access_log=False,
                server_header=False, proxy_headers=False, timeout_keep_alive=IDLE_SECONDS,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=STOPPING_SECONDS,
            )
        )  # fmt: skip
        self.app, self.on_start = app, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and say so."""
        await super().startup(sockets)
        self.on_start()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End the work under way; asked a second time, without waiting for its answers."""
        self.app.state.work.stop()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own would raise the signal again at the end: a server that was stopped has done what it should."""
        if threading.current_thread() is not threading.main_thread():  # signals are not for this thread
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
