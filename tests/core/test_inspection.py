"""What can be known of a run before it starts."""

from pathlib import Path

import pytest
import torch

from rnnlm_core.config import RunConfig
from rnnlm_core.config_values import override
from rnnlm_core.download import Source, resolve
from rnnlm_core.errors import DataError, ResourceError, UsageError
from rnnlm_core.inspection import check_split, inspect

NOVEL = b"The Time Traveller (for so it will be convenient to speak of him)\r\n" * 40
SMALL = {"train.batch_size": 2, "train.num_steps": 5}


def _config(**changes: object) -> RunConfig:
    return override(RunConfig(), SMALL | {key.replace("__", "."): value for key, value in changes.items()})


def _file(tmp_path: Path, content: bytes) -> Source:
    (tmp_path / "novel.txt").write_bytes(content)
    return resolve(str(tmp_path / "novel.txt"))


@pytest.mark.parametrize("split", ["100/0/0", "90/5/5", "1/1/2", "90/0/10", "7/3/0"])
def test_the_shortest_text_that_trains_is_accepted_and_one_token_less_is_not(tmp_path: Path, split: str) -> None:
    config = _config(corpus__split=split, evaluate__split="train")
    shares = config.corpus.shares
    assert shares is not None
    least = next(n for n in range(1000) if n * shares[0] // sum(shares) >= config.train.fewest_tokens)
    inspect(_file(tmp_path, b"x" * least), config)
    message = f"text too short, needs at least {least} tokens: {least - 1} tokens in .*novel.txt: give a longer text"
    with pytest.raises(DataError, match=message):
        inspect(_file(tmp_path, b"x" * (least - 1)), config)


def test_a_very_small_training_share_is_computed_not_searched(tmp_path: Path) -> None:
    config = _config(corpus__split="1/999999999/0", evaluate__split="train")
    with pytest.raises(DataError, match=f"needs at least {16 * 10**9:,} tokens: 3 tokens"):
        inspect(_file(tmp_path, b"abc"), config)


def test_words_are_counted_at_word_level(tmp_path: Path) -> None:
    source = _file(tmp_path, b"some words\n" * 8)
    inspect(source, _config())
    config = _config(tokenizer__level="word", corpus__split="100/0/0", evaluate__split="train")
    inspect(source, config)
    with pytest.raises(DataError, match="needs at least 18 tokens: 16 tokens"):
        inspect(source, _config(tokenizer__level="word"))


def test_a_file_of_one_character_says_how_many_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text too short, needs at least 18 tokens: 1 tokens"):
        inspect(_file(tmp_path, b"x"), _config())


def test_a_normalizer_that_leaves_nothing_names_the_one_that_does(tmp_path: Path) -> None:
    source = _file(tmp_path, "分开\n不分开\n".encode() * 10)
    with pytest.raises(
        DataError, match=r"no tokens left after normalizer `letters`: .*novel\.txt: .*corpus\.normalizer=none"
    ):
        inspect(source, _config(corpus__normalizer="letters"))
    inspect(source, _config())


def test_a_bad_byte_behind_the_first_tokens_is_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not UTF-8: byte 0xe9 at offset 5000003: .*novel\.txt"):
        inspect(_file(tmp_path, b"line\n" * 1_000_000 + b"caf\xe9"), _config())


def test_a_bad_byte_in_a_folder_names_the_file_and_the_offset_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(NOVEL)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=f"not UTF-8: byte 0xe9 at offset 3: {tmp_path}/b.txt"):
        inspect(resolve(str(tmp_path)), _config())


def test_a_packed_file_is_named_for_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a plain text, looks like gzip"):
        inspect(_file(tmp_path, b"\x1f\x8b\x08" + b"\x00" * 100), _config())


def test_each_given_split_is_inspected(tmp_path: Path) -> None:
    for split, content in {"train": b"a" * 100, "valid": b"b", "test": b"c" * 5}.items():
        (tmp_path / f"{split}.txt").write_bytes(content)
    with pytest.raises(DataError, match="needs at least 2 tokens: 1 tokens in split `valid` of "):
        inspect(resolve(str(tmp_path)), _config(corpus__split="given"))
    (tmp_path / "valid.txt").write_bytes(b"bb")
    inspect(resolve(str(tmp_path)), _config(corpus__split="given"))


def test_inspecting_leaves_nothing_behind(tmp_path: Path) -> None:
    inspect(_file(tmp_path, NOVEL), _config())
    assert [path.name for path in tmp_path.iterdir()] == ["novel.txt"]


def test_a_text_in_one_file_cannot_be_given_in_three() -> None:
    with pytest.raises(UsageError, match=r"`corpus\.split` given needs a corpus in three files: novel: .*split=90/5/5"):
        check_split(Source("novel", "address", "", (("whole", ""),)), _config(corpus__split="given").corpus)


def test_a_text_in_three_files_is_not_divided_again() -> None:
    files = (("train", ""), ("valid", ""), ("test", ""))
    with pytest.raises(UsageError, match=r"published in three files: corpus\.split=90/5/5: .*corpus\.split=given"):
        check_split(Source("ptb", "catalogue", "", files), _config().corpus)


@pytest.mark.parametrize(
    ("level", "stop", "allowed"),
    [
        ("char", "ab", False), ("char", "é", True), ("char", "<unk>", True), ("char", "<pad>", True),
        ("word", "the end", False), ("word", "the", True), ("word", "<eos>", True),
        ("byte", "é", False), ("byte", "e", True), ("bpe", "anything at all", True),
    ],
)  # fmt: skip
def test_a_stop_that_can_be_no_token_is_refused_before_the_run(
    level: str, stop: str, allowed: bool, tmp_path: Path
) -> None:
    reserved = {"tokenizer__reserved_tokens": ["<pad>"]} if level in ("char", "word") else {}
    config = _config(tokenizer__level=level, generate__stop=[stop], **reserved)
    source = _file(tmp_path, NOVEL)
    if allowed:
        inspect(source, config)
    else:
        with pytest.raises(UsageError, match=f"`generate.stop` must hold single tokens .level {level}.: '{stop}'"):
            inspect(source, config)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train__precision", "float16", "this precision needs a GPU: train.precision=float16"),
        ("train__precision", "tf32", "this precision needs a GPU: train.precision=tf32"),
        ("train__cuda_graph", "on", "a CUDA graph needs a GPU: train.cuda_graph=on"),
    ],
)
def test_what_needs_a_gpu_is_told_before_the_run(
    key: str, value: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=told):
        inspect(_file(tmp_path, NOVEL), _config(**{key: value}))


def test_a_device_that_is_not_there_is_told_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"no such device here \(present: cpu\): cuda:3"):
        inspect(_file(tmp_path, NOVEL), _config(train__device="cuda:3"))
