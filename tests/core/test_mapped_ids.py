import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rnnlm_core import mapped_ids as module
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.errors import IntegrityError
from rnnlm_core.mapped_ids import mapped_ids, mapped_type
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import ROW_GROUP
from rnnlm_core.train import train
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]


def corpus_of(store: Store, **splits: np.ndarray) -> Handle:
    with store.draft("corpus") as draft:
        for name, ids in splits.items():
            pq.write_table(pa.table({"id": ids}), draft.folder / f"{name}.parquet", row_group_size=1000)
        return draft.publish()


def draw(length: int, kinds: int, dtype: Any) -> np.ndarray:
    return np.random.default_rng(0).integers(kinds, size=length).astype(dtype)


def made(store: Store) -> Path:
    """The folder of the only split that was mapped."""
    (handle,) = store.handles("ids")
    return store.path(handle)


@pytest.mark.parametrize(
    ("kinds", "written", "mapped"),
    [
        (256, np.uint8, torch.uint8),
        (257, np.uint16, torch.int16),
        (32_768, np.uint16, torch.int16),
        (32_769, np.uint16, torch.int32),
        (70_000, np.uint32, torch.int32),
    ],
)
def test_every_id_is_mapped_in_the_narrowest_type_of_pytorch(
    kinds: int, written: Any, mapped: torch.dtype, store: Store
) -> None:
    ids = draw(5000, kinds, written)
    ids[-1] = kinds - 1
    found = torch.from_numpy(mapped_ids(corpus_of(store, train=ids), "train", kinds, store))
    assert found.dtype == mapped
    assert found.tolist() == ids.tolist()
    assert (made(store) / "ids.bin").stat().st_size == 5000 * found.element_size()
    assert found[torch.tensor([[4999, 0], [7, 7]])].int().tolist() == ids[[[4999, 0], [7, 7]]].tolist()


def test_what_is_written_into_the_array_stays_in_this_process(store: Store) -> None:
    ids = draw(5000, 9, np.uint8)
    corpus = corpus_of(store, train=ids)
    found = mapped_ids(corpus, "train", 9, store)
    found[:] = 0
    assert mapped_ids(corpus, "train", 9, store).tolist() == ids.tolist()


def test_a_split_is_written_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, other = draw(5000, 9, np.uint8), draw(3000, 8, np.uint8)
    corpus = corpus_of(store, train=ids, valid=other)
    for _ in range(2):
        assert mapped_ids(corpus, "train", 9, store).tolist() == ids.tolist()
        assert mapped_ids(corpus, "valid", 9, store).tolist() == other.tolist()
        monkeypatch.setattr(module, "id_batches", lambda _: pytest.fail("read again"))


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "a bit": lambda folder, _: flip(folder / "ids.bin"),
    "a page too few": lambda folder, _: os.truncate(folder / "ids.bin", 904),
    "a byte too many": lambda folder, _: (folder / "ids.bin").write_bytes((folder / "ids.bin").read_bytes() + b"0"),
    "another origin": lambda folder, _: flip(folder / "ids.json"),
    "no data": lambda folder, _: (folder / "ids.bin").unlink(),
    "no folder": lambda folder, _: shutil.rmtree(folder),
    "no list": lambda _, pointer: pointer.unlink(),
    "an empty list": lambda _, pointer: os.truncate(pointer, 0),
    "half a list": lambda _, pointer: os.truncate(pointer, 20),
    "a list of something else": lambda _, pointer: pointer.write_text('["a"]'),
    "a list that leads out": lambda _, pointer: pointer.write_text('"../corpus"'),
    "a list that is no text": lambda _, pointer: pointer.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_made_again(damage: Callable[[Path, Path], object], store: Store) -> None:
    ids = draw(5000, 9, np.uint8)
    corpus = corpus_of(store, train=ids)
    mapped_ids(corpus, "train", 9, store)
    (pointer,) = (store.root / "ids").glob("*.json")
    folder = made(store)
    damage(folder, pointer)
    assert mapped_ids(corpus, "train", 9, store).tolist() == ids.tolist()
    assert [store.fault(handle) for handle in store.handles("ids")] == [""]
    assert made(store) == folder
    assert json.loads(pointer.read_text()) == folder.name


