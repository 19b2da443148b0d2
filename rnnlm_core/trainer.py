"""The training loop, one for every cell and device: epochs of updates.

Truncated back-propagation through time: the state is carried from minibatch to minibatch and detached (sequential
partition) or reset (random). After each epoch the model is measured on the whole validation stream; the epoch with
the lowest validation perplexity is kept (without validation split, the last).

Several processes (`ranks.py`) divide the rows of each minibatch: gradients and losses are added up, weighted by rows,
before they are clipped, so the mathematics is that of one process; each rank carries the state of its rows.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from rnnlm_core.activation_regularization import activation_regularization
from rnnlm_core.cells import State
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.cuda_graph import Buffers, Updates
from rnnlm_core.errors import Diverged
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.learning_rate import learning_rate
from rnnlm_core.model import LanguageModel, detach
from rnnlm_core.optimizer import make_optimizer
from rnnlm_core.outcomes import Epoch
from rnnlm_core.partition import PARTITIONS, Minibatches, random_length_batches
from rnnlm_core.precision import loss_scaler, lowered
from rnnlm_core.ranks import ALONE, Ranks
from rnnlm_core.softmax import sampled_loss
from rnnlm_core.weight_average import WeightAverage, triggers


@dataclass
class Place:
    """Where in an epoch a training is: the minibatches behind it, their figures, and the state they left."""

    data_random: Tensor
    losses: Tensor
    norms: Tensor
    state: list[State]
    batches: int = 0
    updates: int = 0
    num_tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """A model, its optimiser and its place in the schedule: what a checkpoint holds."""

    def __init__(
        self,
        cell: str,
        vocabulary_size: int,
        train_ids: Tensor,
        valid_ids: Tensor | None,
        model_config: ModelConfig,
        config: TrainConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
        *,
        in_place: bool | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`in_place`: do updates over buffers that stay where they are, as a CUDA graph needs; None: alone on a GPU."""
        self.config, self.device, self.ranks = config, device, ranks
        self.rows = ranks.rows(config.batch_size)
        self.train_ids = train_ids.to(device)
        self.valid_ids = None if valid_ids is None else valid_ids.to(device)
        self.model = LanguageModel(cell, vocabulary_size, model_config).to(device)
        self.scaler = loss_scaler(config.precision, device)
        self.updates: Updates | None = None
        alone = device.type == "cuda" and ranks.size == 1 and config.bptt == "fixed"
        if alone if in_place is None else in_place:
            state = self.model.initial_state(config.batch_size)
            buffers = Buffers(self.train_ids, config.batch_size, config.num_steps, config.accumulate, state)
            self.optimizer = make_optimizer(self.model, config, buffers.rate)
            self.updates = Updates(
                buffers,
                config.partition == "sequential",
                self._add_gradients,
                self._step,
                self._written,
                self.scaler,
                config.cuda_graph,
                warn,
            )
        else:
            self.optimizer = make_optimizer(self.model, config)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.average: WeightAverage | None = None
        self.place: Place | None = None

    def out_of_patience(self) -> bool:
        """Whether the validation loss has not been lowered for as many epochs as `patience` allows."""
        patience = self.config.patience
        return bool(patience) and len(self.history) - self.best_epoch >= patience

    def run_epoch(self, before_update: Callable[[], None]) -> Epoch:
        """Train one epoch, or the rest of it; measure it, and remember the weights if they are the best so far.

        `before_update` is called whenever a snapshot may be taken: between two updates.
        """
        config = self.config
        begun = time.perf_counter() - (self.place.seconds if self.place else 0.0)
        batches, place = self._begin_epoch()
        updates = len(place.norms)
        # Of lengths that are drawn, epochs have different numbers: the schedule goes by the share of the epoch.
        usual = updates if config.bptt == "fixed" else config.updates_of(len(self.train_ids))
        rates = [learning_rate(config, self.history, update * usual / updates, usual) for update in range(updates)]
        if self.updates is not None:
            # Without a carried state the buffers stay zero: what the last minibatch left must not come into them.
            state = place.state if config.partition == "sequential" else self.initial_state()
            place.losses, place.norms, place.state = self.updates.buffers.begin(
                batches.starts, rates, place.losses, place.norms, state, place.batches, place.updates
            )
        self.model.train()
        while place.batches < len(batches):
            place.seconds = time.perf_counter() - begun
            before_update()
            # Minibatches of one update: `accumulate`, or what is left at the end of the epoch.
            together = min(config.accumulate, len(batches) - place.batches)
            if self.updates is not None:
                self.updates.run(together)
            else:
                self._update(place, batches, together, rates[place.updates])
            place.batches += together
            place.num_tokens += config.batch_size * sum(batches.lengths[place.batches - together : place.batches])
            place.updates += 1
            if self.average is not None:
                self.average.add()
        return self._end_epoch(place, batches, rates[-1], begun)

    def _begin_epoch(self) -> tuple[Minibatches, Place]:
        """Return the minibatches of an epoch, new or half done, and the place in it."""
        config, data_random = self.config, self.generator.get_state()
        draw = random_length_batches if config.bptt == "random" else PARTITIONS[config.partition]
        batches = draw(self.train_ids, config.batch_size, config.num_steps, self.generator)
        if self.place is None:
            self.place = Place(
                data_random,
                # Room for all figures beforehand: a small tensor kept per step, between the large ones that are freed,
                # would keep the C library from using their memory again (16 MB a step at a vocabulary of 10,000).
                torch.zeros(len(batches), device=self.device),
                torch.zeros(math.ceil(len(batches) / config.accumulate), device=self.device),
                self.initial_state(),
            )
        return batches.of_rows(self.rows), self.place

    def _end_epoch(self, place: Place, batches: Minibatches, rate: float, begun: float) -> Epoch:
        """Measure the model, add the epoch to the history, and remember the weights if they are the best so far."""
        losses, norms = place.losses.double().cpu(), place.norms.double().cpu()
        self.check_finite(losses, norms)
        trained = time.perf_counter() - begun
        shares = torch.tensor(batches.lengths).double() / self.config.num_steps
        with nullcontext() if self.average is None else self.average.in_use():
            valid_loss = self._valid_loss()
            if valid_loss is not None and not math.isfinite(valid_loss):  # the last update left what predicts nothing
                raise self.diverged(len(norms), f"validation loss {valid_loss}, gradient norm {float(norms[-1])}")
            best = self.history[self.best_epoch - 1].valid_loss if self.best_epoch else None
            if valid_loss is None or best is None or valid_loss < best:
                self.best_epoch = len(self.history) + 1
                self.best_weights = {name: t.detach().clone() for name, t in self.model.weights().items()}
        epoch = Epoch(
            number=len(self.history) + 1,
            epochs=self.config.epochs,
            train_loss=float((losses * shares).sum() / shares.sum()),
            valid_loss=valid_loss,
            learning_rate=rate,
            gradient_norm=float(norms[torch.isfinite(norms)].mean()),  # float16 leaves out updates that are too large
            tokens_per_second=place.num_tokens / trained,
            seconds=time.perf_counter() - begun,
        )
        self.place = None
        self.history.append(epoch)
        if self.config.optimizer == "nt-asgd" and self.average is None:
            measured = [one.valid_loss for one in self.history if one.valid_loss is not None]
            if triggers(measured, self.config.non_monotone):
                self.average = WeightAverage(self.model)
        return epoch

    def initial_state(self) -> list[State]:
        """Return the zero state of the rows of this rank."""
        return self.model.initial_state(self.rows.stop - self.rows.start)

    def _valid_loss(self) -> float | None:
        """Return the mean loss over the validation stream, which the first rank measures; None if there is none."""
        if self.valid_ids is None:
            return None
        loss = 0.0 if self.ranks.number else stream_loss(self.model, self.valid_ids) / (len(self.valid_ids) - 1)
        told = torch.tensor([loss], dtype=torch.float64)
        self.ranks.add_up([told])
        return float(told)

    def _update(self, place: Place, batches: Minibatches, together: int, rate: float) -> None:
        """Do one update with the next `together` minibatches, at a learning rate for those of `num_steps`."""
        numbers = range(place.batches, place.batches + together)
        for number in numbers:
            x, y = batches[number]
            if self.config.partition == "random":
                place.state = self.initial_state()
            place.losses[number], place.state = self._add_gradients(x, y, detach(place.state), together)
        if self.ranks.size > 1:
            for parameter in self.model.parameters():
                if parameter.grad is None:  # a tail of an adaptive softmax that none of these rows needed
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [cast(Tensor, parameter.grad) for parameter in self.model.parameters()]
            self.ranks.add_up([*gradients, place.losses[place.batches : place.batches + together]])
        tokens = sum(batches.lengths[number] for number in numbers) / together
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (tokens / self.config.num_steps)
        place.norms[place.updates] = self._step()

    def _add_gradients(self, x: Tensor, y: Tensor, state: list[State], together: int) -> tuple[Tensor, list[State]]:
        """Add the gradients of one of `together` minibatches; return its loss, left on the device, and the state.

        Of the rows of this rank: their share of both.
        """
        scale = (self.config.num_steps if self.config.loss == "steps" else 1) / together
        own = scale * (len(x) / self.config.batch_size)
        alpha, beta = self.config.activation_regularization, self.config.temporal_activation_regularization
        with lowered(self.config.precision, self.device):
            outputs, after = self.model.last_outputs(x, state)
            dropped = self.model.dropout_output(outputs)
            loss = self._loss(dropped, y, own)
            differentiated = loss
            if alpha or beta:
                differentiated = loss + own * activation_regularization(outputs, dropped, alpha, beta)
        (differentiated if self.scaler is None else self.scaler.scale(differentiated)).backward()  # type: ignore[no-untyped-call]
        return loss.detach() / scale, after

    def _loss(self, hidden: Tensor, y: Tensor, scale: float) -> Tensor:
        """Return `scale` times the mean cross-entropy of the tokens `y` (batch, steps) after hidden states."""
        states, targets, samples = hidden.flatten(0, 1), y.t().reshape(-1), self.config.softmax_samples
        if not samples:
            return self.model.loss(states, targets, scale)
        output = self.model.output
        assert isinstance(output, nn.Linear), "nothing but a full softmax is sampled: a rule of the config"
        return sampled_loss(states, output.weight, output.bias, targets, samples) * scale

    def _step(self) -> Tensor:
        """Clip the gradients, move the weights, drop the gradients; return their norm before clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _written(self) -> Iterator[Tensor]:
        """Yield what `_step` writes."""
        yield from self.model.parameters()
        for values in self.optimizer.state.values():
            yield from values.values()

    def check_finite(self, losses: Tensor, norms: Tensor) -> None:
        """Raise `Diverged` for the first update whose loss or gradient norm is no number."""
        of_update = torch.split(losses, self.config.accumulate)
        for step, (loss, norm) in enumerate(zip(of_update, norms, strict=True), start=1):
            # An update that float16 cannot hold is left out, and the next one's loss is scaled by less.
            if not (torch.isfinite(loss).all() and (torch.isfinite(norm) or self.scaler is not None)):
                raise self.diverged(step, f"loss {float(loss.mean())}, gradient norm {float(norm)}")

    def diverged(self, step: int, value: str) -> Diverged:
        """Return the error of a training that is lost, with the step and what was found there."""
        return Diverged(
            f"training diverged in epoch {len(self.history) + 1} at step {step}",
            value,
            "lower train.learning_rate, or clip at a smaller train.clip_norm above 0",
        )

    def keep_best(self) -> LanguageModel:
        """Return the model with the weights of its best epoch, in evaluation mode."""
        self.model.set_weights(self.best_weights)
        return self.model.eval()
