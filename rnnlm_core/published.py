"""Published figures that this package reproduces, and which of our trainings stands beside each.

A row names a preset, a cell and changed keys: together they say exactly which training is meant. Sources stand with
each section.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCRATCH = {"model.implementation": "scratch"}


@dataclass(frozen=True)
class Published:
    """One published system. `theirs` is the figure as printed, "–" where nobody published one."""

    system: str
    theirs: str
    preset: str
    cell: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A table of the results page. `figures` are the columns of ours: heading and name of the figure."""

    title: str
    text: str
    figures: tuple[tuple[str, str], ...]
    rows: tuple[Published, ...]


SECTIONS = (
    Section(
        title="The book's Time Machine",
        text=(
            "Characters, first 10,000 tokens, 500 epochs, **training** perplexity, as *Dive into Deep Learning* prints "
            "it (PyTorch edition 2.0.0; in brackets the spread over its releases). A score on the text that was "
            "trained on: it says that the code is the book's, not that the model knows English."
        ),
        figures=(("ours", "train_perplexity"),),
        rows=(
            Published("RNN scratch, 512", "1.0 (1.0–1.2)", "d2l-time-machine", "rnn",
                      SCRATCH | {"model.hidden_size": 512}),
            Published("RNN scratch, 512, random sampling", "1.5 (1.3–1.5)", "d2l-time-machine", "rnn",
                      SCRATCH | {"model.hidden_size": 512, "train.partition": "random"}),
            Published("RNN concise, 256", "1.3 (1.3–1.4)", "d2l-time-machine", "rnn"),
            Published("GRU scratch, 256", "1.1 (1.0–1.3)", "d2l-time-machine", "gru", SCRATCH),
            Published("GRU concise, 256", "1.0 (1.0–1.1)", "d2l-time-machine", "gru"),
            Published("LSTM scratch, 256", "1.3 (1.1–1.4)", "d2l-time-machine", "lstm", SCRATCH),
            Published("LSTM concise, 256", "1.1 (1.0–1.3)", "d2l-time-machine", "lstm"),
            Published("deep LSTM, 2 x 256, lr 2", "1.0 (1.0)", "d2l-time-machine", "lstm",
                      {"model.num_layers": 2, "train.learning_rate": 2.0}),
        ),
    ),
    Section(
        title="The same novel, measured honestly",
        text=(
            "Letters only, the whole text, contiguous 90/5/5. Both figures are true: 1.0 above is the perplexity of a "
            "network that has learnt 10,000 characters by heart, asked about those same characters; the figures here "
            "are those of a network asked about a part of the novel that it has never read, which is what the word "
            "perplexity promises."
        ),
        figures=(("train", "train_perplexity"), ("valid", "valid_perplexity"), ("test", "test_perplexity"),
                 ("bits/char", "test_bits_per_char")),
        rows=tuple(Published(cell.upper(), "–", "time-machine", cell) for cell in ("rnn", "gru", "lstm")),
    ),
    Section(
        title="The novel as words",
        text=(
            "Words, contiguous 90/5/5; words that occur once in the training part are `<unk>`. The OOV rate is the "
            "share of the test words that the vocabulary lacks: each of them counts as a well-predicted `<unk>`, so "
            "the perplexity is that of an easier text than the novel."
        ),
        figures=(("valid", "valid_perplexity"), ("test", "test_perplexity"), ("OOV rate", "test_oov_rate"),
                 ("bits/char", "test_bits_per_char")),
        rows=tuple(Published(cell.upper(), "–", "time-machine-words", cell) for cell in ("rnn", "gru", "lstm")),
    ),
    Section(
        title="Chinese lyrics",
        text=(
            "The first edition of the book: first 10,000 characters, 160 epochs, **training** perplexity. Theirs are "
            "the figures of its PyTorch port. Concise with Adam at 1e-2, scratch with SGD at 1e2, both clipped at "
            "1e-2."
        ),
        figures=(("ours", "train_perplexity"),),
        rows=(
            Published("GRU concise", "1.18", "lyrics", "gru"),
            Published("LSTM concise", "1.02", "lyrics", "lstm"),
            Published("GRU scratch", "1.82", "lyrics", "gru",
                      SCRATCH | {"train.optimizer": "sgd", "train.learning_rate": 100.0}),
            Published("LSTM scratch", "4.27", "lyrics", "lstm",
                      SCRATCH | {"train.optimizer": "sgd", "train.learning_rate": 100.0}),
        ),
    ),
    Section(
        title="tinyshakespeare",
        text=(
            "Characters, 90/10, best validation loss in nats and bits per character. 1.4697 nats is nanoGPT's "
            "Transformer of 10.65 M parameters on the same split; no authoritative LSTM figure exists."
        ),
        figures=(("nats", "valid_loss"), ("bits/char", "valid_bits_per_char"), ("parameters", "parameters")),
        rows=(Published("LSTM beside nanoGPT", "1.4697 nats", "shakespeare", "lstm"),),
    ),
    Section(
        title="Penn Treebank, words",
        text=(
            "929,589 / 73,760 / 82,430 tokens, one `<eos>` per line counted, vocabulary 10,000, nothing out of it; "
            "state carried over the whole stream (n-grams begin anew with each line). Zaremba, Sutskever and Vinyals "
            "(2014), small model; KN5 of Mikolov et al. (2011), the n-grams that networks are compared with."
        ),
        figures=(("valid", "valid_perplexity"), ("test", "test_perplexity"), ("parameters", "parameters")),
        rows=(
            Published("2 x 200 LSTM", "121.4 / 114.5–115.9", "ptb-zaremba-small", "lstm"),
            Published("5-gram, Kneser-Ney", "– / 141.2", "ptb-zaremba-small", "ngram"),
        ),
    ),
)  # fmt: skip
