"""Presets: functions that return a complete config. A variant takes three lines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rnnlm_core.catalogue import find_corpus
from rnnlm_core.config import (
    CorpusConfig,
    EvaluateConfig,
    GenerateConfig,
    ModelConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
)
from rnnlm_core.config_values import override
from rnnlm_core.errors import unknown_name


def quickstart() -> RunConfig:
    """Python's own language reference, characters: no network, under 3 minutes on 2 cores, readable samples."""
    return RunConfig(
        corpus=CorpusConfig(name="python-docs"),
        model=ModelConfig(hidden_size=160, embedding_size=64, dropout=0.1),
        train=TrainConfig(
            epochs=4, batch_size=32, num_steps=64, learning_rate=4e-3, weight_decay=0.01, schedule="cosine"
        ),
        generate=GenerateConfig(prefixes=("The ",), length=200, temperature=0.5),
    )


def smoke() -> RunConfig:
    """The whole chain, tiny: what a CI job runs on every change."""
    return RunConfig(
        corpus=CorpusConfig(name="python-docs", max_tokens=30_000, split="98/1/1"),
        model=ModelConfig(hidden_size=64, embedding_size=32),
        train=TrainConfig(epochs=2, batch_size=16, num_steps=32, learning_rate=1e-2, weight_decay=0.01),
        generate=GenerateConfig(prefixes=("The ",), length=40, temperature=0.5),
    )


def time_machine() -> RunConfig:
    """The whole novel, letters only, with honest splits and settings that generalise."""
    return RunConfig(
        corpus=CorpusConfig(name="time-machine", normalizer="letters"),
        model=ModelConfig(hidden_size=320, embedding_size=64, dropout=0.4),
        train=TrainConfig(
            epochs=15, batch_size=16, num_steps=64, learning_rate=3e-3, weight_decay=0.01, schedule="cosine"
        ),
        generate=GenerateConfig(prefixes=("time traveller", "traveller"), length=100, temperature=0.5),
    )


def time_machine_words() -> RunConfig:
    """The whole novel as words: honest splits, samples joined by spaces, the OOV rate beside the perplexity."""
    return RunConfig(
        corpus=CorpusConfig(name="time-machine", normalizer="letters"),
        tokenizer=TokenizerConfig(level="word", min_freq=2),
        model=ModelConfig(hidden_size=256, embedding_size=256, dropout=0.6, tie_weights=True),
        train=TrainConfig(epochs=20, num_steps=10, learning_rate=3e-3, weight_decay=0.01, schedule="cosine"),
        generate=GenerateConfig(prefixes=("the time traveller", "i looked"), length=30, temperature=0.8),
    )


def d2l_time_machine() -> RunConfig:
    """The book's exact settings: first 10,000 characters, no held-out text, 500 epochs, training perplexity."""
    return RunConfig(
        corpus=CorpusConfig(name="time-machine", normalizer="d2l-lines", max_tokens=10_000, split="100/0/0"),
        model=ModelConfig(hidden_size=256),
        train=TrainConfig(epochs=500, batch_size=32, num_steps=35, optimizer="sgd", learning_rate=1.0),
        evaluate=EvaluateConfig(split="train"),
        generate=GenerateConfig(prefixes=("time traveller", "traveller"), length=50),
    )


def lyrics() -> RunConfig:
    """Chinese song lyrics, the first 10,000 characters, as in the book's first edition: training perplexity."""
    return RunConfig(
        corpus=CorpusConfig(name="lyrics", normalizer="chinese", max_chars=10_000, split="100/0/0"),
        model=ModelConfig(hidden_size=256),
        train=TrainConfig(epochs=160, optimizer="adam", learning_rate=1e-2, clip_norm=1e-2),
        evaluate=EvaluateConfig(split="train"),
        generate=GenerateConfig(prefixes=("分开", "不分开"), length=50),
    )


def shakespeare() -> RunConfig:
    """tinyshakespeare, characters, the 90/10 split of nanoGPT: validation nats and bits per character."""
    return RunConfig(
        corpus=CorpusConfig(name="shakespeare", split="90/10/0"),
        model=ModelConfig(hidden_size=256, embedding_size=64, dropout=0.2),
        train=TrainConfig(
            epochs=6, num_steps=64, learning_rate=4e-3, weight_decay=0.01, schedule="cosine", warmup_steps=100
        ),
        evaluate=EvaluateConfig(split="valid"),
        generate=GenerateConfig(prefixes=("ROMEO:",), length=300, temperature=0.8, seed=1),
    )


