"""Everything that scheduled runs need, up until it is told to end: Prefect's server, a worker, MLflow's pages.

All listen on this machine alone. What dies is started again; before a worker starts, first or again, the runs of the
one before are put in order. `up.json` in Prefect's home says who looks after it and where the pages are.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flows.services import MARK, STOP_SECONDS, Service, end_marked
from rnnlm_core.download import without_password
from rnnlm_core.errors import ConfigError, ResourceError, UsageError
from rnnlm_core.store import write_atomically
from tasks import processes, workspace

HOST = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
LOOPBACK = (HOST, "localhost", "::1")
STARTUP_SECONDS = 180
LOOK_SECONDS = 0.5
RETRY_SECONDS = 5.0
MOST_DEATHS, WITHIN_SECONDS = 5, 120.0
"""What dies more often than this within so many seconds will not get better by itself."""
SERVER = {
    # In memory, the slots of a server that was killed would stay taken for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
MLFLOW = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@dataclass(frozen=True)
class Plan:
    """What is to be up: the ports of both servers on this machine (None: the usual ones), and how many runs at once."""

    prefect_port: int | None = None
    mlflow_port: int | None = None
    runs: int = 2


@dataclass(frozen=True)
class Up:
    """What is up: whose process looks after it, and the addresses of Prefect, its API and MLflow."""

    pid: int
    started: str
    prefect: str
    api: str
    mlflow: str
    ready: bool


def home() -> Path:
    """Return Prefect's home, as whoever is up and whoever looks for it must see it."""
    return Path(os.environ["PREFECT_HOME"]).expanduser().resolve()


def note() -> Path:
    """Return the file that says what is up."""
    return home() / "up.json"


def logs() -> Path:
    """Return the folder of the logs."""
    return workspace.artifacts() / "logs"


