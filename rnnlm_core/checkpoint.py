"""Checkpoints: a training can be killed anywhere and goes on from its last complete checkpoint.

A checkpoint is an artifact (safetensors beside JSON, verified when opened) and a small pointer file that is replaced
atomically after the artifact is complete. The last two are kept. Both go to the store's remote as well, so that another
machine can go on.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.errors import IntegrityError
from rnnlm_core.store import Handle, Store, check_space, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from rnnlm_core.remote import Remote

KEPT = 2
NO_STATE = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a `state.json` raises that is none."""
ROOM = 1 << 16
"""Bytes beside the tensors: names, facts and manifest."""


@dataclass(frozen=True)
class Snapshot:
    """Everything a training needs to go on: tensors by name, and plain facts."""

    tensors: dict[str, "Tensor"]
    facts: dict[str, Any]

    def packed(self) -> tuple[bytes, bytes]:
        """Return facts (JSON) and tensors (safetensors) to send."""
        from safetensors.torch import save

        return json.dumps(self.facts).encode(), save({k: v.contiguous() for k, v in self.tensors.items()})

    @classmethod
    def unpacked(cls, facts: bytes, tensors: bytes) -> "Snapshot":
        """Return what was `packed`."""
        from safetensors.torch import load

        return cls(load(tensors), json.loads(facts))


def pending(store: Store) -> list[str]:
    """Return the keys of the trainings that have checkpoints."""
    return sorted(path.stem for path in (store.root / "checkpoint").glob("*.json") if not path.name.startswith("."))


def unlisted(store: Store) -> Iterator[tuple[str, Handle]]:
    """Yield each checkpoint that no list names, with the key of its training ("" if it does not say).

    A kill between two steps leaves them.
    """
    listed = {digest for key in pending(store) for digest in Checkpoints(store, key).digests()}
    for handle in store.handles("checkpoint"):
        if handle.sha256 not in listed:
            try:
                yield str(json.loads((store.path(handle) / "state.json").read_text())["key"]), handle
            except NO_STATE:
                yield "", handle


def unlisted_copies(remote: "Remote") -> Iterator[Handle]:
    """Yield each checkpoint of a remote that no list there names."""
    lists = [_digests(remote.read(name)) for name in remote.names("checkpoint") if name.endswith(".json")]
    listed = {digest for digests in lists for digest in digests or []}
    yield from (handle for handle in remote.handles("checkpoint") if handle.sha256 not in listed)


class Checkpoints:
    """The checkpoints of one training, found by the training's key."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.pointer: Path = store.root / "checkpoint" / f"{key}.json"
        self.remote_pointer = f"checkpoint/{key}.json"

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, then point to it, then drop all but the last two."""
        from safetensors.torch import save_file

        tensors = {k: v.detach().cpu().contiguous() for k, v in snapshot.tensors.items()}
        # Here first, list and all: whatever becomes of the upload, this machine goes on from it.
        with Store(self.store.root).draft("checkpoint") as draft:
            # Beforehand: safetensors maps its file into memory, and a full disk would then be a signal, not an error.
            check_space(draft.folder, sum(t.nbytes for t in tensors.values()) + ROOM)
            save_file(tensors, draft.folder / "state.safetensors")
            # The key makes it this training's own: another in the same state shall not lose it to our `clear`.
            content = {"key": self.key, "facts": snapshot.facts}
            (draft.folder / "state.json").write_text(json.dumps(content))
            handle = draft.publish()
        digests = [handle.sha256, *(d for d in self.digests() if d != handle.sha256)]
        listed = json.dumps(digests[:KEPT]).encode()
        write_atomically(self.pointer, listed)
        if self.store.remote is not None:
            self.store.remote.upload(handle, self.store.path(handle))
            self.store.remote.write(self.remote_pointer, listed)
        for digest in digests[KEPT:]:
            self.store.discard(Handle("checkpoint", digest))

    def load(self) -> tuple[Snapshot | None, list[str]]:
        """Return the newest checkpoint that verifies, and what was wrong with newer ones.

        Of the list here and that of hosts that share a store, the one that has come further.
        """
        faults: list[str] = []
        best: Snapshot | None = None
        looked_at: set[str] = set()
        for place, content in self._lists():
            digests = _digests(content)
            if digests is None:
                faults.append(f"damaged checkpoint list {place}")
                continue
            if looked_at.isdisjoint(digests[:1]):
                found = self._first_whole(digests, faults)
                if found is not None and (best is None or _progress(found) > _progress(best)):
                    best = found
            looked_at.update(digests)
        return best, faults

    def _first_whole(self, digests: list[str], faults: list[str]) -> Snapshot | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for digest in digests:
            try:
                folder = self.store.open(Handle("checkpoint", digest))
            except IntegrityError as error:
                faults.append(str(error))
                continue
            try:
                content = json.loads((folder / "state.json").read_text())
                key, snapshot = content["key"], Snapshot(load_file(folder / "state.safetensors"), content["facts"])
            except (*NO_STATE, SafetensorError) as error:
                faults.append(f"artifact checkpoint:{digest[:12]} is no checkpoint ({error!r})")
                continue
            if key != self.key:
                faults.append(f"artifact checkpoint:{digest[:12]} is that of another training, {key}")
                continue
            return snapshot
        return None

    def clear(self) -> None:
        """Remove all checkpoints of this training: its result is safe."""
        digests = self.digests()
        self.pointer.unlink(missing_ok=True)
        crashpoint("unlisted")
        if self.store.remote is not None:
            self.store.remote.remove(self.remote_pointer)
        for digest in digests:
            self.store.discard(Handle("checkpoint", digest))

    def digests(self, faults: list[str] | None = None) -> list[str]:
        """Return the digests of the list here, or else of the remote's, newest first.

        What is wrong with a list is added to `faults`.
        """
        for place, content in self._lists():
            digests = _digests(content)
            if digests is not None:
                return digests
            if faults is not None:
                faults.append(f"damaged checkpoint list {place}")
        return []

    def _lists(self) -> Iterator[tuple[object, bytes]]:
        with suppress(FileNotFoundError):
            yield self.pointer, self.pointer.read_bytes()
        if self.store.remote is not None:
            content = self.store.remote.read(self.remote_pointer)
            if content is not None:
                yield f"{self.store.remote}/{self.remote_pointer}", content


def _progress(snapshot: Snapshot) -> tuple[int, int]:
    """Return the epochs and the updates after them that a training has behind it."""
    place = snapshot.facts.get("place") or {}
    return len(snapshot.facts.get("history", ())), place.get("updates", 0)


def _digests(content: bytes | None) -> list[str] | None:
    """Return the digests of a list, None if it is damaged or gone."""
    try:
        digests = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    whole = isinstance(digests, list) and all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in digests)
    return digests if whole else None
