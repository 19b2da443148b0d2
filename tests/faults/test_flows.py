"""Whole commands, as people start them: killed, started together, robbed of their server."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from homes import (
    COMMAND,
    EPOCHS,
    SMALL,
    artifacts,
    let_time_pass,
    places,
    processes_of,
    rows,
    wait_until_alone,
    what_is_wrong,
    without_settings,
)

SEEDS = int(os.environ.get("RNNLM_COMMANDS", "2"))
"""How many commands are killed; `make faults` asks for more."""
CELLS = ["--cells", "rnn,gru"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def start(home: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    home.mkdir(exist_ok=True)
    environment = {**without_settings(), **places(home), "PREFECT_HOME": str(home / "prefect"), **more}
    return subprocess.Popen(
        [*COMMAND, *arguments], env=environment, cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def wait_for_download(process: "subprocess.Popen[str]") -> None:
    """Read what the command says until its first stage is done."""
    assert process.stdout is not None
    seen = ""
    while "download       done" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line


def check_closed(home: Path) -> None:
    """Everything is whole and nothing stays open."""
    assert list(what_is_wrong(home, home / "prefect" / "prefect.db")) == []
    assert finish(start(home, "verify")) == "everything is whole\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], float]:
    """The artifacts of a run that nobody disturbed, and how long it took."""
    home = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finish(start(home, *SMALL, *CELLS))
    seconds = time.monotonic() - started
    check_closed(home)
    return set(artifacts(home)), seconds


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_command_killed_at_a_random_moment_is_finished_by_the_same_command(
    seed: int, whole: tuple[set[str], float], tmp_path: Path
) -> None:
    expected, seconds = whole
    home = tmp_path / "home"
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 2)):
        process = start(home, *SMALL, *CELLS)
        time.sleep(draw.uniform(0.2, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until_alone(home)
        let_time_pass(home)
    finish(start(home, *SMALL, *CELLS, "--json", str(home / "out.json")))
    wait_until_alone(home)
    assert set(artifacts(home)) == expected
    check_closed(home)
    written = json.loads((home / "out.json").read_text())
    assert set(written["cells"]) == {"rnn", "gru"}
    for cell in written["cells"].values():
        steps = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY step"
        assert rows(home / "mlflow.db", steps, cell["run_id"]) == [(step,) for step in range(1, EPOCHS + 1)]
    shutil.rmtree(home)


def test_commands_started_together_do_each_stage_once(whole: tuple[set[str], float], tmp_path: Path) -> None:
    expected, _ = whole
    home = tmp_path / "home"
    processes = [start(home, *SMALL, *CELLS, "--json", str(home / f"{number}.json")) for number in range(4)]
    for process in processes:
        finish(process)
    wait_until_alone(home)
    assert set(artifacts(home)) == expected
    check_closed(home)
    written = [json.loads((home / f"{number}.json").read_text()) for number in range(4)]
    stages = 5 + 3 * 2 + 1
    assert sum(one["tasks"]["executed"] for one in written) == stages
    assert sum(one["tasks"]["cached"] for one in written) == 3 * stages
    figures = [{cell: f["valid_perplexity"] for cell, f in one["cells"].items()} for one in written]
    assert figures == [figures[0]] * 4


def test_smokes_started_together_do_each_stage_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    processes = [start(home, "smoke") for _ in range(4)]
    for process in processes:
        lines = finish(process).splitlines()
        assert len([line for line in lines if line.startswith("ok ")]) == 4 + 3 * 5
    wait_until_alone(home)
    # Prefect keeps a task run for each flow within a flow as well: these are no stages.
    ended = "SELECT name, state_name, count(*) FROM task_run WHERE name NOT LIKE 'language-model%' GROUP BY 1, 2"
    found = {(name, state): times for name, state, times in rows(home / "prefect" / "prefect.db", ended)}
    stages = {name for name, _ in found}
    assert len(stages) == 5 + 3 * 3 + 1
    # Each smoke goes twice through the chain.
    assert found == {(name, "Completed"): 1 for name in stages} | {(name, "Cached"): 4 * 2 - 1 for name in stages}
    assert finish(start(home, "verify")) == "everything is whole\n"


def test_a_command_whose_server_dies_starts_another_and_ends_well(
    whole: tuple[set[str], float], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    process = start(home, *SMALL, *CELLS)
    wait_for_download(process)
    (server,) = (one for one in processes_of(home) if "flows.server" in one.cmdline())
    server.kill()
    rest = finish(process)
    assert "Prefect's own server has died: starting it again" in rest
    wait_until_alone(home)
    assert set(artifacts(home)) == whole[0]
    check_closed(home)


def test_a_server_of_others_that_dies_for_good_ends_the_command_in_one_line(
    whole: tuple[set[str], float], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {**without_settings(), **places(home), "PREFECT_HOME": str(home / "prefect")}
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.server"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    address = f"http://127.0.0.1:{server.stdout.readline().strip()}/api"
    assert httpx.get(f"{address}/health", timeout=240).status_code == 200  # it listens before it answers
    process = start(home, *SMALL, *CELLS, PREFECT_API_URL=address, PREFECT_CLIENT_MAX_RETRIES="1")
    wait_for_download(process)
    server.kill()
    server.communicate()
    rest = finish(process, 5)
    # Prefect's own words about its log may stand before it, without an end of line.
    assert "error: the Prefect server does not answer any more: Connect" in rest
    assert "Traceback" not in rest
    wait_until_alone(home)
    let_time_pass(home)
    finish(start(home, *SMALL, *CELLS))
    wait_until_alone(home)
    assert set(artifacts(home)) == whole[0]
    check_closed(home)