def running() -> Up | None:
    """Return what is up, None if nothing is."""
    try:
        found = Up(**json.loads(note().read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if processes.is_alive(str(found.pid), found.started) else None


def stay_up(plan: Plan, tell: Callable[[str], None]) -> None:
    """Start everything and look after it until SIGINT or SIGTERM; `tell` is called with what happens, line by line.

    Raises `ResourceError` if a port is taken, if something does not start or dies again and again.
    """
    asked = threading.Event()
    # SIGHUP: a terminal that was closed.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in numbers}
    try:
        with _only_one():
            _Roof(plan, tell, asked).stay()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(tell: Callable[[str], None]) -> bool:
    """End what is up, and what a killed one has left behind; say whether there was anything."""
    found = running()
    if found is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(found.pid)
            process.terminate()
            try:
                process.wait(timeout=6 * STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
    try:
        with _only_one():  # what another one starts at this moment is none of ours
            left = end_marked(str(home()))
            note().unlink(missing_ok=True)
    except ResourceError:
        left = []
    if left:
        tell(f"ended {len(left)} processes that were left behind")
    return found is not None or bool(left)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    from filelock import FileLock, Timeout

    home().mkdir(parents=True, exist_ok=True)
    lock = FileLock(home() / "up.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        there = running()
        raise ResourceError("it is up already", there.prefect if there else home(), "`rnnlm down` ends it") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _turn_to_start() -> Iterator[None]:
    """Wait for one's turn among the servers that start in this home: together they break each other's tables."""
    from filelock import FileLock

    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" in os.environ:
        from flows.server import turn_to_start

        with turn_to_start():
            yield
    else:
        with FileLock(home() / "starting.lock", thread_local=False):
            yield


class _Roof:
    """The services, and what is done for them."""

    def __init__(self, plan: Plan, tell: Callable[[str], None], asked: threading.Event) -> None:
        self.plan, self.tell, self.asked = plan, tell, asked
        self.deaths: list[float] = []
        self.prefect_port, self.mlflow_port = plan.prefect_port or PREFECT_PORT, plan.mlflow_port or MLFLOW_PORT
        self.prefect = f"http://{HOST}:{self.prefect_port}"
        theirs = os.environ.get("PREFECT_API_URL", "")
        address = urlsplit(theirs)
        self.own_prefect = not theirs or (address.hostname in LOOPBACK and address.port == self.prefect_port)
        self.api = f"{self.prefect}/api" if self.own_prefect else theirs
        uri = workspace.tracking_uri()
        self.own_mlflow = not uri.startswith(("http://", "https://"))
        self.mlflow = f"http://{HOST}:{self.mlflow_port}" if self.own_mlflow else uri
        for option, port, own, setting in (
            ("--prefect-port", plan.prefect_port, self.own_prefect, "PREFECT_API_URL"),
            ("--mlflow-port", plan.mlflow_port, self.own_mlflow, "MLFLOW_TRACKING_URI"),
        ):
            if port is not None and not own:
                rule = f"`{option}` has no effect while `{setting}` names a server"
                raise UsageError(rule, without_password(os.environ[setting]), "unset one of them")
        scripts = Path(sys.executable).parent
        self.server = self._service(
            "prefect-server",
            [str(scripts / "prefect"), "server", "start", "--host", HOST, "--port", str(self.prefect_port)],
            SERVER,
            f"{self.api}/health",
        )
        self.worker = self._service(
            "worker",
            [
                *(
                    str(scripts / "prefect"),
                    "--no-prompt",
                    "worker",
                    "start",
                    "--pool",
                    workspace.POOL,
                    "--type",
                    "process",
                ),
                *("--name", processes.worker_name(), "--limit", str(plan.runs)),
            ],
        )
        self.pages = self._service(
            "mlflow",
            [
                *(str(scripts / "mlflow"), "server", "--workers", "1", "--host", HOST, "--port", str(self.mlflow_port)),
            ],
            MLFLOW,
            f"{self.mlflow}/health",
        )
        # Not in the command, which everybody on the machine sees.
        self.pages.environment = {**self.pages.environment, "MLFLOW_BACKEND_STORE_URI": uri}
        self.services = [
            *([self.server] if self.own_prefect else []),
            *([self.pages] if self.own_mlflow else []),
            self.worker,
        ]

    def _service(
        self, name: str, command: list[str], environment: dict[str, str] | None = None, health: str = ""
    ) -> Service:
        chosen = {key: os.environ.get(key, value) for key, value in (environment or {}).items()}
        return Service(name, command, logs() / f"{name}.log", home(), {**chosen, "PREFECT_API_URL": self.api}, health)

    @property
    def shown_prefect(self) -> str:
        """Where Prefect's pages are."""
        return self.prefect if self.own_prefect else without_password(self.api.removesuffix("/api"))

    def stay(self) -> None:
        """Start, look after, and end everything."""
        if left := end_marked(str(home())):
            self.tell(f"ended {len(left)} processes of one that was killed")
        self._check_ports()
        try:
            self._note(ready=False)
            self._start()
            self._note(ready=True)
            while not self.asked.wait(LOOK_SECONDS):
                self._look()
        finally:
            with contextlib.suppress(OSError):  # whoever listened may be gone
                self.tell("stopping: flows keep their checkpoints …")
            for service in reversed(self.services):
                service.stop()
            end_marked(str(home()))
            note().unlink(missing_ok=True)

    def _check_ports(self) -> None:
        ports = {"prefect": self.prefect_port} if self.own_prefect else {}
        ports |= {"mlflow": self.mlflow_port} if self.own_mlflow else {}
        for name, port in ports.items():
            try:
                socket.create_server((HOST, port)).close()
            except OSError as error:
                value, remedy = f"{HOST}:{port} ({error.strerror})", f"end what is there, or give --{name}-port"
                raise ResourceError("the port is taken", value, remedy) from error

    def _start(self) -> None:
        """Start everything in order; a wish to end is heard in between."""
        self.tell("starting: Prefect's server, the deployments, a worker, MLflow's pages (30 to 60 s) …")
        if self.own_prefect:
            with _turn_to_start():
                self._start_and_wait(self.server)
        else:
            from flows.server import Api

            Api(self.api).check()
        if not self.asked.is_set():
            self._deploy()
        if self.asked.is_set():
            return
        self.worker.start()
        if self.own_mlflow:  # after the deploying, which has seen to its database
            self._start_and_wait(self.pages)
        for line in (
            f"Prefect:  {self.shown_prefect}",
            f"API:      {without_password(self.api)}   (export PREFECT_API_URL={without_password(self.api)})",
            f"MLflow:   {without_password(self.mlflow)}",
            f"logs:     {logs()}",
        ):
            self.tell(line)

    def _start_and_wait(self, service: Service) -> None:
        service.start()
        if service.health:
            service.wait_until_up(STARTUP_SECONDS, self.asked.is_set)

    def _deploy(self, *options: str) -> None:
        """Put runs and deployments in order, in a process of its own."""
        environment = {**os.environ, "PREFECT_API_URL": self.api, MARK: f"{home()}:deploy"}
        command = [sys.executable, "-P", "-m", "flows.deploy", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
        while True:
            try:
                out, err = process.communicate(timeout=LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if self.asked.is_set():
                    process.terminate()
        for line in out.splitlines():
            self.tell(line)
        if process.returncode and not self.asked.is_set():
            lines = [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]
            if process.returncode == UsageError.exit_code and lines:
                raise ConfigError(*lines)
            last = (lines or err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise ResourceError("nothing was deployed", last, f"see {logs()}")

    def _look(self) -> None:
        """Start again what has died."""
        for service in self.services:
            if service.ended is None or self.asked.is_set():
                continue
            now = time.monotonic()
            self.deaths = [moment for moment in self.deaths if now - moment < WITHIN_SECONDS] + [now]
            if len(self.deaths) > MOST_DEATHS:
                value = f"{service.name} (exit code {service.ended})"
                raise ResourceError("it dies again and again", value, f"see {service.log}")
            self.tell(f"warning: {service.name} has died (exit code {service.ended}): starting it again")
            service.stop()  # what it has left behind
            try:
                if service is self.worker:
                    self._deploy("--repair")
                self._start_and_wait(service)
            except ResourceError as error:  # a database that is away, a server that is busy: the next look tries again
                self.tell(f"warning: {error}")
                self.asked.wait(RETRY_SECONDS)

    def _note(self, ready: bool) -> None:
        me = processes.this_process()
        told = Up(
            int(me["rnnlm.pid"]), me["rnnlm.started"], self.shown_prefect, without_password(self.api),
            without_password(self.mlflow), ready,
        )  # fmt: skip
        write_atomically(note(), json.dumps(asdict(told), indent=1).encode())
