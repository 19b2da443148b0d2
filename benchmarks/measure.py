"""Measuring: sides that take turns, and what their blocks come to.

The first round warms up and is thrown away. A figure is the median of the blocks, beside it the lower quartile and
the least: on a machine that others use, the least is what the code costs and the rest is company.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.turns import cpu_seconds
from rnnlm_core.errors import ResourceError

ROOT = Path(__file__).resolve().parent.parent
END_SECONDS = 30.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Block:
    """One block of work: its units (tokens, bytes, updates), wall and processor seconds, and facts about it."""

    wall: float
    cpu: float
    units: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """The blocks of one side, without the warm-up."""

    blocks: tuple[Block, ...]

    @property
    def wall(self) -> "Stats":
        """Wall seconds per unit."""
        return Stats.of([block.wall / block.units for block in self.blocks])

    @property
    def cpu(self) -> "Stats":
        """Processor seconds per unit, of all threads and children."""
        return Stats.of([block.cpu / block.units for block in self.blocks])

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the last block."""
        return self.blocks[-1].facts


@dataclass(frozen=True)
class Stats:
    """Median, lower quartile and least of some measurements."""

    median: float
    p25: float
    least: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Stats":
        """Return what the values come to; quartiles are interpolated between the measurements."""
        p25 = statistics.quantiles(values, n=4, method="inclusive")[0] if len(values) > 1 else values[0]
        return cls(statistics.median(values), p25, min(values), len(values))


class Side(Protocol):
    """Something that does a block of its work when it is its turn."""

    def block(self) -> Block:
        """Do one block."""
        ...


def take_turns(sides: Mapping[str, Side], rounds: int, warm_up: int = 1) -> dict[str, Series]:
    """Let every side do one block per round, in their order; return the blocks after the warm-up."""
    blocks: dict[str, list[Block]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, side in sides.items():
            block = side.block()
            if number >= warm_up:
                blocks[name].append(block)
    return {name: Series(tuple(done)) for name, done in blocks.items()}


@dataclass(frozen=True)
class Worker:
    """A side that runs in a process of its own.

    Args:
        side: module and function, `ours.training` (`benchmarks/sides/`).
        settings: keyword arguments of the function, as JSON has them.
        threads: threads that PyTorch may use; 0 leaves it to PyTorch.
        environment: variables to add.
    """

    side: str
    settings: dict[str, Any]
    threads: int = 1
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[object, ...]:
        """What a process must have been started as to be this side."""
        version = "newest" if self.side == "book.newest" else ""  # one process can import one of the packages
        return self.side.partition(".")[0], version, self.threads, tuple(sorted(self.environment.items()))


class Process:
    """A process that is one side after the other."""

    def __init__(self, threads: int, environment: Mapping[str, str]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        bare = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sides"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env={**bare, **(dict.fromkeys(THREAD_VARIABLES, str(threads)) if threads else {}), **environment},
        )
        self.side = ""

    def begin(self, worker: Worker) -> None:
        """Make it a side; it prepares itself and waits for its turn."""
        self.side = worker.side
        self._tell(json.dumps({"side": worker.side, "settings": worker.settings}))
        self._hear()

    def block(self) -> Block:
        """Let it do one block, and wait until it is ready for the next or has no more to do."""
        self._tell("go")
        block = Block(**self._hear())
        self._rest()
        return block

    def over(self) -> None:
        """End what it is, not the process."""
        if self.side:
            self._tell("over")
            self._rest()

    def close(self) -> None:
        """End the process."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        try:
            self.child.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()
        self.errors.close()

    def _rest(self) -> None:
        if "over" in self._hear():
            self.side = ""

    def _tell(self, line: str) -> None:
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # one that is gone says why in its errors
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            code = self.child.wait(timeout=END_SECONDS)
            self.errors.seek(0)
            tail = self.errors.read().decode(errors="replace").strip()[-2000:]
            raise RuntimeError(f"side {self.side} ended with exit code {code}\n{tail}")
        message: dict[str, Any] = json.loads(line)
        return message


class Pool:
    """The processes of a case, kept from one comparison to the next: importing PyTorch takes longer than a block."""

    def __init__(self) -> None:
        self.every: list[Process] = []
        self.idle: dict[tuple[object, ...], list[Process]] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.every:
            process.close()

    @contextmanager
    def begun(self, workers: Mapping[str, Worker]) -> Iterator[dict[str, Process]]:
        """Give a process to every worker, and take them back."""
        processes = {name: self._process(worker) for name, worker in workers.items()}
        for name, worker in workers.items():
            processes[name].begin(worker)
        yield processes
        for name, worker in workers.items():
            processes[name].over()
            self.idle.setdefault(worker.kind, []).append(processes[name])

    def compare(self, workers: Mapping[str, Worker], rounds: int, warm_up: int = 1) -> dict[str, Series]:
        """Let workers take turns."""
        with self.begun(workers) as processes:
            return take_turns(processes, rounds, warm_up)

    def _process(self, worker: Worker) -> Process:
        idle = self.idle.get(worker.kind)
        if idle:
            return idle.pop()
        process = Process(worker.threads, worker.environment)
        self.every.append(process)
        return process


@dataclass(frozen=True)
class Command:
    """A side that is a whole command; a block is one run of it, start-up included. An empty variable is taken away."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    units: float = 1.0

    def block(self) -> Block:
        """Run the command; raises `ResourceError` if it fails."""
        environment = {name: value for name, value in {**os.environ, **self.environment}.items() if value}
        cpu, wall = cpu_seconds(), time.perf_counter()
        done = subprocess.run(
            self.arguments,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        block = Block(time.perf_counter() - wall, cpu_seconds() - cpu, self.units)
        if done.returncode:
            tail = " ".join((done.stderr or done.stdout).split())[-300:]
            raise ResourceError("a measured command failed", " ".join(self.arguments), tail)
        return block
