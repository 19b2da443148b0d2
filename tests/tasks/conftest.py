"""Stages without Prefect: each test has a home of its own, and calls what a stage runs."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

from rnnlm_core.config import ModelConfig, TokenizerConfig, TrainConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.download import resolve
from rnnlm_core.train import train as train_core
from rnnlm_core.training_job import Job
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import progress, tracking, tracking_database, workspace
from tasks import train as train_stage
from tasks.corpus import corpus
from tasks.download import download
from tasks.progress import News
from tasks.stopping import stop_requested
from tasks.tokenize import tokenize
from tasks.tracking import FlowRun
from tasks.train import TrackedTraining, train
from tasks.vocabulary import vocabulary

SHARES = (80, 10, 10)
MODEL = ModelConfig(hidden_size=8)
TRAIN = TrainConfig(epochs=2, batch_size=16, num_steps=16, device="cpu")


@pytest.fixture(autouse=True)
def _nobody_asks_to_stop() -> None:
    """A flow that failed, in another test of this process, has left its wish to stop."""
    stop_requested.clear()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once because its migrations take seconds."""
    home = tmp_path_factory.mktemp("template")
    with mock.patch.dict(os.environ, RNNLM_HOME=str(home)):
        tracking_database.client()
    return home / "mlflow.db"


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with nothing in it."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith(("RNNLM_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RNNLM_HOME", str(home))
    # Prefect read its settings before this home was.
    results = {PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "artifacts" / "results"}
    with mock.patch.dict(os.environ), temporary_settings(results):
        workspace.prepare_environment()
        yield home


@pytest.fixture
def home(bare_home: Path, empty_database: Path) -> Path:
    """A home with an empty MLflow database."""
    shutil.copyfile(empty_database, bare_home / "mlflow.db")
    database = sqlite3.connect(bare_home / "mlflow.db")
    place = (bare_home / "artifacts" / "mlflow").as_uri()
    database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'rnnlm'", [place])
    database.commit()
    database.close()
    return bare_home


@pytest.fixture
def heard() -> Iterator[list[News]]:
    """All news of the test."""
    news: list[News] = []
    with progress.listening(news.append):
        yield news


@dataclass(frozen=True)
class Built:
    """What the stages before training return."""

    corpus: Corpus
    vocabulary: BuiltVocabulary


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 6,000 characters."""
    path = tmp_path / "text.txt"
    path.write_text("the time traveller spoke and we listened until the lamps burned low. " * 87)
    return path


@pytest.fixture
def built(home: Path, text: Path) -> Built:
    """The text as corpus and vocabulary, in this test's home."""
    tokens = tokenize.fn(download.fn(resolve(str(text))), "none", 0, "char", "none", 0, None)
    words = vocabulary.fn(tokens, SHARES, TokenizerConfig())
    return Built(corpus.fn(tokens, words, SHARES, 0), words)


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train in this process, without the seconds a child takes to start; return the cells trained, in order."""
    trained: list[str] = []

    def train(
        job: Job, on_epoch: Any, should_stop: Any, warn: Any, usage: Any, cores: Any, resumed: Any, _: Any
    ) -> Any:
        trained.append(job.cell)
        torch.set_num_threads(1)
        result = train_core(
            job.cell, job.corpus, job.vocabulary, job.model, job.train, workspace.store(), key=job.key,
            checkpoint_seconds=job.checkpoint_seconds,
            progress=lambda epoch: on_epoch(asdict(epoch)), should_stop=should_stop, warn=warn, resumed=resumed,
        )  # fmt: skip
        return asdict(result)

    monkeypatch.setattr(train_stage, "train_in_child", train)
    return trained


@pytest.fixture
def parent(home: Path) -> Iterator[FlowRun]:
    """An open parent run."""
    parameters = {"model.hidden_size": 8, "train.epochs": 2, "cells": ("rnn", "gru")}
    with tracking.parent_run("smoke", "text", parameters, "flow-run-1") as flow:
        yield flow


@pytest.fixture
def train_cell(built: Built, train_here: list[str]) -> Callable[..., TrackedTraining]:
    """Return a function that runs the stage `train` on the text, in this process."""

    def run(cell: str, flow: FlowRun, config: TrainConfig = TRAIN) -> TrackedTraining:
        return train.fn(cell, built.corpus, built.vocabulary, MODEL, config, flow)

    return run


@pytest.fixture
def train_model() -> ModelConfig:
    """The shape of the network that the tests train."""
    return MODEL
