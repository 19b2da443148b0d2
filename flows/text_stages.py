"""The stages that make a corpus of a text: what comes before any training, once for all of them."""

from dataclasses import dataclass

from prefect.futures import PrefectFuture

from flows.summary import Ledger
from rnnlm_core.config import RunConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.download import Source, Text
from rnnlm_core.statistics import Statistics
from rnnlm_core.tokenize import Tokens
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks.corpus import corpus
from tasks.download import download
from tasks.statistics import statistics
from tasks.tokenize import tokenize
from tasks.vocabulary import vocabulary


@dataclass(frozen=True)
class TextStages:
    """The corpus and its vocabulary, done; the statistics of the text, under way."""

    corpus: PrefectFuture[Corpus]
    vocabulary: PrefectFuture[BuiltVocabulary]
    statistics: PrefectFuture[Statistics]

    @classmethod
    def begin(cls, config: RunConfig, source: Source, ledger: Ledger) -> "TextStages":
        """Do what training waits for; nothing waits for the statistics but the record of the run."""
        shares = config.corpus.shares
        text, tokens = submit_tokens(config, source)
        described = statistics.submit(tokens)
        words = vocabulary.submit(tokens, shares, config.tokenizer)
        ids = corpus.submit(tokens, words, shares, config.corpus.max_tokens)
        for stage, future in {"download": text, "tokenize": tokens, "vocabulary": words, "corpus": ids}.items():
            ledger.take(stage, future)
        ledger.note_corpus(text.result(), ids.result(), words.result())
        return cls(ids, words, described)

    def describe(self, config: RunConfig, ledger: Ledger) -> None:
        """Wait for the statistics, and note on the parent run what the text looks like."""
        described = ledger.take("statistics", self.statistics)
        ledger.describe(config.tokenizer.eos, self.corpus.result(), self.vocabulary.result(), described)


def submit_tokens(config: RunConfig, source: Source) -> tuple[PrefectFuture[Text], PrefectFuture[Tokens]]:
    """Bring a text into the store and cut it into tokens."""
    cut = config.tokenizer
    text = download.submit(source)
    learns = cut.level == "bpe"  # from the training split alone; elsewhere the split changes no token
    tokens = tokenize.submit(
        text, config.corpus.normalizer, config.corpus.max_chars, cut.level, cut.eos,
        cut.bpe_size if learns else 0, config.corpus.shares if learns else None,
    )  # fmt: skip
    return text, tokens
