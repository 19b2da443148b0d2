"""`rnnlm up` as people run it, in a home of its own, and what its servers say of it."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from homes import COMMAND, PROJECT, without_settings
from sqlalchemy import NullPool, create_engine

TINY = {"model.hidden_size": 16, "model.embedding_size": 0, "corpus.max_tokens": 0, "train.device": "cpu"}
SENTENCE = "the time traveller spoke of a curious machine and we listened until all lamps burned low"


def invented_text(seed: int, words: int = 4000) -> str:
    """Return a text of so many words, another one for each seed."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    return " ".join(draw.choice(SENTENCE.split()) for _ in range(words))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Stack:
    """A home in which `rnnlm up` runs, is killed and runs again, always on the same ports."""

    home: Path
    extra: dict[str, str] = field(default_factory=dict)
    prefect_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def environment(self) -> dict[str, str]:
        """The settings of every command of this home."""
        own = {"RNNLM_HOME": str(self.home), "PREFECT_HOME": str(self.home / "prefect"), "PYTHONPATH": str(PROJECT)}
        return {**without_settings(), **own, "RNNLM_CHECKPOINT_SECONDS": "1", **self.extra}

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def said(self) -> str:
        """What the command has printed so far."""
        return (self.home / "up.txt").read_text()

    def start(self, *options: str) -> None:
        """Start it and wait until it says that it is up."""
        with (self.home / "up.txt").open("wb") as out:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--prefect-port", str(self.prefect_port), "--mlflow-port", str(self.mlflow_port),
                 *options],
                env=self.environment, cwd=self.home, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.wait_for(lambda: "logs:  " in self.said, 280)

    def wait_for(self, holds: Callable[[], Any], seconds: float) -> Any:
        """Wait until something holds and return it, whoever does not answer meanwhile; fails with what was printed."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(httpx.TransportError):
                if found := holds():
                    return found
            assert self.process is None or self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.5)

    def run(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Run a command of Prefect or rnnlm in this home."""
        name, *rest = map(str, arguments)
        command = COMMAND if name == "rnnlm" else [str(Path(COMMAND[0]).with_name(name))]
        return subprocess.run(
            [*command, *rest], env=self.environment | {"PREFECT_API_URL": self.api},
            cwd=self.home, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip

    def deploy(self, name: str, flow: str, parameters: dict[str, Any], every: int | None = 20) -> None:
        """Deploy a flow in the project's pool, on a schedule of so many seconds."""
        folder = {"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT)}}
        deployment = {
            "name": name,
            "entrypoint": flow,
            "parameters": parameters,
            "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
            "work_pool": {"name": "rnnlm"},
            "schedules": [{"interval": every}] if every else [],
        }
        file = self.home / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"name": "test", "pull": [folder], "deployments": [deployment]}))
        done = self.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file)
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, path: str, **question: Any) -> Any:
        """Return what Prefect's API answers to a search."""
        answer = httpx.post(f"{self.api}/{path}/filter", json=question, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a name."""
        return list(self.ask("events", filter={"event": {"name": [name]}})["events"])

    def runs(self, deployment: str = "", since: datetime | None = None) -> list[dict[str, Any]]:
        """Return the runs of a deployment (or of all) that have begun or ended, oldest first."""
        query: dict[str, Any] = {
            "sort": "EXPECTED_START_TIME_ASC",
            "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}, "deployment_id": {"is_null_": False}},
        }
        if deployment:
            query["deployments"] = {"name": {"any_": [deployment]}}
        if since is not None:
            query["flow_runs"]["start_time"] = {"after_": since.isoformat()}
        return list(self.ask("flow_runs", **query))

    def completed(self, deployment: str, since: datetime | None = None) -> list[dict[str, Any]]:
        """Return the runs of a deployment that have completed."""
        return [run for run in self.runs(deployment, since) if run["state_type"] == "COMPLETED"]

    def stuck(self) -> list[dict[str, Any]]:
        """Return every run that Prefect believes under way."""
        types = ["RUNNING", "PENDING", "CANCELLING"]
        return list(self.ask("flow_runs", flow_runs={"state": {"type": {"any_": types}}}))

    def mlflow(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query finds in MLflow's database."""
        address = self.extra.get("MLFLOW_TRACKING_URI", f"sqlite:///{self.home / 'mlflow.db'}")
        engine = create_engine(address, poolclass=NullPool)
        with engine.connect() as database:
            return [tuple(row) for row in database.exec_driver_sql(query)]

    def tagged(self, key: str, value: str) -> list[dict[str, str]]:
        """Return the status (`status`) and the tags of every MLflow run that has a tag, oldest first."""
        found: dict[str, dict[str, str]] = {}
        for run, status, name, text in self.mlflow(
            "SELECT runs.run_uuid, runs.status, tags.key, tags.value FROM runs JOIN tags "
            "ON tags.run_uuid = runs.run_uuid ORDER BY runs.start_time"
        ):
            found.setdefault(run, {"status": status})[name] = text
        return [run for run in found.values() if run.get(key) == value]

    def trainings(self, corpus: str) -> int:
        """Return how many trainings MLflow has of a text."""
        return sum(run["rnnlm.kind"] == "cell" for run in self.tagged("rnnlm.corpus", corpus))

    def processes(self) -> list[psutil.Process]:
        """Return every living process that `rnnlm up` of this home has started."""
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get("RNNLM_SERVICE", "")
            except (psutil.Error, OSError):
                continue
            if mark.startswith(f"{self.home / 'prefect'}:"):
                found.append(process)
        return found

    def kill(self, *processes: psutil.Process) -> None:
        """Kill processes without a word."""
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to end as a terminal or a service manager does; return its exit code."""
        assert self.process is not None
        os.kill(self.process.pid, number)
        return self.process.wait(timeout=120)


@contextmanager
def stack(home: Path, **extra: str) -> Iterator[Stack]:
    """Have `rnnlm up` in a home, and nothing of it left afterwards."""
    home.mkdir(exist_ok=True)
    one = Stack(home, extra)
    try:
        yield one
    finally:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        one.kill(*one.processes())


@contextmanager
def databases(kind: str) -> Iterator[dict[str, str]]:
    """Give the settings that put both databases on `postgresql` (skips where that is not installed) or leave them."""
    if kind == "sqlite":
        yield {}
        return
    from postgresql import asynchronous, postgresql_server

    with postgresql_server() as server:
        yield {
            "MLFLOW_TRACKING_URI": server.new_database(),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": asynchronous(server.new_database()),
        }


def now() -> datetime:
    """Return the time as Prefect tells it."""
    return datetime.now(UTC)
