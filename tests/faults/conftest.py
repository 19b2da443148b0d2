"""One Prefect server and one process that forks, for all commands of a session."""

import time
from collections.abc import Iterator

import pytest
from commands import Commands, Undisturbed
from homes import SMALL, artifacts, what_is_wrong

from rnnlm_core.config import CELLS


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Where commands are started."""
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def undisturbed(commands: Commands) -> dict[str, Undisturbed]:
    """What the command leaves for each cell when nobody disturbs it."""
    expected = {}
    for cell in CELLS:
        home = commands.home(f"undisturbed-{cell}")
        begun = time.monotonic()
        running = commands.start(home, *SMALL, "--cells", cell)
        assert running.wait() == 0, running.output()
        seconds = time.monotonic() - begun
        assert list(what_is_wrong(home, commands.prefect)) == []
        expected[cell] = Undisturbed(set(artifacts(home)), seconds)
    return expected
