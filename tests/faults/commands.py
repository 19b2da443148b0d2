"""Commands in homes of their own, beside one Prefect server, started by forking a process that has all imports."""

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
from homes import PROJECT, places, without_settings


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves when nobody disturbs it, and how long it takes."""

    artifacts: set[str]
    seconds: float


class Commands:
    """Starts and awaits commands; everything they do happens in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefect = folder / "prefect" / "prefect.db"
        environment = {**without_settings(), "PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(PROJECT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        nowhere = environment | {"RNNLM_HOME": str(folder / "nowhere")}
        self.server = subprocess.Popen([sys.executable, "-P", "-m", "flows.server"], env=nowhere, **pipes)
        port = self.server.stdout.readline().strip()
        api = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
        httpx.get(f"{api['PREFECT_API_URL']}/health", timeout=240).raise_for_status()  # it listens before it answers
        zygote = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        self.zygote = subprocess.Popen(zygote, env=nowhere | api, **pipes)
        assert self.zygote.stdout.readline() == "ready\n"
        self.template = b""
        empty = self.home("empty")
        assert not self.run(empty, "compare"), (empty / "output.txt").read_text()
        self.template = (empty / "mlflow.db").read_bytes()

    def stop(self) -> None:
        """End the server and what forks."""
        for process in (self.zygote, self.server):
            process.stdin.close()
            process.wait(timeout=60)
            process.stdout.close()

    def home(self, name: str) -> Path:
        """Return a new home; MLflow's database is there already: its migrations take seconds."""
        home = self.folder / name
        home.mkdir()
        if self.template:
            (home / "mlflow.db").write_bytes(self.template)
            with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
                location = (home / "artifacts" / "mlflow").as_uri()
                database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'rnnlm'", [location])
        return home

    def start(self, home: Path, *arguments: str, **environment: str) -> "Running":
        """Start `rnnlm ARGUMENTS`."""
        job = {"arguments": arguments, "environment": places(home) | environment, "folder": str(home)}
        output = home / "output.txt"
        output.write_text("")
        return Running(self, home, int(self._ask(json.dumps({**job, "output": str(output)}))))

    def run(self, home: Path, *arguments: str, **environment: str) -> int:
        """Run `rnnlm ARGUMENTS` to its end and return its exit code."""
        return self.start(home, *arguments, **environment).wait()

    def wait(self, pid: int) -> int:
        return int(self._ask(f"wait {pid}"))

    def _ask(self, line: str) -> str:
        self.zygote.stdin.write(line + "\n")
        self.zygote.stdin.flush()
        return self.zygote.stdout.readline()


class Running:
    """A command that has been started."""

    def __init__(self, commands: Commands, home: Path, pid: int) -> None:
        self.commands, self.home, self.pid = commands, home, pid
        self.descriptor = os.pidfd_open(pid)
        self.code: int | None = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, also to one that has ended and nobody has waited for."""
        signal.pidfd_send_signal(self.descriptor, number)

    def ends_within(self, seconds: float) -> bool:
        """Wait a while; say whether it has ended."""
        return bool(select.select([self.descriptor], [], [], seconds)[0])

    def wait(self) -> int:
        """Wait for the end and return the exit code as `subprocess` gives it."""
        if self.code is None:
            self.code = self.commands.wait(self.pid)
            os.close(self.descriptor)
        return self.code

    def output(self) -> str:
        return (self.home / "output.txt").read_text()
