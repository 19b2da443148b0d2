"""Continuing a text: warm up the state on the prefix, then choose token after token.

Temperature 0 is the book's prediction, argmax; otherwise tokens are drawn from softmax(logits / temperature), if so
wanted among the likeliest alone; beam search keeps several continuations side by side. Prefixes of any lengths go on
as one batch. Characters are joined with nothing, words with a space, bytes as soon as they are a character.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import dropwhile, islice, takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from rnnlm_core.cells import State
from rnnlm_core.config import GenerateConfig
from rnnlm_core.config_rules import prefix_mistake, unicode_mistake
from rnnlm_core.errors import DataError, UsageError
from rnnlm_core.model import Model
from rnnlm_core.normalize import normalizer
from rnnlm_core.outcomes import Sample
from rnnlm_core.saved_model import SavedModel, load_model
from rnnlm_core.store import Handle, Store
from rnnlm_core.vocabulary import UNKNOWN

DEFAULT_PREFIX_TOKENS = 8
WARM_UP_TOKENS = 256
"""Tokens of prefixes per forward pass: the states of long ones, all at once, would fill the memory."""
Warn = Callable[[str], None]
Check = Callable[[], None]
"""Called before every step of the work; what it raises ends the work."""


def generate(
    model: Handle,
    corpus: Handle,
    split: str,
    config: GenerateConfig,
    store: Store,
    warn: Warn = lambda _: None,
) -> tuple[Sample, ...]:
    """Draw one sample per prefix; without prefixes, the first tokens of `split` of the corpus are the prefix."""
    saved = load_model(store.open(model))
    return continue_tokens(saved, sample_prefixes(saved, store.open(corpus), split, config, warn), config)


def sample_prefixes(
    saved: SavedModel, corpus: Path, split: str, config: GenerateConfig, warn: Warn = lambda _: None
) -> list[list[str]]:
    """Return what the samples of a run continue, as tokens: each prefix, or the first tokens of `split`."""
    if not config.prefixes:
        return [_opening_tokens(saved, corpus, split)]
    return [prefix_tokens(saved, prefix, config.unknown, warn) for prefix in config.prefixes]


def continue_text(saved: SavedModel, prefix: str, config: GenerateConfig, warn: Warn = lambda _: None) -> Sample:
    """Return the prefix with up to `config.length` tokens added.

    Raises:
        UsageError: the prefix is empty, nothing is left of it after the model's normaliser, or `config.stop` names
            a token that the model does not have.
        DataError: it has tokens outside the vocabulary and `config.unknown` is `error`.
    """
    (sample,) = continue_texts(saved, [prefix], config, warn)
    return sample


def continue_texts(
    saved: SavedModel, prefixes: Sequence[str], config: GenerateConfig, warn: Warn = lambda _: None
) -> tuple[Sample, ...]:
    """Return each prefix with its continuation, computed as one batch; each is what it would be alone."""
    return continue_tokens(saved, [prefix_tokens(saved, p, config.unknown, warn) for p in prefixes], config)


def continue_tokens(saved: SavedModel, prefixes: Sequence[list[str]], config: GenerateConfig) -> tuple[Sample, ...]:
    """Return each prefix, given as tokens, with its continuation."""
    return tuple(_continue(saved, prefixes, config))


def at_temperatures(
    saved: SavedModel, tokens: list[str], temperatures: Sequence[float], config: GenerateConfig
) -> tuple[Sample, ...]:
    """Return a prefix with one continuation per temperature, computed as one batch; without beam search."""
    rows = [replace(config, temperature=temperature, beam=1) for temperature in temperatures]
    return tuple(_continue(saved, [tokens] * len(rows), replace(config, beam=1), rows))


def stream_text(
    saved: SavedModel,
    prefix: str,
    config: GenerateConfig,
    warn: Warn = lambda _: None,
    check: Check = lambda: None,
) -> Iterator[str]:
    """Give the text of `continue_text` piece by piece, as soon as it is certain: first the prefix.

    Beam search knows nothing for certain before its end, so it gives the continuation at once. Raises what
    `continue_text` raises, before the first piece, and what `check` raises, at any step.
    """
    tokens = prefix_tokens(saved, prefix, config.unknown, warn)
    _stop_ids(saved, config)
    ids = saved.vocabulary[tokens]

    def drawn() -> Iterator[int]:
        if config.beam > 1:
            yield from _beam_search(saved, ids, config, check)
        else:
            yield from (row[0] for row in _drawn(saved, [ids], config, check=check) if row[0] is not None)

    def all_tokens() -> Iterator[str]:
        yield from tokens
        for token in drawn():
            yield saved.vocabulary.to_tokens(token)

    return saved.tokenizer.pieces(all_tokens())


def _continue(
    saved: SavedModel, prefixes: Sequence[list[str]], config: GenerateConfig, rows: Sequence[GenerateConfig] = ()
) -> Iterator[Sample]:
    ids = [saved.vocabulary[tokens] for tokens in prefixes]
    if config.beam > 1:
        added = [_beam_search(saved, row, config) for row in ids]
    else:
        added = [[] for _ in prefixes]
        for step in _drawn(saved, ids, config, rows):
            for row, token in zip(added, step, strict=True):
                if token is not None:
                    row.append(token)
    for tokens, row in zip(prefixes, added, strict=True):
        text = saved.tokenizer.text
        yield Sample(text(tokens), text([*tokens, *saved.vocabulary.to_tokens(row)]))


def prefix_tokens(saved: SavedModel, prefix: str, unknown: str, warn: Warn = lambda _: None) -> list[str]:
    """Return the tokens of a prefix as the model's own text was read."""
    if mistake := prefix_mistake(prefix):
        raise UsageError(mistake, repr(prefix), "give at least one character" if not prefix else "give other text")
    tokens = saved.tokenizer.split(normalizer(saved.normalizer).prefix(prefix))
    if not tokens:
        raise UsageError(
            f"nothing is left of the prefix after normalizer `{saved.normalizer}`",
            repr(prefix),
            "give other text",
        )
    check_known(saved, tokens, unknown, warn, "prefix")
    return tokens


