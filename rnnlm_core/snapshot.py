"""What a training must keep to go on to the same bits: taken from a trainer between two updates, put back into one."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from rnnlm_core.cells import State
from rnnlm_core.checkpoint import Snapshot
from rnnlm_core.model import detach
from rnnlm_core.outcomes import Epoch
from rnnlm_core.ranks import Ranks
from rnnlm_core.recurrence import settled
from rnnlm_core.trainer import Place, Trainer
from rnnlm_core.weight_average import WeightAverage


def take_snapshot(trainer: Trainer) -> Snapshot:
    """Return everything needed to go on, as tensors and plain facts; called by all ranks together.

    Raises `Diverged` instead of keeping numbers that are none.
    """
    place = trainer.place
    step = place.updates if place else 0
    if place and step:
        trainer.check_finite(place.losses[: place.batches], place.norms[:step])
    if not all(torch.isfinite(values).all() for values in trainer.model.weights().values()):
        raise trainer.diverged(step, "weights that are not finite")
    tensors = {f"model.{k}": v for k, v in trainer.model.weights().items()}
    tensors |= {f"best.{k}": v for k, v in trainer.best_weights.items()}
    if trainer.average is not None:
        tensors |= {f"average.{k}": v for k, v in trainer.average.means.items()}
    for index, values in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items() if v is not None}
    tensors["random.data"] = place.data_random if place else trainer.generator.get_state()
    tensors["random.cpu"] = _of_each_rank(trainer.ranks, torch.get_rng_state())
    if trainer.device.type == "cuda":
        tensors["random.cuda"] = _of_each_rank(trainer.ranks, torch.cuda.get_rng_state(trainer.device))
    facts: dict[str, Any] = {
        "recurrence": settled(trainer.device),
        "loss_scale": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "best_epoch": trainer.best_epoch,
        "averaged_updates": None if trainer.average is None else trainer.average.num_updates,
        "history": [asdict(epoch) for epoch in trainer.history],
        "place": None,
    }
    if place is not None:
        tensors |= {"place.losses": place.losses, "place.norms": place.norms}
        for i, layer in enumerate(detach(place.state)):
            rows = [trainer.ranks.all_rows(part.clone(), trainer.config.batch_size) for part in layer]
            tensors |= {f"place.state.{i}.{j}": part for j, part in enumerate(rows)}
        facts["place"] = {
            "batches": place.batches,
            "updates": place.updates,
            "num_tokens": place.num_tokens,
            "seconds": place.seconds,
        }
    return Snapshot(tensors, facts)


def restore(trainer: Trainer, snapshot: Snapshot) -> None:
    """Bring a trainer back to where a snapshot was taken, exactly."""
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in snapshot.tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    trainer.model.set_weights(groups["model"])
    trainer.best_weights = {k: v.to(trainer.device) for k, v in groups["best"].items()}
    _restore_moments(trainer, groups["optimizer"])
    if trainer.scaler is not None:
        trainer.scaler.load_state_dict(snapshot.facts["loss_scale"])
    if (averaged := snapshot.facts.get("averaged_updates")) is not None:
        trainer.average = WeightAverage(trainer.model)
        trainer.average.restore(groups["average"], averaged)
    random = groups["random"]
    trainer.generator.set_state(random["data"])
    torch.set_rng_state(_own(trainer.ranks, random["cpu"]))
    if "cuda" in random and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(_own(trainer.ranks, random["cuda"]), trainer.device)
    trainer.best_epoch = snapshot.facts["best_epoch"]
    trainer.history = [Epoch(**epoch) for epoch in snapshot.facts["history"]]
    if snapshot.facts["place"] is not None:
        tensors = {name: tensor.to(trainer.device) for name, tensor in groups["place"].items()}
        state: list[State] = []
        for i, layer in enumerate(trainer.model.initial_state(1)):
            state.append(tuple(tensors[f"state.{i}.{j}"][trainer.rows].clone() for j in range(len(layer))))
        trainer.place = Place(random["data"], tensors["losses"], tensors["norms"], state, **snapshot.facts["place"])


def _restore_moments(trainer: Trainer, kept: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in kept.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    parameters = list(trainer.model.parameters())
    for place, values in moments.items():
        own = trainer.optimizer.state[parameters[place]]
        for key, value in values.items():
            if key not in own:
                # In memory as the parameter: another order of the same numbers may be rounded otherwise.
                own[key] = torch.empty_like(parameters[place] if value.dim() else value)
            own[key].copy_(value)


def _of_each_rank(ranks: Ranks, random: Tensor) -> Tensor:
    return random if ranks.size == 1 else ranks.each(random)


def _own(ranks: Ranks, random: Tensor) -> Tensor:
    return random if ranks.size == 1 else random[ranks.number].clone()
