"""The one cache policy of all stages: what was done is not done again, and what is not there is not believed.

The key of a stage is its name, what identifies its inputs, and a digest of the core sources it runs. Paths, run ids
and hosts are no part of it. A record is JSON; it counts only while every artifact it names verifies and every MLflow
run it names exists. Where hosts share their artifacts they share the records as well, each judged where it is read.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
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
from rnnlm_core.store import Handle, check_space, write_atomically
from tasks import progress, tracked_runs, workspace
from tasks.locking import KernelLocks
from tasks.sources import others_digests, present_digest, source_digest

Result = TypeVar("Result")
READER: Final = "rnnlm-verified"
LARGEST_WRAPPING: Final = 4096
"""Bytes that Prefect writes around a record (which it also escapes) at most."""
RECORDS: Final = "records"
"""The folder of the records that hosts share."""
NO_RECORD: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a record raises that is none."""
RESULTS: dict[str, type] = {}
"""The classes a record can hold, by name: nothing else is ever built from one."""


class NoIdentity(Exception):  # noqa: N818 - no error: an input whose content nobody knows yet
    """The content of an input is not known beforehand, so the stage has no key and always runs."""


class NotWhole(Exception):  # noqa: N818 - tells Prefect that a record does not count
    """A record names something that is gone or changed."""