def check_known(saved: SavedModel, tokens: list[str], unknown: str, warn: Warn, what: str) -> None:
    """Warn of tokens outside the vocabulary, or raise `DataError` if `unknown` is `error`; `what` they are part of."""
    strange = list(dict.fromkeys(token for token in tokens if token not in saved.vocabulary))
    if strange:
        kind = saved.tokenizer.noun
        shown = ", ".join(repr(token) for token in strange)
        if unknown == "error":
            raise DataError(
                f"{what} has {kind} outside the vocabulary",
                shown,
                "leave them out, or use `--unknown map` to read them as <unk>",
            )
        warn(f"{what} has {kind} outside the vocabulary, read as <unk>: {shown}")


def _stop_ids(saved: SavedModel, config: GenerateConfig) -> set[int]:
    """Return the ids of the stop tokens; a line end is the `<eos>` of a corpus that has them."""
    ids = set()
    for token in config.stop:
        if mistake := unicode_mistake(token):
            raise UsageError(f"`generate.stop` {mistake}", repr(token), "give other text")
        # Bytes are written as characters (`é` is also the name of a byte), so there the text alone is meant.
        by_name = not saved.tokenizer.alphabet and token in saved.vocabulary
        known = [token] if by_name else saved.tokenizer.split(token)
        if len(known) != 1 or known[0] not in saved.vocabulary:
            raise UsageError(
                f"`generate.stop` must hold single tokens of the model (level {saved.tokenizer.level})",
                repr(token),
                "give one of its tokens",
            )
        ids.add(saved.vocabulary[known[0]])
    return ids


def _drawn(
    saved: SavedModel,
    ids: Sequence[list[int]],
    config: GenerateConfig,
    rows: Sequence[GenerateConfig] = (),
    check: Check = lambda: None,
) -> Iterator[list[int | None]]:
    """Yield what each row adds, step by step, until `config.length`; None for a row that has met a stop token."""
    stops = _stop_ids(saved, config)
    ended = [False] * len(ids)
    for step in islice(continue_ids(saved.model, ids, config, rows, check), config.length):
        ended = [over or token in stops for over, token in zip(ended, step, strict=True)]
        if all(ended):
            return
        yield [None if over else token for over, token in zip(ended, step, strict=True)]


