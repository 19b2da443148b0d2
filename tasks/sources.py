"""Digests of the code behind a stage: an edited source makes its results count no more."""

import ast
import functools
import hashlib
import importlib.util
import threading
from pathlib import Path
from typing import Any, Final

from rnnlm_core.config import OWN_NAMES
from rnnlm_core.extensions import Kind, digests
from rnnlm_core.native import HEADER, SOURCES

NAMED: Final[dict[str, Kind]] = {"cell": "cell", "level": "tokenizer", "normalizer": "normalizer"}
"""The arguments of stages that name what another package may bring; later stages know it from what they are handed."""


def others_digests(inputs: dict[str, Any], *, now: bool = False) -> dict[str, str]:
    """Return digests of the code of what the inputs of a stage name and other packages bring.

    They are those of the first look of this process, which has imported that; with `now` the files are read again.
    """
    named = ((kind, inputs.get(argument)) for argument, kind in NAMED.items())
    others = {kind: name for kind, name in named if isinstance(name, str) and name not in OWN_NAMES[kind]}
    return digests(others, now=now)


@functools.cache
def source_digest(module: str) -> str:
    """Return the digest of a core module and of all that it imports, as it was at the first look of this process."""
    return present_digest(module)


def present_digest(module: str) -> str:
    """Return the digest of a core module and of every core module it imports, directly or not, native kernels too."""
    digest = hashlib.sha256()
    for name in sorted(_with_imports(module)):
        digest.update(name.encode() + b"\0" + _source(name).read_bytes())
        if name == "rnnlm_core.native":
            for kernel in (*SOURCES, HEADER):
                digest.update(kernel.encode() + b"\0" + _source(name).with_name(kernel).read_bytes())
    return digest.hexdigest()


def _with_imports(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            with _parsing:
                waiting.extend(_imports(_source(name).read_bytes()))
    return found


_parsing = threading.Lock()
"""Parsing in several threads at once fails in Python 3.11 (gh-106905)."""


@functools.cache
def _imports(source: bytes) -> tuple[str, ...]:
    """Return the core modules that a source imports; most sources are asked for by every stage."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rnnlm_core"):
            found.append(node.module)
            if node.module == "rnnlm_core":
                found.extend(f"rnnlm_core.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names if alias.name.startswith("rnnlm_core"))
    return tuple(found)


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return Path(spec.origin)
