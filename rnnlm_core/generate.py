"""Continuing a text: warm up the state on the prefix, then draw token after token.

Temperature 0 is the book's prediction, argmax; otherwise tokens are drawn from softmax(logits / temperature).
Characters are joined with nothing, words with a space.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rnnlm_core.config import GenerateConfig
from rnnlm_core.errors import DataError, UsageError
from rnnlm_core.model import LanguageModel, SavedModel, load_model
from rnnlm_core.normalize import normalizer
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import tokenizer

DEFAULT_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class Sample:
    """A prefix as the model read it, and the text with its continuation."""

    prefix: str
    text: str


def generate(
    model: Handle,
    corpus: Handle,
    split: str,
    config: GenerateConfig,
    store: Store,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[Sample, ...]:
    """Draw one sample per prefix; without prefixes, the first tokens of `split` of the corpus are the prefix."""
    saved = load_model(store.open(model))
    if not config.prefixes:
        return (_continue(saved, _opening_tokens(saved, store.open(corpus), split), config),)
    return tuple(continue_text(saved, prefix, config, warn) for prefix in config.prefixes)


def continue_text(
    saved: SavedModel, prefix: str, config: GenerateConfig, warn: Callable[[str], None] = lambda _: None
) -> Sample:
    """Return the prefix with `config.length` tokens added.

    Raises:
        UsageError: the prefix is empty, or nothing is left of it after the model's normaliser.
        DataError: it has tokens outside the vocabulary and `config.unknown` is `error`.
    """
    return _continue(saved, prefix_tokens(saved, prefix, config.unknown, warn), config)


def _continue(saved: SavedModel, tokens: list[str], config: GenerateConfig) -> Sample:
    generator = torch.Generator().manual_seed(config.seed)
    ids = saved.vocabulary[tokens]
    drawn = []
    for token in continue_ids(saved.model, ids, config.temperature, generator):
        drawn.append(token)
        if len(drawn) == config.length:
            break
    join = tokenizer(saved.level).join
    return Sample(join.join(tokens), join.join([*tokens, *saved.vocabulary.to_tokens(drawn)]))


def prefix_tokens(
    saved: SavedModel, prefix: str, unknown: str, warn: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Return the tokens of a prefix as the model's own text was read."""
    if not prefix:
        raise UsageError("prefix is empty", "''", "give at least one character")
    tokens = tokenizer(saved.level).split(normalizer(saved.normalizer).prefix(prefix))
    if not tokens:
        raise UsageError(
            f"nothing is left of the prefix after normalizer `{saved.normalizer}`",
            repr(prefix),
            "give other text",
        )
    strange = list(dict.fromkeys(token for token in tokens if token not in saved.vocabulary))
    if strange:
        kind = "characters" if saved.level == "char" else "words"
        shown = ", ".join(repr(token) for token in strange)
        if unknown == "error":
            raise DataError(
                f"prefix has {kind} outside the vocabulary",
                shown,
                "leave them out, or use `--unknown map` to read them as <unk>",
            )
        warn(f"prefix has {kind} outside the vocabulary, read as <unk>: {shown}")
    return tokens


def continue_ids(model: LanguageModel, ids: list[int], temperature: float, generator: torch.Generator) -> Iterator[int]:
    """Yield ids for ever: the state is warmed up on `ids` (at least one), then each drawn id is fed back."""
    device = model.output.weight.device
    state = model.initial_state(1)
    now = torch.tensor([ids], device=device)
    while True:
        with torch.inference_mode():  # not around `yield`: the mode would leak to the caller
            logits, state = model(now, state)
            token = _draw(logits[0, -1], temperature, generator)
        yield token
        now = torch.tensor([[token]], device=device)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    # On the CPU in float64: the same seed draws the same text on every device.
    weights = torch.softmax(logits.cpu().double() / temperature, dim=-1)
    return int(torch.multinomial(weights, 1, generator=generator))


def opening(saved: SavedModel, corpus: Path, split: str) -> str:
    """Return the first tokens of a split as text."""
    return tokenizer(saved.level).join.join(_opening_tokens(saved, corpus, split))


def _opening_tokens(saved: SavedModel, corpus: Path, split: str) -> list[str]:
    """Return the first tokens of a split; as text, `<unk>` would be read as five characters."""
    from rnnlm_core.corpus import id_batches

    ids = next(id_batches(corpus / f"{split}.parquet"))[:DEFAULT_PREFIX_TOKENS]
    tokens: list[str] = saved.vocabulary.to_tokens(ids.tolist())
    return tokens
