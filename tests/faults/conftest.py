"""One Prefect server and one process that forks, for all commands of a session."""

from collections.abc import Iterator

import pytest
from commands import Commands
from homes import SMALL, artifacts, what_is_wrong


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Where commands are started."""
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def undisturbed(commands: Commands) -> dict[str, dict[str, set[str]]]:
    """The artifacts that the command leaves for each cell when nobody disturbs it, and how long it takes."""
    expected = {}
    for cell in ("rnn", "gru", "lstm"):
        home = commands.home(f"undisturbed-{cell}")
        running = commands.start(home, *SMALL, "--cells", cell)
        assert running.wait() == 0, running.output()
        assert list(what_is_wrong(home, commands.prefect)) == []
        expected[cell] = set(artifacts(home))
    return expected
