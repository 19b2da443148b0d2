"""Artifacts by content: a handle is a kind and a sha256, the place follows from the digest.

An artifact is a folder of files and a `manifest.json` that lists their sizes and digests; the digest of the
manifest is the artifact's name. It appears complete, by one rename, and is verified before it is believed. The
store knows nothing of what the files mean, nor of who asks. The folder is what is worked on; a remote, if there is one,
receives each artifact when it is published and is asked for those that are not here.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.errors import IntegrityError, ResourceError

MANIFEST = "manifest.json"
DRAFT = ".draft-"
UNFINISHED = ".tmp"
FULL = (errno.ENOSPC, errno.EDQUOT)
ABANDONED_SECONDS = 60.0
"""Younger drafts are left alone: their owner may not have locked them yet."""


@dataclass(frozen=True)
class Handle:
    """Names an artifact: what it is (`text`, `tokens`, `vocabulary`, `corpus`, `model`, …) and its digest."""

    kind: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.sha256[:12]}"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Make sure that a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either the old one or the new one, never a part: temporary name, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, len(data))
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _mark_as_ours(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(name).chmod(0o644)  # temporary files are made for their owner alone
            crashpoint("written")
            Path(name).replace(path)
            crashpoint("replaced")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_file(path.parent)


def check_space(folder: Path, num_bytes: int) -> None:
    """Raise `ResourceError` when `folder`'s disk has no room for so many bytes: a disk that fills up loses more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ResourceError(
            "no space left", f"{folder} has {free:,} bytes free, {num_bytes:,} are needed", "free some space"
        )


