"""The native kernels (`recurrence.cpp`, `output_loss.cpp`): built once per machine with its C++ compiler.

The library is kept in the user's cache folder under a name made of source, compiler and processor, so that another of
any of them builds its own. Nothing here is needed: PyTorch computes the same, slower.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SOURCES = ("recurrence.cpp", "output_loss.cpp")
HEADER = "vectors.h"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
# No result depends on `errno`, on a floating-point exception or on the sign of a zero: vectors may be used.
MATHEMATICS = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast")
BUILD_SECONDS = 120


class NotBuiltError(Exception):
    """There is no native kernel on this machine; the message says why."""


_lock = threading.Lock()


def load() -> ctypes.CDLL:
    """Return the kernel, which is built if this machine has none yet; raises `NotBuiltError`."""
    with _lock:  # threads that begin together build it once
        return _loaded()


@functools.cache
def _loaded() -> ctypes.CDLL:
    compiler = find_compiler()
    if compiler is None:
        raise NotBuiltError("no C++ compiler here (c++, g++ or clang++; or set CXX)")
    try:
        path = cache_folder() / f"recurrence-{_fingerprint(compiler)}.so"
        if not _is_ours(path):
            _build(compiler, path)
        try:
            return _opened(path)
        except (OSError, AttributeError):  # cut off by a power cut, say
            path.unlink()
            _build(compiler, path)
            return _opened(path)
    except (OSError, AttributeError, RuntimeError) as error:  # RuntimeError: nobody knows where home is
        raise NotBuiltError(f"{type(error).__name__}: {error}") from error


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in ("forward", "backward", "table", "loss"):
        for kind in ("float", "double"):
            call = getattr(library, f"rnnlm_{name}_{kind}")
            call.restype, call.argtypes = ctypes.c_int, [ctypes.c_void_p]
    return library


def function(name: str, single: bool) -> Callable[[Any], int]:
    """Return a function of the kernel, of single or double precision; it takes the address of its arguments."""
    found: Callable[[Any], int] = getattr(load(), f"rnnlm_{name}_{'float' if single else 'double'}")
    return found


def find_compiler() -> list[str] | None:
    """Return the command of a C++ compiler: `CXX`, or the first of c++, g++ and clang++; None without one."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:  # a quotation without end
        raise NotBuiltError(f"CXX is no command: {os.environ['CXX']} ({error})") from error
    for command in [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]:
        if found := shutil.which(command[0]):
            return [found, *command[1:]]
    return None


def cache_folder() -> Path:
    """Return the folder of built kernels: `rnnlm` in the user's cache folder (`XDG_CACHE_HOME`)."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "rnnlm"


def _fingerprint(compiler: list[str]) -> str:
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=BUILD_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotBuiltError(f"{compiler[0]} does not work ({error})") from error
    sources = b"\0".join((FOLDER / name).read_bytes() for name in (*SOURCES, HEADER))
    parts = [sources, " ".join([*compiler, *_flags()]).encode(), version.stdout, _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _flags() -> list[str]:
    # GCC takes half of the width where the processor could clock lower for it: not for long loops.
    wide = ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []
    return [*FLAGS, *MATHEMATICS, *wide]


def _processor() -> str:
    """Return what `-march=native` depends on: a home may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    telling = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(telling)}))


def _is_ours(path: Path) -> bool:
    """Whether the file is there and nobody else could have written it: what it holds is executed."""
    for place, is_kind in ((path.parent, stat.S_ISDIR), (path, stat.S_ISREG)):
        try:
            found = place.lstat()
        except FileNotFoundError:
            return False
        if not is_kind(found.st_mode):
            raise NotBuiltError(f"{place} is not what it should be: remove it")
        if found.st_uid != os.getuid():
            raise NotBuiltError(f"{place} belongs to another user: set XDG_CACHE_HOME to a folder of your own")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise NotBuiltError(f"{place} can be written by others: remove it, or change its mode")
    return True


def _build(compiler: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Into a name of its own, then in one step to the one that others look for.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        draft = Path(folder) / path.name
        command = [*compiler, *_flags(), "-o", str(draft), *(str(FOLDER / name) for name in SOURCES)]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=BUILD_SECONDS)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
            raise NotBuiltError(f"{compiler[0]} could not build it ({lines[0]})") from error
        except subprocess.TimeoutExpired as error:
            raise NotBuiltError(f"{compiler[0]} took more than {BUILD_SECONDS} seconds") from error
        draft.chmod(0o700)
        draft.replace(path)
