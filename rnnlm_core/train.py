"""The training loop, one for every cell and device.

Truncated back-propagation through time: the state is carried from minibatch to minibatch and detached (sequential
partition) or reset (random). After each epoch the model is measured on the whole validation stream; the epoch with
the lowest validation perplexity is kept (without validation split, the last). Progress leaves through a callable.

Several processes (`ranks.py`) divide the rows of each minibatch: gradients and losses are added up, weighted by rows,
before they are clipped, so the mathematics is that of one process; each rank carries the state of its rows.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from rnnlm_core.cells import State
from rnnlm_core.checkpoint import Checkpoints, Snapshot
from rnnlm_core.config import CHECKPOINT_SECONDS, NGRAM, PLACE, ModelConfig, TrainConfig
from rnnlm_core.corpus import corpus_conventions, corpus_vocabulary
from rnnlm_core.cuda_graph import Buffers, Updates
from rnnlm_core.errors import Diverged, IntegrityError, Stopped, UsageError
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.mapped_ids import mapped_ids
from rnnlm_core.model import LanguageModel, Model, detach, num_parameters, pick_device, save_model
from rnnlm_core.ngram import line_end
from rnnlm_core.ngram_training import fit_ngrams
from rnnlm_core.outcomes import Epoch, Trained
from rnnlm_core.partition import PARTITIONS, Minibatches
from rnnlm_core.pieces import piece_files
from rnnlm_core.precision import check_device, float32_products, loss_scaler, lowered, slowness
from rnnlm_core.ranks import ALONE, Ranks
from rnnlm_core.recurrence import settled, way, why_not_native
from rnnlm_core.softmax import sampled_loss
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import too_short
from rnnlm_core.vocabulary import Vocabulary

Progress = Callable[[Epoch], None]


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns."""

    model: Model
    best_epoch: int
    history: tuple[Epoch, ...]
    device: torch.device


