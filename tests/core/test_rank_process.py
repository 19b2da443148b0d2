"""Trainings of two real processes: stopped, killed, restarted, and ended with their parent."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rnnlm_core import child_process
from rnnlm_core.checkpoint import Checkpoints
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.errors import DataError, ResourceError, Stopped
from rnnlm_core.store import Handle, Store
from rnnlm_core.train_process import train_in_child
from rnnlm_core.training_job import Job

PROJECT = Path(__file__).resolve().parents[2]
MODEL = ModelConfig(hidden_size=8, num_layers=2, dropout=0.2)
CONFIG = TrainConfig(epochs=4, batch_size=15, num_steps=10, seed=3, device="cpu", processes=2)
RANK = "rnnlm_core.rank_process"


def silent(_: Any) -> None:
    """Hear nothing."""


def never() -> bool:
    return False


@pytest.fixture
def job(characters: Any, store: Store) -> Job:
    """A job of two processes that keeps a checkpoint before each update."""
    place = str(store.root)
    return Job("gru", characters.corpus, characters.vocabulary, MODEL, CONFIG, place, "ranks", checkpoint_seconds=0.0)


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the ranks that a process or its agents have started, in their order."""
    found = {}
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if RANK in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found[int(child.environ()["RANK"])] = child
    return [found[number] for number in sorted(found)]


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without the clock."""
    clock = {"tokens_per_second": 0, "seconds": 0}
    return {**result, **clock, "history": [epoch | clock for epoch in result["history"]]}


@pytest.fixture
def whole(job: Job) -> dict[str, Any]:
    """What the job comes to when nobody disturbs it."""
    undisturbed = replace(job, key="undisturbed", checkpoint_seconds=60.0)
    return figures(train_in_child(undisturbed, silent, never, silent))


def test_a_rank_that_is_killed_is_started_again_and_nothing_else_changes(job: Job, whole: dict[str, Any]) -> None:
    heard: list[Any] = []
    told: list[dict[str, Any]] = []

    def kill(epoch: dict[str, Any]) -> None:
        told.append(epoch)
        if epoch["number"] in (1, 2):
            ranks_of(psutil.Process())[epoch["number"] % 2].kill()

    result = train_in_child(job, kill, never, heard.append)
    assert figures(result) == whole
    assert [epoch["number"] for epoch in told] == [1, 2, 3, 4]
    assert heard == [
        f"a process of this training died: all 2 go on from the last checkpoint ({number} of 3 times)"
        for number in (1, 2)
    ]
    assert ranks_of(psutil.Process()) == []


def test_a_stop_keeps_a_checkpoint_and_the_next_ends_with_the_same_bits(job: Job, whole: dict[str, Any]) -> None:
    epochs: list[dict[str, Any]] = []
    with pytest.raises(Stopped, match=r"training stopped: in epoch [234]: run the same command again to go on"):
        train_in_child(replace(job, checkpoint_seconds=60.0), epochs.append, lambda: bool(epochs), silent)
    assert ranks_of(psutil.Process()) == []
    snapshot, _ = Checkpoints(Store(Path(job.store)), job.key).load()
    assert snapshot is not None
    assert snapshot.facts["history"][0] == epochs[0]
    assert snapshot.tensors["random.cpu"].shape[0] == 2
    assert not snapshot.tensors["random.cpu"][0].equal(snapshot.tensors["random.cpu"][1])
    assert figures(train_in_child(job, silent, never, silent)) == whole


def test_a_training_that_is_killed_too_often_is_told_with_the_signal(job: Job) -> None:
    def kill() -> bool:
        for rank in ranks_of(psutil.Process())[:1]:
            rank.kill()
        return False

    said = "training of gru was killed: SIGKILL, after 3 new beginnings: if memory ran out lower train.batch_size"
    with pytest.raises(ResourceError, match=said):
        train_in_child(job, silent, kill, silent)
    assert ranks_of(psutil.Process()) == []


def test_an_error_of_the_core_arrives_as_it_was_raised(job: Job) -> None:
    short = replace(job, train=replace(CONFIG, batch_size=4000))
    with pytest.raises(DataError, match="text too short, needs at least 40,011 tokens: 3,200 tokens in"):
        train_in_child(short, silent, never, silent)


LONG = replace(CONFIG, epochs=100_000)
PARENT = """
import json, sys
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.store import Handle
from rnnlm_core.train_process import train_in_child
from rnnlm_core.training_job import Job

