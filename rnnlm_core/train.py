"""Training: a corpus in, the published model of its best epoch out; stopped and gone on with anywhere on the way.

The loop is `trainer.py`'s. Progress leaves through a callable.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rnnlm_core.checkpoint import Checkpoints, Snapshot
from rnnlm_core.config import CHECKPOINT_SECONDS, NGRAM, PLACE, ModelConfig, TrainConfig
from rnnlm_core.corpus import corpus_conventions, corpus_vocabulary
from rnnlm_core.errors import IntegrityError, Stopped, UsageError
from rnnlm_core.mapped_ids import mapped_ids
from rnnlm_core.model import Model, num_parameters, pick_device
from rnnlm_core.ngram import line_end
from rnnlm_core.ngram_training import fit_ngrams
from rnnlm_core.outcomes import Epoch, Trained
from rnnlm_core.pieces import piece_files
from rnnlm_core.precision import check_device, float32_products, slowness
from rnnlm_core.ranks import ALONE, Ranks
from rnnlm_core.recurrence import settled, way, why_not_native
from rnnlm_core.saved_model import save_model
from rnnlm_core.snapshot import restore, take_snapshot
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import too_short
from rnnlm_core.trainer import Trainer
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
    resumed: Callable[[int], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Trained:
    """Train one cell on a corpus and publish the model of its best epoch.

    A training with the same `key` that was interrupted goes on from its last checkpoint and ends with the same bits:
    `resumed` is told how many epochs that one holds, then `progress` those epochs, as it is later told the new ones.
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
            progress=progress, resumed=resumed, should_stop=should_stop, warn=warn, ranks=ranks,
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
    resumed: Callable[[int], None] = lambda _: None,
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
    _check_length(len(train_ids), config, warn)
    _warn_of_device(cell, model_config.embedding_size or vocabulary_size, model_config, config, device, warn)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        float32_products(config.precision, device),
    ):
        torch.manual_seed(config.seed)
        trainer = Trainer(cell, vocabulary_size, train_ids, valid_ids, model_config, config, device, ranks, warn=warn)
        if ranks.number:  # the first weights are those of all, the dropout is each one's own
            # PyTorch's generator on the CPU takes the low 32 bits of a seed: a rank must show in them.
            torch.manual_seed((config.seed + 0x9E3779B1 * ranks.number) % 2**32)
        if checkpoints is not None and (snapshot := _newest(checkpoints, ranks, warn)) is not None:
            restore(trainer, snapshot)
            was, now = snapshot.facts.get("recurrence", "autograd"), settled(device)
            if was != now:
                warn(f"the training goes on in another arithmetic ({was}, now {now}): its last digits will differ")
            resumed(len(trainer.history))
            for epoch in trainer.history:
                progress(epoch)
        saved_at = time.monotonic()

        def save() -> None:
            nonlocal saved_at
            if checkpoints is not None:
                snapshot = take_snapshot(trainer)
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
                epoch = len(trainer.history) + 1
                raise Stopped("training stopped", f"in epoch {epoch}", "run the same command again to go on")

        while len(trainer.history) < config.epochs and not trainer.out_of_patience():
            progress(trainer.run_epoch(before_update))
            if ranks.any(is_time())[0]:
                save()
        save()  # what is done must not be done again because something fails afterwards
        return Fitted(trainer.keep_best(), trainer.best_epoch, tuple(trainer.history), device)


def _check_length(num_tokens: int, config: TrainConfig, warn: Callable[[str], None]) -> None:
    if num_tokens < config.fewest_tokens:
        raise too_short(
            num_tokens,
            config.fewest_tokens,
            "the training split",
            "give a longer text, or lower train.batch_size or train.num_steps",
        )
    updates = config.updates_of(num_tokens)
    if config.warmup_steps >= config.epochs * updates:
        warn(
            f"the training ends before its warm-up: {config.epochs * updates} updates, "
            f"train.warmup_steps {config.warmup_steps}: train.learning_rate is never reached"
        )
    if config.optimizer == "nt-asgd" and config.epochs < config.non_monotone + 3:
        warn(
            f"the training ends before its weights can be averaged: {config.epochs} epochs, "
            f"train.non_monotone {config.non_monotone}: it is plain sgd"
        )


def _warn_of_device(
    cell: str,
    input_size: int,
    model: ModelConfig,
    config: TrainConfig,
    device: torch.device,
    warn: Callable[[str], None],
) -> None:
    if device.type == "cpu":
        _warn_of_slowness(warn)
        if config.cuda_graph == "off":
            warn("`train.cuda_graph` has no effect on the cpu: off")
    elif config.bptt == "random":
        warn("slower than it could be, without a CUDA graph: with train.bptt=random minibatches differ in length")
    for reason in slowness(cell, input_size, model, config, device):
        warn(reason)


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


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Return what of the config belongs to the model: where it was trained does not."""
    return {key: value for key, value in asdict(config).items() if f"train.{key}" not in PLACE}


def device_name(device: torch.device) -> str:
    """Return a device as people know it: `cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
