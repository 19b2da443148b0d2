"""What a run was given: its corpus as a dataset of MLflow's, once per run."""

import json

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from mlflow.types import ColSpec, DataType, Schema

from rnnlm_core.corpus import Corpus, corpus_conventions
from rnnlm_core.errors import ResourceError
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import workspace
from tasks.tracking_database import client

DIGEST_LENGTH = 12
"""Of the 64 digits of a corpus's SHA-256, as many as MLflow's list has room for; all of them are in the profile."""


def log_corpus(run_id: str, name: str, corpus: Corpus, vocabulary: BuiltVocabulary) -> None:
    """Note that a run reads a corpus; a run that has it already, under whatever name, is left as it is."""
    dataset = _dataset(name, corpus, vocabulary)
    if any(known.dataset.digest == dataset.digest for known in client().get_run(run_id).inputs.dataset_inputs):
        return
    given = [DatasetInput(dataset, [InputTag("mlflow.data.context", ", ".join(corpus.splits))])]
    try:
        client().log_inputs(run_id, datasets=given)
    except (MlflowException, ResourceError):
        # Another run has just introduced this dataset to MLflow, which takes each once.
        client().log_inputs(run_id, datasets=given)


def _dataset(name: str, corpus: Corpus, vocabulary: BuiltVocabulary) -> Dataset:
    folder = workspace.store().path(corpus.handle)
    cut, normalizer = corpus_conventions(folder)
    total = sum(split.num_tokens for split in corpus.splits.values())
    profile = {
        "num_rows": total,
        "tokens": {split: facts.num_tokens for split, facts in corpus.splits.items()},
        "oov_rate": {split: facts.oov_rate for split, facts in corpus.splits.items()},
        "vocabulary_size": vocabulary.size,
        "tokenizer": cut.about,
        "normalizer": normalizer,
        "corpus_sha256": corpus.handle.sha256,
        "vocabulary_sha256": vocabulary.handle.sha256,
    }
    return Dataset(
        name=name,
        digest=corpus.handle.sha256[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": str(folder)}),
        schema=json.dumps({"mlflow_colspec": Schema([ColSpec(DataType.integer, "id")]).to_dict()}),
        profile=json.dumps(profile),
    )
