"""rnnlm itself, through the functions that its stages call."""

import importlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.turns import OverError, Turns
from rnnlm_core.process_usage import peak_bytes

if TYPE_CHECKING:
    from rnnlm_core.outcomes import Epoch

MANY_EPOCHS = 1_000_000


def training(
    turns: Turns,
    cell: str,
    vocabulary: int,
    hidden: int,
    batch_size: int,
    num_steps: int,
    updates: int,
    device: str,
    num_cores: int,
) -> None:
    """Train on noise, as the stage `train` does; a block is one epoch of `updates` minibatches."""
    import torch

    from rnnlm_core import cores
    from rnnlm_core.config import ModelConfig, TrainConfig
    from rnnlm_core.train import fit

    # So many tokens give this number of minibatches at every random offset.
    ids = torch.randint(vocabulary, (updates * batch_size * num_steps + num_steps + 1,), dtype=torch.int32)
    config = TrainConfig(
        epochs=MANY_EPOCHS,
        batch_size=batch_size,
        num_steps=num_steps,
        optimizer="sgd",
        learning_rate=1.0,
        device=device,
    )
    model = ModelConfig(hidden_size=hidden)

    def progress(epoch: "Epoch") -> None:
        turns.end(updates * batch_size * num_steps, loss=epoch.train_loss)
        turns.begin()

    cores.use(num_cores)
    turns.begin()
    fit(cell, vocabulary, ids, None, model, config, progress=progress)


def to_perplexity(
    turns: Turns,
    cell: str,
    store: str,
    corpus: str,
    vocabulary: str,
    model: dict[str, Any],
    train: dict[str, Any],
    target: float,
    epochs_per_block: int,
) -> None:
    """Train until an epoch's training perplexity is at most `target`, or the epochs of the config are over."""
    import torch

    from rnnlm_core import cores
    from rnnlm_core.config import ModelConfig, TrainConfig
    from rnnlm_core.mapped_ids import mapped_ids
    from rnnlm_core.store import Handle, Store
    from rnnlm_core.train import fit
    from rnnlm_core.vocabulary import Vocabulary

    there = Store(Path(store))
    words = Vocabulary.load(there.open(Handle("vocabulary", vocabulary)))
    there.open(Handle("corpus", corpus))
    ids = torch.from_numpy(mapped_ids(Handle("corpus", corpus), "train", len(words), there))
    config = TrainConfig(**train)

    def progress(epoch: "Epoch") -> None:
        reached = epoch.train_perplexity <= target
        if reached or epoch.number == config.epochs:
            turns.end(1, reached=reached, epoch=epoch.number, perplexity=epoch.train_perplexity)
            raise OverError
        if epoch.number % epochs_per_block == 0:
            turns.end(1, reached=False, epoch=epoch.number, perplexity=epoch.train_perplexity)
            turns.begin()

    cores.use(_cores())
    turns.begin()
    fit(cell, len(words), ids, None, ModelConfig(**model), config, progress=progress)


