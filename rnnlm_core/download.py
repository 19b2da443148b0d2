"""Where texts come from: the catalogue, a file or folder, an address, or Python's own documentation.

`resolve` says what a name means and looks at what lies on this machine without writing anything; `download` brings
the bytes into the store, checked against their digest. A mirror (`RNNLM_MIRROR`: a folder or an address holding the
catalogue's file names) is tried before the public addresses.
"""

import errno
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rnnlm_core.catalogue import CorpusFile, corpus_names, find_corpus
from rnnlm_core.config import SPLITS
from rnnlm_core.errors import (
    DataError,
    IntegrityError,
    NetworkError,
    ResourceError,
    RnnlmError,
    UsageError,
    one_line,
    suggestion,
)
from rnnlm_core.store import FULL, Handle, Store, check_space, file_sha256
from rnnlm_core.transfer import MOST_BYTES, Bounded, RefusedError, SlowError, is_loopback

MOST_RATIO = 200
"""How much larger than the archive its text may be."""
EMBEDDED = "python-docs"
LONGEST_NAME = 100
_SECRET = re.compile(r"([?&][^=&#]*(?:token|key|sig|secret|pass|auth|cred)[^=&#]*)=[^&#]*", re.IGNORECASE)
"""Parameters of an address that say by their name that nobody else should read them."""


@dataclass(frozen=True)
class Source:
    """What a corpus name means here and now.

    `files` maps each split (or `whole`) to the SHA-256 its bytes must have, "" if nobody promised one. `location`
    is the path or address, which is no part of the identity.
    """

    name: str
    kind: str
    location: str
    files: tuple[tuple[str, str], ...]

    @property
    def place(self) -> str:
        """Where a message says that the text is."""
        return without_password(self.location) or self.name

    def cache_identity(self) -> tuple[tuple[str, str], ...] | None:
        """The digests alone, or None when they are not known before the download."""
        return self.files if all(digest for _, digest in self.files) else None


@dataclass(frozen=True)
class Text:
    """What `download` returns: the artifact, its size, and the digest of the source bytes per file."""

    handle: Handle
    num_bytes: int
    sha256: dict[str, str]


def resolve(name: str) -> Source:
    """Return the source a corpus name stands for; local files are hashed, nothing is written or fetched."""
    if name == EMBEDDED:
        digest = hashlib.sha256(_embedded_text().encode()).hexdigest()
        return Source(name, "embedded", "", (("whole", digest),))
    if entry := find_corpus(name):
        files = tuple((file.split, file.text_sha256) for file in entry.files)
        return Source(name, "catalogue", "", files)
    if "://" in name:
        return _address(name)
    known = suggestion(name, list(corpus_names()))
    if not name.strip():
        raise UsageError("unknown corpus", repr(name), f"{known}; or give the path of a text")
    try:
        return _local(name, known)
    except (OSError, RuntimeError) as error:  # a home that is not there is a RuntimeError
        raise DataError("cannot read the text", name, getattr(error, "strerror", None) or str(error)) from error


def _local(name: str, known: str) -> Source:
    path = Path(name).expanduser()
    if not path.exists():
        if os.sep in name or path.suffix:
            raise DataError("no such file or folder", name, f"give a path that exists or a corpus name ({known})")
        raise UsageError("unknown corpus", name, f"{known}; or give the path of a text")
    files = tuple((split, _sha256_of(paths)) for split, paths in local_files(path).items())
    return Source(_shown_name(path.resolve().name), "local", str(path.resolve()), files)


def _shown_name(name: str) -> str:
    """Return a name from outside as it may be shown and stored: on one line, without control characters, short."""
    return one_line(name)[:LONGEST_NAME]


def download(source: Source, store: Store) -> Text:
    """Bring a text into the store.

    Raises:
        IntegrityError: no place had the promised bytes (both digests are named).
        NetworkError: nothing answered (what was tried is named).
    """
    # What arrives lies in a draft as well: after a kill it is swept like any other.
    with store.draft("text") as draft, store.draft("text") as arriving:
        digests = {}
        promised = dict(source.files)
        for split, path in texts(source, arriving.folder):
            target = draft.folder / f"{split}.txt"
            check_space(draft.folder, path.stat().st_size)
            shutil.copyfile(path, target)
            digests[split] = file_sha256(target)
            if promised[split] and digests[split] != promised[split]:
                raise IntegrityError(
                    "the text changed while it was read",
                    f"{source.place} (sha256 {promised[split]} before, {digests[split]} now)",
                    "run the same command again",
                )
            if not target.stat().st_size:
                raise DataError("the text is empty", source.place, "give a text that holds something")
        size = sum(path.stat().st_size for path in draft.folder.iterdir())
        return Text(draft.publish(), size, digests)