def _mark_as_ours(descriptor: int) -> None:
    """Hold a lock as long as this process lives: what nobody holds was left behind (the kernel frees it on a kill)."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other thread or process changes what is published in this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_abandoned(path: Path) -> bool:
    """Say whether a draft or a temporary file has lost the process that was writing it."""
    try:
        if time.time() - path.stat().st_mtime < ABANDONED_SECONDS:
            return False
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # finished or removed in between
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def sweep_files(folder: Path) -> list[Path]:
    """Remove what `write_atomically` left under a folder when its process was killed; return what was removed."""
    left = [path for path in folder.glob(f"**/.*{UNFINISHED}") if is_abandoned(path)]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def folder_fault(folder: Path, sha256: str = "") -> str:
    """Return what is wrong with a folder that was published, in a few words, or "" if it is whole.

    `sha256` is the artifact's digest; without it the manifest is taken at its word.
    """
    try:
        return _fault(folder, sha256)
    except (FileNotFoundError, NotADirectoryError):  # also when it is removed while it is read
        return "is missing"


def _fault(folder: Path, sha256: str) -> str:
    files = manifest_files((folder / MANIFEST).read_bytes(), sha256)
    if files is None:
        return "has a changed manifest"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if strange := sorted(there - files.keys() - {MANIFEST}):
        return f"has a file too many, {strange[0]}"
    for name, (num_bytes, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != num_bytes or file_sha256(path) != digest:
            return f"has a damaged {name}"
    return ""


def manifest_files(manifest: bytes, sha256: str = "") -> dict[str, tuple[int, str]] | None:
    """Return size and digest of each file that a manifest lists, None if it is not the manifest of this digest."""
    if sha256 and hashlib.sha256(manifest).hexdigest() != sha256:
        return None
    try:
        files = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in json.loads(manifest)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    # Who writes a manifest chooses its digest as well: a name shall not lead out of the artifact's folder.
    paths = map(PurePosixPath, files)
    return None if any(path.is_absolute() or ".." in path.parts for path in paths) else files


def _names_an_artifact(handle: Handle) -> bool:
    return re.fullmatch("[a-z]+/[0-9a-f]{64}", f"{handle.kind}/{handle.sha256}") is not None


class Sharing(Protocol):
    """What a store asks of the remote that it shares its artifacts through (`remote.py` has them)."""

    def holds(self, handle: Handle) -> bool:
        """Say whether an artifact is there, by its manifest."""

    def upload(self, handle: Handle, folder: Path) -> None:
        """Put an artifact there."""

    def download(self, handle: Handle, folder: Path) -> str:
        """Fetch an artifact into a folder; return what is wrong with it."""

    def withdraw(self, handle: Handle) -> None:
        """Take a damaged artifact back."""

    def discard(self, handle: Handle) -> None:
        """Remove an artifact that nobody will ask for again."""

    def read(self, name: str) -> bytes | None:
        """Return a file that stands beside the artifacts, None if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write such a file."""

    def remove(self, name: str) -> None:
        """Remove such a file."""


class Store:
    """A folder of artifacts: `root/kind/sha256/`, and the remote that they are shared through, if any."""

    def __init__(self, root: Path, remote: Sharing | None = None) -> None:
        self.root, self.remote = root, remote

    def path(self, handle: Handle) -> Path:
        """Return where the artifact lies (whether it is there or not).

        Raises `IntegrityError` for what names no artifact: it could be any place.
        """
        if not _names_an_artifact(handle):
            raise IntegrityError("not the name of an artifact", f"{handle.kind}/{handle.sha256}", "make it again")
        return self.root / handle.kind / handle.sha256

    def open(self, handle: Handle) -> Path:
        """Return the artifact's folder after verifying every file in it; what is not here is fetched.

        Raises `IntegrityError` if it is missing, incomplete or changed.
        """
        fault = self.bring(handle)
        if fault:
            raise IntegrityError(
                f"artifact {handle} {fault}", self.path(handle), "run the same command again to rebuild it"
            )
        return self.path(handle)

    def fault(self, handle: Handle) -> str:
        """Return what is wrong with the artifact in this folder in a few words, or "" if it is whole."""
        if not _names_an_artifact(handle):
            return "is no name of an artifact"
        return folder_fault(self.path(handle), handle.sha256)

    def bring(self, handle: Handle) -> str:
        """Fetch an artifact from the remote unless it is whole here; return what is wrong with it after that.

        A copy that does not verify is withdrawn: whoever makes the artifact again uploads it again.
        """
        fault = self.fault(handle)
        if not fault or self.remote is None or not _names_an_artifact(handle):
            return fault
        with self.draft(handle.kind) as draft:
            theirs = self.remote.download(handle, draft.folder)
            if not theirs:
                draft.settle(handle)
                return ""
        if theirs == "is missing":
            return fault
        self.remote.withdraw(handle)
        return f"{fault}, and the copy in {self.remote} {theirs}"

    def loss(self, handle: Handle) -> str:
        """Return what `bring` would, by all that can be told without fetching: the remote's manifest is believed."""
        fault = self.fault(handle)
        if not fault or self.remote is None or not _names_an_artifact(handle):
            return fault
        return "" if self.remote.holds(handle) else fault

    def fault_of_copy(self, handle: Handle) -> str:
        """Read the remote's copy of an artifact and return what is wrong with it; nothing of it is kept."""
        assert self.remote is not None
        with self.draft(handle.kind) as draft:
            return self.remote.download(handle, draft.folder)

    def handles(self, kind: str = "*") -> Iterator[Handle]:
        """Yield every artifact that is there (of one kind), whole or not."""
        for kind_folder in sorted(path for path in self.root.glob(kind) if path.is_dir()):
            for folder in sorted(kind_folder.iterdir()):
                handle = Handle(kind_folder.name, folder.name)
                if folder.is_dir() and _names_an_artifact(handle):
                    yield handle

    def remove(self, handle: Handle) -> None:
        """Remove an artifact in a way that a kill leaves a draft to be swept, never a part of it in its place."""
        doomed = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self.root / handle.kind))
        try:
            self.path(handle).rename(doomed / "removed")
            crashpoint("removed")
        except FileNotFoundError:  # another process removed it
            pass
        finally:
            shutil.rmtree(doomed, ignore_errors=True)

    def discard(self, handle: Handle) -> None:
        """Remove an artifact here and in the remote: nobody will ask for it again."""
        if self.path(handle).exists():
            self.remove(handle)
        if self.remote is not None:
            self.remote.discard(handle)

    def remove_damaged(self, handle: Handle) -> str:
        """Remove an artifact unless it is whole (again); return what was wrong with it, or "" if it stays."""
        with _alone_in(self.path(handle).parent):
            fault = self.fault(handle)
            if fault:
                self.remove(handle)
        return fault

    def sweep(self) -> list[Path]:
        """Remove the drafts and temporary files of processes that are gone; return what was removed."""
        drafts = [path for path in self.root.glob(f"*/{DRAFT}*") if is_abandoned(path)]
        for path in drafts:
            shutil.rmtree(path, ignore_errors=True)
        return drafts + sweep_files(self.root)

    @contextmanager
    def draft(self, kind: str) -> Iterator["Draft"]:
        """Give a temporary folder to fill; `Draft.publish()` turns it into an artifact, leaving without does not."""
        parent = self.root / kind
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=DRAFT, dir=parent))
            descriptor = os.open(folder, os.O_RDONLY)
            _mark_as_ours(descriptor)
        except OSError as error:
            raise ResourceError(
                "cannot write artifacts", f"{parent} ({error.strerror})", "free or change the folder"
            ) from error
        crashpoint(f"drafted:{kind}")
        try:
            yield Draft(self, kind, folder)
        except OSError as error:
            if error.errno not in FULL:
                raise
            written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            free = shutil.disk_usage(parent).free
            value = f"{parent} had {written + free:,} bytes free, the {kind} needs more"
            raise ResourceError("no space left", value, "free some space") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