class ForeignRecordError(ValueError):
    """A record that names another reader than ours."""


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
    source_digest(core_module)  # of the sources that are imported now, or soon

    def decorate(function: Callable[..., Result]) -> Task[..., Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, **named: Any) -> Result:
            done = function(*args, **named)
            inputs = signature.bind(*args, **named)
            inputs.apply_defaults()
            if is_edited(inputs.arguments, core_module):
                _edited.add(cache_key(function.__name__, inputs.arguments, core_module) or "")
            return done

        return Stage(
            run,
            name=function.__name__,
            task_run_name=task_run_name or function.__name__,
            cache_policy=ContentPolicy(core_module=core_module).configure(
                isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=RecordLocks()
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
                _fetch_record(key)
        except Exception as error:
            # Prefect would go on without a word on the screen, and the work would be lost to the cache.
            progress.warn("cache", f"no key for {task_ctx.task.name}, its result will not be kept: {error!r}")
            raise
        return key


def _drop_foreign_record(key: str) -> None:
    """Remove a record that names another reader than ours: Prefect would let it choose one, pickle included."""
    record = _record(key)
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


class RecordLocks(KernelLocks):
    """Locks of records that travel: what was recorded under one is shared before it is freed."""

    def release_lock(self, key: str, holder: str) -> None:
        """Share the record, or remove that of code which has changed meanwhile; then do what `KernelLocks` does."""
        name = Path(key).name
        try:
            if name in _edited:
                _edited.discard(name)
                _record(name).unlink(missing_ok=True)
                told = "its code has changed since this command began: the next run does it again"
                progress.warn("cache", f"{name.partition('-')[0]}: {told}")
            else:
                _share_record(name)
        finally:
            super().release_lock(key, holder)


def _fetch_record(key: str) -> None:
    """Take over another host's record of what is not on record here, if it counts here."""
    record = _record(key)
    remote = None if record.exists() else workspace.remote()
    if remote is None:
        return
    try:
        content = remote.read(f"{RECORDS}/{key}")
        if content is None or content_fault(content):
            return
    except ResourceError as error:
        progress.warn("cache", f"records of other hosts are not looked at: {error}")
        return
    with KernelLocks().if_free(key) as free:
        if free and not record.exists():
            write_atomically(record, content)


def _share_record(key: str) -> None:
    """Give the other hosts a record and all that it names; the record of a failure stays here."""
    remote = workspace.remote()
    if remote is None:
        return
    try:
        content = _record(key).read_bytes()
        result = _result(content)
    except (*NO_RECORD, OSError):  # nothing was recorded
        return
    try:
        if result is None or remote.read(f"{RECORDS}/{key}") == content:
            return
        for handle in _handles(result):
            if (folder := workspace.store().path(handle)).is_dir():  # recorded before there was a remote
                remote.upload(handle, folder)
        remote.write(f"{RECORDS}/{key}", content)
    except ResourceError as error:
        # Prefect would log it and take the stage back, which is done.
        progress.warn("cache", f"the record of {key.partition('-')[0]} is not shared with other hosts: {error}")


_edited: set[str] = set()
"""Keys of what was done while its code changed: nobody knows by which."""


def is_edited(inputs: dict[str, Any], core_module: str) -> bool:
    """Whether the code behind a stage is not any more what this process has begun with."""
    try:
        if present_digest(core_module) != source_digest(core_module):
            return True
        return others_digests(inputs, now=True) != others_digests(inputs)
    except (OSError, SyntaxError, ValueError, ImportError):  # somebody is in the middle of an edit
        return True


def _record(key: str) -> Path:
    return Path(get_current_settings().results.local_storage_path) / key


def cache_key(name: str, inputs: dict[str, Any], core_module: str) -> str | None:
    """Return `<stage>-<digest>` for these inputs, or None when one of them has no identity yet."""
    try:
        content = {argument: identity(value) for argument, value in inputs.items()}
    except NoIdentity:
        return None
    said: list[Any] = [name, content, source_digest(core_module)]
    if others := others_digests(inputs):
        said.append(others)
    text = json.dumps(said, sort_keys=True)
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
        for fault in faults(result, _bring):
            _warn_once(f"{fault}: doing it again ({record['result']})")
            raise NotWhole(fault)
        return result


def _warn_without_space(what: str, record: bytes) -> None:
    """Say what Prefect only logs: it goes on without the record, and what was done will not be found."""
    folder = _record("")
    try:
        check_space(folder if folder.exists() else workspace.artifacts().parent, 2 * len(record) + LARGEST_WRAPPING)
    except ResourceError as error:
        progress.warn("cache", f"the record of {what} cannot be kept, the next run does it again: {error}")


def read_result(record: dict[str, Any]) -> Any:
    """Return the result that a record holds, unverified; raises `ValueError` or `KeyError` if it is none of ours."""
    return TypeAdapter(RESULTS[record["result"]]).validate_python(record["value"])


def record_fault(record: Path) -> str:
    """Return why a record does not count, in a few words, or "" if it does."""
    return content_fault(record.read_bytes())


def content_fault(record: bytes) -> str:
    """Return what `record_fault` does, for the bytes of a record."""
    try:
        return next(faults(_result(record), workspace.store().loss), "")
    except ForeignRecordError:
        return "not a record of ours"
    except NO_RECORD:
        return "damaged"


def _result(record: bytes) -> Any:
    """Return the result that a record as Prefect writes it holds, None for that of a failure.

    Raises one of `NO_RECORD` if it is none.
    """
    content = json.loads(record)
    if content.keys() == {"failure"}:  # a flow's; Prefect keeps failures, and nothing is ever read from them
        return None
    if content["metadata"]["serializer"]["type"] != READER:
        raise ForeignRecordError
    result = json.loads(content["result"])
    return None if "failure" in result else read_result(result)


def _bring(handle: Handle) -> str:
    """Return what is wrong with an artifact that cannot be had; say when a damaged one was replaced."""
    store = workspace.store()
    fault = store.fault(handle)
    lost = fault and store.bring(handle)
    if fault not in ("", "is missing") and not lost:
        _warn_once(f"artifact {handle} {fault}: fetched from {store.remote}")
    return lost


def _handles(result: Any) -> Iterator[Handle]:
    """Yield the artifacts that a result names."""
    if isinstance(result, Handle):
        yield result
    elif dataclasses.is_dataclass(result):
        for item in dataclasses.fields(result):
            yield from _handles(getattr(result, item.name))
    elif isinstance(result, list | tuple):
        for part in result:
            yield from _handles(part)


def faults(result: Any, fault_of: Callable[[Handle], str]) -> Iterator[str]:
    """Yield what is wrong with the artifacts (as `fault_of` sees them) and MLflow runs that a result names."""
    if isinstance(result, Handle):
        fault = fault_of(result)
        if fault:
            yield f"artifact {result} {fault}"
    elif dataclasses.is_dataclass(result):
        for item in dataclasses.fields(result):
            value = getattr(result, item.name)
            if item.name == "run_id":
                if not tracked_runs.run_exists(value):
                    yield f"MLflow run {value} is gone"
            else:
                yield from faults(value, fault_of)
    elif isinstance(result, list | tuple):
        for part in result:
            yield from faults(part, fault_of)


def is_recorded(key: str) -> bool:
    """Say whether a result is on record, here or where hosts share a store, and what it names is whole."""
    _fetch_record(key)
    try:
        result = _result(_record(key).read_bytes())
    except (*NO_RECORD, OSError):
        return False
    return result is not None and not any(faults(result, _bring))


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        progress.warn("cache", text)
