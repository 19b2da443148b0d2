"""What every test may ask for."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from rnnlm_core.store import Store


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Take back what a test has changed in the environment: MLflow sets `MLFLOW_TRACKING_URI` for its children."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of the real corpora: `RNNLM_MIRROR`, or `shared/data` beside the repository."""
    named = os.environ.get("RNNLM_MIRROR", "")
    places = [Path(named)] if named and Path(named).is_dir() else []
    places.append(Path(__file__).parents[2] / "shared" / "data")
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("the real corpora are not here: set RNNLM_MIRROR to a folder that holds them")