def continue_ids(
    model: Model,
    prefixes: Sequence[list[int]],
    config: GenerateConfig,
    rows: Sequence[GenerateConfig] = (),
    check: Check = lambda: None,
) -> Iterator[list[int]]:
    """Yield one id per prefix, for ever: each state is warmed up on its prefix, then each id is fed back.

    `rows` gives each prefix settings of its own; without them all have those of `config`.
    Every row draws from a generator of its own, seeded alike, so that a row is what it would be alone.
    """
    device = model.device
    rows = rows or [config] * len(prefixes)
    generators = [torch.Generator().manual_seed(one.seed) for one in rows]
    seen = [set(ids) for ids in prefixes]
    greedy = all(one.temperature == 0 and one.repetition_penalty == 1 for one in rows)
    with torch.inference_mode():  # not around `yield`: the mode would leak to the caller
        logits, state = _warm_up(model, prefixes, check)
    while True:
        check()
        with torch.inference_mode():
            if greedy:  # at once: choosing row by row would cost as much as the network
                chosen = logits.argmax(dim=1).tolist()
            else:
                chosen = [
                    _choose(_penalized(model, row, before, one.repetition_penalty), one, generator)
                    for row, one, generator, before in zip(logits, rows, generators, seen, strict=True)
                ]
                for before, one_id in zip(seen, chosen, strict=True):
                    before.add(one_id)
        yield chosen
        with torch.inference_mode():
            now, state = model(torch.tensor(chosen, device=device)[:, None], state)
            logits = now[:, -1]


def _warm_up(model: Model, prefixes: Sequence[list[int]], check: Check) -> tuple[Tensor, list[State]]:
    """Return the logits after each prefix and the states, row by row; those of one length are read together."""
    of_length: dict[int, list[int]] = {}
    for row, ids in enumerate(prefixes):
        of_length.setdefault(len(ids), []).append(row)
    read = [_read_prefixes(model, [prefixes[row] for row in rows], check) for rows in of_length.values()]
    places = torch.tensor([row for rows in of_length.values() for row in rows])
    order = places.argsort().to(model.device)
    logits = torch.cat([one[0] for one in read])[order]
    layers = zip(*(one[1] for one in read), strict=True)
    return logits, [tuple(torch.cat(parts)[order] for parts in zip(*layer, strict=True)) for layer in layers]


