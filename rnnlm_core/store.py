"""Artifacts by content: a handle is a kind and a sha256, the place follows from the digest.

An artifact is a folder of files and a `manifest.json` that lists their sizes and digests; the digest of the
manifest is the artifact's name. It appears complete, by one rename, and is verified before it is believed. The
store knows nothing of what the files mean, nor of who asks.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rnnlm_core.errors import IntegrityError, ResourceError

MANIFEST = "manifest.json"


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
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # temporary files are made for their owner alone
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_file(path.parent)


class Store:
    """A folder of artifacts: `root/kind/sha256/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, handle: Handle) -> Path:
        """Return where the artifact lies (whether it is there or not)."""
        return self.root / handle.kind / handle.sha256

    def open(self, handle: Handle) -> Path:
        """Return the artifact's folder after verifying every file in it.

        Raises `IntegrityError` if it is missing, incomplete or changed.
        """
        fault = self.fault(handle)
        if fault:
            raise IntegrityError(
                f"artifact {handle} {fault}", self.path(handle), "run the same command again to rebuild it"
            )
        return self.path(handle)

    def fault(self, handle: Handle) -> str:
        """Return what is wrong with an artifact in a few words, or "" if it is whole."""
        folder = self.path(handle)
        try:
            manifest = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return "is missing"
        if hashlib.sha256(manifest).hexdigest() != handle.sha256:
            return "has a changed manifest"
        files = json.loads(manifest)["files"]
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if strange := sorted(there - files.keys() - {MANIFEST}):
            return f"has a file too many, {strange[0]}"
        for name, entry in files.items():
            path = folder / name
            if not path.is_file():
                return f"lacks {name}"
            if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
                return f"has a damaged {name}"
        return ""

    @contextmanager
    def draft(self, kind: str) -> Iterator["Draft"]:
        """Give a temporary folder to fill; `Draft.publish()` turns it into an artifact, leaving without does not."""
        parent = self.root / kind
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
        except OSError as error:
            raise ResourceError(
                "cannot write artifacts", f"{parent} ({error.strerror})", "free or change the folder"
            ) from error
        try:
            yield Draft(self, kind, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Draft:
    """An artifact in the making."""

    def __init__(self, store: Store, kind: str, folder: Path) -> None:
        self.store, self.kind, self.folder = store, kind, folder

    def publish(self) -> Handle:
        """Seal the folder with its manifest and move it to its place; equal content is kept once."""
        files = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            files[path.relative_to(self.folder).as_posix()] = {
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            sync_file(path)
        manifest = json.dumps({"kind": self.kind, "files": files}, indent=1, sort_keys=True).encode()
        handle = Handle(self.kind, hashlib.sha256(manifest).hexdigest())
        (self.folder / MANIFEST).write_bytes(manifest)
        sync_file(self.folder / MANIFEST)
        sync_file(self.folder)
        self.folder.chmod(0o755)
        place = self.store.path(handle)
        if place.exists() and self.store.fault(handle):
            shutil.rmtree(place)
        if not place.exists():
            try:
                self.folder.rename(place)
            except OSError:
                # Another process published the same content in between: keep its copy if it is whole.
                if self.store.fault(handle):
                    raise
            sync_file(place.parent)
        return handle
