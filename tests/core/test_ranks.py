"""Real processes over gloo, started once for all tests of this file: what they compute, beside one process."""

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnlm_core.config import CELLS, ModelConfig, TrainConfig
from rnnlm_core.errors import UsageError
from rnnlm_core.partition import sequential_batches
from rnnlm_core.ranks import ALONE, Ranks
from rnnlm_core.train import fit

PROJECT = Path(__file__).resolve().parents[2]

WORK = """
import hashlib, json, os, sys
import torch
from rnnlm_core.checkpoint import Snapshot
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.ranks import joined
from rnnlm_core.train import _Training, fit

torch.set_num_threads(1)
cases, folder = json.loads(sys.argv[1]), sys.argv[2]

def ids(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.arange(length) * 7 % 11 + torch.randint(0, 2, (length,), generator=generator)).int()

def digest(tensors):
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()

def losses_of(case, ranks):
    config = TrainConfig(**case["train"], processes=ranks.size)
    torch.manual_seed(config.seed)
    training = _Training(case["cell"], 12, ids(400, 1), None, ModelConfig(**case["model"]), config,
                         torch.device("cpu"), ranks)
    kept, snapshots = [], []
    def look():
        if len(kept) <= len(training.history):
            kept.append(training.place.losses)
        if training.place.updates == 1:
            snapshots.append(training.snapshot())
    while len(training.history) < config.epochs:
        training.run_epoch(look)
    last = snapshots[-1]
    state = [t.flatten().tolist() for name, t in sorted(last.tensors.items()) if name.startswith("place.state")]
    packed = Snapshot.unpacked(*last.packed())
    same = packed.facts == last.facts and all(torch.equal(packed.tensors[k], v) for k, v in last.tensors.items())
    return {"losses": torch.cat(kept).tolist(), "weights": digest(training.model.weights().values()),
            "state": state, "packed": same}

def everything(ranks):
    told = {}
    for name, case in cases.items():
        torch.set_default_dtype(torch.float64 if case["double"] else torch.float32)
        told[name] = losses_of(case, ranks)
        config = TrainConfig(**case["train"], processes=ranks.size)
        fitted = fit(case["cell"], 12, ids(400, 1), ids(100, 2), ModelConfig(**case["model"]), config, ranks=ranks)
        told[name]["valid"] = [epoch.valid_loss for epoch in fitted.history]
        told[name]["norms"] = [epoch.gradient_norm for epoch in fitted.history]
        told[name]["best"] = digest(fitted.model.weights().values())
    told["any"] = ranks.any(ranks.number == ranks.size - 1, False, True)
    mine = f"of {ranks.number}".encode()
    told["one"] = [part.decode() for part in (
        ranks.from_one(mine), ranks.from_one(mine, ranks.size - 1), ranks.from_one(b""))]
    return told

with joined(f"{folder}/meet-{os.environ['WORLD_SIZE']}") as ranks:
    told = everything(ranks)
with open(f"{folder}/{ranks.number}-of-{ranks.size}.json", "w") as file:
    json.dump(told, file)
"""

TRAIN = {"epochs": 3, "batch_size": 5, "num_steps": 6, "seed": 3, "device": "cpu", "learning_rate": 0.02}
CASES: dict[str, dict[str, Any]] = {
    f"{cell} {partition} {implementation} {'double' if double else 'single'}": {
        "cell": cell,
        "double": double,
        "model": {"hidden_size": 8, "num_layers": 2, "embedding_size": 6, "implementation": implementation},
        "train": {**TRAIN, "partition": partition},
    }
    for cell, partition, implementation, double in product(
        CELLS, ("sequential", "random"), ("concise", "scratch"), (False, True)
    )
} | {
    "one-hot, sums, accumulated": {
        "cell": "lstm",
        "double": False,
        "model": {"hidden_size": 8},
        "train": {**TRAIN, "accumulate": 2, "loss": "steps", "clip_norm": 0.5, "optimizer": "sgd"},
    },
    "tied, plateau": {
        "cell": "gru",
        "double": False,
        "model": {"hidden_size": 8, "embedding_size": 8, "tie_weights": True},
        "train": {**TRAIN, "schedule": "plateau", "learning_rate": 0.2},
    },
}
DROPOUT = {
    "cell": "gru",
    "double": False,
    "model": {"hidden_size": 8, "num_layers": 2, "dropout": 0.4},
    "train": TRAIN,
}
Told = dict[int, list[dict[str, Any]]]