def shakespeare_best() -> RunConfig:
    """tinyshakespeare, an LSTM of 3.5 M parameters beside nanoGPT's Transformer of 10.65 M (1.4697 nats)."""
    small = shakespeare()
    return replace(
        small,
        cells=("lstm",),
        model=ModelConfig(hidden_size=512, num_layers=2, embedding_size=128, dropout=0.4),
        train=TrainConfig(
            epochs=18, num_steps=128, learning_rate=2e-3, weight_decay=0.01, schedule="cosine", warmup_steps=500
        ),
    )


def ptb_zaremba_small() -> RunConfig:
    """Penn Treebank words, the small LSTM of Zaremba et al. (2014): published test perplexity 114.5 to 115.9."""
    return RunConfig(
        cells=("lstm",),
        corpus=CorpusConfig(name="ptb", split="given"),
        tokenizer=TokenizerConfig(level="word", eos="line"),
        model=ModelConfig(hidden_size=200, num_layers=2, embedding_size=200, init="uniform", init_range=0.1),
        train=TrainConfig(
            epochs=13, batch_size=20, num_steps=20, optimizer="sgd", learning_rate=1.0,
            schedule="step", decay=2.0, decay_after=4, clip_norm=5.0, loss="steps",
        ),
        generate=GenerateConfig(prefixes=("the company said",), length=40, temperature=0.7),
    )  # fmt: skip


def ptb_zaremba_medium() -> RunConfig:
    """Penn Treebank words, the medium LSTM of Zaremba et al. (2014), 20 M parameters: published perplexity 82.7."""
    small = ptb_zaremba_small()
    return replace(
        small,
        model=replace(small.model, hidden_size=650, embedding_size=650, dropout=0.5, init_range=0.05),
        train=replace(small.train, epochs=39, num_steps=35, decay=1.2, decay_after=6),
    )


def ptb_zaremba_large() -> RunConfig:
    """Penn Treebank words, the large LSTM of Zaremba et al. (2014), 66 M parameters: published perplexity 78.4."""
    medium = ptb_zaremba_medium()
    return replace(
        medium,
        model=replace(medium.model, hidden_size=1500, embedding_size=1500, dropout=0.65, init_range=0.04),
        train=replace(medium.train, epochs=55, decay=1.15, decay_after=14, clip_norm=10.0),
    )


def ptb_awd() -> RunConfig:
    """Penn Treebank words, AWD-LSTM of Merity et al. (2017), 24 M parameters: test perplexity 58.8, 57.3 fine-tuned."""
    return replace(
        ptb_zaremba_small(),
        model=ModelConfig(
            hidden_size=1150, num_layers=3, embedding_size=400, tie_weights=True, variational_dropout=True,
            dropout_input=0.4, dropout_hidden=0.25, dropout_output=0.4, dropout_embedding=0.1, weight_drop=0.5,
        ),
        train=TrainConfig(
            epochs=500, batch_size=20, num_steps=70, bptt="random", optimizer="nt-asgd", learning_rate=30.0,
            weight_decay=1.2e-6, clip_norm=0.25, activation_regularization=2.0, temporal_activation_regularization=1.0,
        ),
    )  # fmt: skip


def wikitext2_tied_200() -> RunConfig:
    """WikiText-2 words, PyTorch's example of a language model, 200 units tied: published test perplexity 100.33."""
    return RunConfig(
        cells=("lstm",),
        corpus=CorpusConfig(name="wikitext-2", split="given"),
        tokenizer=TokenizerConfig(level="word", eos="line"),
        model=ModelConfig(
            hidden_size=200, num_layers=2, embedding_size=200, dropout=0.2, tie_weights=True, init="uniform"
        ),
        train=TrainConfig(
            epochs=40, batch_size=20, optimizer="sgd", learning_rate=20.0, schedule="plateau", decay=4.0, clip_norm=0.25
        ),
        generate=GenerateConfig(prefixes=("the film was",), length=40, temperature=0.7),
    )


def wikitext2_tied_650() -> RunConfig:
    """WikiText-2 words, PyTorch's example of a language model, 650 units tied: published test perplexity 86.68."""
    small = wikitext2_tied_200()
    return replace(small, model=replace(small.model, hidden_size=650, embedding_size=650, dropout=0.5))


