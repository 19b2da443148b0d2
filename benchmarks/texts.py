"""The texts that are measured on: the novel of the book, and long ones made of its lines."""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from rnnlm_core.store import Handle, Store

SEED = 0
NOVEL = "timemachine.txt"
BLOCK = 20_000
"""Lines drawn at a time."""


@dataclass(frozen=True)
class BookCorpus:
    """The first 10,000 characters of the novel in a store, as preset `d2l-time-machine` makes them."""

    store: str
    corpus: str
    vocabulary: str
    vocabulary_size: int


def novel(folder: Path) -> Path:
    """Return the novel: from the folder that `RNNLM_MIRROR` names, otherwise downloaded into `folder`.

    Raises `NetworkError` when neither has it.
    """
    mirror = Path(os.environ.get("RNNLM_MIRROR", "")) / NOVEL
    if os.environ.get("RNNLM_MIRROR") and mirror.is_file():
        return mirror
    from rnnlm_core.download import download, resolve

    store = Store(folder / "download")
    return store.open(download(resolve("time-machine"), store).handle) / "whole.txt"


def put(path: Path, store: Store) -> Handle:
    """Put a text into a store as the download does."""
    with store.draft("text") as draft:
        shutil.copyfile(path, draft.folder / "whole.txt")
        return draft.publish()


def book_corpus(folder: Path) -> BookCorpus:
    """Build the corpus of the book's chapters in `folder`."""
    from rnnlm_core.corpus import build_corpus
    from rnnlm_core.presets import d2l_time_machine
    from rnnlm_core.tokenize import tokenize
    from rnnlm_core.vocabulary import build_vocabulary

    config, store = d2l_time_machine(), Store(folder / "store")
    text = put(novel(folder), store)
    tokens = tokenize(text, config.corpus.normalizer, config.tokenizer.level, store)
    vocabulary = build_vocabulary(tokens, config.corpus.shares, 1, (), store)
    corpus = build_corpus(tokens, vocabulary.handle, config.corpus.shares, config.corpus.max_tokens, store)
    return BookCorpus(str(store.root), corpus.handle.sha256, vocabulary.handle.sha256, vocabulary.size)


def write_long(path: Path, num_bytes: int) -> str:
    """Write a text of about `num_bytes`, lines drawn at random from a real one; return what that was.

    The novel where `RNNLM_MIRROR` has it, otherwise the language reference that ships with Python.
    """
    mirror = Path(os.environ.get("RNNLM_MIRROR", "")) / NOVEL
    if os.environ.get("RNNLM_MIRROR") and mirror.is_file():
        name, text = "The Time Machine", mirror.read_text(encoding="utf-8")
    else:
        import pydoc_data.topics

        name, text = "Python's language reference", "\n".join(pydoc_data.topics.topics.values())
    # Plain letters alone: the book's cleaning turns everything else into spaces, byte for byte.
    lines = [line.encode("ascii", "replace") + b"\n" for line in text.splitlines() if line.strip()]
    draw = random.Random(SEED)  # noqa: S311 - no secret
    written = 0
    with path.open("wb") as file:
        while written < num_bytes:
            written += file.write(b"".join(draw.choices(lines, k=BLOCK))[: num_bytes - written])
    return name