def start(number: int, size: int, cases: dict[str, Any], folder: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"RANK": str(number), "WORLD_SIZE": str(size), "PYTHONPATH": str(PROJECT)}
    script = [sys.executable, "-P", "-c", WORK, json.dumps(cases), str(folder)]
    return subprocess.Popen(script, env=environment | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What each rank says of all cases, by the number of ranks: 1, 2 and 3 (5 rows: 2 and 3, or 1, 2 and 2)."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for size in (1, 2, 3):
        children = [start(number, size, {**CASES, "dropout": DROPOUT}, folder) for number in range(size)]
        assert [child.wait(timeout=200) for child in children] == [0] * size
        found[size] = [json.loads((folder / f"{number}-of-{size}.json").read_text()) for number in range(size)]
    return found


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_losses_of_every_step_are_those_of_one_process(case: str, size: int, told: Told) -> None:
    alone, together = told[1][0][case], told[size][0][case]
    close = 1e-12 if CASES[case]["double"] else 1e-5
    assert len(alone["losses"]) >= 3 * 12
    assert together["losses"] == pytest.approx(alone["losses"], rel=close)
    assert math.exp(together["valid"][-1]) == pytest.approx(math.exp(alone["valid"][-1]), rel=1e-3)
    assert together["valid"] == pytest.approx(alone["valid"], rel=close)
    assert together["norms"] == pytest.approx(alone["norms"], rel=10 * close)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", [*CASES, "dropout"])
def test_no_rank_drifts_from_the_others(case: str, size: int, told: Told) -> None:
    for what in ("weights", "best", "losses", "valid"):
        assert all(one[case][what] == told[size][0][case][what] for one in told[size])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", [name for name in CASES if "sequential" in name])
def test_a_checkpoint_holds_the_state_of_every_row_in_order(case: str, size: int, told: Told) -> None:
    alone, together = told[1][0][case]["state"], told[size][0][case]["state"]
    assert len(alone) == (4 if "lstm" in case else 2)
    for ours, theirs in zip(together, alone, strict=True):
        assert len(ours) == 5 * 8
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert told[size][0][case]["packed"]


def test_dropout_draws_for_each_number_of_ranks_anew(told: Told) -> None:
    alone, two = (told[size][0]["dropout"]["losses"] for size in (1, 2))
    assert alone != pytest.approx(two, rel=1e-3)
    assert sum(two) == pytest.approx(sum(alone), rel=0.1)


def test_what_one_wishes_and_what_one_says_is_known_to_all(told: Told) -> None:
    for size in (1, 2, 3):
        for one in told[size]:
            assert one["any"] == [True, False, True]
            assert one["one"] == ["of 0", f"of {size - 1}", ""]


# Without other processes


@pytest.mark.parametrize(("batch_size", "size"), [(1, 1), (5, 2), (5, 3), (7, 7), (32, 5)])
def test_every_row_belongs_to_one_rank(batch_size: int, size: int) -> None:
    rows = [list(range(batch_size))[Ranks(number, size).rows(batch_size)] for number in range(size)]
    assert [row for some in rows for row in some] == list(range(batch_size))
    assert all(rows)
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_minibatches_of_some_rows_are_those_rows() -> None:
    every = sequential_batches(torch.arange(200), 5, 4, torch.Generator().manual_seed(1))
    some = every.of_rows(slice(1, 3))
    assert len(some) == len(every)
    for number in range(len(every)):
        for ours, theirs in zip(some[number], every[number], strict=True):
            assert torch.equal(ours, theirs[1:3])


def test_alone_nothing_is_told_to_anybody() -> None:
    values = torch.arange(6.0).view(2, 3)
    ALONE.add_up([values])
    assert torch.equal(values, torch.arange(6.0).view(2, 3))
    assert ALONE.all_rows(values, 2) is values


def test_settings_for_several_processes_do_not_train_in_one() -> None:
    config = TrainConfig(batch_size=2, num_steps=3, processes=2, device="cpu")
    told = r"must be started together: 2, and 1 of them are here: use `rnnlm run --processes`, or torchrun"
    with pytest.raises(UsageError, match=told):
        fit("rnn", 5, torch.arange(40) % 5, None, ModelConfig(hidden_size=4), config)
