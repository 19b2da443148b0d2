"""What can be known of a run before it starts: the text is there and long enough, the settings fit this machine."""

import tempfile
from collections import Counter
from pathlib import Path

from rnnlm_core.config import OWN_CELLS, CorpusConfig, RunConfig
from rnnlm_core.download import Source, local_files, texts
from rnnlm_core.errors import UsageError
from rnnlm_core.extensions import find
from rnnlm_core.levels import EOS, tokenizer
from rnnlm_core.normalize import normalizer, read_blocks
from rnnlm_core.tokenize import Part, nothing_left, too_short
from rnnlm_core.vocabulary import none_frequent


def inspect(source: Source, config: RunConfig) -> None:
    """Raise what a run would raise later, as far as it can be known without downloading or writing anything.

    A local or embedded text is read far enough to know that it can become a corpus; others when they arrive.

    Raises:
        UsageError: the corpus does not come divided as the config says, or a stop token can be no token.
        DataError: the text cannot become a corpus.
        ResourceError: the device is not there, or the precision needs another.
    """
    check_split(source, config.corpus)
    _check_stop(config)
    for cell in config.cells:
        if cell not in OWN_CELLS:
            find("cell", cell)
    train = config.train
    if train.device not in ("auto", "cpu") or train.precision in ("tf32", "float16") or train.cuda_graph == "on":
        from rnnlm_core.model import pick_device
        from rnnlm_core.precision import check_device

        check_device(train, pick_device(train.device))
    if source.kind == "local":
        for paths in local_files(Path(source.location)).values():
            for path in paths:
                for _ in read_blocks(path):  # all of each file, so that no bad byte shows up later
                    pass
    if source.kind in ("local", "embedded"):
        with tempfile.TemporaryDirectory() as folder:
            for split, path in texts(source, Path(folder)):
                _inspect_text(path, split, config, source.place)


def check_split(source: Source, corpus: CorpusConfig) -> None:
    """Raise `UsageError` when the config divides a corpus that comes divided, or the other way round."""
    names = [split for split, _ in source.files]
    if corpus.split == "given" and "whole" in names:
        raise UsageError(
            "`corpus.split` given needs a corpus in three files",
            source.name,
            "use `--set corpus.split=90/5/5`",
        )
    if corpus.split != "given" and "whole" not in names:
        raise UsageError(
            "this corpus is published in three files",
            f"corpus.split={corpus.split}",
            "use `--set corpus.split=given`",
        )


def _inspect_text(path: Path, split: str, config: RunConfig, where: str) -> None:
    """Count tokens until there are enough, not all of them white space, and one is frequent enough for an id."""
    level = config.tokenizer.level
    # Merges are not learnt yet: a text has at least as many bytes as byte pairs, so what is too short stays so.
    cut = tokenizer("byte" if level == "bpe" else level, config.tokenizer.eos)
    part = Part(path, normalizer(config.corpus.normalizer), max_chars=config.corpus.max_chars)
    need = config.fewest_tokens
    enough = need if split in ("whole", "train") else 2
    if split == "whole" and config.corpus.shares:
        enough = -(-need * sum(config.corpus.shares) // config.corpus.shares[0])
    found, blank = 0, True
    counts: Counter[str] | None = Counter() if config.tokenizer.min_freq > 1 else None
    for block in part.tokenizable(cut):
        found += len(block) if level == "char" else len(cut.split(block))
        blank = blank and block.isspace()
        if counts is not None:
            counts.update(cut.split(block))
            if max(counts.values(), default=0) >= config.tokenizer.min_freq:
                counts = None
        if found >= enough and not blank and counts is None:
            break
    if blank:
        raise nothing_left(where, config.corpus.normalizer)
    if counts is not None:
        raise none_frequent(counts, config.tokenizer.min_freq)
    if found < enough:
        place = where if split == "whole" else f"split `{split}` of {where}"
        remedy = "give a longer text, or lower train.batch_size or train.num_steps"
        if level == "word":  # in some scripts a paragraph is one of them
            remedy += "; a text without spaces between words needs tokenizer.level=char or bpe"
        raise too_short(found, enough, place, remedy)


def _check_stop(config: RunConfig) -> None:
    """Refuse a stop token that no vocabulary of this level can have (of bpe, only the text can tell)."""
    level = config.tokenizer.level
    known = ("<unk>", EOS, *config.tokenizer.reserved_tokens)
    for token in config.generate.stop:
        if level != "bpe" and token not in known and len(tokenizer(level, config.tokenizer.eos).split(token)) != 1:
            raise UsageError(f"`generate.stop` must hold single tokens (level {level})", repr(token), "give one token")
