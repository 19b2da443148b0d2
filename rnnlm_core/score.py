"""How well a model foresees a text: perplexity and bits per character of texts that are handed to it.

A text is read as if it were the whole of a corpus, and its score is what `evaluate` measures on that corpus: the state
is zero before its first token, which is given; every later token is predicted from all tokens before it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args, get_type_hints

import torch

from rnnlm_core.config import GenerateConfig
from rnnlm_core.config_rules import unicode_mistake
from rnnlm_core.errors import UsageError, unknown_name
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.generate import Check, Warn, check_known
from rnnlm_core.levels import Tokenizer
from rnnlm_core.normalize import normalizer, unix_line_ends
from rnnlm_core.outcomes import perplexity
from rnnlm_core.saved_model import SavedModel
from rnnlm_core.tokenize import too_short


@dataclass(frozen=True)
class Scored:
    """A text as the model read it, and how well the model foresaw all of its `num_tokens` but the first.

    `loss` is the mean negative log-likelihood in nats per predicted token, `perplexity` its exp. `bits_per_char`
    compares across tokenizers; it is `inf` where the predicted tokens are no whole character (the bytes of a single
    one). A token that is read as `<unk>` is scored as `<unk>`, which is easier to foresee than the token.
    """

    text: str
    num_tokens: int
    loss: float
    perplexity: float
    bits_per_char: float


def score_texts(
    saved: SavedModel,
    texts: Sequence[str],
    unknown: str = "error",
    warn: Warn = lambda _: None,
    check: Check = lambda: None,
) -> tuple[Scored, ...]:
    """Return the score of each text by itself.

    No `<eos>` is added: where the model knows line ends, a text that ends in one is scored with it.

    Args:
        saved: the model with its normaliser, tokenizer and vocabulary.
        texts: of any length.
        unknown: tokens outside the vocabulary are `error`, or `map`: read as `<unk>`.
        warn: is told of what was read as `<unk>`.
        check: is called again and again; what it raises ends the work.

    Raises:
        UsageError: a text is no Unicode, or `unknown` is none of the two.
        DataError: a text has fewer than two tokens, or tokens outside the vocabulary and `unknown` is `error`.
    """
    policies = get_args(get_type_hints(GenerateConfig)["unknown"])
    if unknown not in policies:
        raise unknown_name("policy for tokens outside the vocabulary", unknown, list(policies))
    return tuple(_score(saved, text_tokens(saved, text, unknown, warn), check) for text in texts)


def text_tokens(saved: SavedModel, text: str, unknown: str, warn: Warn = lambda _: None) -> list[str]:
    """Return the tokens of a text as a corpus that consists of it would have them; see `score_texts` for errors."""
    if mistake := unicode_mistake(text):
        raise UsageError(f"text {mistake}", repr(text), "give other text")
    rule = normalizer(saved.normalizer)
    whole = "".join(rule.blocks([unix_line_ends(text.removeprefix("\ufeff"))]))
    if rule.joins_lines and saved.tokenizer.joins_lines:
        whole = whole.replace("\n", "")
    tokens = saved.tokenizer.split(whole)
    if len(tokens) < 2:
        where = f"{text!r}, read with normalizer `{saved.normalizer}`"
        raise too_short(len(tokens), 2, where, "give a longer text: its first token is not predicted")
    check_known(saved, tokens, unknown, warn, "text")
    return tokens


def _score(saved: SavedModel, tokens: list[str], check: Check) -> Scored:
    ids = torch.tensor(saved.vocabulary[tokens], device=saved.model.device)
    nats = stream_loss(saved.model, ids, check)
    loss = nats / (len(ids) - 1)
    chars = _predicted_chars(saved.tokenizer, tokens)
    bits_per_char = nats / math.log(2) / chars if chars else math.inf
    return Scored(saved.tokenizer.text(tokens), len(tokens), loss, perplexity(loss), bits_per_char)


def _predicted_chars(cut: Tokenizer, tokens: list[str]) -> int:
    """Return how many characters all tokens but the first stand for, as `SplitFacts.predicted_chars` counts."""
    blanks = sum(one == other == cut.blank for one, other in pairwise(tokens)) if cut.blank else 0
    return sum(cut.widths(tokens[1:])) + blanks
