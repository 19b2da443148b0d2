"""The ids of a split as a flat file that is mapped into memory: what training and evaluation read.

An `ids` artifact holds one split in `ids.bin`, in the narrowest type that PyTorch indexes with (no `uint16`), and what
it was made from in `ids.json`. A list beside it, `ids/CORPUS-SPLIT.json`, names its digest. All of it can be made again
from the corpus, and is, whenever it is missing, damaged or that of something else.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm_core.corpus import id_batches
from rnnlm_core.errors import IntegrityError
from rnnlm_core.pieces import piece_files
from rnnlm_core.store import Handle, Store, write_atomically

KIND = "ids"
DATA, ABOUT = "ids.bin", "ids.json"


def mapped_type(vocabulary_size: int) -> Any:
    """Return the narrowest numpy type of PyTorch's that holds every id: one, two or four bytes."""
    return next(t for t in (np.uint8, np.int16, np.int32) if vocabulary_size - 1 <= np.iinfo(t).max)


def mapped_ids(corpus: Handle, split: str, vocabulary_size: int, store: Store) -> np.ndarray:
    """Return all ids of a split as they lie on the disk: pages that are read, and that the system may take back.

    `corpus` has been opened, so that its files are known to be whole. The array can be written to, as PyTorch wants
    it, without a change to the file.

    Raises `IntegrityError` for ids that the vocabulary does not have.
    """
    wanted = {"corpus": corpus.sha256, "split": split, "type": np.dtype(mapped_type(vocabulary_size)).str}
    pointer = store.root / KIND / f"{corpus.sha256}-{split}.json"
    folder = _made_before(pointer, wanted, store)
    if folder is None:
        handle = _make(store.path(corpus), wanted, vocabulary_size, store)
        write_atomically(pointer, json.dumps(handle.sha256).encode())
        folder = store.path(handle)
    return np.memmap(folder / DATA, dtype=wanted["type"], mode="c")


def _made_before(pointer: Path, wanted: dict[str, str], store: Store) -> Path | None:
    """Return the folder of the file that was made earlier, if every byte of it is still what it was."""
    try:
        digest = json.loads(pointer.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        return None
    handle = Handle(KIND, digest)
    about = store.path(handle) / ABOUT
    whole = not store.fault(handle) and about.exists() and json.loads(about.read_bytes()) == wanted
    return about.parent if whole else None


def _make(folder: Path, wanted: dict[str, str], vocabulary_size: int, store: Store) -> Handle:
    """Write a split of a corpus as a flat file, a row group at a time."""
    with Store(store.root).draft(KIND) as draft:  # no remote needs what every machine can make of the corpus
        with (draft.folder / DATA).open("wb") as file:
            for path in piece_files(folder, wanted["split"]):
                for batch in id_batches(path):
                    if int(batch.max(initial=0)) >= vocabulary_size:
                        found = f"{path} (id {int(batch.max())} of {vocabulary_size:,})"
                        raise IntegrityError("ids that the vocabulary lacks", found, "run the same command again")
                    file.write(batch.astype(wanted["type"]).data)
        (draft.folder / ABOUT).write_text(json.dumps(wanted, sort_keys=True))
        return draft.publish()