fields = json.loads(sys.argv[1])
handles = {name: Handle(**fields.pop(name)) for name in ("corpus", "vocabulary")}
job = Job(**handles, model=ModelConfig(**fields.pop("model")), train=TrainConfig(**fields.pop("train")), **fields)
train_in_child(job, lambda epoch: print(epoch["number"], flush=True), lambda: False, lambda _: None)
"""


def wait_for_the_end_of(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


def test_no_process_is_left_when_the_parent_is_killed(job: Job) -> None:
    fields = json.dumps(asdict(replace(job, train=LONG, checkpoint_seconds=60.0)))
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, fields],
        env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "1\n"
    started = psutil.Process(parent.pid).children(recursive=True)
    assert len(ranks_of(psutil.Process(parent.pid))) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for_the_end_of(started)
    assert Checkpoints(Store(Path(job.store)), job.key).load()[0] is not None  # they stopped as if they were asked to


def test_the_ranks_of_an_agent_that_is_killed_stop_and_keep_their_place(job: Job) -> None:
    started: list[psutil.Process] = []

    def kill(epoch: dict[str, Any]) -> None:
        if epoch["number"] == 1:
            started.extend(ranks_of(psutil.Process()))
            (agent,) = (c for c in psutil.Process().children() if "rnnlm_core.train_process" in c.cmdline())
            agent.kill()

    with pytest.raises(ResourceError, match="training of gru was killed: SIGKILL: if memory ran out"):
        train_in_child(replace(job, train=LONG, checkpoint_seconds=60.0), kill, never, silent)
    assert len(started) == 2
    wait_for_the_end_of(started)
    assert Checkpoints(Store(Path(job.store)), job.key).load()[0] is not None


def test_a_message_that_was_cut_off_by_a_kill_is_left_out_and_heard_once(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child"
    script.write_text(f"""#!{sys.executable} -S
import json
print(json.dumps({{"epoch": {{"number": 1}}}}))
print('{{"epoch": {{"num')
print(json.dumps({{"epoch": {{"number": 1}}}}))
print()
print(json.dumps({{"epoch": {{"number": 2}}}}))
print(json.dumps({{"result": {{"cell": "gru"}}}}))
""")
    script.chmod(0o755)
    monkeypatch.setattr(child_process.sys, "executable", str(script))
    heard: list[Any] = []
    assert train_in_child(job, heard.append, never, silent) == {"cell": "gru"}
    assert heard == [{"number": 1}, {"number": 2}]


# Several hosts


def torchrun(folder: Path, job: Job, hosts: int, endpoint: str, store: Path) -> "subprocess.Popen[str]":
    """Start the agent of one host, with a store of its own, as docs/growing-up.md says."""
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps(asdict(replace(job, store=str(store)))))
    return subprocess.Popen(
        [
            sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", str(hosts), "--nproc-per-node", "1",
            "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "job",
            "--local-addr", "localhost", "-m", RANK, str(folder / "job.json"),
        ],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


@pytest.fixture
def endpoint() -> str:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"localhost:{free.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface has another name here")
def test_two_hosts_train_together_each_with_a_store_of_its_own(
    job: Job, whole: dict[str, Any], endpoint: str, tmp_path: Path
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(job.store, other)
    (other / "checkpoint" / "undisturbed.json").unlink(missing_ok=True)
    shutil.rmtree(other / "model")
    hosts = [torchrun(tmp_path / str(i), job, 2, endpoint, place) for i, place in enumerate((Path(job.store), other))]
    said = [host.communicate(timeout=120)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    messages = [json.loads(line) for text in said for line in text.splitlines() if line]
    (result,) = (message["result"] for message in messages if "result" in message)
    assert figures(result) == whole
    assert len([message for message in messages if "epoch" in message]) == CONFIG.epochs


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface has another name here")
def test_torchrun_that_is_asked_to_end_stops_all_ranks_with_a_checkpoint(
    job: Job, endpoint: str, tmp_path: Path
) -> None:
    long = replace(job, train=replace(LONG, processes=1, batch_size=16), checkpoint_seconds=3600.0)
    host = torchrun(tmp_path / "host", long, 1, endpoint, Path(job.store))
    assert host.stdout is not None
    wait_until(lambda: '"epoch"' in host.stdout.readline())
    host.send_signal(signal.SIGTERM)
    rest = host.communicate(timeout=60)[0]
    assert host.returncode != 0
    assert '"Stopped"' in rest
    digests = Checkpoints(Store(Path(job.store)), job.key).digests()
    assert len(digests) == 1
    assert not Store(Path(job.store)).fault(Handle("checkpoint", digests[0]))