class Draft:
    """An artifact in the making."""

    def __init__(self, store: Store, kind: str, folder: Path) -> None:
        self.store, self.kind, self.folder = store, kind, folder
        self.adopted: dict[str, dict[str, int | str]] = {}

    def adopt(self, handle: Handle, file: str, name: str) -> None:
        """Take over a file of an artifact under a name of one's own, with the size and digest it has there.

        Its bytes are shared where the disk can do that, and are not read: were they damaged, this artifact would be
        found damaged too. Raises `IntegrityError` if the artifact is not there or has no such file.
        """
        folder = self.store.path(handle)
        if not folder.exists():
            self.store.open(handle)
        manifest = (folder / MANIFEST).read_bytes()
        listed = json.loads(manifest)["files"] if hashlib.sha256(manifest).hexdigest() == handle.sha256 else {}
        if file not in listed or not (folder / file).is_file():
            fault = "has a changed manifest" if file not in listed else f"lacks {file}"
            raise IntegrityError(f"artifact {handle} {fault}", folder, "run the same command again to rebuild it")
        try:
            os.link(folder / file, self.folder / name)
        except OSError as error:
            if error.errno in FULL:
                raise
            shutil.copyfile(folder / file, self.folder / name)
        self.adopted[name] = listed[file]

    def publish(self) -> Handle:
        """Seal the folder with its manifest, move it to its place, upload it; equal content is kept once."""
        crashpoint(f"filled:{self.kind}")
        files: dict[str, dict[str, int | str]] = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name = path.relative_to(self.folder).as_posix()
            files[name] = self.adopted.get(name) or {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            sync_file(path)
        manifest = json.dumps({"kind": self.kind, "files": files}, indent=1, sort_keys=True).encode()
        handle = Handle(self.kind, hashlib.sha256(manifest).hexdigest())
        (self.folder / MANIFEST).write_bytes(manifest)
        self.settle(handle)
        if self.store.remote is not None:
            self.store.remote.upload(handle, self.store.path(handle))
        return handle

    def settle(self, handle: Handle) -> None:
        """Move a folder that has its manifest to its place."""
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            sync_file(path)
        sync_file(self.folder)
        self.folder.chmod(0o755)
        crashpoint(f"sealed:{self.kind}")
        place = self.store.path(handle)
        if self.store.fault(handle):
            with _alone_in(place.parent):
                # Another one may have published the same content since: only what is still damaged gives way.
                if self.store.fault(handle):
                    if place.exists():
                        self.store.remove(handle)
                    self.folder.rename(place)
            sync_file(place.parent)
        crashpoint(f"published:{self.kind}")
