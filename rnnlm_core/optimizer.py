"""The rule that turns gradients into updates, as `train.optimizer` names it."""

import torch
from torch import Tensor, nn

from rnnlm_core.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig, rate: Tensor | None = None) -> torch.optim.Optimizer:
    """Return the optimizer; with a tensor as its rate one that reads it there, at each step, and may be captured."""
    parameters, decay = list(model.parameters()), config.weight_decay
    plain = config.optimizer in ("sgd", "nt-asgd")  # which differ in the averages beside it
    if rate is None:
        if plain:
            return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=decay)
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=config.learning_rate, weight_decay=decay)
    # The fused kernels alone read rate, and whether to leave an update out, from the device.
    optimizer: torch.optim.Optimizer
    if plain:
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay, fused=True)
        moments = ["momentum_buffer"] if config.momentum else []
    else:
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(parameters, lr=rate, weight_decay=decay, fused=True, capturable=True)
        moments = ["exp_avg", "exp_avg_sq"]
    # Made now, so that a graph meets them where they stay; zero is what the first step would begin with.
    for parameter in parameters:
        state = {moment: torch.zeros_like(parameter) for moment in moments}
        if not plain:
            state["step"] = torch.zeros((), device=parameter.device, dtype=torch.float32)
        if state:
            optimizer.state[parameter] = state
    return optimizer
