"""A real child process where its start is worth the time, a scripted one where only its messages matter."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rnnlm_core import child_process
from rnnlm_core.checkpoint import Checkpoints
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.errors import DataError, ResourceError, Stopped
from rnnlm_core.store import Handle, Store
from rnnlm_core.train import train
from rnnlm_core.train_process import train_in_child
from rnnlm_core.training_job import Job

MODEL = ModelConfig(hidden_size=8, num_layers=2, dropout=0.2)
CONFIG = TrainConfig(epochs=4, batch_size=16, num_steps=10, seed=3, device="cpu")


def silent(_: Any) -> None:
    """Hear nothing."""


def never() -> bool:
    return False


@pytest.fixture
def job(characters: Any, store: Store) -> Job:
    """A job that keeps a checkpoint before each update."""
    place = str(store.root)
    return Job("gru", characters.corpus, characters.vocabulary, MODEL, CONFIG, place, "child", checkpoint_seconds=0.0)


def in_process(job: Job, store: Store) -> dict[str, Any]:
    return asdict(train(job.cell, job.corpus, job.vocabulary, job.model, job.train, store, key="here"))


@pytest.fixture
def before_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that lets the next child run some Python first."""

    def prepare(code: str) -> None:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return prepare


HOLD = """
import time
import rnnlm_core.trainer as t
run_epoch = t.Trainer.run_epoch
def held(self, before_update):
    while len(self.history) == 2:
        before_update()
        time.sleep(0.05)
    return run_epoch(self, before_update)
t.Trainer.run_epoch = held
"""
"""Waits after the second epoch until it is asked to stop."""


