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
from rnnlm_core.snapshot import take_snapshot
from rnnlm_core.trainer import Trainer

torch.set_num_threads(1)
cases, folder = json.loads(sys.argv[1]), sys.argv[2]

def ids(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.arange(length) * 7 % 11 + torch.randint(0, 2, (length,), generator=generator)).int()

def digest(tensors):
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()

def trained(case, ranks):
    config = TrainConfig(**case["train"], processes=ranks.size)
    torch.manual_seed(config.seed)
    training = Trainer(case["cell"], 12, ids(400, 1), ids(100, 2), ModelConfig(**case["model"]), config,
                       torch.device("cpu"), ranks)
    kept, snapshots = [], []
    def look():
        if len(kept) <= len(training.history):
            kept.append(training.place.losses)
        if training.place.updates == 1 and not snapshots:
            snapshots.append(take_snapshot(training))
    while len(training.history) < config.epochs:
        training.run_epoch(look)
    (early,) = snapshots
    packed = Snapshot.unpacked(*early.packed())
    same = all(torch.equal(packed.tensors[name], tensor) for name, tensor in early.tensors.items())
    return {
        "losses": torch.cat(kept).tolist(),
        "valid": [epoch.valid_loss for epoch in training.history],
        "norms": [epoch.gradient_norm for epoch in training.history],
        "weights": digest(training.model.weights().values()),
        "best": digest(training.keep_best().weights().values()),
        "state": [t.flatten().tolist() for name, t in sorted(early.tensors.items()) if name.startswith("place.state")],
        "packed": same and packed.facts == early.facts,
    }

def everything(ranks):
    told = {}
    for name, case in cases.items():
        torch.set_default_dtype(torch.float64 if case["double"] else torch.float32)
        told[name] = trained(case, ranks)
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

TRAIN = {"epochs": 2, "batch_size": 5, "num_steps": 6, "seed": 3, "device": "cpu", "learning_rate": 0.02}
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
        "double": True,
        "model": {"hidden_size": 8, "embedding_size": 8, "tie_weights": True},
        "train": {**TRAIN, "schedule": "plateau"},
    },
    "random lengths, regularised, averaged": {
        "cell": "lstm",
        "double": True,
        "model": {"hidden_size": 8, "num_layers": 2, "embedding_size": 6, "tie_weights": True},
        "train": {
            **TRAIN,
            "epochs": 7,
            "optimizer": "nt-asgd",
            "non_monotone": 1,
            "learning_rate": 9.0,
            "bptt": "random",
            "activation_regularization": 2.0,
            "temporal_activation_regularization": 1.0,
        },
    },
    "mixture": {
        "cell": "gru",
        "double": True,
        "model": {"hidden_size": 8, "embedding_size": 6, "tie_weights": True, "mixture": 3},
        "train": TRAIN,
    },
}
DROPOUT = {
    "cell": "gru",
    "double": False,
    "model": {"hidden_size": 8, "num_layers": 2, "dropout": 0.4},
    "train": TRAIN,
}
MASKS = {
    **DROPOUT,
    "model": {
        "hidden_size": 8,
        "num_layers": 2,
        "embedding_size": 6,
        "dropout": 0.4,
        "variational_dropout": True,
        "dropout_embedding": 0.2,
        "weight_drop": 0.5,
    },
}


def start(number: int, size: int, cases: dict[str, Any], folder: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"RANK": str(number), "WORLD_SIZE": str(size), "PYTHONPATH": str(PROJECT)}
    script = [sys.executable, "-P", "-c", WORK, json.dumps(cases), str(folder)]
    return subprocess.Popen(script, env=environment | {"OMP_NUM_THREADS": "1"})


def train(size: int, folder: Path) -> list[dict[str, Any]]:
    """Return what each of so many ranks says of all cases."""
    children = [start(number, size, {**CASES, "dropout": DROPOUT, "masks": MASKS}, folder) for number in range(size)]
    assert [child.wait(timeout=200) for child in children] == [0] * size
    return [json.loads((folder / f"{number}-of-{size}.json").read_text()) for number in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    (told,) = train(1, folder)
    return told


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def told(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    """What two ranks say, or three: of 5 rows they have 2 and 3, or 1, 2 and 2."""
    return train(request.param, folder)


@pytest.mark.parametrize("case", CASES)
def test_the_losses_of_every_step_are_those_of_one_process(
    case: str, told: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    one, together = alone[case], told[0][case]
    close = 1e-12 if CASES[case]["double"] else 1e-5
    assert len(one["losses"]) >= 2 * 12
    assert together["losses"] == pytest.approx(one["losses"], rel=close)
    assert math.exp(together["valid"][-1]) == pytest.approx(math.exp(one["valid"][-1]), rel=1e-3)
    assert together["valid"] == pytest.approx(one["valid"], rel=close)
    assert together["norms"] == pytest.approx(one["norms"], rel=10 * close)


@pytest.mark.parametrize("case", [*CASES, "dropout", "masks"])
def test_no_rank_drifts_from_the_others(case: str, told: list[dict[str, Any]]) -> None:
    for what in ("weights", "best", "losses", "valid", "norms"):
        assert all(one[case][what] == told[0][case][what] for one in told)


@pytest.mark.parametrize("case", [name for name in CASES if "sequential" in name])
def test_a_checkpoint_holds_the_state_of_every_row_in_order(
    case: str, told: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    one, together = alone[case]["state"], told[0][case]["state"]
    assert len(one) == (4 if "lstm" in case else 2)
    for ours, theirs in zip(together, one, strict=True):
        assert len(ours) == 5 * 8
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    assert told[0][case]["packed"]


@pytest.mark.parametrize("case", ["dropout", "masks"])
def test_each_rank_draws_its_own_dropout(case: str, told: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    one, together = alone[case]["losses"], told[0][case]["losses"]
    assert together != pytest.approx(one, rel=1e-3)
    assert sum(together) == pytest.approx(sum(one), rel=0.1)


def test_what_one_wishes_and_what_one_says_is_known_to_all(told: list[dict[str, Any]]) -> None:
    for one in told:
        assert one["any"] == [True, False, True]
        assert one["one"] == ["of 0", f"of {len(told) - 1}", ""]


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
