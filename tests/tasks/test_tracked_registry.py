"""The registry: one version per logged model, a champion that only a better one replaces, and a trace of each move."""

import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rnnlm_core.errors import DataError, UsageError
from tasks import tracked_champion, tracked_registry, tracking
from tasks.tracked_champion import promote, register, roll_back
from tasks.tracked_registry import Version, champions, versions
from tasks.tracking import FlowRun
from tasks.tracking_database import client, experiment_id

NAME = "rnnlm-text"
SETTINGS = {"corpus.split": "90/5/5", "tokenizer.level": "char", "model.hidden_size": "8"}
Trained = Callable[..., str]


@pytest.fixture
def trained(home: Path) -> Trained:
    """Return a function that leaves the run of a training with these figures and a logged model; returns its id."""
    keys = itertools.count()

    def train(valid: float | None, test: float = 9.0, corpus_sha256: str = "a" * 64, cell: str = "gru",
              **settings: str) -> str:  # fmt: skip
        changed = {key.replace("__", "."): value for key, value in settings.items()}
        flow = FlowRun("parent", "quickstart", "text", tuple((SETTINGS | changed).items()), "flow-run")
        tags = {"rnnlm.corpus_sha256": corpus_sha256}
        with tracking.child_run(flow, cell, f"key-{next(keys)}", tags) as run_id:
            figures = {"best/train_perplexity": 5.0, "test/perplexity": test}
            tracking.log_metrics(run_id, figures | ({} if valid is None else {"best/valid_perplexity": valid}))
            model = client().create_logged_model(experiment_id(), name="model", source_run_id=run_id)
            tracking.set_tags(run_id, {"rnnlm.model_uri": model.model_uri, "rnnlm.model_sha256": "f" * 64})
        return run_id

    return train


def enter(run_id: str) -> Version:
    return register(run_id, "quickstart", "text")


def told(version: Version) -> dict[str, str]:
    """Return what MLflow itself has as the tags of a version."""
    return dict(client().get_model_version(version.name, str(version.number)).tags)


def moves() -> list[str]:
    """Return the moves that the registered model tells of, without their dates."""
    tags = client().get_registered_model(NAME).tags
    texts = [tags[key] for key in sorted(tags) if key.startswith("rnnlm.move.")]
    return [" ".join(word for word in text.split() if not word.startswith("20")) for text in texts]


def test_a_better_model_becomes_champion_and_a_worse_one_does_not_and_both_leave_a_trace(trained: Trained) -> None:
    first = enter(trained(7.21))
    assert (first.number, first.champion, first.reason) == (1, True, "the first with a validation perplexity (7.21)")
    better = enter(trained(6.9, cell="lstm"))
    assert (better.number, better.champion) == (2, True)
    assert better.reason == "valid perplexity 6.90 is below 7.21 (version 1)"
    worse = enter(trained(7.0))
    assert (worse.number, worse.champion) == (3, False)
    assert worse.reason == "valid perplexity 7.00 is not below champion's 6.90 (version 2)"
    assert told(worse)["rnnlm.not_promoted"] == worse.reason
    assert int(client().get_registered_model(NAME).aliases["champion"]) == 2
    assert told(better)["rnnlm.previous_champion"] == "version 1"
    assert told(better)["rnnlm.promoted_at"].endswith("Z")
    assert told(first)["rnnlm.no_longer_champion"].startswith("replaced by version 2 on ")
    print(moves(), client().get_model_version(NAME, "2"))
    assert champions() == {NAME: better}
    assert [one.number for one in versions(NAME)] == [3, 2, 1]
