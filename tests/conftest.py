"""What every test may ask for."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from rnnlm_core.store import Store

if TYPE_CHECKING:
    from servers import ObjectStore


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
def bucket() -> "Iterator[ObjectStore]":
    """A server that speaks S3; skips the test where moto is not installed."""
    from servers import object_store

    with object_store() as server:
        yield server


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that gives an empty place where hosts share artifacts: `file` or `s3`."""

    def give(scheme: str) -> str:
        if scheme == "file":
            (tmp_path / "shared").mkdir()
            return (tmp_path / "shared").as_uri()
        from servers import BUCKET

        os.environ.update(request.getfixturevalue("bucket").settings)
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"

    return give


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