def texts(source: Source, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (split, path) of each file of the source; what is not a file yet is put into `folder`."""
    if source.kind == "embedded":
        path = folder / "whole.txt"
        path.write_text(_embedded_text(), encoding="utf-8", newline="")
        yield "whole", path
    elif source.kind == "catalogue":
        entry = find_corpus(source.name)
        assert entry is not None, "resolved by its name"
        for file in entry.files:
            yield file.split, _unpacked(file, _fetch(file, folder), folder)
    elif source.kind == "address":
        (_, digest), *_ = source.files
        yield "whole", _fetch(CorpusFile("whole", "", digest, 0, (source.location,)), folder)
    else:
        for split, paths in local_files(Path(source.location)).items():
            if len(paths) == 1:
                yield split, paths[0]
                continue
            joined = folder / f"{split}.txt"
            with joined.open("wb") as out:
                for part in _joined(paths):
                    out.write(part)
            yield split, joined


def _unpacked(file: CorpusFile, path: Path, folder: Path) -> Path:
    """Return the text of a file as published: itself, or the member of the archive that it is."""
    if not file.member:
        return path
    target = folder / "member.txt"  # a name of ours: what the archive calls it leads nowhere
    try:
        _unpack(path, file.member, target)
    except RnnlmError:
        raise
    except OSError as error:
        # The disk's, but for these: a damaged stream has no number, a place before the beginning is an invalid one.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(path, file.member, error) from error
    # What zipfile and its decompressors raise: damaged, no such member, a method they do not know, a password.
    except (
        zipfile.BadZipFile, KeyError, RuntimeError, EOFError, ValueError, OverflowError,
        struct.error, zlib.error, lzma.LZMAError,
    ) as error:  # fmt: skip
        raise _damaged(path, file.member, error) from error
    return target


def _unpack(path: Path, name: str, target: Path) -> None:
    """Write one member of an archive to `target`; the others are never touched."""
    most_bytes = MOST_RATIO * path.stat().st_size
    with zipfile.ZipFile(path) as archive, archive.open(name) as member, target.open("wb") as out:
        if stat.S_ISLNK(archive.getinfo(name).external_attr >> 16):
            raise IntegrityError("a link in an archive is not followed", f"{name} in {path}", "check the address")
        while part := member.read(1 << 20):
            if out.tell() + len(part) > most_bytes:
                raise IntegrityError(
                    f"the archive unpacks to more than {MOST_RATIO} times its size", path, "check the address"
                )
            out.write(part)


def _damaged(path: Path, name: str, error: Exception) -> IntegrityError:
    return IntegrityError(f"not a zip archive with {name}", path, f"download it again ({error})")


def _embedded_text() -> str:
    import pydoc_data.topics

    return "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))


def _address(name: str) -> Source:
    """Read `https://…`, with the digest its bytes must have as an optional `#sha256=…`.

    Over plain http anyone on the way can change the text, so there the digest is required; but for this machine.
    """
    address, _, fragment = name.partition("#")
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise UsageError("not an address", without_password(address), str(error)) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            "only http and https addresses can be downloaded",
            without_password(address),
            "give a local path instead",
        )
    digest = fragment.removeprefix("sha256=").lower()
    if fragment and (not fragment.startswith("sha256=") or len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        raise UsageError(
            "a digest is written #sha256= and 64 hexadecimal digits",
            f"#{fragment}",
            "correct it or leave it out",
        )
    if parts.scheme == "http" and not digest and not is_loopback(parts.hostname):
        raise UsageError(
            "an http address needs the digest of its text",
            without_password(address),
            "use https, or append #sha256= and its 64 digits",
        )
    return Source(_shown_name(Path(parts.path).stem or parts.hostname), "address", address, (("whole", digest),))


def without_password(address: str) -> str:
    """Return an address as it may be shown and stored: without password, access token or signature."""
    hidden = re.sub(r"(://[^/?#:]*):[^/?#]*@", r"\1:***@", address)
    hidden = re.sub(r"://[^/?#:@]+@", "://***@", hidden)  # a name without password is a token
    return _SECRET.sub(r"\1=***", hidden)


def local_files(path: Path) -> dict[str, list[Path]]:
    """Return the files behind a path: itself, train/valid/test of a folder, or all its texts as one."""
    if path.is_file():
        if not path.stat().st_size:
            raise DataError("the file is empty", path, "give a text that holds something")
        return {"whole": [path]}
    splits = {split: path / f"{split}.txt" for split in SPLITS}
    if all(file.is_file() for file in splits.values()):
        return {split: local_files(file)["whole"] for split, file in splits.items()}
    files = sorted(file for file in path.rglob("*.txt") if file.is_file() and file.stat().st_size)
    if not files:
        raise DataError("the folder holds no text (*.txt)", path, "give a folder of UTF-8 texts")
    return {"whole": files}


def _joined(paths: list[Path]) -> Iterator[bytes]:
    """Yield the bytes of several files as one text: each without a byte-order mark, ending with a line end."""
    for path in paths:
        last = b"\n"
        with path.open("rb") as file:
            if file.read(len(BOM_UTF8)) != BOM_UTF8:
                file.seek(0)
            while part := file.read(1 << 20):
                last = part
                yield part
        if not last.endswith(b"\n"):
            yield b"\n"


def _sha256_of(paths: list[Path]) -> str:
    if len(paths) == 1:
        return file_sha256(paths[0])
    digest = hashlib.sha256()
    for part in _joined(paths):
        digest.update(part)
    return digest.hexdigest()


def _fetch(file: CorpusFile, folder: Path) -> Path:
    """Return the path of the file's bytes, from the mirror or the first address that has them."""
    tried: list[str] = []
    wrong: list[str] = []
    # Room enough to tell another text by its digest, and no more.
    most_bytes = 2 * file.num_bytes + (1 << 20) if file.num_bytes else MOST_BYTES
    for place in [*_mirror_places(file), *file.addresses]:
        shown = without_password(place)
        try:
            path = _bring(place, folder, Bounded(most_bytes, verified=bool(file.sha256)))
        except RnnlmError:
            raise
        except RefusedError as error:
            wrong.append(f"{shown} {error}")
            continue
        except (OSError, ValueError) as error:
            tried.append(f"{shown} ({_reason(error)})")
            continue
        got = file_sha256(path)
        if file.sha256 and got != file.sha256:
            wrong.append(f"{shown} has sha256 {got} ({path.stat().st_size} bytes)")
            continue
        return path
    if wrong:
        first = "correct or unset RNNLM_MIRROR" if _mirror_places(file) else "check the address and the digest"
        what = f"digest mismatch, expected sha256 {file.sha256}" if file.sha256 else "download refused"
        raise IntegrityError(
            what,
            "; ".join(wrong + tried),
            f"{first}, or give the text by its path",
        )
    first = f"set RNNLM_MIRROR to a folder or address that holds {file.name}" if file.name else "check the address"
    raise NetworkError(
        "cannot download", f"tried {'; '.join(tried)}", f"{first}, or give a text on this machine with --corpus PATH"
    )


def _mirror_places(file: CorpusFile) -> list[str]:
    mirror = os.environ.get("RNNLM_MIRROR", "")
    if not mirror or not file.name:
        return []
    if "://" in mirror:
        return [f"{mirror.rstrip('/')}/{file.name}"]
    try:
        return [str(Path(mirror).expanduser() / file.name)]
    except RuntimeError as error:  # ~nobody
        raise UsageError("`RNNLM_MIRROR` must be a folder or an address", mirror, str(error)) from error


def _bring(place: str, folder: Path, downloader: Bounded) -> Path:
    """Return the bytes of a path as they lie, or those of an address as a new file in `folder`."""
    if "://" not in place:
        path = Path(place)
        if not path.is_file():
            raise FileNotFoundError("no such file")
        return path
    import pooch

    if urlsplit(place).scheme not in ("http", "https"):
        raise UsageError(
            "only http and https addresses can be downloaded",
            without_password(place),
            "correct RNNLM_MIRROR",
        )
    pooch.get_logger().setLevel("WARNING")
    target = Path(tempfile.mkdtemp(dir=folder))
    try:
        return Path(pooch.retrieve(place, known_hash=None, fname="download", path=target, downloader=downloader))
    except OSError as error:
        if error.errno in FULL:
            raise ResourceError("no space left while downloading", target, "free some space") from error
        raise


def _reason(error: Exception) -> str:
    """Return why a download failed, in a few words."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, SlowError):
        return str(error)
    if error.args and type(error.args[0]).__name__ == "ReadTimeoutError":  # in the middle of a body
        return "timed out"
    name = type(error).__name__
    return {
        "ConnectionError": "no connection",
        "ConnectTimeout": "timed out",
        "ReadTimeout": "timed out",
        "ChunkedEncodingError": "body cut short",
        "ContentDecodingError": "body damaged",
        "SSLError": "TLS failed",
    }.get(name, name)
