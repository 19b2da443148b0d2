"""The one cache policy of all stages: what was done is not done again, and what is not there is not believed.

The key of a stage is its name, what identifies its inputs, and a digest of the core sources it runs. Paths, run ids
and hosts are no part of it. A record is JSON; it counts only while every artifact it names verifies and every MLflow
run it names exists.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.serializers import Serializer
from prefect.settings import get_current_settings
from prefect.transactions import IsolationLevel
from pydantic import TypeAdapter

from rnnlm_core.errors import ResourceError
from rnnlm_core.native import HEADER, SOURCES
from rnnlm_core.store import Handle, check_space
from tasks import progress, tracked_runs, workspace
from tasks.locking import KernelLocks

Result = TypeVar("Result")
READER: Final = "rnnlm-verified"
LARGEST_WRAPPING: Final = 4096
"""Bytes that Prefect writes around a record (which it also escapes) at most."""
RESULTS: dict[str, type] = {}
"""The classes a record can hold, by name: nothing else is ever built from one."""


class NoIdentity(Exception):  # noqa: N818 - no error: an input whose content nobody knows yet
    """The content of an input is not known beforehand, so the stage has no key and always runs."""


class NotWhole(Exception):  # noqa: N818 - tells Prefect that a record does not count
    """A record names something that is gone or changed."""


class Stage(Task[..., Result]):
    """A task of a module, which another process finds there instead of getting a copy.

    So the class of its result is known wherever the task is, and what a stage needs is what is installed there.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Name the place where the task stands."""
        return _stage_of, (self.fn.__module__, self.fn.__qualname__)


def _stage_of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def stage(
    core_module: str, result: type, task_run_name: str = "", **options: Any
) -> Callable[[Callable[..., Result]], Task[..., Result]]:
    """Make a function a cached Prefect task that runs `core_module` and returns a `result` (a dataclass).

    Its runs are called `task_run_name` (which may use the arguments), or like the function.
    """
    RESULTS[result.__name__] = result
    source_digest(core_module)  # now, in one thread: parsing in several at once fails in Python 3.11 (gh-106905)

    def decorate(function: Callable[..., Result]) -> Task[..., Result]:
        return Stage(
            function,
            name=function.__name__,
            task_run_name=task_run_name or function.__name__,
            cache_policy=ContentPolicy(core_module=core_module).configure(
                isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=KernelLocks()
            ),
            persist_result=True,
            result_serializer=VerifiedSerializer(),
            cache_result_in_memory=False,
            **options,
        )

    return decorate


@dataclasses.dataclass
class ContentPolicy(CachePolicy):
    """Keys by content: task name + identity of the inputs + digest of the core sources behind `core_module`."""

    core_module: str = ""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002 - Prefect's signature
        **_: Any,
    ) -> str | None:
        """Return the key, or None when the content of an input is not known beforehand."""
        try:
            key = cache_key(task_ctx.task.name, inputs, self.core_module)
            if key is not None:
                _drop_foreign_record(key)
        except Exception as error:
            # Prefect would go on without a word on the screen, and the work would be lost to the cache.
            progress.warn("cache", f"no key for {task_ctx.task.name}, its result will not be kept: {error!r}")
            raise
        return key


def _drop_foreign_record(key: str) -> None:
    """Remove a record that names another reader than ours: Prefect would let it choose one, pickle included."""
    record = Path(get_current_settings().results.local_storage_path) / key
    with KernelLocks().if_free(key) as free:
        if free:  # otherwise another run is writing it
            _drop_unless_ours(record)


def _drop_unless_ours(record: Path) -> None:
    try:
        reader = json.loads(record.read_bytes())["metadata"]["serializer"]["type"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError):
        reader = None
    if reader != READER:
        if record.is_dir():
            shutil.rmtree(record)
        else:
            record.unlink(missing_ok=True)
        progress.warn("cache", f"not a record of ours: {record}: removed, doing it again")


def cache_key(name: str, inputs: dict[str, Any], core_module: str) -> str | None:
    """Return `<stage>-<digest>` for these inputs, or None when one of them has no identity yet."""
    try:
        content = {argument: identity(value) for argument, value in inputs.items()}
    except NoIdentity:
        return None
    text = json.dumps([name, content, source_digest(core_module)], sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()}"


def identity(value: Any) -> Any:
    """Return what of an input counts for the key, as plain data.

    An object may say it itself with `cache_identity()`; None there means that nobody knows yet.
    """
    if hasattr(value, "cache_identity"):
        said = value.cache_identity()
        if said is None:
            raise NoIdentity
        return identity(said)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: identity(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [identity(part) for part in value]
    if isinstance(value, dict):
        return {str(key): identity(part) for key, part in value.items()}
    raise TypeError(f"no identity for {type(value).__name__}")


@functools.cache
def source_digest(module: str) -> str:
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
        if name in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(_source(name).read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rnnlm_core"):
                waiting.append(node.module)
                if node.module == "rnnlm_core":
                    waiting.extend(f"rnnlm_core.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                waiting.extend(alias.name for alias in node.names if alias.name.startswith("rnnlm_core"))
    return found


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


class VerifiedSerializer(Serializer):
    """Writes results as JSON, and reads them only while what they name is whole."""

    type: Literal["rnnlm-verified"] = READER

    def dumps(self, obj: Any) -> bytes:
        """Return the record of a result; the record of a failure never counts."""
        if isinstance(obj, BaseException):
            return json.dumps({"failure": repr(obj)}).encode()
        record = json.dumps({"result": type(obj).__name__, "value": dataclasses.asdict(obj)}).encode()
        _warn_without_space(type(obj).__name__, record)
        return record

    def loads(self, blob: bytes) -> Any:
        """Return the result of a record; raises `NotWhole` (a miss, for Prefect) if it names what is not there."""
        record = json.loads(blob)
        if "failure" in record:
            raise NotWhole(record["failure"])
        result = read_result(record)
        for fault in faults(result):
            _warn_once(record["result"], fault)
            raise NotWhole(fault)
        return result


def _warn_without_space(what: str, record: bytes) -> None:
    """Say what Prefect only logs: it goes on without the record, and what was done will not be found."""
    folder = Path(get_current_settings().results.local_storage_path)
    try:
        check_space(folder if folder.exists() else workspace.artifacts().parent, 2 * len(record) + LARGEST_WRAPPING)
    except ResourceError as error:
        progress.warn("cache", f"the record of {what} cannot be kept, the next run does it again: {error}")


def read_result(record: dict[str, Any]) -> Any:
    """Return the result that a record holds, unverified; raises `ValueError` or `KeyError` if it is none of ours."""
    return TypeAdapter(RESULTS[record["result"]]).validate_python(record["value"])


def record_fault(record: Path) -> str:
    """Return why a record does not count, in a few words, or "" if it does."""
    try:
        content = json.loads(record.read_bytes())
        if content.keys() == {"failure"}:  # a flow's; Prefect keeps failures, and nothing is ever read from them
            return ""
        if content["metadata"]["serializer"]["type"] != READER:
            return "not a record of ours"
        result = json.loads(content["result"])
        if "failure" in result:
            return ""
        return next(faults(read_result(result)), "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "damaged"


def faults(result: Any) -> Iterator[str]:
    """Yield what is wrong with the artifacts and MLflow runs that a result names."""
    if isinstance(result, Handle):
        fault = workspace.store().fault(result)
        if fault:
            yield f"artifact {result} {fault}"
    elif dataclasses.is_dataclass(result):
        for item in dataclasses.fields(result):
            value = getattr(result, item.name)
            if item.name == "run_id":
                if not tracked_runs.run_exists(value):
                    yield f"MLflow run {value} is gone"
            else:
                yield from faults(value)
    elif isinstance(result, list | tuple):
        for part in result:
            yield from faults(part)


_warned: set[str] = set()


def _warn_once(what: str, fault: str) -> None:
    if fault not in _warned:
        _warned.add(fault)
        progress.warn("cache", f"{fault}: doing it again ({what})")
