"""One real Prefect server for all flows of the session; a home of its own for each test."""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from prefect import settings
from prefect.settings import temporary_settings

from flows.language_model import language_model
from flows.server import OwnApi
from rnnlm_core.train import train as train_core
from rnnlm_core.training_job import Job
from tasks import progress, tracking_database, workspace
from tasks import train as train_stage
from tasks.progress import News

TINY = {
    "model.hidden_size": 8,
    "model.embedding_size": 0,
    "corpus.max_tokens": 0,
    "corpus.split": "80/10/10",
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.num_steps": 16,
    "train.device": "cpu",
    "generate.prefixes": ["the "],
    "generate.length": 10,
}
AtHome = Callable[[Path], AbstractContextManager[Path]]


@pytest.fixture(scope="session", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnApi]:
    """Prefect's own server, as a command starts it."""
    prefect_home = tmp_path_factory.mktemp("prefect")
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("RNNLM_", "MLFLOW_", "PREFECT_"))]:
            del os.environ[name]
        os.environ |= {"PREFECT_HOME": str(prefect_home), "RNNLM_HOME": str(tmp_path_factory.mktemp("nobody"))}
        workspace.prepare_environment()
        api = OwnApi()
        changed = {
            settings.PREFECT_HOME: prefect_home,
            settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            settings.PREFECT_LOGGING_TO_API_ENABLED: False,
        }
        with temporary_settings(changed), api.ready():
            yield api
    # The server ends with this process, after Prefect has told it the last events.


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once because its migrations take seconds."""
    home = tmp_path_factory.mktemp("template")
    with mock.patch.dict(os.environ, RNNLM_HOME=str(home)):
        tracking_database.client()
    return home / "mlflow.db"


@pytest.fixture(scope="session")
def at_home(server: OwnApi, empty_database: Path) -> AtHome:
    """Return a context manager that makes a folder the home: MLflow's database, artifacts and records."""

    @contextmanager
    def live_in(home: Path) -> Iterator[Path]:
        home.mkdir(exist_ok=True)
        if not (home / "mlflow.db").exists():
            shutil.copyfile(empty_database, home / "mlflow.db")
            with sqlite3.connect(home / "mlflow.db") as database:
                place = (home / "artifacts" / "mlflow").as_uri()
                database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'rnnlm'", [place])
            database.close()
        results = home / "artifacts" / "results"
        with (
            mock.patch.dict(os.environ, RNNLM_HOME=str(home), PREFECT_RESULTS_LOCAL_STORAGE_PATH=str(results)),
            temporary_settings({settings.PREFECT_RESULTS_LOCAL_STORAGE_PATH: results}),
        ):
            yield home

    return live_in


@pytest.fixture
def home(at_home: AtHome, tmp_path: Path) -> Iterator[Path]:
    """The home of this test."""
    with at_home(tmp_path / "home") as folder:
        yield folder


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 6,000 characters that nobody may change."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(invented_text(0), encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 6,000 characters of this test's own."""
    path = tmp_path / "text.txt"
    path.write_text(invented_text(1), encoding="utf-8")
    return path


def invented_text(seed: int) -> str:
    draw = random.Random(seed)  # noqa: S311 - no secret
    sentence = "the time traveller spoke of a curious machine and we listened until all lamps burned low"
    return " ".join(draw.choice(sentence.split()) for _ in range(1400))[:6000]


@pytest.fixture
def heard() -> Iterator[list[News]]:
    """All news of the test."""
    news: list[News] = []
    with progress.listening(news.append):
        yield news


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
def run(home: Path, text: Path, train_here: list[str]) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the tiny flow on this test's text and home."""

    def run_flow(cells: tuple[str, ...] = ("rnn",), **changes: Any) -> dict[str, Any]:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return language_model("smoke", str(text), list(cells), {**TINY, **dotted})

    return run_flow


@dataclass(frozen=True)
class Finished:
    """A finished run of three cells: its home, what it returned and what it told."""

    home: Path
    summary: dict[str, Any]
    news: list[News]


@pytest.fixture(scope="session")
def finished(at_home: AtHome, book: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Three cells trained in processes of their own; nobody may change its home."""
    news: list[News] = []
    with at_home(tmp_path_factory.mktemp("finished") / "home") as home, progress.listening(news.append):
        summary = language_model("smoke", str(book), None, TINY)
    return Finished(home, summary, news)
