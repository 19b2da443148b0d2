"""Dynamic evaluation in a child: its threads, its end, and the same figures."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rnnlm_core.config import EvaluateConfig, ModelConfig
from rnnlm_core.dynamic_evaluation import evaluate_dynamically
from rnnlm_core.dynamic_evaluation_process import Job, evaluate_in_child
from rnnlm_core.errors import Diverged, Stopped
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.saved_model import save_model
from rnnlm_core.store import Store
from rnnlm_core.vocabulary import Vocabulary

CONFIG = EvaluateConfig(dynamic_rate=0.003, dynamic_steps=40)
REPORT_THREADS = """
import sys, types
module = types.ModuleType("rnnlm_core.dynamic_evaluation")
def evaluate_dynamically(*_, check, **__):
    import torch
    from rnnlm_core.outcomes import Evaluated
    return Evaluated("test", 1.0, 2.0, 3.0, 0.0, torch.get_num_threads(), "none")
module.evaluate_dynamically = evaluate_dynamically
sys.modules[module.__name__] = module
"""


@pytest.fixture
def job(characters: Any, store: Store) -> Job:
    torch.manual_seed(0)
    model = LanguageModel("gru", characters.vocabulary_size, ModelConfig(hidden_size=24))
    with store.draft("model") as draft:
        words = Vocabulary.load(store.open(characters.vocabulary))
        about = {"vocabulary": characters.vocabulary.sha256}
        save_model(draft.folder, model, words, tokenizer("char"), "none", about)
        return Job("gru", draft.publish(), characters.corpus, CONFIG, str(store.root))


def test_the_child_has_the_threads_of_its_place(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(REPORT_THREADS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert evaluate_in_child(job, lambda: False).num_tokens == 1


def test_its_figures_are_those_of_one_thread(job: Job, store: Store) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = evaluate_dynamically(job.model, job.corpus, CONFIG, store)
        torch.set_num_threads(2)
        assert evaluate_in_child(job, lambda: False) == here
    finally:
        torch.set_num_threads(before)


def test_who_is_asked_to_stop_stops(job: Job) -> None:
    with pytest.raises(Stopped, match="dynamic evaluation stopped: gru: run the same command again: it begins anew"):
        evaluate_in_child(job, lambda: True)


def test_what_diverges_arrives_as_it_was_raised(job: Job) -> None:
    config = EvaluateConfig(dynamic_rate=1e38, dynamic_rule="sgd")
    wild = Job(job.cell, job.model, job.corpus, config, job.store)
    with pytest.raises(Diverged, match="dynamic evaluation diverged"):
        evaluate_in_child(wild, lambda: False)