def test_a_whole_file_of_another_split_or_corpus_is_not_believed(store: Store) -> None:
    ids, other = draw(5000, 9, np.uint8), draw(4000, 9, np.uint8)
    corpus, second = corpus_of(store, train=ids, valid=other), corpus_of(store, train=other)
    mapped_ids(corpus, "valid", 9, store)
    (wrong,) = (store.root / "ids").glob("*.json")
    mapped_ids(second, "train", 9, store)
    for pointer in (f"{corpus.sha256}-train.json", f"{second.sha256}-train.json"):
        (store.root / "ids" / pointer).write_bytes(wrong.read_bytes())
    assert mapped_ids(corpus, "train", 9, store).tolist() == ids.tolist()
    assert mapped_ids(second, "train", 9, store).tolist() == other.tolist()


def test_ids_that_the_vocabulary_lacks_are_refused(store: Store) -> None:
    """They would be other ids in a narrower type."""
    corpus = corpus_of(store, train=np.array([0, 3, 9, 2], np.uint8))
    with pytest.raises(IntegrityError, match=r"ids that the vocabulary lacks: .*train\.parquet \(id 9 of 9\): run"):
        mapped_ids(corpus, "train", 9, store)
    assert list(store.handles("ids")) == []


def test_the_type_is_that_of_the_largest_id() -> None:
    assert [np.dtype(mapped_type(n)).itemsize for n in (1, 256, 257, 32_768, 32_769, 1 << 20)] == [1, 1, 2, 2, 4, 4]


def test_training_and_evaluation_do_not_read_the_corpus_twice(
    characters: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = ModelConfig(hidden_size=8), TrainConfig(epochs=1, batch_size=8, num_steps=8, device="cpu")
    first = train("gru", characters.corpus, characters.vocabulary, model, config, store, key="a")
    monkeypatch.setattr(module, "id_batches", lambda _: pytest.fail("read again"))
    second = train("gru", characters.corpus, characters.vocabulary, model, config, store, key="b")
    assert second.model == first.model


TRAIN = """
import sys
from pathlib import Path
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.process_usage import peak_bytes
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import ROW_GROUP
from rnnlm_core.train import train
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import Vocabulary
root, corpus, vocabulary = sys.argv[1:]
config = TrainConfig(epochs=1, batch_size=64, num_steps=512, device="cpu")
args = Handle("corpus", corpus), Handle("vocabulary", vocabulary), ModelConfig(hidden_size=1), config
train("rnn", *args, Store(Path(root)), key="key")
print(peak_bytes())
"""
"""A training whose minibatches are large and whose model is small: its memory is that of the text."""


@pytest.mark.slow
def test_a_training_on_a_text_twenty_times_as_long_takes_no_more_memory_of_its_own(store: Store) -> None:
    """What grows is the mapped file itself, a byte a character, which the system takes back when it needs it."""
    with store.draft("vocabulary") as draft:
        (draft.folder / VOCABULARY_FILE).write_text(Vocabulary(dict.fromkeys("abcdefghij", 1)).to_json())
        vocabulary = draft.publish()
    about = {"rnnlm.level": "char", "rnnlm.eos": "none", "rnnlm.normalizer": "none", "rnnlm.tokens": "0" * 64}
    lengths, peaks = (2_000_000, 40_000_000), []
    for length in lengths:
        with store.draft("corpus") as draft:
            ids = pa.table({"id": draw(length, 11, np.uint8)})
            pq.write_table(ids, draft.folder / "train.parquet", row_group_size=ROW_GROUP)
            facts = {**about, "rnnlm.vocabulary": vocabulary.sha256, "splits": {}}
            (draft.folder / "corpus.json").write_text(json.dumps(facts))
            corpus = draft.publish()
        told = subprocess.run(
            [sys.executable, "-W", "error", "-c", TRAIN, str(store.root), corpus.sha256, vocabulary.sha256],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        peaks.append(int(told))
    assert peaks[1] - peaks[0] < 2 * (lengths[1] - lengths[0])
