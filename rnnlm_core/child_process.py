"""Work in a child process: a crash, a time-out or a cancel of one leaves the others alone.

The child reads one job (JSON) from standard input, then now and again the number of cores that it may use, a line each;
it writes one JSON object per line to standard output, and stops when standard input ends. So it also ends when its
parent is killed. `Child` is the parent's side; `begin`, `watch_parent` and `report` are the child's.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rnnlm_core.errors import ResourceError, RnnlmError, by_name

POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
# The GNU C library would hand the large tensors of every step back to the system, and fetch them, zeroed, again.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


@dataclass(frozen=True)
class Child:
    """A process that does one job: `python -m module`, which reads and writes what is said above.

    `work` says what it does, `remedy` what to do where it was killed.
    """

    module: str
    work: str
    threads: int
    remedy: str

    def run(
        self,
        job: dict[str, Any],
        hear: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
        num_cores: Callable[[], int] = lambda: 1,
        *,
        begun: Callable[[], None] = lambda: None,
        torn: bool = False,
    ) -> dict[str, Any]:
        """Return what the job comes to; `hear` receives what is said on the way, whose lines may be `torn`.

        `begun` is called when the child says that it has imported its code; if that raises, the child is killed before
        it has done anything.
        """
        with tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self._environment(),
            )
            try:
                _tell(child, json.dumps(job))
                return self._listen(child, hear, should_stop, num_cores, begun, _lines_of(child, torn), errors)
            finally:
                _end(child)

    def _environment(self) -> dict[str, str]:
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        number = str(self.threads)
        threads = {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number} if self.threads else {}
        return {**MEMORY, **os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)}

    def _listen(
        self,
        child: "subprocess.Popen[str]",
        hear: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
        num_cores: Callable[[], int],
        begun: Callable[[], None],
        lines: "queue.Queue[str]",
        errors: IO[bytes],
    ) -> dict[str, Any]:
        told = 0
        while True:
            if should_stop():
                _hang_up(child)
            elif (cores := num_cores()) != told:
                _tell(child, str(cores))
                told = cores
            try:
                line = lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if not line.endswith("\n"):  # the end, or a line cut off by it
                raise self._died(child, errors)
            message = json.loads(line)
            if "error" in message:
                raise self._rebuild(message["error"])
            if "result" in message:
                result: dict[str, Any] = message["result"]
                return result
            if "begun" in message:
                _unless_refused(begun, child)
            else:
                hear(message)

    def _rebuild(self, error: dict[str, Any]) -> Exception:
        if "traceback" in error:
            return RuntimeError(f"{self.work} failed in its process:\n{error['traceback']}")
        return by_name(error["kind"])(*error["args"])

    def _died(self, child: "subprocess.Popen[str]", errors: IO[bytes]) -> RnnlmError | RuntimeError:
        code = child.wait(timeout=STOP_SECONDS)
        errors.seek(0)
        tail = errors.read().decode(errors="replace").strip()[-2000:]
        if code < 0:
            return ResourceError(f"{self.work} was killed", signal.Signals(-code).name, self.remedy)
        return RuntimeError(f"{self.work} ended with exit code {code}\n{tail}")


def _unless_refused(begun: Callable[[], None], child: "subprocess.Popen[str]") -> None:
    try:
        begun()
    except BaseException:
        child.kill()  # asked to stop it would write a checkpoint
        raise


def _lines_of(child: "subprocess.Popen[str]", torn: bool) -> "queue.Queue[str]":
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_lines, args=(child.stdout, lines, torn), daemon=True).start()
    return lines


def _read_lines(stream: IO[str], lines: "queue.Queue[str]", torn: bool) -> None:
    """Pass lines on; where they may be `torn` by the kill of a rank, which says them again, whole ones alone."""
    for line in stream:
        if not torn or _is_whole(line):
            lines.put(line)
    lines.put("")


def _is_whole(line: str) -> bool:
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


def _tell(child: "subprocess.Popen[str]", line: str) -> None:
    """Write a line to the child, unless it is gone: then the end of its output tells why."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(line + "\n")
        child.stdin.flush()


def _hang_up(child: "subprocess.Popen[str]") -> None:
    """Close the child's standard input: it stops at its next minibatch."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()


def _end(child: "subprocess.Popen[str]") -> None:
    """Close the pipes and make sure that the child is gone."""
    _hang_up(child)
    try:
        child.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


def begin() -> tuple[dict[str, Any], IO[str]]:
    """Return the job of a child and where its messages go."""
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to standard error, not between the messages
    return json.loads(sys.stdin.readline()), out


def report(
    cell: str,
    say: Callable[..., None],
    work: Callable[[], dict[str, Any]],
    remedy: str = "lower train.batch_size or model.hidden_size",
) -> None:
    """Say what `work` comes to, or why it came to nothing; `remedy` is for memory that ran out."""
    try:
        say(result=work())
    except RnnlmError as error:
        say(error={"kind": type(error).__name__, "args": list(error.args)})
    except BaseException as error:
        import traceback

        if _is_out_of_memory(error):
            say(error={"kind": "TooLarge", "args": ["out of memory", cell, remedy]})
            return
        say(error={"traceback": traceback.format_exc()})
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch says so by a RuntimeError, on the CPU without a class of its own."""
    told = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in str(error) for t in told))


def watch_parent() -> Callable[[], bool]:
    """Do what the parent says from now on; return what tells whether that is to stop."""
    stopped = threading.Event()

    def watch() -> None:
        from rnnlm_core import cores

        for line in sys.stdin:
            cores.use(int(line))
        stopped.set()

    threading.Thread(target=watch, daemon=True).start()
    return stopped.is_set
