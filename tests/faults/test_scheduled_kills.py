"""Scheduled runs whose worker, flow, training, server or keeper is killed at any moment: the schedule goes on."""

import os
import random
import time
from pathlib import Path

import psutil
import pytest
from stack import Stack, databases, invented_text, now, stack

from rnnlm_core.corpus import build_corpus
from rnnlm_core.download import download, resolve
from rnnlm_core.presets import run_config
from rnnlm_core.store import Store
from rnnlm_core.tokenize import tokenize
from rnnlm_core.train_process import train_in_child
from rnnlm_core.training_job import Job
from rnnlm_core.vocabulary import build_vocabulary

KILLS = int(os.environ.get("RNNLM_STACK_KILLS", "2"))
"""How often; `make faults` asks for 20."""
CHANGES = {
    "model.hidden_size": 64, "model.embedding_size": 0, "corpus.max_tokens": 0, "train.epochs": 12,
    "train.batch_size": 16, "train.device": "cpu",
}  # fmt: skip
EVERY = 20
VICTIMS = [
    ("worker",), ("flow",), ("training",), ("prefect-server",), ("keeper",), ("worker", "flow"),
    ("worker", "flow", "training"), ("prefect-server", "flow"), ("prefect-server", "worker", "flow", "training"),
    ("keeper", "prefect-server", "worker", "flow", "training", "mlflow"), ("keeper", "worker"), ("mlflow",),
]  # fmt: skip


def undisturbed(text: str, folder: Path) -> tuple[str, str]:
    """Return the digests of corpus and model when nobody disturbs the training."""
    folder.mkdir()
    path = folder / "text.txt"
    path.write_text(text)
    config = run_config("smoke", str(path), ["gru"], CHANGES)
    store = Store(folder / "store")
    tokens = tokenize(download(resolve(str(path)), store).handle, config.corpus.normalizer, "char", store)
    words = build_vocabulary(tokens, config.corpus.shares, 1, (), store)
    corpus = build_corpus(tokens, words.handle, config.corpus.shares, 0, store)
    job = Job(
        "gru", corpus.handle, words.handle, config.model.for_cell("gru"), config.train, str(store.root), "key", 1,
        checkpoint_seconds=1000,
    )  # fmt: skip
    trained = train_in_child(job, lambda _: None, lambda: False, lambda _: None)
    return corpus.handle.sha256, trained["model"]["sha256"]


def pick(up: Stack, names: tuple[str, ...]) -> list[psutil.Process]:
    """Return the processes that go by these names."""
    found = []
    for process in up.processes():
        try:
            command, mark = process.cmdline(), process.environ().get("RNNLM_SERVICE", "").rpartition(":")[2]
        except (psutil.Error, OSError):
            continue
        training = "rnnlm_core.train_process" in command
        flow = "prefect.engine" in command or "prefect.flow_engine" in command
        name = "training" if training else "flow" if flow else mark
        if name in names:
            found.append(process)
    if "keeper" in names and up.process is not None:
        found.append(psutil.Process(up.process.pid))
    return found


def strike(up: Stack, names: tuple[str, ...]) -> None:
    """Kill them all at once; a keeper that is gone is started again, as a user would."""
    victims = pick(up, names)
    assert victims, names
    up.kill(*victims)
    if "keeper" in names:
        assert up.process is not None
        up.process.wait()
        up.start()


def strike_and_see(up: Stack, number: int, names: tuple[str, ...], corpus: str, model: str) -> None:
    """Kill, and see that the next run of the schedule completes with the model that nobody disturbed."""
    if not pick(up, names):  # the training was faster; what is done stays done
        names = (*(name for name in names if name not in ("flow", "training")), "worker")
    struck, began = now(), time.monotonic()
    strike(up, names)
    ready = time.monotonic()
    up.wait_for(lambda: up.runs("often", struck), 240)
    print(f"{number}: {names}: up after {ready - began:.0f} s, a run began {time.monotonic() - ready:.0f} s later")
    up.wait_for(lambda: up.completed("often", struck), 300)
    of_text = [run for run in up.tagged("rnnlm.corpus_sha256", corpus) if run["rnnlm.kind"] == "cell"]
    assert [run.get("rnnlm.model_sha256") for run in of_text] == [model], (number, names)
    assert [run["status"] for run in of_text] == ["FINISHED"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_whatever_is_killed_the_next_scheduled_run_completes_with_the_same_bits(database: str, tmp_path: Path) -> None:
    draw = random.Random(7)
    story = [VICTIMS[number % len(VICTIMS)] for number in range(KILLS)]
    draw.shuffle(story)
    expected = [undisturbed(invented_text(number), tmp_path / f"whole-{number}") for number in range(KILLS)]
    with databases(database) as settings, stack(tmp_path / "up", **settings) as up:
        up.start()
        text = up.home / "text.txt"
        text.write_text(invented_text(10_000))
        parameters = {"preset": "smoke", "corpus": str(text), "cells": ["gru"], "changes": CHANGES}
        up.deploy("often", "flows.retrain.retrain", parameters, EVERY)
        up.wait_for(lambda: up.completed("often"), 240)
        for number, names in enumerate(story):
            text.write_text(invented_text(number))
            up.wait_for(lambda: pick(up, ("training",)), 240)
            time.sleep(draw.uniform(0, 4))
            strike_and_see(up, number, names, *expected[number])
        up.deploy("often", "flows.retrain.retrain", parameters, every=None)
        up.wait_for(lambda: not up.stuck(), 240)
        assert {status for (status,) in up.mlflow("SELECT DISTINCT status FROM runs")} <= {
            "FINISHED",
            "KILLED",
            "FAILED",
        }
        assert up.stop() == 0
        assert up.processes() == []
        assert up.run("rnnlm", "verify").returncode == 0
