"""The models that are served: each with its name and what `/models` says about it."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnlm_core.config import GenerateConfig
from rnnlm_core.errors import one_line
from rnnlm_core.generate import Check, known_opening, prefix_tokens, stream_text
from rnnlm_core.model import LanguageModel, num_parameters
from rnnlm_core.saved_model import SavedModel
from rnnlm_core.score import score_texts
from rnnlm_core.store import Handle, Store
from tasks import workspace
from tasks.tracked_runs import TrackedRun


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a served model: the `name` that requests use, the MLflow run of its training, its figures (those
    that the run does not have are null; bits per character on the evaluated split), its shape: of a network, or the
    order of n-grams, of which `parameters` then says how many there are, and how a text of its kind may begin: as the
    evaluated split does, empty if that is not on this machine or begins with nothing that can be typed."""

    name: str
    cell: str
    corpus: str | None
    preset: str | None
    run_id: str | None
    train_perplexity: float | None
    valid_perplexity: float | None
    test_perplexity: float | None
    bits_per_char: float | None
    parameters: int
    hidden_size: int | None
    num_layers: int | None
    embedding_size: int | None
    implementation: str | None
    order: int | None
    level: str
    eos: str
    normalizer: str
    vocabulary_size: int
    beginning: str


@dataclass(frozen=True)
class ServedModel:
    """A loaded model, shared by all requests: nobody changes it."""

    saved: SavedModel
    facts: ModelFacts


def served_model(name: str, saved: SavedModel, run: TrackedRun | None) -> ServedModel:
    """Return a loaded model with the facts of its files and of its run, if there is one."""
    model, cut = saved.model, saved.tokenizer.about
    tags = run.tags if run else {}
    metrics = run.metrics if run else {}
    network = model.config if isinstance(model, LanguageModel) else None
    facts = ModelFacts(
        name=name,
        cell=model.cell,
        corpus=tags.get("rnnlm.corpus"),
        preset=tags.get("rnnlm.preset"),
        run_id=run.run_id if run else None,
        train_perplexity=metrics.get("best/train_perplexity"),
        valid_perplexity=metrics.get("best/valid_perplexity"),
        test_perplexity=metrics.get("test/perplexity"),
        bits_per_char=metrics.get(f"{tags.get('rnnlm.evaluated_split', 'test')}/bits_per_char"),
        parameters=num_parameters(model),
        hidden_size=network and network.hidden_size,
        num_layers=network and network.num_layers,
        embedding_size=network and network.embedding_size,
        implementation=network and network.implementation,
        order=None if network else model.config.order,
        level=cut["level"],
        eos=cut["eos"],
        normalizer=saved.normalizer,
        vocabulary_size=len(saved.vocabulary),
        beginning=_beginning(saved, run),
    )
    return ServedModel(saved, facts)


def _beginning(saved: SavedModel, run: TrackedRun | None) -> str:
    digest = run.tags.get("rnnlm.corpus_sha256", "") if run is not None else ""
    corpus, store = Handle("corpus", digest), workspace.store()
    if run is None or not digest or _fault(str(store.root), corpus):
        return ""
    return known_opening(saved, store.path(corpus), run.tags.get("rnnlm.evaluated_split", "test"))


@functools.cache
def _fault(root: str, corpus: Handle) -> str:
    """Return what is wrong with a corpus; the cells of a run have one together."""
    return Store(Path(root)).fault(corpus)


def continuation(saved: SavedModel, prefix: str, config: GenerateConfig, check: Check) -> Iterator[dict[str, str]]:
    """Yield the records of a continuation: `prefix` as it was read, each `warning`, then each `piece` that is added.

    Prefix and pieces together are the text of `continue_text`. Raises what `stream_text` raises.
    """
    warnings: list[str] = []
    pieces = stream_text(saved, prefix, config, warnings.append, check)
    read = saved.tokenizer.text(prefix_tokens(saved, prefix, "map"))  # what is unknown has been told or refused
    yield {"prefix": read}
    yield from ({"warning": one_line(warning)} for warning in warnings)
    left = len(read)
    for piece in pieces:
        added, left = piece[left:], max(0, left - len(piece))
        if added:
            yield {"piece": added}


def scores(saved: SavedModel, texts: list[str], unknown: str, check: Check) -> Iterator[dict[str, Any]]:
    """Yield the `score` of each text, and each `warning`."""
    for text in texts:
        warnings: list[str] = []
        (scored,) = score_texts(saved, [text], unknown, warnings.append, check)
        yield {"score": scored}
        yield from ({"warning": one_line(warning)} for warning in warnings)
