"""Where hosts share their artifacts: the files of a store under the same names, in a folder or bucket, through fsspec.

`KIND/SHA256/` holds an artifact once its manifest lies there, which is uploaded last and whose digest is the artifact's
name: half an upload is none, and the next one of the same artifact finishes it. What comes from there is believed as
little as what lies on a disk. Beside the artifacts lie small files (checkpoint lists, records), each written at once.
"""

import functools
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.errors import ResourceError, UsageError, unknown_name
from rnnlm_core.store import MANIFEST, UNFINISHED, Handle, check_space, folder_fault, manifest_files

SCHEMES = ("file", "s3", "gs", "abfs", "sftp", "hdfs")
"""`file` and `s3` come with what is installed, the others need the package of fsspec's that speaks them."""
RULE = "`RNNLM_STORE` must be an address such as s3://bucket/folder or file:///shared/folder"
REMEDY = "see to the address, its keys and the network, or unset `RNNLM_STORE`; then run the same command again"
FORGOTTEN = timedelta(days=1)
"""What is younger and unfinished may be an upload under way on another host."""
ATTEMPTS = 5
CONNECT_SECONDS = 10
IN_ARTIFACT = "([a-z]+)/([0-9a-f]{64})/"
CHUNK = 8 << 20
"""Bytes per request to a bucket."""


@functools.cache
def connect(url: str) -> "Remote":
    """Return what an address names; one connection per process.

    Raises `UsageError` for what is no such address, `ResourceError` if folder or bucket are not there.
    """
    parts = urlsplit(url)
    if "://" not in url or not (parts.netloc + parts.path).strip("/"):
        raise UsageError(RULE, url, f"correct or unset it (known: {', '.join(SCHEMES)})")
    if parts.scheme not in SCHEMES:
        raise unknown_name("kind of address in `RNNLM_STORE`", parts.scheme, list(SCHEMES))
    if parts.password or parts.query or parts.fragment or (parts.scheme == "s3" and parts.username):
        shown = f"{parts.scheme}://***@{parts.hostname or ''}" if parts.password or parts.username else url
        raise UsageError("`RNNLM_STORE` names a place, no keys and no options", shown, "put keys into the environment")
    filesystem, root, needed = _open_s3(parts) if parts.scheme == "s3" else _open_other(url, parts)
    remote = Remote(url.rstrip("/"), filesystem, root, has_renames=parts.scheme == "file")
    if needed and not remote.exists(needed):
        raise ResourceError("no such bucket or folder", f"{url} ({needed})", "create it, or correct `RNNLM_STORE`")
    return remote


