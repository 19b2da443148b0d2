"""Where the shards of a long text are worked on: threads of this process, Dask's workers, or Ray's.

What comes of it is the same everywhere. Workers need the home of this process (`RNNLM_HOME`) under the same path.
"""

import asyncio
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rnnlm_core.errors import ResourceError, UsageError, one_line, unknown_name
from rnnlm_core.transfer import is_loopback
from tasks import progress, workspace

KNOWN = ("local", "dask", "ray")
PORTS = {"dask": 8786, "ray": 10001}
SCHEMES = {"dask": ("tcp", "tls"), "ray": ("ray",)}
CONNECT_SECONDS = 10.0
OBJECT_BYTES = 100_000_000
"""What Ray may keep of results, which are names of artifacts."""


@dataclass(frozen=True)
class Runner:
    """A kind of runner, and the address of a cluster that is there already ("": one of its own, for this run)."""

    kind: str
    address: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.address}" if self.address else self.kind

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the address."""
        host, _, port = self.address.rpartition("://")[2].rpartition(":")
        return host.strip("[]"), int(port)


def parse(text: str) -> Runner:
    """Read `local`, `dask`, `ray`, `dask:HOST:PORT` or `ray:HOST:PORT`; raises `UsageError` for anything else."""
    kind, colon, address = text.partition(":")
    if kind not in KNOWN:
        raise unknown_name("runner", text, list(KNOWN))
    if colon and kind == "local":
        raise UsageError("the runner `local` has no address", text, "leave it out")
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    known = not scheme or scheme in SCHEMES[kind]
    if colon and not (known and host and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        example = f"{kind}:127.0.0.1:{PORTS[kind]}"
        raise UsageError("a runner's address is HOST:PORT", text, f"for example {example}, or `{kind}` alone")
    return Runner(kind, address)


def check(runner: Runner) -> None:
    """Raise `ResourceError` if a runner's packages are not installed, or nobody listens at its address."""
    package = f"prefect_{runner.kind}"
    if runner.kind != "local" and importlib.util.find_spec(package) is None:
        what = "the runner needs a package that is not installed"
        raise ResourceError(what, package.replace("_", "-"), f"pip install '.[{runner.kind}]' in the project folder")
    if not runner.address:
        return
    try:
        socket.create_connection(runner.place, timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(runner, error) from error


def warn_of(runner: Runner) -> None:
    """Say what workers on another machine would miss."""
    from urllib.parse import urlsplit

    from prefect.settings import get_current_settings

    api = urlsplit(get_current_settings().api.url or "http://127.0.0.1").hostname or ""
    if runner.address and not is_loopback(runner.place[0]) and is_loopback(api):
        progress.warn(
            "start", f"workers of {runner} on other machines do not reach Prefect's server: set PREFECT_API_URL"
        )


@contextmanager
def started(runner: Runner) -> Iterator[Any]:
    """Give the task runner of Prefect's; a cluster of its own ends with it. Raises `ResourceError` as `check` does."""
    from prefect.task_runners import ThreadPoolTaskRunner

    check(runner)
    if runner.kind == "dask":
        with _dask(runner) as made:
            yield made
    elif runner.kind == "ray":
        with _ray(runner) as made:
            yield made
    else:
        yield ThreadPoolTaskRunner(max_workers=workspace.cpu_slots())


@contextmanager
def _dask(runner: Runner) -> Iterator[Any]:
    from distributed import Client, LocalCluster
    from prefect_dask import DaskTaskRunner

    if not runner.address:
        with LocalCluster(
            n_workers=workspace.cpu_slots(), threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster:
            yield DaskTaskRunner(address=cluster.scheduler_address)
        return
    try:
        # A client would wait for ever for the first word of another listener. In a thread: the loop is its own.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _answers(runner.address)).result()
        with Client(runner.address, timeout=CONNECT_SECONDS, set_as_default=False) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"]
    except OSError as error:
        raise _unreachable(runner, error) from error
    if not workers:
        raise ResourceError("the scheduler has no workers", runner, f"start one: `dask worker {runner.address}`")
    yield DaskTaskRunner(address=runner.address)


async def _answers(address: str) -> None:
    from distributed.comm import connect

    comm = await asyncio.wait_for(connect(address), CONNECT_SECONDS)
    await comm.close()


@contextmanager
def _ray(runner: Runner) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from prefect_ray import RayTaskRunner

    own: dict[str, Any] = {
        "num_cpus": workspace.cpu_slots(),
        "include_dashboard": False,
        "object_store_memory": OBJECT_BYTES,
    }
    quiet = {"log_to_driver": False, "configure_logging": True, "logging_level": logging.ERROR}
    try:
        # "local" although it is the default: `RAY_ADDRESS` would lead elsewhere.
        ray.init(runner.address or "local", namespace="rnnlm", **quiet, **({} if runner.address else own))
    except (OSError, RuntimeError, ValueError) as error:
        if runner.address:
            raise _unreachable(runner, error) from error
        raise ResourceError("Ray did not start", one_line(error), "use `--runner local`") from error
    try:
        yield RayTaskRunner(address=runner.address or "local")
    finally:
        ray.shutdown()


def _unreachable(runner: Runner, error: Exception) -> ResourceError:
    why = one_line(error) or type(error).__name__
    return ResourceError(
        "the runner does not answer", f"{runner} ({why})", f"start it, or use `--runner {runner.kind}`"
    )
