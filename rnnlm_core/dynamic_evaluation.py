"""Dynamic evaluation: a copy of the model goes on learning from a stream while it is measured on it.

The stream is cut into segments s_1, s_2, … of `steps` tokens. Segment i is measured with the weights θ_{i-1}, and only
then changes them: no token is seen before it is predicted. With the rate η, the decay λ, the trained weights θ_0 and
the mean loss L of a segment (gradients end where it begins, the state goes on):

    sgd   θ_i = θ_{i-1} - η ∇L(s_i) + λ (θ_0 - θ_{i-1})
    rms   θ_i = θ_{i-1} - η ∇L(s_i) / (R + ε) + min(λ R / mean(R), 1) (θ_0 - θ_{i-1})

R is, of each weight, the root mean square of the gradients of the training split. The first form, without decay, is
that of Mikolov et al. 2010, the second that of Krause, Kahembwe, Murray and Renals 2018, "Dynamic Evaluation of Neural
Sequence Models".
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rnnlm_core.cells import State
from rnnlm_core.config import EvaluateConfig
from rnnlm_core.errors import DataError, Diverged
from rnnlm_core.evaluate import figures, open_both
from rnnlm_core.mapped_ids import mapped_ids
from rnnlm_core.model import LanguageModel, detach
from rnnlm_core.outcomes import Evaluated
from rnnlm_core.partition import Minibatches
from rnnlm_core.store import Handle, Store

EPSILON = 2e-5
"""ε and the rows of a minibatch of the gradient statistics, as in the authors' code."""
ROWS = 100
LOOK = 256
"""Segments between two looks at whether the loss is still a number: each waits for the device."""


def evaluate_dynamically(
    model: Handle,
    corpus: Handle,
    config: EvaluateConfig,
    store: Store,
    *,
    device: str = "cpu",
    check: Callable[[], None] = lambda: None,
) -> Evaluated:
    """Measure on `config.split` a model that goes on learning from it; the model in the store stays as it is.

    The same settings give the same bits on a CPU. `check` is called before each segment; what it raises ends the work.

    Raises:
        DataError: the ids of the corpus are not those the model knows, or it is no network.
        Diverged: the loss is no longer a number.
        ResourceError: the device is not there.
    """
    saved = open_both(model, corpus, store, device)
    if not isinstance(saved.model, LanguageModel):
        raise DataError("a network alone goes on learning while it is measured", saved.model.cell, "name another model")
    ids = {
        name: torch.from_numpy(mapped_ids(corpus, name, len(saved.vocabulary), store))
        for name in {config.split, "train"}
    }
    roots = None
    if config.dynamic_rule == "rms":
        roots = root_mean_squares(saved.model, ids["train"], config.dynamic_steps, check)
    nats = dynamic_loss(saved.model, ids[config.split], config, roots, check)
    return figures(nats, len(ids[config.split]), store.path(corpus), config.split)


def dynamic_loss(
    model: LanguageModel,
    ids: Tensor,
    config: EvaluateConfig,
    roots: Sequence[Tensor] | None = None,
    check: Callable[[], None] = lambda: None,
) -> float:
    """Return the negative log-likelihood, in nats, of tokens 1..n-1 of a stream, the model learning as it goes.

    `roots` (R, of each parameter) belong to the rule `rms`. The given model stays as it is.
    """
    adapted = _copy(model)
    parameters = list(adapted.parameters())
    trained = [parameter.detach().clone() for parameter in parameters]
    rates, pulls = _strengths(config, len(parameters), roots)
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    state = adapted.initial_state(1)
    for number, start in enumerate(range(0, len(ids) - 1, config.dynamic_steps), 1):
        check()
        part = ids[start : start + config.dynamic_steps + 1].to(model.device)
        loss, gradients, state = _differentiate(adapted, part[None, :-1], part[None, 1:], state)
        total += loss.double() * (len(part) - 1)
        with torch.no_grad():
            for weight, first, gradient, rate, pull in zip(parameters, trained, gradients, rates, pulls, strict=True):
                weight.lerp_(first, pull).sub_(gradient * rate)
        if number % LOOK == 0:
            _check_finite(total)
    _check_finite(total)
    return float(total)


def _check_finite(nats: Tensor) -> None:
    if not math.isfinite(nats):
        raise Diverged("dynamic evaluation diverged", f"loss {float(nats)}", "lower evaluate.dynamic_rate")


def root_mean_squares(
    model: LanguageModel, ids: Tensor, steps: int, check: Callable[[], None] = lambda: None
) -> list[Tensor]:
    """Return R of each parameter: over minibatches that cover a stream, the state carried from one to the next."""
    model = _copy(model)
    steps = min(steps, len(ids) - 1)
    rows = min(ROWS, (len(ids) - 1) // steps)
    width = (len(ids) - 1) // rows
    starts = torch.arange(0, width - steps + 1, steps)[:, None] + torch.arange(rows) * width
    minibatches = Minibatches(ids, starts, steps)
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    state = model.initial_state(rows)
    for number in range(len(minibatches)):
        check()
        x, y = (part.to(model.device) for part in minibatches[number])
        _, gradients, state = _differentiate(model, x, y, state)
        for one, gradient in zip(sums, gradients, strict=True):
            one.addcmul_(gradient, gradient)
    return [(one / len(minibatches)).sqrt() for one in sums]


def _strengths(
    config: EvaluateConfig, number: int, roots: Sequence[Tensor] | None
) -> tuple[Sequence[Tensor | float], Sequence[Tensor | float]]:
    """Return, of each parameter, what its gradient and its way back to the trained weights are multiplied with."""
    rate, decay = config.dynamic_rate, config.dynamic_decay
    if config.dynamic_rule == "sgd":
        return [rate] * number, [decay] * number
    assert roots is not None, "the rule rms needs the statistics of the training split"
    mean = torch.stack([root.mean() for root in roots]).mean()  # of the parameters' means, as in the authors' code
    return [rate / (root + EPSILON) for root in roots], [(decay * root / mean).clamp(max=1.0) for root in roots]


def _differentiate(
    model: LanguageModel, x: Tensor, y: Tensor, state: Sequence[State]
) -> tuple[Tensor, tuple[Tensor, ...], list[State]]:
    """Return the mean loss of a minibatch, its gradient for each parameter, and the state after it, cut off."""
    hidden, after = model.hidden_states(x, state)
    loss = model.loss(hidden.flatten(0, 1), y.t().reshape(-1))
    # Rare tokens have parts of an adaptive softmax to themselves.
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return loss.detach(), gradients, detach(after)


def _copy(model: LanguageModel) -> LanguageModel:
    """Return a model of its own weights, without dropout."""
    copied = copy.deepcopy(model).eval()
    for layer in copied.modules():
        if isinstance(layer, nn.RNNBase):  # no dropout of its own; cuDNN has gradients in this mode alone
            layer.train()
    return copied
