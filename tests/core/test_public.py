"""What others may build on is listed once; taking something from the list is a decision, and shows here."""

import importlib
import inspect
import subprocess
import sys
from operator import attrgetter

import pytest

import rnnlm_core

PUBLIC = {
    "catalogue": ("CatalogueEntry", "CorpusFile", "corpus_names", "find_corpus"),
    "cells": ("State", "gru_step", "gru_step_reset_before", "lstm_step", "rnn_step"),
    "config": ("RunConfig", "flatten", "known_names"),
    "config_values": ("override",),
    "corpus": ("Corpus", "build_corpus", "split_ids"),
    "download": ("Source", "Text", "download", "resolve"),
    "dynamic_evaluation": ("dynamic_loss", "evaluate_dynamically"),
    "encoder": ("BidirectionalEncoder",),
    "errors": ("RnnlmError",),
    "evaluate": ("evaluate", "evaluate_text", "stream_loss"),
    "extensions": ("register",),
    "generate": ("continue_text", "continue_texts", "generate", "stream_text"),
    "levels": ("Tokenizer", "read_tokenizer", "tokenizer"),
    "model": ("LanguageModel", "convert", "detach", "num_parameters", "pick_device"),
    "ngram": ("NgramModel",),
    "normalize": ("Normalizer", "normalizer", "read_blocks"),
    "onnx_export": ("check_onnx", "export_onnx"),
    "outcomes": ("Epoch", "Evaluated", "Sample", "Trained", "perplexity"),
    "partition": ("Minibatches", "random_batches", "sequential_batches"),
    "presets": ("PRESETS", "run_config"),
    "saved_model": ("SavedModel", "load_model", "save_model"),
    "score": ("Scored", "score_texts"),
    "statistics": ("Statistics", "statistics"),
    "step_layer": ("Cell",),
    "store": ("Handle", "Store"),
    "tokenize": ("Tokens", "tokenize"),
    "train": ("fit", "train"),
    "vocabulary": ("BuiltVocabulary", "Vocabulary", "build_vocabulary"),
}


def test_the_public_names_are_these() -> None:
    assert rnnlm_core.PUBLIC == PUBLIC


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_each_is_there_and_says_what_it_is(module: str, name: str) -> None:
    there = getattr(importlib.import_module(f"rnnlm_core.{module}"), name)
    if inspect.isclass(there) or inspect.isfunction(there):
        assert there.__module__ == f"rnnlm_core.{module}"
        assert inspect.getdoc(there)


def test_what_is_called_like_a_module_stays_the_module() -> None:
    assert inspect.ismodule(importlib.import_module("rnnlm_core.train"))
    code = "from rnnlm_core import Cell, train, load_model; print(Cell.__module__, train.__name__, load_model.__name__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["rnnlm_core.step_layer", "rnnlm_core.train", "load_model"]


def test_asking_for_more_says_that_it_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"module 'rnnlm_core' has no attribute 'Sell'"):
        attrgetter("Sell")(rnnlm_core)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, rnnlm_core; print([name for name in ('torch', 'numpy', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
