"""The stages that make a corpus of a text: what comes before any training, once for all of them."""

from dataclasses import dataclass

from prefect.futures import PrefectFuture

from flows import runners, text_shards
from flows.ledger import Ledger
from rnnlm_core import shards
from rnnlm_core.config import RunConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.download import Source, Text
from rnnlm_core.statistics import Statistics
from rnnlm_core.tokenize import Tokens
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import progress
from tasks.corpus import corpus
from tasks.download import download
from tasks.statistics import statistics
from tasks.tokenize import tokenize
from tasks.vocabulary import vocabulary

LOCAL = runners.Runner("local")


@dataclass(frozen=True)
class TextStages:
    """The corpus and its vocabulary, done; the statistics of the text, under way."""

    corpus: Corpus
    vocabulary: BuiltVocabulary
    statistics: PrefectFuture[Statistics]

    @classmethod
    def begin(cls, config: RunConfig, source: Source, ledger: Ledger, runner: runners.Runner = LOCAL) -> "TextStages":
        """Do what training waits for; nothing waits for the statistics but the record of the run.

        A text of several shards is worked on by the workers of `runner`, any other here.
        """
        text = ledger.take("download", download.submit(source))
        if text_shards.needs_shards(text, config, shards.SHARD_BYTES):
            begun = cls._in_shards(text, config, source, ledger, runner)
        else:
            if runner != LOCAL:
                progress.warn("tokenize", f"the text is not divided into shards: no effect of --runner {runner}")
            begun = cls._as_a_whole(text, config, ledger)
        ledger.note_corpus(text, begun.corpus, begun.vocabulary)
        return begun

    @classmethod
    def _as_a_whole(cls, text: Text, config: RunConfig, ledger: Ledger) -> "TextStages":
        shares = config.corpus.shares
        tokens = _submit_tokens(config, text)
        described = statistics.submit(tokens)
        words = vocabulary.submit(tokens, shares, config.tokenizer)
        ids = corpus.submit(tokens, words, shares, config.corpus.max_tokens)
        ledger.take("tokenize", tokens)
        built = ledger.take("vocabulary", words)
        return cls(ledger.take("corpus", ids), built, described)

    @classmethod
    def _in_shards(
        cls, text: Text, config: RunConfig, source: Source, ledger: Ledger, runner: runners.Runner
    ) -> "TextStages":
        made = make_of_shards(text, config, source, runner, tokens_alone=False)
        assert made.tokens is not None
        assert made.vocabulary is not None
        assert made.corpus is not None
        for stage, result in {"tokenize": made.tokens, "vocabulary": made.vocabulary, "corpus": made.corpus}.items():
            ledger.note(stage, result, made.cached[stage])
        return cls(made.corpus, made.vocabulary, statistics.submit(made.tokens))

    def describe(self, config: RunConfig, ledger: Ledger) -> None:
        """Wait for the statistics, and note on the parent run what the text looks like."""
        described = ledger.take("statistics", self.statistics)
        ledger.describe(config.tokenizer.eos, self.corpus, self.vocabulary, described)


def bring_tokens(config: RunConfig, source: Source) -> tuple[Text, Tokens]:
    """Bring a text into the store and cut it into tokens, here."""
    text = download.submit(source).result()
    if not text_shards.needs_shards(text, config, shards.SHARD_BYTES):
        return text, _submit_tokens(config, text).result()
    made = make_of_shards(text, config, source, LOCAL, tokens_alone=True)
    assert made.tokens is not None
    return text, made.tokens


def _submit_tokens(config: RunConfig, text: Text) -> PrefectFuture[Tokens]:
    cut = config.tokenizer
    learns = cut.level == "bpe"  # from the training split alone; elsewhere the split changes no token
    return tokenize.submit(
        text, config.corpus.normalizer, config.corpus.max_chars, cut.level, cut.eos,
        cut.bpe_size if learns else 0, config.corpus.shares if learns else None,
    )  # fmt: skip


def make_of_shards(
    text: Text, config: RunConfig, source: Source, runner: runners.Runner, tokens_alone: bool
) -> text_shards.Made:
    """Do the stages of a text shard by shard, on the workers of `runner`; its tokens alone, or all."""
    title = f"{source.name} in shards, {runner}"
    with runners.started(runner) as task_runner:
        shards_flow = text_shards.text_shards.with_options(task_runner=task_runner)
        return shards_flow(title, text, config, shards.SHARD_BYTES, tokens_alone)
