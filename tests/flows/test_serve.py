"""The command `rnnlm serve`: what it refuses, and a real server that many ask at once."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from homes import COMMAND, PROJECT, without_settings

from flows.commands.generate import load_tracked
from flows.commands.serve import serve
from flows.service.models import served_model
from rnnlm_core.config import GenerateConfig
from rnnlm_core.errors import DataError, ResourceError, UsageError
from rnnlm_core.generate import DEFAULT_PREFIX_TOKENS, continue_text
from tasks import tracked_runs

BURST = 200
SENTENCE = "the time traveller spoke of a curious machine and we listened until all lamps burned low"


@pytest.fixture
def trained(finished: Any, at_home: Any) -> Iterator[Any]:
    """The home of three trained cells."""
    with at_home(finished.home):
        yield finished


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RNNLM_HOME", str(tmp_path / "home"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError) as error:
            serve(port=port)
    what = f"cannot listen: 127.0.0.1:{port} (Address already in use)"
    assert str(error.value) == f"{what}: choose another port: `--port 0` takes one that is free"


def test_mistakes_are_told_before_anything_is_served(tmp_path: Path, monkeypatch: Any) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("RNNLM_HOME", str(home))
    with pytest.raises(DataError, match="no trained model: train one first with `rnnlm run`"):
        serve(port=0)
    assert not (home / "mlflow.db").exists()
    with pytest.raises(UsageError, match="`--model` must name each model once: gru"):
        serve(model=["gru", "rnn", "gru"], port=0)
    with pytest.raises(UsageError, match="no such address of this machine"):
        serve(host="nowhere.invalid", port=0)


def test_a_model_is_found_with_its_run_however_it_is_named(trained: Any, book: Path) -> None:
    cells = {cell: figures["run_id"] for cell, figures in trained.summary["cells"].items()}
    assert {run.tags["rnnlm.cell"]: run.run_id for run in tracked_runs.last_trained_cells()} == cells
    for reference in ("gru", cells["gru"], tracked_runs.find_model_run("gru").tags["rnnlm.model_uri"]):
        saved, run = load_tracked(reference)
        assert saved.model.cell == "gru"
        assert run is not None
        assert run.run_id == cells["gru"]
        # As the split does that was measured: what the page of the service offers to continue.
        beginning = served_model("gru", saved, run).facts.beginning
        assert len(beginning) == DEFAULT_PREFIX_TOKENS
        assert beginning in book.read_text()


@pytest.fixture
def served(trained: Any, tmp_path: Path) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """A server of the trained cells in a process of its own, and its address."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--max-seconds", "600"],
        env={**without_settings(), "RNNLM_HOME": str(trained.home), "PYTHONPATH": str(PROJECT)},
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("serving rnn, gru, lstm of "), process.communicate()
        assert said.endswith("(no login: keep it on this machine)\n")
        yield process, said.split(" on ")[1].split()[0]
    finally:
        process.kill()
        process.communicate()


def asked(number: int) -> dict[str, Any]:
    words = SENTENCE.split()
    prefix = f"{words[number % 16]} {words[number // 16]}"
    model = ("rnn", "gru", "lstm")[number % 3]
    return {"model": model, "prefix": prefix, "length": 20, "temperature": 1.0, "seed": number}


async def burst(address: str) -> list[httpx.Response]:
    """Ask `BURST` different things at the same time."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=280, limits=limits) as client:
        return await asyncio.gather(*(client.post("/generate", json=asked(number)) for number in range(BURST)))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_server_has_done_its_job(served: Any, number: signal.Signals) -> None:
    process, address = served
    content = {**asked(0), "length": 2000, "stream": True}
    with httpx.stream("POST", f"{address}/generate", json=content, timeout=280) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(number)
        assert "the server is stopping" in list(lines)[-1]
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "stopped\n")


@pytest.mark.slow
def test_many_at_once_are_all_answered_each_with_its_own_text_in_flat_memory(served: Any, trained: Any) -> None:
    process, address = served
    models = {cell: load_tracked(cell)[0] for cell in ("rnn", "gru", "lstm")}
    expected = []
    for number in range(BURST):
        content = asked(number)
        config = GenerateConfig(length=20, temperature=1.0, seed=number)
        expected.append(continue_text(models[content["model"]], content["prefix"], config).text)
    memory = []
    for _ in range(3):
        answers = asyncio.run(burst(address))
        assert {answer.status_code for answer in answers} == {200}
        assert [answer.json()["text"] for answer in answers] == expected
        memory.append(psutil.Process(process.pid).memory_info().rss)
    assert len(set(expected)) > BURST * 0.9
    assert memory[2] < memory[0] + 40e6
