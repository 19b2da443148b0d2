"""What a config must keep to: limits of single values, rules between keys, options that would have no effect.

Every mistake is reported, not the first.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from rnnlm_core.config import (
    CELLS,
    LEVELS,
    LINE_KEEPING,
    LONGEST_PREFIX,
    NGRAM,
    OF_NGRAMS,
    OWN_CELLS,
    SHORTEST_BPTT,
    SPLITS,
    ModelConfig,
    RunConfig,
    flatten,
    known_names,
)
from rnnlm_core.errors import ConfigError, suggestion
from rnnlm_core.extensions import find


def check(config: RunConfig) -> None:
    """Raise `ConfigError` naming every value that breaks a rule."""
    mistakes = [*limits(config), *_rules(config)]
    if mistakes:
        raise ConfigError(*mistakes)


def has_effect(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a key changes anything beside these values of all keys (as `flatten` gives them)."""
    return not why_without_effect(key, values)


def why_without_effect(key: str, values: Mapping[str, Any]) -> str:
    """Say why a key changes nothing beside these values of all keys; "" if it changes something."""
    met, why = _conditions(values).get(key, (True, ""))
    return "" if met else why


def concerns(cell: str, key: str) -> bool:
    """Whether a key says anything of a cell: most of training and dynamic evaluation is of networks or of n-grams."""
    return not key.startswith(("model.", "train.", "evaluate.dynamic")) or (key in OF_NGRAMS) == (cell == NGRAM)