def _read_prefixes(model: Model, prefixes: list[list[int]], check: Check) -> tuple[Tensor, list[State]]:
    """Return the logits after prefixes of one length, of shape (prefixes, vocabulary), and the state."""
    state = model.initial_state(len(prefixes))
    ids = torch.tensor(prefixes, device=model.device)
    at_once = max(1, WARM_UP_TOKENS // len(prefixes))
    for start in range(0, ids.shape[1], at_once):
        check()
        hidden, state = model.hidden_states(ids[:, start : start + at_once], state)
    return model.output(hidden[-1]), state


def _penalized(model: Model, logits: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Make tokens that occurred less likely (Keskar et al. 2019, CTRL, section 4.1)."""
    if penalty == 1 or not seen:
        return logits
    if not isinstance(model.output, nn.Linear):
        # The rule depends on where 0 is. The likely tokens of log-probabilities are those next to it, which no factor
        # moves; of the logits of one softmax they are far above it, for 0 is about the mean. So it is here.
        logits = logits - logits[logits.isfinite()].mean()
    places = torch.tensor(sorted(seen), device=logits.device)
    values = logits[places]
    return logits.index_put((places,), torch.where(values > 0, values / penalty, values * penalty))


def _choose(logits: Tensor, config: GenerateConfig, generator: torch.Generator) -> int:
    if config.temperature == 0:
        return int(logits.argmax())
    # On the CPU in float64: the same seed draws the same text on every device.
    weights = probabilities(logits, config.temperature, config.top_k, config.top_p)
    return int(torch.multinomial(weights, 1, generator=generator))


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Return softmax(logits / temperature) in float64, cut off after the likeliest and scaled to sum to 1.

    Args:
        logits: (vocabulary,).
        temperature: above 0.
        top_k: how many tokens stay possible; 0 = all.
        top_p: the fewest likeliest tokens that together have this probability stay possible (nucleus sampling,
            Holtzman et al. 2020); of what `top_k` left. 1 = all.
    """
    values = logits.cpu().double()
    weights = torch.softmax((values - values.max()) / temperature, dim=-1)  # the largest must stay finite
    if not top_k and top_p == 1:
        return weights
    ordered, order = weights.sort(descending=True, stable=True)
    if top_k:
        ordered[top_k:] = 0
    if top_p < 1:
        total = ordered / ordered.sum()
        ordered[total.cumsum(0) - total >= top_p] = 0  # the one that reaches the sum stays
    kept = torch.zeros_like(weights).scatter(0, order, ordered)
    return kept / kept.sum()


def _beam_search(saved: SavedModel, ids: list[int], config: GenerateConfig, check: Check = lambda: None) -> list[int]:
    """Return the best continuation of one prefix.

    Of all one-token extensions of `beam` continuations the likeliest `beam` are kept; what meets a stop token is
    set aside. The best is that with the highest log P / length^α (d2l, chapter "Beam Search").
    """
    model, stops = saved.model, _stop_ids(saved, config)
    device = model.device
    ended: list[tuple[float, list[int]]] = []
    added: list[list[int]] = [[]]
    with torch.inference_mode():
        logits, state = _warm_up(model, [ids], check)
        scores = torch.zeros(1, dtype=torch.float64)
        for length in range(1, config.length + 1):
            check()
            rows = [
                _penalized(model, row, {*ids, *new}, config.repetition_penalty)
                for row, new in zip(logits, added, strict=True)
            ]
            every = scores[:, None] + torch.log_softmax(torch.stack(rows).cpu().double(), dim=-1)
            size = every.shape[1]
            best, places = every.flatten().sort(descending=True, stable=True)
            kept: list[tuple[float, int, int]] = []
            for score, place in zip(best.tolist(), places.tolist(), strict=True):
                beam, token = divmod(place, size)
                if token in stops:
                    ended.append((score / length**config.length_penalty, added[beam]))
                else:
                    kept.append((score, beam, token))
                if len(kept) == config.beam:
                    break
            added = [[*added[beam], token] for _, beam, token in kept]
            scores = torch.tensor([score for score, _, _ in kept], dtype=torch.float64)
            if not kept or length == config.length:
                break
            beams = torch.tensor([beam for _, beam, _ in kept], device=device)
            state = [tuple(part[beams] for part in layer) for layer in state]
            now, state = model(torch.tensor([[token] for _, _, token in kept], device=device), state)
            logits = now[:, -1]
    longest = config.length**config.length_penalty
    ended += [(score / longest, new) for score, new in zip(scores.tolist(), added, strict=True)]
    return max(ended, key=lambda entry: entry[0])[1]


def opening(saved: SavedModel, corpus: Path, split: str) -> str:
    """Return the first tokens of a split as text."""
    return saved.tokenizer.text(_opening_tokens(saved, corpus, split))


def known_opening(saved: SavedModel, corpus: Path, split: str) -> str:
    """Return the first tokens of a split that the vocabulary has, as text that can be typed, "" if there are none.

    That is: from the first known token to the next unknown one, without white space before, without half characters.
    """
    tokens = dropwhile(UNKNOWN.__eq__, _opening_tokens(saved, corpus, split))
    return saved.tokenizer.text(list(takewhile(UNKNOWN.__ne__, tokens))).lstrip().strip("\ufffd")


def _opening_tokens(saved: SavedModel, corpus: Path, split: str) -> list[str]:
    """Return the first tokens of a split; as text, `<unk>` would be read as five characters."""
    from rnnlm_core.corpus import split_ids

    ids: list[int] = []
    for batch in split_ids(corpus, split):  # the first piece may be short
        ids += batch[: DEFAULT_PREFIX_TOKENS - len(ids)].tolist()
        if len(ids) == DEFAULT_PREFIX_TOKENS:
            break
    tokens: list[str] = saved.vocabulary.to_tokens(ids)
    return tokens