def test_a_stopped_child_keeps_its_checkpoint_and_the_next_ends_as_training_here_does(
    job: Job, store: Store, before_child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before_child(HOLD)
    epochs: list[dict[str, Any]] = []
    with pytest.raises(Stopped, match="training stopped: in epoch 3: run the same command again to go on"):
        train_in_child(job, epochs.append, lambda: len(epochs) == 2, silent)
    snapshot, _ = Checkpoints(store, "child").load()
    assert snapshot is not None
    assert snapshot.facts["history"] == epochs

    monkeypatch.delenv("PYTHONPATH")
    newest = json.loads((store.root / "checkpoint" / "child.json").read_text())[0]
    (store.path(Handle("checkpoint", newest)) / "state.json").unlink()
    warnings: list[str] = []
    earlier: list[int] = []
    result = train_in_child(job, epochs.append, never, warnings.append, resumed=earlier.append)
    assert len(earlier) == 1
    assert earlier[0] < 2  # the damaged checkpoint was that of both epochs
    assert len(warnings) == 1
    assert "checkpoint skipped" in warnings[0]
    assert epochs[2:] == result["history"]
    assert epochs[0] == epochs[2]

    expected = in_process(job, store)
    clock = {"tokens_per_second": 0, "seconds": 0}
    assert [e | clock for e in result.pop("history")] == [e | clock for e in expected.pop("history")]
    assert result | clock == expected | clock


def test_a_child_whose_code_is_refused_leaves_no_checkpoint(job: Job, store: Store) -> None:
    def refuse() -> None:
        raise ResourceError("not this code", "gru", "take the other")

    epochs: list[dict[str, Any]] = []
    with pytest.raises(ResourceError, match="not this code: gru: take the other"):
        train_in_child(job, epochs.append, never, silent, begun=refuse)
    assert epochs == []
    assert Checkpoints(store, "child").load() == (None, [])


def test_a_killed_child_is_told_with_its_signal_and_leaves_its_checkpoint(
    job: Job, store: Store, before_child: Callable[[str], None]
) -> None:
    before_child(HOLD)

    def kill(epoch: dict[str, Any]) -> None:
        if epoch["number"] == 2:
            (child,) = (c for c in psutil.Process().children() if "rnnlm_core.train_process" in c.cmdline())
            child.send_signal(signal.SIGKILL)

    with pytest.raises(ResourceError, match="training of gru was killed: SIGKILL: if memory ran out lower"):
        train_in_child(job, kill, never, silent)
    assert Checkpoints(store, "child").load()[0] is not None


def test_an_error_of_the_core_arrives_as_it_was_raised(job: Job, store: Store) -> None:
    short = replace(job, train=replace(CONFIG, batch_size=4000))
    with pytest.raises(DataError) as here:
        in_process(short, store)
    with pytest.raises(DataError, match="text too short, needs at least 40,011 tokens: 3,200 tokens in") as there:
        train_in_child(short, silent, never, silent)
    assert type(there.value) is type(here.value)
    assert str(there.value) == str(here.value)


# A child whose training is replaced: it does not wait for PyTorch


REPLACED = """
import sys, types
torch, training = types.ModuleType("torch"), types.ModuleType("rnnlm_core.train")
torch.set_num_threads = print  # what a library prints is no message
def train(*_, **__):
    raise {error}
training.train = train
sys.modules |= {{"torch": torch, "rnnlm_core.train": training}}
"""


def test_an_unexpected_error_arrives_with_its_traceback(job: Job, before_child: Callable[[str], None]) -> None:
    before_child(REPLACED.format(error="KeyError('momentum')"))
    with pytest.raises(RuntimeError, match=r"(?s)failed in its process:\nTraceback.*in train\n.*KeyError: 'momentum'"):
        train_in_child(job, silent, never, silent)


@pytest.mark.parametrize("error", ["MemoryError()", "RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')"])
def test_memory_that_ran_out_is_told_with_the_remedy(error: str, job: Job, before_child: Callable[[str], None]) -> None:
    before_child(REPLACED.format(error=error))
    with pytest.raises(ResourceError, match=r"out of memory: gru: lower train\.batch_size or model\.hidden_size"):
        train_in_child(job, silent, never, silent)


def test_pytorch_says_that_memory_ran_out_in_its_own_words() -> None:
    with pytest.raises(RuntimeError, match="allocate memory") as caught:
        torch.empty(2**50)
    assert child_process._is_out_of_memory(caught.value)
    assert not child_process._is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


# Scripted children


SCRIPTED = Job("lstm", Handle("corpus", "0"), Handle("vocabulary", "0"), MODEL, CONFIG, "nowhere", "key")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that puts a script in the place of the child."""

    def prepare(code: str) -> None:
        path = tmp_path / "child"
        path.write_text(f"#!{sys.executable} -S\nimport json, os, signal, sys, threading\n{code}")
        path.chmod(0o755)
        monkeypatch.setattr(child_process.sys, "executable", str(path))

    return prepare


def test_a_job_arrives_whole(script: Callable[[str], None]) -> None:
    script("print(json.dumps({'result': json.loads(sys.stdin.readline())}))")
    assert train_in_child(SCRIPTED, silent, never, silent) == json.loads(json.dumps(asdict(SCRIPTED)))


@pytest.mark.parametrize(("threads", "expected"), [(1, "1"), (3, "3"), (0, None)])
def test_a_child_computes_with_the_threads_of_its_job(
    threads: int, expected: str | None, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script("print(json.dumps({'result': os.environ.get('OMP_NUM_THREADS')}))")
    assert train_in_child(replace(SCRIPTED, threads=threads), silent, never, silent) == expected


def test_messages_arrive_in_order_and_by_kind(script: Callable[[str], None]) -> None:
    script("""
for message in ({"epoch": {"number": 1}}, {"warning": "w"}, {"epoch": {"number": 2}}, {"result": 7}):
    print(json.dumps(message))
""")
    heard: list[Any] = []
    assert train_in_child(SCRIPTED, heard.append, never, heard.append) == 7
    assert heard == [{"number": 1}, "w", {"number": 2}]


def test_a_stop_is_passed_on_while_messages_pour_in(script: Callable[[str], None]) -> None:
    script("""
sys.stdin.readline()
stopped = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
for number in range(100_000):
    print(json.dumps({"epoch": {"number": number}}), flush=True)
    if stopped.is_set():
        print(json.dumps({"error": {"kind": "Stopped", "args": ["training stopped", "in epoch 1", ""]}}), flush=True)
        os._exit(0)
print(json.dumps({"result": {}}))
""")
    epochs: list[Any] = []
    with pytest.raises(Stopped, match="training stopped: in epoch 1"):
        train_in_child(SCRIPTED, epochs.append, lambda: len(epochs) > 3, silent)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_a_signal_has_its_name_even_in_the_middle_of_a_message(name: str, script: Callable[[str], None]) -> None:
    script(f"""
sys.stdin.readline()
print('{{"epoch": {{"num', end="", flush=True)
os.kill(os.getpid(), signal.{name})
""")
    with pytest.raises(ResourceError, match=f"training of lstm was killed: {name}"):
        train_in_child(SCRIPTED, silent, never, silent)


def test_a_child_that_says_nothing_is_told_with_its_last_words(script: Callable[[str], None]) -> None:
    script("sys.stdin.readline(); print('no such library', file=sys.stderr); sys.exit(3)")
    with pytest.raises(RuntimeError, match=r"training of lstm ended with exit code 3\nno such library"):
        train_in_child(SCRIPTED, silent, never, silent)


def test_a_child_that_does_not_read_its_job_is_told_too(script: Callable[[str], None]) -> None:
    script("sys.exit(4)")
    long = replace(SCRIPTED, key="k" * 1_000_000)  # more than a pipe holds
    with pytest.raises(RuntimeError, match="training of lstm ended with exit code 4"):
        train_in_child(long, silent, never, silent)


def test_an_error_of_the_listener_ends_the_child(script: Callable[[str], None], tmp_path: Path) -> None:
    script(f"""
sys.stdin.readline()
print(json.dumps({{"epoch": {{}}}}), flush=True)
sys.stdin.read()
open({str(tmp_path / "ended")!r}, "w").close()
""")

    def fail(_: Any) -> None:
        raise KeyError("listener")

    with pytest.raises(KeyError, match="listener"):
        train_in_child(SCRIPTED, fail, never, silent)
    assert (tmp_path / "ended").exists()
    assert not [c for c in psutil.Process().children() if c.cmdline()[-1:] == ["rnnlm_core.train_process"]]


REPORT_CORES = """
import sys
import rnnlm_core.trainer as t
from rnnlm_core import cores
run_epoch = t.Trainer.run_epoch
def reported(self, before_update):
    while cores.number() != 3:
        before_update()
    return run_epoch(self, before_update)
t.Trainer.run_epoch = reported
"""
"""Trains no epoch before it may use three cores."""


def test_a_child_learns_how_many_cores_are_its_own_and_gives_the_same_bits(
    job: Job, store: Store, before_child: Callable[[str], None]
) -> None:
    before_child(REPORT_CORES)
    numbers = iter([1, 1, 2])
    trained = train_in_child(
        replace(job, checkpoint_seconds=60.0), silent, never, silent, num_cores=lambda: next(numbers, 3)
    )
    assert Handle(**trained["model"]) == Handle(**in_process(job, store)["model"])
