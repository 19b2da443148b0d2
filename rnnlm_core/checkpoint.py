"""Checkpoints: a training can be killed anywhere and goes on from its last complete checkpoint.

A checkpoint is an artifact (safetensors beside JSON, verified when opened) and a small pointer file that is replaced
atomically after the artifact is complete. The last two are kept.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.errors import IntegrityError
from rnnlm_core.store import Handle, Store, check_space, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

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


class Checkpoints:
    """The checkpoints of one training, found by the training's key."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.pointer: Path = store.root / "checkpoint" / f"{key}.json"

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, then point to it, then drop all but the last two."""
        from safetensors.torch import save_file

        tensors = {k: v.detach().cpu().contiguous() for k, v in snapshot.tensors.items()}
        with self.store.draft("checkpoint") as draft:
            # Beforehand: safetensors maps its file into memory, and a full disk would then be a signal, not an error.
            check_space(draft.folder, sum(t.nbytes for t in tensors.values()) + ROOM)
            save_file(tensors, draft.folder / "state.safetensors")
            # The key makes it this training's own: another in the same state shall not lose it to our `clear`.
            content = {"key": self.key, "facts": snapshot.facts}
            (draft.folder / "state.json").write_text(json.dumps(content))
            handle = draft.publish()
        digests = [handle.sha256, *(d for d in self.digests() if d != handle.sha256)]
        write_atomically(self.pointer, json.dumps(digests[:KEPT]).encode())
        for digest in digests[KEPT:]:
            self.store.remove(Handle("checkpoint", digest))

    def load(self) -> tuple[Snapshot | None, list[str]]:
        """Return the newest checkpoint that verifies, and what was wrong with newer ones."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        faults: list[str] = []
        for digest in self.digests(faults):
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
            return snapshot, faults
        return None, faults

    def clear(self) -> None:
        """Remove all checkpoints of this training: its result is safe."""
        digests = self.digests()
        self.pointer.unlink(missing_ok=True)
        crashpoint("unlisted")
        for digest in digests:
            self.store.remove(Handle("checkpoint", digest))

    def digests(self, faults: list[str] | None = None) -> list[str]:
        """Return the digests of the pointer, newest first; what is wrong with the pointer is added to `faults`."""
        try:
            digests = json.loads(self.pointer.read_text())
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError):
            digests = None
        if isinstance(digests, list) and all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in digests):
            return digests
        if faults is not None:
            faults.append(f"damaged checkpoint list {self.pointer}")
        return []