def limits(config: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(config):
        value = getattr(config, item.name)
        key = prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from limits(value, f"{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"`{key}` must be finite. Got {value}"
        elif isinstance(value, str | tuple):
            for text in [value] if isinstance(value, str) else value:
                if mistake := unicode_mistake(text):
                    yield f"`{key}` {mistake}. Got {text!r}"
            if (kind := item.metadata.get("names")) and value not in (known := known_names(kind)):
                yield f"`{key}` must be one of {', '.join(known)}. Got {value!r}"
        else:
            for rule, limit in item.metadata.items():
                kept = {
                    "at_least": lambda v, m: v >= m,
                    "above": lambda v, m: v > m,
                    "at_most": lambda v, m: v <= m,
                    "below": lambda v, m: v < m,
                }[rule](value, limit)
                if not kept:
                    yield f"`{key}` must be {rule.replace('_', ' ')} {limit}. Got {value}"


def unicode_mistake(text: str) -> str:
    """Say where a text is no Unicode ("" if it is): a shell hands over bytes that are no UTF-8 as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not UTF-8 at position {error.start}"
    return ""


def prefix_mistake(prefix: str) -> str:
    """Say what is wrong with a text to continue, whatever the model; "" if nothing is."""
    if not prefix:
        return "prefix is empty"
    if len(prefix) > LONGEST_PREFIX:
        return f"prefix has {len(prefix):,} characters, at most {LONGEST_PREFIX:,} are read"
    mistake = unicode_mistake(prefix)
    return f"prefix {mistake}" if mistake else ""


def _rules(config: RunConfig) -> Iterator[str]:
    """Yield what single values cannot show: rules between keys, and names with a grammar."""
    yield from _cell_rules(config.cells)
    if mistake := _split_mistake(config.corpus.split):
        yield mistake
    else:
        yield from _split_rules(config)
    yield from _tokenizer_rules(config)
    yield from _model_rules(config.model)
    yield from _train_rules(config)
    for prefix in config.generate.prefixes:
        # What is no Unicode is told with the other texts of the config.
        if (mistake := prefix_mistake(prefix)) and not unicode_mistake(prefix):
            yield f"`generate.prefixes`: {mistake}. Got {prefix!r}"
    reserved = config.tokenizer.reserved_tokens
    if "" in reserved or "<unk>" in reserved or len(set(reserved)) < len(reserved):
        yield f"`tokenizer.reserved_tokens` must be different tokens, none empty or <unk>. Got {','.join(reserved)!r}"
    if config.train.patience and config.train.patience >= config.train.epochs:
        yield (
            f"`train.patience` must be below train.epochs ({config.train.epochs}) to have an effect. "
            f"Got {config.train.patience}"
        )
    if config.train.optimizer == "nt-asgd" and 0 < config.train.patience <= config.train.non_monotone:
        yield (
            f"`train.patience` must be above train.non_monotone ({config.train.non_monotone}) with "
            f"train.optimizer=nt-asgd, or no average is ever made. Got {config.train.patience}"
        )
    if any(not token for token in config.generate.stop):
        yield "`generate.stop` must hold no empty token. Got ''"
    for key, why in without_effect(config):
        yield f"`{key}` has no effect {why}. Got {flatten(config)[key]}"


def _cell_rules(cells: tuple[str, ...]) -> Iterator[str]:
    known = known_names("cell")
    for cell in cells:
        if cell not in known:
            yield f"unknown cell: {cell}: {suggestion(cell, list(known))}"
    for cell in sorted({cell for cell in cells if cells.count(cell) > 1}):
        yield f"`cells` must name each cell once. Got {cell} twice"
    if not cells:
        yield f"`cells` must name at least one of {', '.join(known)}. Got none"


def _split_mistake(split: str) -> str:
    parts = split.split("/")
    if split == "given" or (len(parts) == 3 and all(part.isdecimal() for part in parts) and int(parts[0])):
        return ""
    return f"`corpus.split` must be three whole numbers like 90/5/5, the first above 0, or `given`. Got {split!r}"


def _split_rules(config: RunConfig) -> Iterator[str]:
    split = config.corpus.split
    if not config.corpus.has_split(config.evaluate.split):
        there = ", ".join(name for name in SPLITS if config.corpus.has_split(name))
        yield (
            f"`evaluate.split` must name a split that holds something ({there} under corpus.split={split}). "
            f"Got {config.evaluate.split}"
        )
    if not config.corpus.has_split("valid"):
        if config.train.patience:
            yield f"`train.patience` needs a validation split (corpus.split={split}). Got {config.train.patience}"
        if config.train.schedule == "plateau":
            yield f"`train.schedule` plateau needs a validation split. Got corpus.split={split}"
        if config.train.optimizer == "nt-asgd":
            yield f"`train.optimizer` nt-asgd needs a validation split. Got corpus.split={split}"
    if config.corpus.max_chars and split == "given":
        yield f"`corpus.max_chars` needs a corpus in one file, not split=given. Got {config.corpus.max_chars}"


def _tokenizer_rules(config: RunConfig) -> Iterator[str]:
    if config.tokenizer.eos == "line" and config.corpus.normalizer not in LINE_KEEPING:
        yield (
            f"`tokenizer.eos` line needs a normalizer that keeps lines ({', '.join(LINE_KEEPING)}). "
            f"Got {config.corpus.normalizer}"
        )


def _model_rules(model: ModelConfig) -> Iterator[str]:
    if model.bidirectional:
        yield (
            "`model.bidirectional` must be false: a language model whose backward direction reads the token it "
            "predicts has a perplexity that means nothing. Got true"
        )
    if model.implementation == "concise" and model.reset_gate == "before":
        yield (
            "`model.reset_gate` before needs `model.implementation` scratch: torch.nn.GRU applies it after the "
            "product. Got concise"
        )
    yield from _tying_rules(model)
    if model.mixture == 1:
        yield "`model.mixture` must be 0 (nothing mixed) or at least 2. Got 1"
    if model.softmax == "adaptive" and model.hidden_size < 16:
        yield (
            "`model.hidden_size` must be at least 16 with model.softmax=adaptive: its second tail has a sixteenth. "
            f"Got {model.hidden_size}"
        )


def _tying_rules(model: ModelConfig) -> Iterator[str]:
    if not model.tie_weights:
        return
    if not model.embedding_size:
        yield "`model.tie_weights` needs an embedding: set model.embedding_size. Got 0"
    elif model.num_layers == 1 and model.layer_sizes != (model.hidden_size,):
        yield (
            "`model.tie_weights` with one layer needs model.embedding_size equal to model.hidden_size "
            f"({model.hidden_size}). Got {model.embedding_size}"
        )
    if model.softmax == "adaptive":
        yield "`model.softmax` must be full with model.tie_weights: its tails have fewer units. Got adaptive"


def _train_rules(config: RunConfig) -> Iterator[str]:
    device = config.train.device
    if device not in ("auto", "cpu", "cuda") and not (re.fullmatch(r"cuda:(0|[1-9]\d?)", device)):
        yield f"`train.device` must be auto, cpu, cuda or cuda:N. Got {device!r}"
    if device == "cpu" and config.train.precision in ("tf32", "float16"):
        yield f"`train.precision` must be float32 or bfloat16 on the cpu. Got {config.train.precision}"
    if device.startswith("cuda:") and config.train.processes > 1:
        yield f"`train.device` must be cuda with train.processes={config.train.processes}: one GPU each. Got {device}"
    if config.train.bptt == "random" and config.train.num_steps < SHORTEST_BPTT:
        yield (
            f"`train.num_steps` must be at least {SHORTEST_BPTT} with train.bptt=random, which draws none below. "
            f"Got {config.train.num_steps}"
        )
    if config.train.processes > max(1, config.train.batch_size):
        yield (
            f"`train.processes` must be at most train.batch_size ({config.train.batch_size}): each takes rows. "
            f"Got {config.train.processes}"
        )
    need = config.fewest_tokens
    if 0 < config.corpus.max_tokens < need:
        batch = f" to fill one batch of {config.train.batch_size} x {config.train.num_steps}" if need > 2 else ""
        yield f"`corpus.max_tokens` must be at least {need}{batch}. Got {config.corpus.max_tokens}"


def without_effect(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) of the options that are set though nothing would come of it."""
    values, defaults = flatten(config), flatten(RunConfig())
    for key, (met, why) in _conditions(values).items():
        if values[key] != defaults[key] and not met:
            yield key, why


def _conditions(values: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    """Return, of each key that needs others, whether they are as it needs them, and why it has no effect if not."""
    level, schedule, drawn = values["tokenizer.level"], values["train.schedule"], values["generate.temperature"] > 0
    beam, counted = values["generate.beam"] > 1, _is_counted(level)
    dynamic = values["evaluate.dynamic_rate"] > 0, "without dynamic evaluation: set evaluate.dynamic_rate above 0"
    conditions = {
        **_dropout_conditions(values),
        "tokenizer.eos": (level == "word", f"at level {level}: use tokenizer.level=word"),
        "tokenizer.bpe_size": (level == "bpe", f"at level {level}: use tokenizer.level=bpe"),
        "tokenizer.min_freq": (counted, f"at level {level}, whose vocabulary is complete"),
        "tokenizer.reserved_tokens": (counted, f"at level {level}, whose vocabulary is complete"),
        "model.implementation": (
            bool(set(values["cells"]) & set(CELLS)) or values["model.init"] == "auto",
            "on cells of other packages: it decides on their first weights alone, which model.init has decided",
        ),
        "model.reset_gate": ("gru" in values["cells"], "without the cell gru"),
        "model.order": (NGRAM in values["cells"], f"without the cell {NGRAM}"),
        "model.discounts": (NGRAM in values["cells"], f"without the cell {NGRAM}"),
        "model.init_range": (values["model.init"] == "uniform", "without model.init=uniform"),
        "train.momentum": (values["train.optimizer"] == "sgd", "without train.optimizer=sgd"),
        "train.non_monotone": (values["train.optimizer"] == "nt-asgd", "without train.optimizer=nt-asgd"),
        "train.bptt": (values["train.partition"] == "sequential", "with train.partition=random: use sequential"),
        "train.temporal_activation_regularization": (values["train.num_steps"] > 1, "with train.num_steps=1"),
        "train.decay": (
            schedule in ("step", "plateau"),
            f"with schedule {schedule}: use step or plateau",
        ),
        "model.mixture": (values["model.softmax"] == "full", "with model.softmax=adaptive: use one of the two"),
        "train.softmax_samples": (
            values["model.softmax"] == "full" and not values["model.mixture"],
            f"with model.{'mixture' if values['model.mixture'] else 'softmax=adaptive'}: use one of the two",
        ),
        "train.cuda_graph": (not (uncaptured := _why_not_captured(values)), uncaptured),
        "train.decay_after": (schedule == "step", f"with schedule {schedule}: use train.schedule=step"),
        "evaluate.dynamic_rule": dynamic,
        "evaluate.dynamic_decay": dynamic,
        "evaluate.dynamic_steps": dynamic,
        "generate.seed": (drawn, "at temperature 0 (greedy): set generate.temperature above 0"),
        "generate.top_k": (drawn, "at temperature 0 (greedy): set generate.temperature above 0"),
        "generate.top_p": (drawn, "at temperature 0 (greedy): set generate.temperature above 0"),
        "generate.beam": (not drawn, "on drawn samples: set generate.temperature=0"),
        "generate.length_penalty": (
            beam and bool(values["generate.stop"]),
            "without beam search that can end early: set generate.beam above 1, and generate.stop",
        ),
    }
    if set(values["cells"]) == {NGRAM}:
        conditions |= {key: (False, f"on the cell {NGRAM} alone") for key in values if not concerns(NGRAM, key)}
    return conditions


def _has_matrices(cell: str) -> bool:
    """Whether a cell has something that weight drop drops; of one that is not known another rule tells."""
    if cell in OWN_CELLS or cell not in known_names("cell"):
        return cell != NGRAM
    shapes = find("cell", cell).shapes(2, 2)
    return any(len(shape) == 2 for shape in shapes.values())


def _is_counted(level: str) -> bool:
    """Whether the vocabulary of a level comes from a text, which may be told what to leave out of it."""
    if level in LEVELS or level not in known_names("tokenizer"):
        return level not in ("byte", "bpe")
    return not find("tokenizer", level).alphabet


def _why_not_captured(values: Mapping[str, Any]) -> str:
    """Return why no update of a training is captured as a CUDA graph, "" if it may be."""
    if values["train.device"] == "cpu":
        return "with train.device=cpu"
    if values["train.processes"] > 1:
        return "with several train.processes"
    return "with train.bptt=random: minibatches differ in length" if values["train.bptt"] == "random" else ""


def _dropout_conditions(values: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    embedded, deep = values["model.embedding_size"] > 0, values["model.num_layers"] > 1
    own = [values["model.dropout_output"]]
    own += [values["model.dropout_input"]] * embedded + [values["model.dropout_hidden"]] * deep
    without_embedding = "without an embedding: set model.embedding_size"
    return {
        "model.dropout": (not all(own), "where each place has a dropout of its own"),
        "model.dropout_input": (embedded, without_embedding),
        "model.dropout_hidden": (deep, "with one layer"),
        "model.dropout_embedding": (embedded, without_embedding),
        "model.weight_drop": (
            not values["model.weight_drop"] or any(map(_has_matrices, values["cells"])),
            "on cells without recurrent matrices",
        ),
        "model.variational_dropout": (bool(values["model.dropout"] or any(own)), "without dropout"),
    }
