"""A flipped bit in anything that was written is found before it is believed."""

import os
import random
from pathlib import Path

import pytest
import torch

from rnnlm_core.checkpoint import Checkpoints, Snapshot
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.corpus import build_corpus
from rnnlm_core.download import download, resolve
from rnnlm_core.errors import IntegrityError
from rnnlm_core.saved_model import load_model
from rnnlm_core.statistics import statistics
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import tokenize
from rnnlm_core.train import train
from rnnlm_core.vocabulary import build_vocabulary

FLIPS = int(os.environ.get("RNNLM_FLIPS", "1000"))
SHARES = (80, 10, 10)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One artifact of each kind, made by the chain itself."""
    folder = tmp_path_factory.mktemp("flips")
    store = Store(folder / "store")
    path = folder / "text.txt"
    path.write_text("the time traveller spoke and we listened until the lamps burned low. " * 60)
    tokens = tokenize(download(resolve(str(path)), store).handle, "none", "bpe", store, bpe_size=300, shares=SHARES)
    statistics(tokens, store)
    words = build_vocabulary(tokens, None, 1, (), store)
    corpus = build_corpus(tokens, words.handle, None, 0, store)
    config = TrainConfig(epochs=1, batch_size=8, num_steps=8, device="cpu")
    train("gru", corpus.handle, words.handle, ModelConfig(hidden_size=8), config, store, key="key")
    return store


def test_every_flip_of_an_artifact_is_found(store: Store) -> None:
    handles = list(store.handles())
    assert {"text", "tokens", "statistics", "vocabulary", "corpus", "ids", "model", "checkpoint"} == {
        h.kind for h in handles
    }
    draw = random.Random(0)
    believed = []
    for _ in range(FLIPS):
        handle = draw.choice(handles)
        path = draw.choice(sorted(p for p in store.path(handle).rglob("*") if p.is_file()))
        whole = path.read_bytes()
        bit = draw.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if not store.fault(handle):
            believed.append((path.name, bit))
        path.write_bytes(whole)
    assert believed == []
    assert [store.fault(handle) for handle in handles] == [""] * len(handles)


def test_every_flip_of_a_model_is_refused_when_it_is_loaded(store: Store) -> None:
    (handle,) = (handle for handle in store.handles() if handle.kind == "model")
    draw = random.Random(1)
    for _ in range(100):
        path = draw.choice(sorted(p for p in store.path(handle).iterdir()))
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"the model has a (damaged|changed)"):
            load_model(store.path(handle))
        path.write_bytes(whole)
    load_model(store.path(handle))


def test_every_flip_of_a_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Store(tmp_path), "key")
    for number in (1, 2):
        checkpoints.save(Snapshot({"x": torch.full((50,), float(number))}, {"number": number}))
    newest, _ = checkpoints.digests()
    draw = random.Random(2)
    for _ in range(100):
        path = draw.choice(sorted(checkpoints.store.path(Handle("checkpoint", newest)).iterdir()))
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        snapshot, faults = checkpoints.load()
        assert snapshot is not None
        assert (snapshot.facts["number"], len(faults)) == (1, 1)
        path.write_bytes(whole)
