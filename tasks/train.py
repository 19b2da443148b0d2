"""Stage `train`: fit one cell in a process of its own, and track it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from rnnlm_core.checkpoint import Checkpoints
from rnnlm_core.config import NGRAM, ModelConfig, TrainConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.errors import Pruned, ResourceError, Stopped
from rnnlm_core.outcomes import Epoch, Trained
from rnnlm_core.store import Handle
from rnnlm_core.train_process import train_in_child
from rnnlm_core.training_job import Job
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import progress, tracked_inputs, tracked_models, tracking, workspace
from tasks.caching import cache_key, is_edited, is_recorded, stage
from tasks.locking import KernelLocks
from tasks.places import cores_of_each, place
from tasks.stopping import stop_requested
from tasks.tracked_runs import MINUTES
from tasks.tracking import FlowRun

CORE = "rnnlm_core.train"


@dataclass(frozen=True)
class TrackedTraining:
    """A trained cell and the MLflow run that holds its record."""

    trained: Trained
    run_id: str

    def cache_identity(self) -> tuple[str, Handle, str]:
        """What comes after training depends on the model, and is written into this run and no other."""
        return self.trained.cell, self.trained.model, self.run_id


@stage(CORE, TrackedTraining, task_run_name="train {cell}")
def train(
    cell: str,
    corpus: Corpus,
    vocabulary: BuiltVocabulary,
    model: ModelConfig,
    config: TrainConfig,
    flow: FlowRun,
) -> TrackedTraining:
    """Return the trained cell: the model of its best epoch, logged with the curve of every epoch.

    Raises `Pruned` when the flow run has seen enough: no checkpoint is kept, and the next one begins anew.
    """
    key = _key(cell, corpus, vocabulary, model, config, flow)
    store = workspace.store()
    with (
        place(config.device, config.processes, flow.label(cell)) as (device, threads),
        _unless_stopped(cell),
        tracking.child_run(flow, cell, key, _tags(corpus, vocabulary)) as run_id,
    ):
        tracked_inputs.log_corpus(run_id, flow.corpus, corpus, vocabulary)
        log = tracking.EpochLog(run_id)
        read_epoch = TypeAdapter(Epoch).validate_python
        used: dict[str, float] = {}
        enough: list[Epoch] = []
        known = 0

        def on_resumed(epochs: int) -> None:
            nonlocal known
            known = epochs
            told = f"goes on after epoch {epochs}" if epochs else "goes on in epoch 1"
            progress.publish(progress.News("train", flow.label(cell), done=told))

        def on_begun() -> None:
            # The child has read the sources anew: what another code makes must not go on from these checkpoints.
            if is_edited({"cell": cell}, CORE):
                told = "the code of a training has changed since this command began"
                raise ResourceError(told, cell, "run the same command again")

        def on_epoch(fields: dict[str, Any]) -> None:
            epoch = read_epoch(fields)
            log.add(epoch, used)
            progress.publish(progress.News("train", flow.label(cell), epoch=epoch, earlier=epoch.number <= known))
            if flow.enough(epoch):
                enough.append(epoch)

        settings = replace(config, device=device)
        job = Job(
            cell,
            corpus.handle,
            vocabulary.handle,
            model,
            settings,
            str(store.root),
            key,
            threads,
            workspace.checkpoint_seconds(),
            str(store.remote or ""),
        )
        try:
            result = train_in_child(
                job,
                on_epoch,
                lambda: bool(enough) or stop_requested.is_set(),
                lambda text: progress.warn("train", text, flow.label(cell)),
                used.update,
                cores_of_each if config.processes == 1 else lambda: 1,
                on_resumed,
                on_begun,
            )
        except Stopped:
            if not enough or stop_requested.is_set():
                raise
            Checkpoints(store, key).clear()
            tracking.set_tags(run_id, {"rnnlm.pruned_at_epoch": str(enough[0].number)})
            raise Pruned("training pruned", f"after epoch {enough[0].number}") from None
        finally:
            log.flush()
        trained: Trained = TypeAdapter(Trained).validate_python(result)
        crashpoint("training known")
        _report(run_id, trained, corpus, vocabulary, flow)
    crashpoint("run finished")
    return TrackedTraining(trained, run_id)


def has_record(
    cell: str, corpus: Corpus, vocabulary: BuiltVocabulary, model: ModelConfig, config: TrainConfig, flow: FlowRun
) -> bool:
    """Say whether a training is done and its record would be found."""
    return is_recorded(_key(cell, corpus, vocabulary, model, config, flow))


def forget_training(
    cell: str, corpus: Corpus, vocabulary: BuiltVocabulary, model: ModelConfig, config: TrainConfig, flow: FlowRun
) -> None:
    """Remove the checkpoints of a training that failed and that nobody will go on with."""
    key = _key(cell, corpus, vocabulary, model, config, flow)
    with KernelLocks().if_free(key) as free:
        if free:
            Checkpoints(workspace.store(), key).clear()


def _key(
    cell: str, corpus: Corpus, vocabulary: BuiltVocabulary, model: ModelConfig, config: TrainConfig, flow: FlowRun
) -> str:
    """Return the key that Prefect has for a training."""
    inputs = {"cell": cell, "corpus": corpus, "vocabulary": vocabulary, "model": model, "config": config, "flow": flow}
    key = cache_key("train", inputs, CORE)
    assert key is not None, "handles always have an identity"
    return key


@contextmanager
def _unless_stopped(cell: str) -> Iterator[None]:
    """Raise `Stopped` instead of beginning: a training that never was has no run either."""
    if stop_requested.is_set():
        raise Stopped("training stopped", cell, "run the same command again to go on")
    yield


def _tags(corpus: Corpus, vocabulary: BuiltVocabulary) -> dict[str, str]:
    return {"rnnlm.corpus_sha256": corpus.handle.sha256, "rnnlm.vocabulary_sha256": vocabulary.handle.sha256}


def minutes(trained: Trained) -> float:
    """Return how long the epochs of a training took together, those before an interruption among them."""
    return sum(epoch.seconds for epoch in trained.history) / 60


def _report(run_id: str, trained: Trained, corpus: Corpus, vocabulary: BuiltVocabulary, flow: FlowRun) -> None:
    """Log what is known only at the end."""
    from rnnlm_core.generate import opening
    from rnnlm_core.model_card import TrainedOn, model_card
    from rnnlm_core.saved_model import load_model
    from rnnlm_core.training_plot import PICTURE, plot_training

    store = workspace.store()
    folder = store.open(trained.model)
    tracking.log_metrics(
        run_id,
        {
            "model/parameters": trained.num_parameters,
            "vocabulary/size": vocabulary.size,
            "perf/median_tokens_per_second": trained.tokens_per_second,
            MINUTES: minutes(trained),
            "best/epoch": trained.best_epoch,
            "best/train_perplexity": trained.best.train_perplexity,
            **(
                {}
                if trained.best.valid_perplexity is None
                else {"best/valid_perplexity": trained.best.valid_perplexity}
            ),
        },
    )
    tracking.log_file(run_id, store.path(vocabulary.handle) / VOCABULARY_FILE)
    if trained.cell != NGRAM:  # which has no course to show
        with TemporaryDirectory() as temporary:
            picture = Path(temporary) / PICTURE
            plot_training(trained, picture)
            tracking.log_file(run_id, picture)
    saved, settings = load_model(folder), flow.training_settings(trained.cell)
    example = opening(saved, store.open(corpus.handle), "train")
    source = TrainedOn(settings.get("corpus.name", ""), flow.corpus, corpus, vocabulary.handle.sha256)
    address = tracked_models.log_model(
        run_id, folder, trained.cell, example, settings,
        lambda address: model_card(saved, trained, source, settings, address),
    )  # fmt: skip
    crashpoint("model logged")
    tracking.set_tags(
        run_id,
        {"rnnlm.device": trained.device, "rnnlm.model_sha256": trained.model.sha256, "rnnlm.model_uri": address},
    )