def train(
    cell: str,
    corpus: Handle,
    vocabulary: Handle,
    model: ModelConfig,
    config: TrainConfig,
    store: Store,
    *,
    key: str,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Trained:
    """Train one cell on a corpus and publish the model of its best epoch.

    A training with the same `key` that was interrupted goes on from its last checkpoint and ends with the same bits.
    The checkpoints stay: whoever has recorded the result clears them. Of several `ranks` the first one alone writes.
    N-grams are counted (`ngram_training.py`): of all that is about epochs and devices they take nothing.

    Raises:
        UsageError: the settings are for another number of processes.
        DataError: the training split does not fill one minibatch.
        Stopped: `should_stop` said so; the checkpoint is kept.
        Diverged: the loss is no longer a number.
        ResourceError: the device is not there, or the settings need another.
        IntegrityError: the vocabulary is that of another corpus.
    """
    config = config.for_cell(cell)
    folder = store.open(corpus)
    words = Vocabulary.load(store.open(vocabulary))
    if corpus_vocabulary(folder) != vocabulary.sha256:
        made_with = f"the corpus was made with {corpus_vocabulary(folder)[:12]}, given {vocabulary.sha256[:12]}"
        raise IntegrityError("the vocabulary is not that of the corpus", made_with, "give the two that belong together")
    splits = {
        name: torch.from_numpy(mapped_ids(corpus, name, len(words), store))
        for name in ("train", "valid")
        if piece_files(folder, name)
    }
    if (device := pick_device(config.device)).type != "cpu":  # there they are indexed as they are: widened once
        splits = {name: ids.to(device, torch.int32) for name, ids in splits.items()}
    if cell == NGRAM:
        ends = line_end(corpus_conventions(folder)[0], words)
        counted, epoch = fit_ngrams(
            len(words), splits["train"], splits.get("valid"), model, ends, store, should_stop=should_stop, warn=warn
        )
        progress(epoch)
        fitted = Fitted(counted, 1, (epoch,), device)
    else:
        fitted = fit(
            cell, len(words), splits["train"], splits.get("valid"), model, config,
            checkpoints=Checkpoints(store, key), checkpoint_seconds=checkpoint_seconds,
            progress=progress, should_stop=should_stop, warn=warn, ranks=ranks,
        )  # fmt: skip
    sha256 = b"" if ranks.number else _publish(store, fitted, words, folder, corpus, vocabulary, config).sha256.encode()
    return Trained(
        cell=cell,
        model=Handle("model", ranks.from_one(sha256).decode()),
        best_epoch=fitted.best_epoch,
        num_parameters=num_parameters(fitted.model),
        device=device_name(fitted.device),
        tokens_per_second=median(epoch.tokens_per_second for epoch in fitted.history),
        history=fitted.history,
    )


def _publish(
    store: Store,
    fitted: Fitted,
    words: Vocabulary,
    folder: Path,
    corpus: Handle,
    vocabulary: Handle,
    config: TrainConfig,
) -> Handle:
    with store.draft("model") as draft:
        save_model(
            draft.folder,
            fitted.model,
            words,
            *corpus_conventions(folder),
            {
                "corpus": corpus.sha256,
                "vocabulary": vocabulary.sha256,
                "best_epoch": fitted.best_epoch,
                "train": {} if fitted.model.cell == NGRAM else _settings(config),
            },
        )
        return draft.publish()


def fit(
    cell: str,
    vocabulary_size: int,
    train_ids: Tensor,
    valid_ids: Tensor | None,
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Fit a new model to `train_ids` and return it with the weights of its best epoch.

    The same seed gives the same numbers on the same machine with the same number of threads and `ranks`, whether or
    not the training was interrupted and went on from its `checkpoints`. The caller's random state is left as it was.
    """
    if ranks.size != config.processes:
        given = f"{config.processes}, and {ranks.size} of them are here"
        raise UsageError(
            "`train.processes` must be started together", given, "use `rnnlm run --processes`, or torchrun"
        )
    device = pick_device(config.device)
    check_device(config, device)
    if len(train_ids) < config.fewest_tokens:
        raise too_short(
            len(train_ids),
            config.fewest_tokens,
            "the training split",
            "give a longer text, or lower train.batch_size or train.num_steps",
        )
    updates = math.ceil(len(train_ids) // (config.batch_size * config.num_steps) / config.accumulate)
    if config.warmup_steps >= config.epochs * updates:
        warn(
            f"the training ends before its warm-up: {config.epochs * updates} updates, "
            f"train.warmup_steps {config.warmup_steps}: train.learning_rate is never reached"
        )
    if device.type == "cpu":
        _warn_of_slowness(warn)
        if config.cuda_graph == "off":
            warn("`train.cuda_graph` has no effect on the cpu: off")
    for reason in slowness(cell, model_config.embedding_size or vocabulary_size, model_config, config, device):
        warn(reason)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        float32_products(config.precision, device),
    ):
        torch.manual_seed(config.seed)
        training = _Training(
            cell, vocabulary_size, train_ids, valid_ids, model_config, config, device, ranks, warn=warn
        )
        if ranks.number:  # the first weights are those of all, the dropout is each one's own
            # PyTorch's generator on the CPU takes the low 32 bits of a seed: a rank must show in them.
            torch.manual_seed((config.seed + 0x9E3779B1 * ranks.number) % 2**32)
        if checkpoints is not None and (snapshot := _newest(checkpoints, ranks, warn)) is not None:
            training.restore(snapshot)
            was, now = snapshot.facts.get("recurrence", "autograd"), settled(device)
            if was != now:
                warn(f"the training goes on in another arithmetic ({was}, now {now}): its last digits will differ")
            for epoch in training.history:
                progress(epoch)
        saved_at = time.monotonic()

        def save() -> None:
            nonlocal saved_at
            if checkpoints is not None:
                snapshot = training.snapshot()
                if not ranks.number:
                    checkpoints.save(snapshot)
                saved_at = time.monotonic()

        def is_time() -> bool:  # by the first one's clock
            return not ranks.number and time.monotonic() - saved_at >= checkpoint_seconds

        def before_update() -> None:
            stop, due = ranks.any(should_stop(), is_time())
            if stop or due:
                save()
            if stop:
                epoch = len(training.history) + 1
                raise Stopped("training stopped", f"in epoch {epoch}", "run the same command again to go on")

        while len(training.history) < config.epochs and not training.out_of_patience():
            progress(training.run_epoch(before_update))
            if ranks.any(is_time())[0]:
                save()
        save()  # what is done must not be done again because something fails afterwards
        return training.result()


def _newest(checkpoints: Checkpoints, ranks: Ranks, warn: Callable[[str], None]) -> Snapshot | None:
    """Return the newest whole checkpoint that any rank finds.

    Hosts may have stores of their own, and the first rank may have been on another one before a new beginning.
    """
    found, faults = checkpoints.load()
    for fault in faults:
        warn(f"checkpoint skipped: {fault}")
    if ranks.size == 1:
        return found
    progress = [0, 0]
    if found is not None:
        progress = [len(found.facts["history"]), 1 + (found.facts["place"] or {"updates": 0})["updates"]]
    each = ranks.each(torch.tensor(progress)).tolist()
    if not any(map(any, each)):
        return None
    owner = each.index(max(each))
    facts, tensors = (ranks.from_one(part, owner) for part in (found.packed() if found else (b"", b"")))
    return Snapshot.unpacked(facts, tensors)


def _warn_of_slowness(warn: Callable[[str], None]) -> None:
    if way() == "auto" and (reason := why_not_native()):
        warn(f"slower than it could be, without the native kernel: {reason}")
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except OSError:  # this system does not tell: then there is nothing to warn of
        return
    if threads > 1 and load > cores:
        # Threads that share a product wait for the one that does not get its turn: ten times as long, and more.
        warn(f"the machine is busy (load {load:.1f} on {cores} cores): {threads} threads will wait for each other")


@dataclass
class _Place:
    """Where in an epoch a training is: the minibatches behind it, their figures, and the state they left."""

    data_random: Tensor
    losses: Tensor
    norms: Tensor
    state: list[State]
    batches: int = 0
    updates: int = 0
    num_tokens: int = 0
    seconds: float = 0.0


class _Training:
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
        if (device.type == "cuda" and ranks.size == 1) if in_place is None else in_place:
            state = self.model.initial_state(config.batch_size)
            buffers = Buffers(self.train_ids, config.batch_size, config.num_steps, config.accumulate, state)
            self.optimizer = _optimizer(self.model, config, buffers.rate)
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
            self.optimizer = _optimizer(self.model, config)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.place: _Place | None = None

    def out_of_patience(self) -> bool:
        """Whether the validation loss has not been lowered for as many epochs as `patience` allows."""
        patience = self.config.patience
        return bool(patience) and len(self.history) - self.best_epoch >= patience

    def run_epoch(self, before_update: Callable[[], None]) -> Epoch:
        """Train one epoch, or the rest of it; measure it, and remember the weights if they are the best so far.

        `before_update` is called whenever a snapshot may be taken: between two updates.
        """
        started = time.perf_counter()
        config = self.config
        data_random = self.generator.get_state()
        batches = PARTITIONS[config.partition](self.train_ids, config.batch_size, config.num_steps, self.generator)
        batches = batches.of_rows(self.rows)
        updates = math.ceil(len(batches) / config.accumulate)
        place = self.place or _Place(
            data_random,
            # Room for all figures beforehand: a small tensor kept per step, between the large ones that are freed,
            # would keep the C library from using their memory again (16 MB a step at a vocabulary of 10,000).
            torch.zeros(len(batches), device=self.device),
            torch.zeros(updates, device=self.device),
            self._initial_state(),
        )
        self.place = place
        rates = [learning_rate(config, self.history, update, updates) for update in range(updates)]
        if self.updates is not None:
            # Without a carried state the buffers stay zero: what the last minibatch left must not come into them.
            state = place.state if config.partition == "sequential" else self._initial_state()
            place.losses, place.norms, place.state = self.updates.buffers.begin(
                batches.starts, rates, place.losses, place.norms, state, place.batches, place.updates
            )
        earlier = place.seconds
        self.model.train()
        while place.batches < len(batches):
            place.seconds = earlier + time.perf_counter() - started
            before_update()
            # Minibatches of one update: `accumulate`, or what is left at the end of the epoch.
            together = min(config.accumulate, len(batches) - place.batches)
            if self.updates is not None:
                self.updates.run(together)
            else:
                self._update(place, batches, together, rates[place.updates])
            place.batches += together
            place.num_tokens += together * config.batch_size * config.num_steps
            place.updates += 1
        losses, norms = place.losses.double().cpu(), place.norms.double().cpu()
        self._check_finite(losses, norms)
        trained = earlier + time.perf_counter() - started
        valid_loss = None
        if self.valid_ids is not None:
            valid_loss = self._valid_loss(self.valid_ids)
            if not math.isfinite(valid_loss):  # the last update left weights that predict nothing
                raise self._diverged(len(norms), f"validation loss {valid_loss}, gradient norm {float(norms[-1])}")
        epoch = Epoch(
            number=len(self.history) + 1,
            epochs=config.epochs,
            train_loss=float(losses.mean()),
            valid_loss=valid_loss,
            learning_rate=rates[-1],
            gradient_norm=float(norms[torch.isfinite(norms)].mean()),  # float16 leaves out updates that are too large
            tokens_per_second=place.num_tokens / trained,
            seconds=earlier + time.perf_counter() - started,
        )
        self.place = None
        self.history.append(epoch)
        best = self.history[self.best_epoch - 1].valid_loss if self.best_epoch else None
        if valid_loss is None or best is None or valid_loss < best:
            self.best_epoch = epoch.number
            self.best_weights = {name: t.detach().clone() for name, t in self.model.weights().items()}
        return epoch

    def _initial_state(self) -> list[State]:
        return self.model.initial_state(self.rows.stop - self.rows.start)

    def _valid_loss(self, ids: Tensor) -> float:
        """Return the mean loss over a stream, which the first rank measures."""
        loss = 0.0 if self.ranks.number else stream_loss(self.model, ids) / (len(ids) - 1)
        told = torch.tensor([loss], dtype=torch.float64)
        self.ranks.add_up([told])
        return float(told)

    def _update(self, place: _Place, batches: Minibatches, together: int, rate: float) -> None:
        """Do one update with the next `together` minibatches, at a learning rate."""
        for number in range(place.batches, place.batches + together):
            x, y = batches[number]
            if self.config.partition == "random":
                place.state = self._initial_state()
            place.losses[number], place.state = self._add_gradients(x, y, detach(place.state), together)
        if self.ranks.size > 1:
            for parameter in self.model.parameters():
                if parameter.grad is None:  # a tail of an adaptive softmax that none of these rows needed
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [cast(Tensor, parameter.grad) for parameter in self.model.parameters()]
            self.ranks.add_up([*gradients, place.losses[place.batches : place.batches + together]])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        place.norms[place.updates] = self._step()

    def _add_gradients(self, x: Tensor, y: Tensor, state: list[State], together: int) -> tuple[Tensor, list[State]]:
        """Add the gradients of one of `together` minibatches; return its loss, left on the device, and the state.

        Of the rows of this rank: their share of both.
        """
        scale = (self.config.num_steps if self.config.loss == "steps" else 1) / together
        with lowered(self.config.precision, self.device):
            loss, after = self._loss(x, y, state, scale * (len(x) / self.config.batch_size))
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach() / scale, after

    def _loss(self, x: Tensor, y: Tensor, state: list[State], scale: float) -> tuple[Tensor, list[State]]:
        """Return `scale` times the mean loss of a minibatch, and the state after it."""
        hidden, after = self.model.hidden_states(x, state)
        states, targets, samples = hidden.flatten(0, 1), y.t().reshape(-1), self.config.softmax_samples
        if not samples:
            return self.model.loss(states, targets, scale), after
        output = self.model.output
        assert isinstance(output, nn.Linear), "an adaptive softmax is not sampled: a rule of the config"
        return sampled_loss(states, output.weight, output.bias, targets, samples) * scale, after

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

    def _check_finite(self, losses: Tensor, norms: Tensor) -> None:
        of_update = torch.split(losses, self.config.accumulate)
        for step, (loss, norm) in enumerate(zip(of_update, norms, strict=True), start=1):
            # An update that float16 cannot hold is left out, and the next one's loss is scaled by less.
            if not (torch.isfinite(loss).all() and (torch.isfinite(norm) or self.scaler is not None)):
                raise self._diverged(step, f"loss {float(loss.mean())}, gradient norm {float(norm)}")

    def _diverged(self, step: int, value: str) -> Diverged:
        return Diverged(
            f"training diverged in epoch {len(self.history) + 1} at step {step}",
            value,
            "lower train.learning_rate, or clip at a smaller train.clip_norm above 0",
        )

    def snapshot(self) -> Snapshot:
        """Return everything needed to go on, as tensors and plain facts.

        Raises `Diverged` instead of keeping numbers that are none.
        """
        step = self.place.updates if self.place else 0
        if self.place and step:
            self._check_finite(self.place.losses[: self.place.batches], self.place.norms[:step])
        if not all(torch.isfinite(values).all() for values in self.model.weights().values()):
            raise self._diverged(step, "weights that are not finite")
        tensors = {f"model.{k}": v for k, v in self.model.weights().items()}
        tensors |= {f"best.{k}": v for k, v in self.best_weights.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items() if v is not None}
        tensors["random.data"] = self.place.data_random if self.place else self.generator.get_state()
        tensors["random.cpu"] = self._of_each_rank(torch.get_rng_state())
        if self.device.type == "cuda":
            tensors["random.cuda"] = self._of_each_rank(torch.cuda.get_rng_state(self.device))
        facts: dict[str, Any] = {
            "recurrence": settled(self.device),
            "loss_scale": None if self.scaler is None else self.scaler.state_dict(),
            "best_epoch": self.best_epoch,
            "history": [asdict(epoch) for epoch in self.history],
            "place": None,
        }
        if self.place is not None:
            place = self.place
            tensors |= {"place.losses": place.losses, "place.norms": place.norms}
            for i, layer in enumerate(detach(place.state)):
                rows = [self.ranks.all_rows(part.clone(), self.config.batch_size) for part in layer]
                tensors |= {f"place.state.{i}.{j}": part for j, part in enumerate(rows)}
            facts["place"] = {
                "batches": place.batches,
                "updates": place.updates,
                "num_tokens": place.num_tokens,
                "seconds": place.seconds,
            }
        return Snapshot(tensors, facts)

    def _of_each_rank(self, random: Tensor) -> Tensor:
        return random if self.ranks.size == 1 else self.ranks.each(random)

    def _own(self, random: Tensor) -> Tensor:
        return random if self.ranks.size == 1 else random[self.ranks.number].clone()

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, exactly."""
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}, "random": {}, "place": {}}
        for name, tensor in snapshot.tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        self.model.set_weights(groups["model"])
        self.best_weights = {k: v.to(self.device) for k, v in groups["best"].items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        parameters = list(self.model.parameters())
        for place, values in moments.items():
            own = self.optimizer.state[parameters[place]]
            for key, value in values.items():
                if key not in own:
                    # In memory as the parameter: another order of the same numbers may be rounded otherwise.
                    own[key] = torch.empty_like(parameters[place] if value.dim() else value)
                own[key].copy_(value)
        if self.scaler is not None:
            self.scaler.load_state_dict(snapshot.facts["loss_scale"])
        self.generator.set_state(groups["random"]["data"])
        torch.set_rng_state(self._own(groups["random"]["cpu"]))
        if "cuda" in groups["random"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._own(groups["random"]["cuda"]), self.device)
        self.best_epoch = snapshot.facts["best_epoch"]
        self.history = [Epoch(**epoch) for epoch in snapshot.facts["history"]]
        if snapshot.facts["place"] is not None:
            tensors = {name: tensor.to(self.device) for name, tensor in groups["place"].items()}
            state: list[State] = []
            for i, layer in enumerate(self.model.initial_state(1)):
                state.append(tuple(tensors[f"state.{i}.{j}"][self.rows].clone() for j in range(len(layer))))
            self.place = _Place(
                groups["random"]["data"], tensors["losses"], tensors["norms"], state, **snapshot.facts["place"]
            )

    def result(self) -> Fitted:
        """Return the model with its best weights."""
        self.model.set_weights(self.best_weights)
        self.model.eval()
        return Fitted(self.model, self.best_epoch, tuple(self.history), self.device)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Return what of the config belongs to the model: where it was trained does not."""
    return {key: value for key, value in asdict(config).items() if f"train.{key}" not in PLACE}


def learning_rate(config: TrainConfig, history: Sequence[Epoch], update: int, updates: int) -> float:
    """Return the learning rate of update `update` (from 0) of `updates` in the epoch that follows `history`."""
    done = len(history) * updates + update
    rate = config.learning_rate
    if config.schedule == "cosine":
        rest = config.epochs * updates - config.warmup_steps
        rate *= 0.5 * (1 + math.cos(math.pi * max(done - config.warmup_steps, 0) / max(rest, 1)))
    elif config.schedule == "step":
        rate *= config.decay ** -max(len(history) + 1 - config.decay_after, 0)  # not `/=`: that overflows
    elif config.schedule == "plateau":
        rate *= config.decay ** -_epochs_in_vain(history)
    return rate * (done + 1) / config.warmup_steps if done < config.warmup_steps else rate


def _epochs_in_vain(history: Sequence[Epoch]) -> int:
    """Return how many epochs did not lower the validation loss."""
    losses = [epoch.valid_loss for epoch in history if epoch.valid_loss is not None]
    lowest = math.inf
    in_vain = 0
    for loss in losses:
        in_vain += loss >= lowest
        lowest = min(lowest, loss)
    return in_vain


def device_name(device: torch.device) -> str:
    """Return a device as people know it: `cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _optimizer(model: LanguageModel, config: TrainConfig, rate: Tensor | None = None) -> torch.optim.Optimizer:
    """Return the optimizer; with a tensor as its rate one that reads it there, at each step, and may be captured."""
    parameters, decay = list(model.parameters()), config.weight_decay
    if rate is None:
        if config.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=decay)
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=config.learning_rate, weight_decay=decay)
    # The fused kernels alone read rate, and whether to leave an update out, from the device.
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay, fused=True)
        moments = ["momentum_buffer"] if config.momentum else []
    else:
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(parameters, lr=rate, weight_decay=decay, fused=True, capturable=True)
        moments = ["exp_avg", "exp_avg_sq"]
    # Made now, so that a graph meets them where they stay; zero is what the first step would begin with.
    for parameter in parameters:
        state = {moment: torch.zeros_like(parameter) for moment in moments}
        if config.optimizer != "sgd":
            state["step"] = torch.zeros((), device=parameter.device, dtype=torch.float32)
        if state:
            optimizer.state[parameter] = state
    return optimizer
