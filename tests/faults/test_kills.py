"""A training that is killed again and again ends with the bits of one that never was; one of several processes too."""

import contextlib
import math
import os
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from rnnlm_core.checkpoint import Checkpoints
from rnnlm_core.config import CELLS, ModelConfig, TrainConfig
from rnnlm_core.corpus import build_corpus
from rnnlm_core.download import download, resolve
from rnnlm_core.errors import ResourceError
from rnnlm_core.store import Store
from rnnlm_core.tokenize import tokenize
from rnnlm_core.train_process import train_in_child
from rnnlm_core.training_job import Job
from rnnlm_core.vocabulary import build_vocabulary

KILLS = int(os.environ.get("RNNLM_KILLS", "3"))
"""How often each training is killed; `make faults` asks for 50."""
SHARES = (80, 10, 10)


def job_in(folder: Path, cell: str) -> Job:
    """Return a training of a second or more that saves its place before each update."""
    store = Store(folder / "store")
    path = folder / "text.txt"
    path.write_text("the time traveller spoke and we listened until the lamps burned low. " * 300)
    tokens = tokenize(download(resolve(str(path)), store).handle, "none", "char", store)
    words = build_vocabulary(tokens, SHARES, 1, (), store)
    corpus = build_corpus(tokens, words.handle, SHARES, 0, store)
    model = ModelConfig(hidden_size=16, num_layers=2, dropout=0.3)
    config = TrainConfig(epochs=6, batch_size=8, num_steps=16, partition="random", schedule="cosine", device="cpu")
    return Job(cell, corpus.handle, words.handle, model, config, str(store.root), "key", 1, checkpoint_seconds=0.0)


def children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "rnnlm_core.train_process" in child.cmdline():
                found.append(child)
    return found


def kill_at(moment: float) -> bool:
    """Kill the child when it is time; never ask it to stop."""
    if time.monotonic() >= moment:
        for child in children():
            child.kill()
    return False


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cell", CELLS)
def test_a_training_killed_at_random_moments_ends_with_the_same_bits(cell: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    started = time.monotonic()
    whole = train_in_child(job_in(tmp_path / "whole", cell), lambda _: None, lambda: False, lambda _: None)
    length = time.monotonic() - started
    job = job_in(tmp_path / "killed", cell)
    draw = random.Random(cell)
    warnings: list[str] = []
    kills = finished = 0
    while True:
        last = kills == KILLS
        moment = math.inf if last else time.monotonic() + draw.uniform(0.3, 1.0) * min(length, 8.0)
        try:
            result = train_in_child(job, lambda _: None, partial(kill_at, moment), warnings.append)
        except ResourceError:
            kills += 1
            continue
        assert result["model"] == whole["model"]
        assert [e["train_loss"] for e in result["history"]] == [e["train_loss"] for e in whole["history"]]
        if last:
            break
        Checkpoints(Store(Path(job.store)), job.key).clear()  # faster than the kill: again, from the start
        finished += 1
    assert warnings == []
    print(f"{cell}: {kills} kills, all survived, in {finished + 1} trainings")


def kill_a_rank_at(moments: list[float], draw: random.Random) -> bool:
    """Kill one of the ranks when the next moment has come; never ask them to stop."""
    if moments and time.monotonic() >= moments[0]:
        ranks = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if "rnnlm_core.rank_process" in child.cmdline():
                    ranks.append(child)
        if len(ranks) == 2:
            draw.choice(ranks).kill()
            moments.pop(0)
    return False


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cell", CELLS)
def test_a_rank_that_is_killed_at_random_moments_changes_no_bit(cell: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    two = {"processes": 2, "batch_size": 7}
    job = job_in(tmp_path / "whole", cell)
    started = time.monotonic()
    whole = train_in_child(replace(job, train=replace(job.train, **two)), lambda _: None, lambda: False, lambda _: None)
    length = time.monotonic() - started
    job = job_in(tmp_path / "killed", cell)
    job = replace(job, train=replace(job.train, **two))
    draw = random.Random(cell)
    warnings: list[str] = []
    kills = trainings = 0
    while kills < KILLS:
        Checkpoints(Store(Path(job.store)), job.key).clear()
        now = time.monotonic()
        planned = sorted(now + draw.uniform(0.1, 1.0) * length for _ in range(min(3, KILLS - kills)))
        moments = list(planned)
        result = train_in_child(job, lambda _: None, partial(kill_a_rank_at, moments, draw), warnings.append)
        kills += len(planned) - len(moments)
        trainings += 1
        assert result["model"] == whole["model"]
        assert [e["train_loss"] for e in result["history"]] == [e["train_loss"] for e in whole["history"]]
    assert all(warning.startswith("a process of this training died: all 2 go on") for warning in warnings)
    assert warnings
    print(f"{cell}: {kills} ranks killed, {len(warnings)} new beginnings, in {trainings} trainings")
