"""Hostile files, made anew by each test; none lies in the repository."""

import io
import os
import pickle
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
import torch

from rnnlm_core.errors import IntegrityError
from rnnlm_core.saved_model import load_model


class Bomb:
    """Writes a file when it is unpickled, by nothing but what every Python has."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"__import__('pathlib').Path({str(self.trace)!r}).touch()",)


def _plain(trace: Path, protocol: int | None = None) -> bytes:
    return pickle.dumps(Bomb(trace), protocol)


def _torch_file(trace: Path, new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": Bomb(trace)}, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def _zipped(trace: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", _plain(trace))
        archive.writestr("__main__.py", _source(trace))
    return buffer.getvalue()


def _behind_a_header(trace: Path) -> bytes:
    """A safetensors file without tensors, and a pickle after it."""
    return len(b"{}").to_bytes(8, "little") + b"{}" + _plain(trace)


def _source(trace: Path) -> bytes:
    return f"__import__('pathlib').Path({str(trace)!r}).touch()\n".encode()


BOMBS: dict[str, Callable[[Path], bytes]] = {
    "pickle": _plain,
    "pickle-0": lambda trace: _plain(trace, 0),
    "torch": lambda trace: _torch_file(trace, True),
    "torch-legacy": lambda trace: _torch_file(trace, False),
    "zip": _zipped,
    "safetensors+pickle": _behind_a_header,
    "source": _source,
    "yaml": lambda trace: f"!!python/object/apply:os.system ['touch {trace}']\n".encode(),
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Where a bomb that goes off leaves its trace."""
    return tmp_path / "trace"


@pytest.fixture(params=list(BOMBS))
def bomb(request: pytest.FixtureRequest, trace: Path) -> bytes:
    """The bytes of a file that runs code in whoever unpickles, imports or evaluates it."""
    made: bytes = BOMBS[request.param](trace)
    return made


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once because its migrations take seconds."""
    from tasks import tracking_database

    home = tmp_path_factory.mktemp("template")
    with mock.patch.dict(os.environ, RNNLM_HOME=str(home)):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        tracking_database.client()
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, empty_database: Path) -> Iterator[Path]:
    """A home with an empty MLflow database, prepared as a command prepares it."""
    from tasks import workspace

    place = tmp_path / "home"
    place.mkdir()
    shutil.copyfile(empty_database, place / "mlflow.db")
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("RNNLM_", "MLFLOW_", "PREFECT_"))]:
            del os.environ[name]
        os.environ["RNNLM_HOME"] = str(place)
        workspace.prepare_environment()
        with closing(sqlite3.connect(place / "mlflow.db")) as database:
            location = (place / "artifacts" / "mlflow").as_uri()
            database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'rnnlm'", [location])
            database.commit()
        yield place


def check_model_refused(folder: Path, message: str = "") -> None:
    """Check that the files of a model are refused in one line."""
    with pytest.raises(IntegrityError, match=f"not a complete model: .*{message}.*: train it again") as caught:
        load_model(folder)
    assert len(caught.value.lines) == 1
    assert "\n" not in str(caught.value)
