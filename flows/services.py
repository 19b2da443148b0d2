"""Programs that run beside each other until they are told to end: started, asked whether they answer, ended for good.

Each carries a mark in its environment, which all that it starts inherits: what a killed parent has left behind is
found by it.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rnnlm_core.errors import ResourceError

MARK = "RNNLM_SERVICE"
ENGINES = ("prefect.engine", "prefect.flow_engine")
STOP_SECONDS = 20.0
"""What a flow takes to keep its checkpoints and to say so, at most."""


@dataclass
class Service:
    """A program: its command, where it writes, and the address (if any) that says when it is up."""

    name: str
    command: Sequence[str]
    log: Path
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    health: str = ""
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def mark(self) -> str:
        """What this program and all that it starts can be told by."""
        return f"{self.home}:{self.name}"

    def start(self) -> None:
        """Start the program; what it writes is added to its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for whoever looks after it
            )

    @property
    def ended(self) -> int | None:
        """The exit code, None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def wait_until_up(self, seconds: float, asked_to_end: Callable[[], bool]) -> None:
        """Wait until its address answers, or whoever waits is asked to end.

        Raises `ResourceError` if it ends, or does not answer in so many seconds.
        """
        import httpx

        deadline = time.monotonic() + seconds
        while not asked_to_end():
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.health, timeout=5).status_code == 200:
                    return
            if self.ended is not None or time.monotonic() > deadline:
                reason = "no answer" if self.ended is None else f"exit code {self.ended}"
                raise ResourceError(f"{self.name} does not start", reason, f"see {self.log}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the program and all that it has started; flows are asked first, and keep their checkpoints."""
        end_marked(self.mark)
        if self.process is not None:
            self.process.wait()


def end_marked(mark: str) -> list[int]:
    """End every process that carries a mark: flows first, then the others; return their ids."""
    ended: list[int] = []
    for flows in (True, False):
        found = [process for process in marked(mark) if _is_flow(process) or not flows]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = psutil.wait_procs(found, timeout=STOP_SECONDS)
        for process in stubborn:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(stubborn, timeout=STOP_SECONDS)
        ended += [process.pid for process in found]
    return ended


def marked(mark: str) -> Iterator[psutil.Process]:
    """Yield the living processes that carry a mark, or one that begins with it and a colon."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or somebody else's
            carried = process.environ().get(MARK, "")
            if (carried == mark or carried.startswith(f"{mark}:")) and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _is_flow(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(word in ENGINES for word in process.cmdline())
    return False