def cells(
    turns: Turns,
    store: str,
    corpus: str,
    vocabulary: str,
    model: dict[str, Any],
    train: dict[str, Any],
    order: list[str],
) -> None:
    """Train several cells as the flow does: a process each, as many at once as there are cores, or as share a GPU."""
    from concurrent.futures import ThreadPoolExecutor
    from dataclasses import asdict

    from rnnlm_core.config import ModelConfig, TrainConfig
    from rnnlm_core.model import pick_device
    from rnnlm_core.store import Handle
    from rnnlm_core.train_process import train_in_child
    from rnnlm_core.training_job import Job

    config = TrainConfig(**train)
    cuda = pick_device(config.device).type == "cuda"
    places = _shares() if cuda else _cores()
    settings = asdict(ModelConfig(**model))
    under_way: set[str] = set()

    def fit_one(cell: str, key: str) -> dict[str, Any]:
        job = Job(
            cell,
            Handle("corpus", corpus),
            Handle("vocabulary", vocabulary),
            ModelConfig(**settings),
            config,
            store,
            key,
            threads=0 if cuda else 1,
        )
        under_way.add(key)
        try:
            return train_in_child(
                job, lambda _: None, lambda: False, lambda _: None, num_cores=lambda: max(1, places // len(under_way))
            )
        finally:
            under_way.discard(key)

    number = 0
    while True:
        turns.begin()
        with ThreadPoolExecutor(places) as pool:
            keys = [f"benchmark-{number}-{cell}" for cell in order]  # a key of its own: no checkpoint to go on from
            results = list(pool.map(fit_one, order, keys))
        perplexities = {cell: _last_perplexity(result) for cell, result in zip(order, results, strict=True)}
        turns.end(1, perplexity=perplexities)
        number += 1
        shutil.rmtree(Path(store) / "checkpoint", ignore_errors=True)
        shutil.rmtree(Path(store) / "model", ignore_errors=True)


def _last_perplexity(trained: dict[str, Any]) -> float:
    from rnnlm_core.outcomes import perplexity

    return perplexity(trained["history"][-1]["train_loss"])


def _cores() -> int:
    from tasks.workspace import cpu_slots

    return cpu_slots()


def _shares() -> int:
    from tasks.workspace import gpu_slots

    return gpu_slots()


def _import_arrow() -> None:
    """Import what the core imports when it needs it: the book's package imports all it has at once."""
    for name in ("pyarrow.compute", "pyarrow.parquet", "pandas"):
        importlib.import_module(name)


def text(turns: Turns, path: str, level: str, folder: str) -> None:
    """Make a corpus of a text, tokens and vocabulary on the way; every block begins with an empty store."""
    _import_arrow()
    from benchmarks.texts import put
    from rnnlm_core.corpus import build_corpus
    from rnnlm_core.store import Store
    from rnnlm_core.tokenize import tokenize
    from rnnlm_core.vocabulary import build_vocabulary

    all_for_training = (100, 0, 0)
    while True:
        root = Path(folder) / f"ours-{level}"
        store = Store(root)
        handle = put(Path(path), store)
        turns.begin()
        tokens = tokenize(handle, "d2l-lines", level, store)
        vocabulary = build_vocabulary(tokens, all_for_training, 1, (), store)
        corpus = build_corpus(tokens, vocabulary.handle, all_for_training, 0, store)
        turns.end(Path(path).stat().st_size, tokens=corpus.splits["train"].num_tokens, vocabulary=vocabulary.size)
        shutil.rmtree(root)


def text_in_memory(turns: Turns, path: str, level: str) -> None:
    """Clean, cut, count and number a text without writing anything, as the book does: an array of ids."""
    _import_arrow()
    import numpy as np

    from rnnlm_core.corpus import id_type
    from rnnlm_core.indices import look_up
    from rnnlm_core.levels import tokenizer
    from rnnlm_core.normalize import normalizer
    from rnnlm_core.tokenize import Part
    from rnnlm_core.vocabulary import Vocabulary, add_counts

    cut, rule = tokenizer(level), normalizer("d2l-lines")
    while True:
        turns.begin()
        counts: dict[str, int] = {}
        pieces = []
        for block in Part(Path(path), rule).tokenizable(cut):
            column = cut.encode(block)
            indices, dictionary = column.indices.to_numpy(), column.dictionary.to_pylist()
            add_counts(counts, indices, dictionary)
            pieces.append((indices, dictionary))
        vocabulary = Vocabulary(counts)
        kind = id_type(len(vocabulary))
        ids = np.concatenate([look_up(np.array(vocabulary[words], dtype=kind), indices) for indices, words in pieces])
        turns.end(Path(path).stat().st_size, tokens=len(ids), vocabulary=len(vocabulary))


def text_stage(
    turns: Turns, stage: str, level: str, store: str, handles: dict[str, str], num_tokens: dict[str, int]
) -> None:
    """Do one stage of `text` and report the largest memory of this process; the only block."""
    from rnnlm_core.corpus import build_corpus
    from rnnlm_core.statistics import statistics
    from rnnlm_core.store import Handle, Store
    from rnnlm_core.tokenize import Tokens, tokenize
    from rnnlm_core.vocabulary import build_vocabulary

    there, shares = Store(Path(store)), (100, 0, 0)
    known = {kind: Handle(kind, digest) for kind, digest in handles.items()}
    turns.begin()
    if stage == "tokenize":
        cut = tokenize(known["text"], "d2l-lines", level, there)
        made, num_tokens = cut.handle, cut.num_tokens
    elif stage == "vocabulary":
        made = build_vocabulary(Tokens(known["tokens"], num_tokens), shares, 1, (), there).handle
    elif stage == "corpus":
        made = build_corpus(Tokens(known["tokens"], num_tokens), known["vocabulary"], shares, 0, there).handle
    else:
        made = statistics(Tokens(known["tokens"], num_tokens), there).handle
    turns.end(1, peak=peak_bytes(), kind=made.kind, sha256=made.sha256, num_tokens=num_tokens)


def generate(turns: Turns, cell: str, letters: str, hidden: int, prefixes: list[str], length: int, device: str) -> None:
    """Continue all prefixes as one batch, greedily, with a model of random weights."""
    import torch

    from rnnlm_core.config import GenerateConfig, ModelConfig
    from rnnlm_core.generate import continue_texts
    from rnnlm_core.levels import tokenizer
    from rnnlm_core.model import LanguageModel, pick_device
    from rnnlm_core.saved_model import SavedModel
    from rnnlm_core.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary(dict.fromkeys(letters, 1))
    model = LanguageModel(cell, len(vocabulary), ModelConfig(hidden_size=hidden)).to(pick_device(device)).eval()
    saved = SavedModel(model, vocabulary, tokenizer("char"), "none", {})
    config = GenerateConfig(length=length)
    while True:
        turns.begin()
        samples = continue_texts(saved, prefixes, config)
        turns.end(len(prefixes) * length, characters=sum(len(sample.text) for sample in samples))
