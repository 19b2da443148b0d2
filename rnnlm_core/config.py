"""The one config object: `RunConfig`, frozen dataclasses nested as the keys say (`train.learning_rate`).

A default exists once, here; a preset (`presets.py`) is a function that returns a complete config. Values are
strictly typed: `true` is no integer, `"7"` is no number. Every mistake of a config is reported, not the first.
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rnnlm_core.errors import ConfigError, suggestion

CELLS = ("rnn", "gru", "lstm")
"""The recurrent cells, which a run has by default."""
NGRAM = "ngram"
"""The baseline beside them: no network, but counted n-grams."""
KNOWN_CELLS = (*CELLS, NGRAM)
OF_NGRAMS = ("model.order", "model.discounts")
"""The keys of `model` and `train` that say something of n-grams; all others say something of networks."""
CHECKPOINT_SECONDS = 30.0
"""How much work a kill may cost: a training saves its place this often, in the middle of an epoch as well. No part of
the config: it changes no result."""
LINE_KEEPING = ("none", "nfc", "d2l-lines")
"""The normalisers that leave line ends where they are."""
SPLITS = ("train", "valid", "test")
PLACE = ("train.device", "train.cuda_graph")
"""Keys that say where and how a training is done, and nothing of what it is."""
SHORTEST_BPTT = 5
"""The least of the lengths that `train.bptt=random` draws."""
LONGEST_PREFIX = 10_000
"""Characters of a text to continue: the state is warmed up on all of them."""
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.ASCII | re.IGNORECASE)
"""A number as it is written everywhere; `float` alone also reads `1_0`, blanks and the digits of other scripts."""


def _option(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return field(default=default, metadata={k: v for k, v in limits.items() if v is not None})


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text, how it is normalised and how it is divided."""

    name: str = "python-docs"
    """A name of the catalogue, the path of a file or folder, or an http(s) address (`#sha256=…` pins its bytes)."""
    normalizer: Literal["none", "nfc", "letters", "chinese", "d2l-lines", "d2l-whole"] = "none"
    """`none` keeps the text; `nfc` composes what Unicode can write in two ways (é as one character); `letters` keeps
    a–z and single spaces and fuses no words; `chinese` turns line ends into spaces; `d2l-lines` and `d2l-whole` are
    the book's two editions."""
    max_chars: int = _option(0, at_least=0)
    """Keep only the first so many characters of the normalised text, before anything else is done; 0 = all."""
    max_tokens: int = _option(0, at_least=0)
    """Train on the first so many tokens only; 0 = all. The vocabulary still comes from the whole training split."""
    split: str = "90/5/5"
    """Train/valid/test shares, cut contiguously, or `given` for a corpus that is published in three files."""

    @property
    def shares(self) -> tuple[int, int, int] | None:
        """The three shares as whole numbers, or None for `given`."""
        if self.split == "given":
            return None
        first, second, third = (int(part) for part in self.split.split("/"))
        return first, second, third

    def has_split(self, name: str) -> bool:
        """Whether the split called `name` will hold anything."""
        return self.shares is None or self.shares[SPLITS.index(name)] > 0


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What a token is, and which tokens have an id."""

    level: Literal["char", "word", "byte", "bpe"] = "char"
    """`char`: one Unicode character; `word`: what stands between white space; `byte`: one byte of UTF-8; `bpe`:
    byte pairs merged as learnt from the training split (Sennrich et al. 2016)."""
    eos: Literal["none", "line"] = "none"
    """`line` puts one `<eos>` after every line of words, empty ones too, as published figures count it."""
    bpe_size: int = _option(4096, at_least=257, at_most=1_000_000)
    """Tokens that `bpe` may have, the 256 bytes among them."""
    min_freq: int = _option(1, at_least=1)
    """Rarer tokens of the training split become `<unk>`."""
    reserved_tokens: tuple[str, ...] = ()
    """Tokens that get the ids after `<unk>` whether they occur or not."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the network, and what it is before training."""

    implementation: Literal["concise", "scratch"] = "concise"
    """`concise`: the layers of `torch.nn`; `scratch`: the book's equations, one step after the other."""
    reset_gate: Literal["auto", "before", "after"] = "auto"
    """Where the GRU's reset gate works: `before` the product with the recurrent weights (the book's equation) or
    `after` it (`torch.nn.GRU`, cuDNN). `auto`: before from scratch, after in concise."""
    hidden_size: int = _option(256, at_least=1, at_most=16384)
    """Units of each recurrent layer."""
    num_layers: int = _option(1, at_least=1, at_most=16)
    """Recurrent layers, one above the other."""
    embedding_size: int = _option(0, at_least=0, at_most=16384)
    """0 = the book's one-hot input (its product with the input weights is done as a row gather)."""
    dropout: float = _option(0.0, at_least=0.0, below=1.0)
    """On the non-recurrent connections: after the embedding, between layers, before the output (Zaremba 2014)."""
    dropout_input: float = _option(0.0, at_least=0.0, below=1.0)
    """Of the embedding's output; 0 = `dropout`."""
    dropout_hidden: float = _option(0.0, at_least=0.0, below=1.0)
    """Between layers; 0 = `dropout`."""
    dropout_output: float = _option(0.0, at_least=0.0, below=1.0)
    """Of the last layer's output; 0 = `dropout`."""
    variational_dropout: bool = False
    """In those three places one mask for all steps of a minibatch, not one per step (Gal and Ghahramani 2016)."""
    dropout_embedding: float = _option(0.0, at_least=0.0, below=1.0)
    """Of whole rows of the embedding: a token is dropped wherever the minibatch has it (Gal and Ghahramani 2016)."""
    weight_drop: float = _option(0.0, at_least=0.0, below=1.0)
    """Of the recurrent weights, drawn once a minibatch (DropConnect, Wan et al. 2013; Merity et al. 2017)."""
    tie_weights: bool = False
    """The output shares the embedding's weights (Press and Wolf 2017): the last layer has `embedding_size` units, or
    the latent states of a `mixture`."""
    softmax: Literal["full", "adaptive"] = "full"
    """The output layer: `adaptive` spends little on rare tokens (Grave et al. 2017), for large vocabularies."""
    mixture: int = _option(0, at_least=0, at_most=1000)
    """Softmaxes that the output layer mixes, 2 or more (Yang et al. 2018); 0 = one softmax, nothing mixed."""
    bidirectional: bool = False
    """Refused: the backward direction reads the token to be predicted. `rnnlm_core.encoder` has the encoder."""
    init: Literal["auto", "torch", "book", "uniform"] = "auto"
    """First weights: `torch` (the layers' own), `book` (N(0, 0.01), zero biases), `uniform` (all of them, in
    ± `init_range`). `auto`: book from scratch, torch in concise."""
    init_range: float = _option(0.1, above=0.0, at_most=10.0)
    """Half the width of `uniform`."""
    order: int = _option(5, at_least=1, at_most=6)
    """Tokens of the longest n-grams that the cell `ngram` counts: it predicts from one token less."""
    discounts: Literal["modified", "single"] = "modified"
    """Of the cell `ngram`: three of each order (Chen and Goodman 1998), or one (Kneser and Ney 1995)."""

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Units of each layer: what the output layer multiplies with the embedding must be as wide as it."""
        tied = self.embedding_size if self.tie_weights and not self.mixture else 0
        return (self.hidden_size,) * (self.num_layers - 1) + (tied or self.hidden_size,)

    def for_cell(self, cell: str) -> "ModelConfig":
        """Return what of the config one cell depends on: the place of the reset gate, settled, for the GRU alone."""
        if cell == NGRAM:
            return ModelConfig(order=self.order, discounts=self.discounts)
        own = replace(self, order=ModelConfig.order, discounts=ModelConfig.discounts)
        if cell != "gru":
            return replace(own, reset_gate="auto")
        placed: Literal["before", "after"] = "before" if self.implementation == "scratch" else "after"
        return replace(own, reset_gate=placed) if self.reset_gate == "auto" else own


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is fitted."""

    epochs: int = _option(10, at_least=1, at_most=1_000_000)
    """Passes over the training split."""
    batch_size: int = _option(32, at_least=1)
    """Subsequences side by side in a minibatch."""
    num_steps: int = _option(35, at_least=1)
    """Length of truncated back-propagation through time, in tokens."""
    bptt: Literal["fixed", "random"] = "fixed"
    """`random` draws a length per minibatch: normal around `num_steps`, or around its half one time of twenty, with a
    deviation of 5 and 5 at least; the learning rate is scaled by length / `num_steps` (Merity et al. 2017)."""
    partition: Literal["sequential", "random"] = "sequential"
    """`sequential` carries the state from minibatch to minibatch; `random` shuffles subsequences and resets it."""
    optimizer: Literal["sgd", "adam", "adamw", "nt-asgd"] = "adamw"
    """The rule that turns gradients into updates. `nt-asgd` is `sgd` that averages its weights as soon as the
    validation loss is no longer lowered; then the averages are measured and kept (Merity et al. 2017)."""
    non_monotone: int = _option(5, at_least=1)
    """n of `nt-asgd`: averaging begins after the first epoch whose validation loss is above the lowest of all but the
    last n epochs before it."""
    learning_rate: float = _option(3e-3, above=0.0, at_most=1e6)
    """What the schedule starts from."""
    momentum: float = _option(0.0, at_least=0.0, below=1.0)
    """Of `sgd`."""
    weight_decay: float = _option(0.0, at_least=0.0, at_most=1.0)
    """As the optimizer defines it: part of the gradient in `sgd` and `adam`, apart from it in `adamw`."""
    schedule: Literal["constant", "step", "plateau", "cosine"] = "constant"
    """`step` divides the learning rate by `decay` at each epoch after `decay_after`; `plateau` divides it by `decay`
    after each epoch that does not lower the validation loss; `cosine` anneals it to 0, update by update."""
    decay: float = _option(2.0, above=1.0, at_most=1e6)
    """The divisor of `step` and `plateau`."""
    decay_after: int = _option(1, at_least=1)
    """Epochs that `step` leaves at the full learning rate."""
    warmup_steps: int = _option(0, at_least=0)
    """Updates over which the learning rate first rises, linearly, to what the schedule says."""
    patience: int = _option(0, at_least=0)
    """Stop after so many epochs in a row that do not lower the validation loss; 0 = train all epochs."""
    loss: Literal["mean", "steps"] = "mean"
    """What is differentiated: the `mean` per token, or the sum over `steps`, averaged over the rows, whose gradients
    are `num_steps` times as large (Zaremba et al. 2014; learning rate and `clip_norm` of that paper count on it).
    What is reported is always the mean per token."""
    accumulate: int = _option(1, at_least=1)
    """Minibatches whose gradients are averaged into one update."""
    softmax_samples: int = _option(0, at_least=0)
    """Tokens drawn to estimate the softmax's sum while training (Bengio and Senécal 2003); 0 = all of them. The
    training loss is then an estimate, too small; validation and test are measured with the full softmax."""
    clip_norm: float = _option(1.0, at_least=0.0)
    """Largest global gradient norm; 0 = no clipping."""
    activation_regularization: float = _option(0.0, at_least=0.0, at_most=1e6)
    """α: times the mean square of the last layer's outputs after dropout, added to what is differentiated (AR, Merity
    et al. 2017)."""
    temporal_activation_regularization: float = _option(0.0, at_least=0.0, at_most=1e6)
    """β: times the mean square of their differences from step to step, before dropout (TAR)."""
    seed: int = _option(0, at_least=0, at_most=2**32 - 1)
    """Of the first weights, the partition and the dropout."""
    device: str = "auto"
    """`auto` (CUDA when present), `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Of the products; weights, updates and loss stay in float32. `tf32` and `float16` (its loss scaled) need a GPU."""
    processes: int = _option(1, at_least=1, at_most=4096)
    """That divide the rows of each minibatch (torchrun): a core each, or a GPU each. The mathematics is that of one
    process; their number changes last digits, and which values dropout drops."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """On a GPU, capture the whole update once and replay it; `auto` goes on without if that fails, and says so."""

    @property
    def fewest_tokens(self) -> int:
        """The length from which every random offset of the partition leaves at least one minibatch."""
        largest_offset = self.num_steps if self.partition == "sequential" else self.num_steps - 1
        return self.batch_size * self.num_steps + largest_offset + 1

    def for_cell(self, cell: str) -> "TrainConfig":
        """Return what of the config one cell depends on: nothing for n-grams, which the processor counts."""
        return TrainConfig(device="cpu") if cell == NGRAM else self


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What the trained model is measured on."""

    split: Literal["train", "valid", "test"] = "test"
    """Which part of the text."""
    dynamic_rate: float = _option(0.0, at_least=0.0, at_most=1e6)
    """Learning rate of dynamic evaluation (Mikolov et al. 2010, Krause et al. 2018): a copy of the model goes on
    learning from each segment of the split once that is measured; its figure stands beside the other. 0 = off."""
    dynamic_rule: Literal["sgd", "rms"] = "rms"
    """What the rate is multiplied with: the gradient (`sgd`), or the gradient divided, weight by weight, by its root
    mean square over the training split (`rms`)."""
    dynamic_decay: float = _option(0.0, at_least=0.0, at_most=1.0)
    """How far each update pulls the weights back to the trained ones; `rms`: in proportion to that root mean square."""
    dynamic_steps: int = _option(5, at_least=1)
    """Tokens of a segment."""

    @property
    def static(self) -> "EvaluateConfig":
        """The same without dynamic evaluation."""
        return EvaluateConfig(split=self.split)

    def cache_identity(self) -> dict[str, Any]:
        """What is off changes nothing."""
        return dataclasses.asdict(self) if self.dynamic_rate else {"split": self.split}


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How samples are drawn."""

    prefixes: tuple[str, ...] = ()
    """What the samples continue; none = the first words of the evaluated split."""
    length: int = _option(200, at_least=1, at_most=10_000)
    """Tokens to add to each prefix."""
    temperature: float = _option(0.0, at_least=0.0, at_most=5.0)
    """0 = greedy (argmax), as the book does; otherwise samples from softmax(logits / temperature)."""
    top_k: int = _option(0, at_least=0)
    """Draw among the so many likeliest tokens only; 0 = all."""
    top_p: float = _option(1.0, above=0.0, at_most=1.0)
    """Draw among the fewest likeliest tokens that together have this probability (Holtzman et al. 2020); 1 = all."""
    beam: int = _option(1, at_least=1, at_most=1000)
    """Continuations kept side by side in beam search; 1 = none."""
    length_penalty: float = _option(0.75, at_least=0.0, at_most=10.0)
    """α: beam search ranks what ended by log P / length^α (the book's chapter "Beam Search")."""
    repetition_penalty: float = _option(1.0, at_least=1.0, at_most=100.0)
    """Logits of tokens that have occurred are divided by it when positive, multiplied when negative (CTRL 2019)."""
    stop: tuple[str, ...] = ()
    """Tokens that end a sample; they are no part of it."""
    seed: int = _option(0, at_least=0, at_most=2**32 - 1)
    """Of the draws."""
    unknown: Literal["map", "error"] = "map"
    """Prefix tokens outside the vocabulary: read them as `<unk>` with a warning, or refuse them."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run depends on; equal configs on equal text give equal results."""

    cells: tuple[str, ...] = CELLS
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    generate: GenerateConfig = GenerateConfig()

    @property
    def fewest_tokens(self) -> int:
        """The length of a training split that every cell can be trained on."""
        return 2 if set(self.cells) == {NGRAM} else self.train.fewest_tokens


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the config as dotted keys and plain values, in the order of the classes."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return `config` with dotted keys changed; a string is read as the type of its key (as `--set` gives it).

    Other options that have no effect any more go back to their defaults.

    Raises `ConfigError` with one line per mistake: unknown keys (with a suggestion), wrong types, values out of range.
    """
    mistakes: list[str] = []
    values = flatten(config)
    for key, value in changes.items():
        try:
            values[key] = read_value(key, value)
        except ConfigError as error:
            mistakes += error.args
    changed: RunConfig = _unflatten(RunConfig, values)
    if mistakes:
        # Rules between keys wait: a value that could not be read may be one half of them.
        raise ConfigError(*mistakes, *_limits(changed))
    # What a preset set for a level, a schedule or a temperature that is changed now goes with it.
    defaults = flatten(RunConfig())
    values |= {key: defaults[key] for key, _ in _without_effect(changed) if key not in changes}
    changed = _unflatten(RunConfig, values)
    check(changed)
    return changed


def read_value(key: str, value: Any) -> Any:
    """Return `value` as the type of a dotted key; a string is read as `--set` gives it.

    Raises `ConfigError` for an unknown key (with a suggestion) and for what is no value of its type.
    """
    types_of = _types()
    if key not in types_of:
        raise ConfigError(f"unknown config key: {key}: {_meant(key)}")
    try:
        return _read(value, types_of[key])
    except ValueError as error:
        raise ConfigError(f"`{key}` {error}. Got {value!r}") from None


def has_effect(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a key changes anything beside these values of all keys (as `flatten` gives them)."""
    met, _ = _conditions(values).get(key, (True, ""))
    return met


def concerns(cell: str, key: str) -> bool:
    """Whether a key says anything of a cell: most of training and dynamic evaluation is of networks or of n-grams."""
    return not key.startswith(("model.", "train.", "evaluate.dynamic")) or (key in OF_NGRAMS) == (cell == NGRAM)


def check(config: RunConfig) -> None:
    """Raise `ConfigError` naming every value that breaks a rule."""
    mistakes = [*_limits(config), *_rules(config)]
    if mistakes:
        raise ConfigError(*mistakes)


def close_keys(name: str) -> list[str]:
    """Return the config keys that `name`, mistyped or without its section, may mean, the likeliest first."""
    last = name.rsplit(".", maxsplit=1)[-1].replace("-", "_")

    def likeness(key: str) -> float:
        end = key.rsplit(".", maxsplit=1)[-1]
        return max(difflib.SequenceMatcher(None, part, last).ratio() for part in (end, *end.split("_")))

    return sorted((key for key in _types() if likeness(key) > 0.75), key=likeness, reverse=True)


def _meant(key: str) -> str:
    """Return which known keys a mistyped one may mean: the closest, then those of its section, else all."""
    known = list(_types())
    section = [name for name in known if "." in key and name.split(".")[0] == key.split(".", maxsplit=1)[0]]
    close = close_keys(key)
    listed = list(dict.fromkeys(close + section)) or known
    if close and not difflib.get_close_matches(key, listed, n=1, cutoff=0.6):
        return f"did you mean {' or '.join(close)}?"
    return suggestion(key, listed)


@functools.cache
def _types() -> dict[str, Any]:
    """Return the type of each dotted key."""
    return dict(_typed_keys(RunConfig))


_hints = functools.cache(get_type_hints)


def _typed_keys(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = _hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            yield from _typed_keys(kind, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, kind


def _unflatten(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = _hints(cls)
    arguments: dict[str, Any] = {}
    for item in fields(cls):
        kind = hints[item.name]
        key = prefix + item.name
        arguments[item.name] = _unflatten(kind, values, f"{key}.") if dataclasses.is_dataclass(kind) else values[key]
    return cls(**arguments)


def _read(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`, or raise ValueError("must be …"). Strings are parsed, everything else must fit."""
    if get_origin(kind) is tuple:
        return _read_tuple(value)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise ValueError("must be one of " + ", ".join(map(str, choices)))
        return value
    if kind is str:
        if not isinstance(value, str):
            raise ValueError("must be a string")
        return value
    if kind is bool:
        return _read_bool(value)
    if kind is int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value):
            return int(value)
        if type(value) is int:
            return value
        raise ValueError("must be an integer")
    if kind is float:
        if type(value) in (int, float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
            with contextlib.suppress(OverflowError):  # an integer of more than 308 digits
                return float(value)
        raise ValueError("must be a number")
    raise AssertionError(f"no reader for {kind}")


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):  # as typed, and as MLflow shows it
        return value.lower() == "true"
    raise ValueError("must be true or false")


def _read_tuple(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        if value.startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                raise ValueError("must be a JSON list or a comma-separated list") from None
        else:
            parts = [part for part in value.split(",") if part]
            if value and not parts:
                raise ValueError('must be a list; a comma itself is written [","]')
            value = parts
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        raise ValueError("must be a list of strings")
    return tuple(value)


def _limits(config: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(config):
        value = getattr(config, item.name)
        key = prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from _limits(value, f"{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"`{key}` must be finite. Got {value}"
        elif isinstance(value, str | tuple):
            for text in [value] if isinstance(value, str) else value:
                if mistake := unicode_mistake(text):
                    yield f"`{key}` {mistake}. Got {text!r}"
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
    unknown = [cell for cell in config.cells if cell not in KNOWN_CELLS]
    for cell in unknown:
        yield f"unknown cell: {cell}: {suggestion(cell, list(KNOWN_CELLS))}"
    for cell in sorted({cell for cell in config.cells if config.cells.count(cell) > 1}):
        yield f"`cells` must name each cell once. Got {cell} twice"
    if not config.cells:
        yield f"`cells` must name at least one of {', '.join(KNOWN_CELLS)}. Got none"
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
    if any(not token for token in config.generate.stop):
        yield "`generate.stop` must hold no empty token. Got ''"
    for key, why in _without_effect(config):
        yield f"`{key}` has no effect {why}. Got {flatten(config)[key]}"


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


def _without_effect(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) of the options that are set though nothing would come of it."""
    values, defaults = flatten(config), flatten(RunConfig())
    for key, (met, why) in _conditions(values).items():
        if values[key] != defaults[key] and not met:
            yield key, why


def _conditions(values: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    """Return, of each key that needs others, whether they are as it needs them, and why it has no effect if not."""
    level, schedule, drawn = values["tokenizer.level"], values["train.schedule"], values["generate.temperature"] > 0
    beam = values["generate.beam"] > 1
    dynamic = values["evaluate.dynamic_rate"] > 0, "without dynamic evaluation: set evaluate.dynamic_rate above 0"
    conditions = {
        **_dropout_conditions(values),
        "tokenizer.eos": (level == "word", f"at level {level}, which keeps the line ends themselves"),
        "tokenizer.bpe_size": (level == "bpe", f"at level {level}: use tokenizer.level=bpe"),
        "tokenizer.min_freq": (level in ("char", "word"), f"at level {level}, whose vocabulary is complete"),
        "tokenizer.reserved_tokens": (level in ("char", "word"), f"at level {level}, whose vocabulary is complete"),
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
        "model.variational_dropout": (bool(values["model.dropout"] or any(own)), "without dropout"),
    }
