"""The one config object: `RunConfig`, frozen dataclasses nested as the keys say (`train.learning_rate`).

A default exists once, here; a preset (`presets.py`) is a function that returns a complete config. Values are
strictly typed: `true` is no integer, `"7"` is no number. Every mistake of a config is reported, not the first.
"""

import dataclasses
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from rnnlm_core.extensions import Kind, extensions

CELLS = ("rnn", "gru", "lstm")
"""The recurrent cells, which a run has by default."""
NGRAM = "ngram"
"""The baseline beside them: no network, but counted n-grams."""
OWN_CELLS = (*CELLS, NGRAM)
"""Those of this package; `known_names` has the others as well."""
OF_NGRAMS = ("model.order", "model.discounts")
"""The keys of `model` and `train` that say something of n-grams; all others say something of networks."""
CHECKPOINT_SECONDS = 30.0
"""How much work a kill may cost: a training saves its place this often, in the middle of an epoch as well. No part of
the config: it changes no result."""
LEVELS = ("char", "word", "byte", "bpe")
NORMALIZERS = ("none", "nfc", "letters", "chinese", "d2l-lines", "d2l-whole")
OWN_NAMES: dict[Kind, tuple[str, ...]] = {"cell": OWN_CELLS, "tokenizer": LEVELS, "normalizer": NORMALIZERS}
LINE_KEEPING = ("none", "nfc", "d2l-lines")
"""The normalisers that leave line ends where they are."""
SPLITS = ("train", "valid", "test")
PLACE = ("train.device", "train.cuda_graph")
"""Keys that say where and how a training is done, and nothing of what it is."""
SHORTEST_BPTT = 5
"""The least of the lengths that `train.bptt=random` draws."""
LONGEST_PREFIX = 10_000
"""Characters of a text to continue: the state is warmed up on all of them."""


def _option(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    names: Kind | None = None,
) -> Any:
    """Return a field with the limits of its values, or the kind of things whose `names` they are."""
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below, "names": names}
    return field(default=default, metadata={k: v for k, v in limits.items() if v is not None})


def known_names(kind: Kind) -> tuple[str, ...]:
    """Return the cells, tokenizers or normalisers that there are: of this package, then of others."""
    own = OWN_NAMES[kind]
    return (*own, *extensions(kind, own))


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text, how it is normalised and how it is divided."""

    name: str = "python-docs"
    """A name of the catalogue, the path of a file or folder, or an http(s) address (`#sha256=…` pins its bytes)."""
    normalizer: str = _option("none", names="normalizer")
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

    level: str = _option("char", names="tokenizer")
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
        """Return what of the config one cell depends on.

        The place of the reset gate, settled, for the GRU alone; of a cell of another package, which is one step
        written out, `implementation` decides on its first weights alone.
        """
        if cell == NGRAM:
            return ModelConfig(order=self.order, discounts=self.discounts)
        own = replace(self, order=ModelConfig.order, discounts=ModelConfig.discounts)
        if cell not in CELLS:
            first: Literal["book", "torch"] = "book" if self.implementation == "scratch" else "torch"
            own = replace(own, implementation="scratch", init=first if self.init == "auto" else self.init)
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

    def updates_of(self, num_tokens: int) -> int:
        """Return about how many updates an epoch of so many tokens has: its random offset may cost a minibatch."""
        return max(1, -(-(num_tokens // (self.batch_size * self.num_steps)) // self.accumulate))

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