def ptb_budget_lstm() -> RunConfig:
    """Penn Treebank words, LSTM of 13 M parameters: test perplexity 78.93 in Bai, Kolter and Koltun (2018)."""
    return _ptb_budget("lstm", 640)


def ptb_budget_gru() -> RunConfig:
    """Penn Treebank words, GRU of 13 M parameters: test perplexity 92.48 in Bai, Kolter and Koltun (2018)."""
    return _ptb_budget("gru", 704)


def ptb_budget_rnn() -> RunConfig:
    """Penn Treebank words, RNN of 13 M parameters: test perplexity 114.50 in Bai, Kolter and Koltun (2018)."""
    return _ptb_budget("rnn", 944)


def _ptb_budget(cell: str, hidden_size: int) -> RunConfig:
    """Return one recipe for all cells: only the width differs, so that all have the same number of parameters."""
    base = ptb_zaremba_small()
    return replace(
        base,
        cells=(cell,),
        model=ModelConfig(
            hidden_size=hidden_size, num_layers=2, embedding_size=hidden_size, dropout=0.5, tie_weights=True
        ),
        train=TrainConfig(epochs=40, batch_size=20, learning_rate=1e-3, schedule="cosine", warmup_steps=500),
    )


def ptb_chars() -> RunConfig:
    """Penn Treebank characters, LSTM of 3 M parameters: 1.36 bits per character in Bai, Kolter and Koltun (2018)."""
    return RunConfig(
        cells=("lstm",),
        corpus=CorpusConfig(name="ptb", split="given"),
        model=ModelConfig(hidden_size=476, num_layers=2, embedding_size=128, dropout=0.1),
        train=TrainConfig(
            epochs=20, num_steps=128, learning_rate=2e-3, weight_decay=0.01, schedule="cosine", warmup_steps=500
        ),
        generate=GenerateConfig(prefixes=(" the company said",), length=200, temperature=0.7),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "quickstart": quickstart,
    "smoke": smoke,
    "time-machine": time_machine,
    "time-machine-words": time_machine_words,
    "shakespeare": shakespeare,
    "shakespeare-best": shakespeare_best,
    "d2l-time-machine": d2l_time_machine,
    "lyrics": lyrics,
    "ptb-zaremba-small": ptb_zaremba_small,
    "ptb-zaremba-medium": ptb_zaremba_medium,
    "ptb-zaremba-large": ptb_zaremba_large,
    "ptb-awd": ptb_awd,
    "wikitext2-tied-200": wikitext2_tied_200,
    "wikitext2-tied-650": wikitext2_tied_650,
    "ptb-budget-lstm": ptb_budget_lstm,
    "ptb-budget-gru": ptb_budget_gru,
    "ptb-budget-rnn": ptb_budget_rnn,
    "ptb-chars": ptb_chars,
}


def run_config(
    preset: str = "quickstart",
    corpus: str | None = None,
    cells: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return a preset with another corpus, other cells and changed keys, checked as a whole.

    Another `corpus` brings its own normaliser, split and prefixes (a text of one's own is kept as it is and cut
    90/5/5); `changes` win over everything.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, list(PRESETS))
    config = PRESETS[preset]()
    if corpus is not None and corpus != config.corpus.name:
        config = _on(config, corpus)
    changed = dict(changes or {})
    if changed.get("corpus.split") == "given":  # a preset's "first so many characters" is for a text in one file
        config = replace(config, corpus=replace(config.corpus, max_chars=0))
    if cells is not None:
        changed["cells"] = list(cells)
    return override(config, changed)


def _on(config: RunConfig, corpus: str) -> RunConfig:
    """Return `config` on another corpus, under that corpus's conventions."""
    entry = find_corpus(corpus)
    convention = replace(
        config.corpus,
        name=corpus,
        normalizer=entry.normalizer if entry else "none",
        split=entry.split if entry else "90/5/5",
        max_chars=0 if entry and entry.split == "given" else config.corpus.max_chars,
    )
    measured = next(name for name in ("test", "valid", "train") if convention.has_split(name))
    # Figures on a corpus that ends its lines in <eos> are word figures; elsewhere the preset says what a token is.
    lines = entry is not None and entry.eos == "line"
    cut = replace(config.tokenizer, eos="line", level="word") if lines else replace(config.tokenizer, eos="none")
    return replace(
        config,
        corpus=convention,
        tokenizer=cut,
        evaluate=replace(config.evaluate, split=measured),  # type: ignore[arg-type]
        generate=replace(config.generate, prefixes=entry.prefixes if entry else ()),
    )
