"""Recurrent language models: text, vocabulary, corpus, cells, training, evaluation, generation.

This package does the work. It imports neither Prefect nor MLflow and can be used alone. `PUBLIC` is what others may
build on, module by module; each of its names that is not a module as well can be had from here, as
`rnnlm_core.load_model`.
"""

import importlib
from typing import Any

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
    "evaluate": ("evaluate", "stream_loss"),
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
_PLACES = {name: module for module, names in PUBLIC.items() for name in names if name not in PUBLIC}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