def _open_s3(parts: SplitResult) -> tuple[Any, str, str]:
    """Return file system, root and what must exist. PyArrow's client: s3fs pins a botocore that MLflow's is not."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    # The other names of AWS's environment are read by the client itself; these two only by `S3FileSystem.from_uri`.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    filesystem = S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or None,
        connect_timeout=CONNECT_SECONDS,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
    root = f"{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
    return ArrowFSWrapper(filesystem, skip_instance_cache=True), root, parts.netloc


def _open_other(url: str, parts: SplitResult) -> tuple[Any, str, str]:
    import fsspec

    try:
        filesystem, root = fsspec.url_to_fs(url, **({"auto_mkdir": True} if parts.scheme == "file" else {}))
    except ImportError as error:
        raise ResourceError(f"{parts.scheme}:// needs a package", url, str(error)) from error
    except (OSError, ValueError) as error:
        raise ResourceError("the shared store cannot be used", f"{url} ({error})", REMEDY) from error
    # A share that is not mounted shall not become a folder of this machine.
    return filesystem, root, root if parts.scheme == "file" else ""


class Remote:
    """Files under one address.

    Every method raises `ResourceError` if the place does not answer, or refuses, after the attempts of its client.
    """

    def __init__(self, url: str, filesystem: Any, root: str, has_renames: bool) -> None:
        self.url, self.filesystem, self.root, self.has_renames = url, filesystem, root, has_renames

    def __str__(self) -> str:
        return self.url

    # Small files

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if there is none."""
        with self._told():
            try:
                content: bytes = self.filesystem.cat_file(f"{self.root}/{name}")
            except (FileNotFoundError, NotADirectoryError):
                return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file at once: it is the old one or the new one."""
        with self._told(), self._sink(name) as sink:
            sink.write(content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._told(), suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{self.root}/{name}")

    def exists(self, place: str) -> bool:
        """Whether a bucket or folder is there (named in full)."""
        with self._told():
            return bool(self.filesystem.exists(place))

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all files, or of those under a folder."""
        with self._told():
            found = self.filesystem.find(f"{self.root}/{folder}".rstrip("/"))
        return sorted(str(path).removeprefix(f"{self.root}/") for path in found)

    def is_forgotten(self, name: str) -> bool:
        """Whether a file is older than any upload under way; False if it is gone."""
        with self._told(), suppress(FileNotFoundError):
            modified: datetime = self.filesystem.modified(f"{self.root}/{name}")
            return datetime.now(UTC) - modified.astimezone(UTC) > FORGOTTEN
        return False

    # Artifacts

    def handles(self, kind: str = "") -> Iterator[Handle]:
        """Yield every artifact whose manifest is there (of one kind), whole or not."""
        for name in self.names(kind):
            if found := re.fullmatch(IN_ARTIFACT + MANIFEST, name):
                yield Handle(*found.groups())

    def holds(self, handle: Handle) -> bool:
        """Whether an artifact was uploaded to its end; its files are not read."""
        manifest = self.read(_manifest(handle))
        return manifest is not None and manifest_files(manifest, handle.sha256) is not None

    def upload(self, handle: Handle, folder: Path) -> None:
        """Copy an artifact there, its manifest last, unless it is there."""
        if self.holds(handle):
            return
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
            name = f"{_folder(handle)}/{path.relative_to(folder).as_posix()}"
            with path.open("rb") as source, self._told(), self._sink(name) as sink:
                shutil.copyfileobj(source, sink, CHUNK)
        crashpoint("uploading")
        self.write(_manifest(handle), (folder / MANIFEST).read_bytes())
        crashpoint("uploaded")

    def download(self, handle: Handle, folder: Path) -> str:
        """Copy an artifact into an empty folder and verify it; return what is wrong with it, "" if it is whole."""
        manifest = self.read(_manifest(handle))
        if manifest is None:
            return "is missing"
        files = manifest_files(manifest, handle.sha256)
        if files is None:
            return "has a changed manifest"
        check_space(folder, sum(num_bytes for num_bytes, _ in files.values()))
        for name, (num_bytes, _) in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for chunk in self._chunks(f"{_folder(handle)}/{name}"):
                    file.write(chunk)
                    if file.tell() > num_bytes:
                        return f"has a damaged {name}"
        (folder / MANIFEST).write_bytes(manifest)
        return folder_fault(folder, handle.sha256)

    def withdraw(self, handle: Handle) -> None:
        """Take an artifact's manifest away: what lies there is none any more, until somebody uploads it again."""
        self.remove(_manifest(handle))

    def discard(self, handle: Handle) -> None:
        """Remove an artifact, so that a kill leaves an unfinished upload."""
        self.withdraw(handle)
        with self._told(), suppress(FileNotFoundError):
            self.filesystem.rm(f"{self.root}/{_folder(handle)}", recursive=True)

    def sweep(self) -> list[str]:
        """Remove what uploads that ended half-way left more than a day ago; return the names of what was removed."""
        names = self.names()
        whole = {name.removesuffix(MANIFEST) for name in names if re.fullmatch(IN_ARTIFACT + MANIFEST, name)}
        left = [
            name for name in names
            if ((part := re.match(IN_ARTIFACT, name)) and part[0] not in whole) or name.endswith(UNFINISHED)
        ]  # fmt: skip
        old = [name for name in left if self.is_forgotten(name)]
        for name in old:
            self.remove(name)
        return old

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell what the client reports in one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ResourceError("the shared store cannot be used", f"{self} ({reason})", REMEDY) from error

    def _chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file; nothing if it is not there."""
        with self._told():
            try:
                source = self.filesystem.open(f"{self.root}/{name}", "rb")
            except FileNotFoundError:
                return
        with source:
            while True:
                with self._told():
                    chunk = source.read(CHUNK)
                if not chunk:
                    return
                yield chunk

    @contextmanager
    def _sink(self, name: str) -> Iterator[Any]:
        """Give a file to write to, which appears once it is closed: in a bucket by itself, in a folder by a rename."""
        path = f"{self.root}/{name}"
        if not self.has_renames:
            with self.filesystem.open(path, "wb") as sink:
                yield sink
            return
        parent, _, last = path.rpartition("/")
        temporary = f"{parent}/.{last}.{secrets.token_hex(4)}{UNFINISHED}"
        try:
            with self.filesystem.open(temporary, "wb") as sink:
                yield sink
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _folder(handle: Handle) -> str:
    return f"{handle.kind}/{handle.sha256}"


def _manifest(handle: Handle) -> str:
    return f"{_folder(handle)}/{MANIFEST}"
