"""Bad input, row by row: what is said, with which exit code, and that nothing was begun.

The rows are those of the table of bad inputs (D1 to D40); a row may have several cases. All run the real command.
"""

import http.server
import json
import math
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import typer

from flows import cli
from flows.commands import run as run_command
from rnnlm_core import catalogue
from rnnlm_core.config import CELLS, ModelConfig
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.saved_model import ABOUT, WEIGHTS, save_model
from rnnlm_core.store import Store, file_sha256
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import Vocabulary

PROJECT = Path(cli.__file__).parents[1]
RUN = ("run", "--preset", "smoke")
GENERATE = ("generate", "--model", "gru")
WORDS = "the time traveller spoke of a curious machine and we listened until all lamps burned low\n" * 60


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Case:
    """A command that must be refused.

    `{file}` is a file with `content`, `{folder}` the folder it lies in. `lines` has the parts of each line of error.
    """

    name: str
    arguments: tuple[str, ...]
    code: int
    lines: tuple[tuple[str, ...], ...]
    content: bytes = WORDS.encode()
    environment: dict[str, str] = field(default_factory=dict)


def case(name: str, arguments: tuple[str, ...], code: int, *parts: str, **more: Any) -> Case:
    """One mistake, one line."""
    return Case(name, arguments, code, (parts,), **more)


def settings(*changes: str) -> tuple[str, ...]:
    return RUN + tuple(part for change in changes for part in ("--set", change))


def text(name: str, content: bytes, *parts: str, changes: tuple[str, ...] = ()) -> Case:
    """A text that cannot become a corpus: the message names its place."""
    return case(name, (*settings(*changes), "--corpus", "{file}"), 3, "{file}", *parts, content=content)


REFUSED = [
    # D1: names that nobody has, with the closest of those there are.
    case("D1-command", ("rum",), 2, "No such command 'rum'", "Did you mean 'run'?"),
    case("D1-command-of-a-group", ("corpora", "shwo"), 2, "No such command 'shwo'", "Did you mean 'show'?"),
    case("D1-option", (*RUN, "--cell", "gru"), 2, "No such option: --cell: did you mean --cells?"),
    case("D1-option-of-another-command", ("compare", "--lsat", "3"), 2, "--lsat: did you mean --last?"),
    case("D1-option-that-is-a-key", (*RUN, "--hiden", "3"), 2, "--hiden: did you mean --set model.hidden_size=… or "),
    case("D1-option-with-the-name-of-a-key", (*RUN, "--epochs", "3"), 2, "--epochs: did you mean --set train.epochs"),
    case("D1-option-like-nothing", (*RUN, "--xyzzy"), 2, "No such option: --xyzzy: known: --preset, --corpus"),
    case("D1-option-with-control-characters", (*RUN, "--\x1b[31m\n"), 2, r"No such option: --\x1b[31m\x0a: known: "),
    case("D1-argument-too-many", (*RUN, "rubbish"), 2, "unexpected extra argument", "rubbish"),
    case("D1-option-without-value", ("run", "--preset"), 2, "--preset", "requires an argument"),
    case("D1-option-left-out", GENERATE, 2, "Missing option '--prefix'"),
    case("D1-preset", ("run", "--preset", "smok"), 2, "unknown preset: smok: did you mean smoke?"),
    case("D1-corpus", (*RUN, "--corpus", "time-machin"), 2, "unknown corpus: time-machin: did you mean time-machine?"),
    case("D1-number-of-rows", ("compare", "--last", "0"), 2, "'--last'", "greater than or equal to 1"),
    # D4: config keys.
    case("D4-key", settings("train.learing_rate=1"), 2, "unknown config key: train.learing_rate: did you mean train.l"),
    case("D4-section", settings("modle.hidden_size=3"), 2, "modle.hidden_size: did you mean model.hidden_size?"),
    case("D4-part-of-a-key", settings("hiden=3"), 2, "unknown config key: hiden: did you mean model.hidden_size or "),
    case("D4-key-of-two-sections", settings("seed=3"), 2, "seed: did you mean train.seed or generate.seed?"),
    case("D4-key-like-nothing", settings("model.xyzzy=3"), 2, "unknown config key: model.xyzzy: known: model.implem"),
    case("D4-no-value", settings("train.epochs"), 2, "`--set` takes KEY=VALUE: train.epochs: for example --set "),
    Case("D4-several-malformed", settings("=3", "epochs"), 2, (("KEY=VALUE: =3",), ("KEY=VALUE: epochs",))),
    Case(
        "D4-several-mistakes-together",
        (*settings("train.epoch=3", "train.clip_norm=-1", "model.dropout=abc"), "--cells", "gru"),
        2,
        (("unknown config key: train.epoch",), ("`model.dropout` must be a number",), ("`train.clip_norm` must be",)),
    ),
    # D5, D6: types. A string is read as the type of its key, and as nothing else.
    case("D5-text-for-an-integer", settings("model.hidden_size=abc"), 2, "`model.hidden_size`", "integer", "'abc'"),
    case("D5-fraction-for-an-integer", settings("train.epochs=1.5"), 2, "`train.epochs`", "integer", "'1.5'"),
    case("D5-nothing-for-an-integer", settings("train.epochs="), 2, "`train.epochs` must be an integer. Got ''"),
    case("D5-blank-before-an-integer", settings("train.epochs= 3"), 2, "`train.epochs` must be an integer. Got ' 3'"),
    case("D5-digits-of-another-script", settings("train.epochs=٣"), 2, "`train.epochs` must be an integer. Got '٣'"),
    case("D5-underscore-in-a-number", settings("train.clip_norm=1_0"), 2, "must be a number. Got '1_0'"),
    case("D5-text-for-a-number", settings("train.learning_rate=fast"), 2, "must be a number. Got 'fast'"),
    case("D5-yes-for-a-boolean", settings("model.tie_weights=yes"), 2, "must be true or false. Got 'yes'"),
    case("D5-half-a-list", settings('generate.prefixes=["a"'), 2, "`generate.prefixes` must be a JSON list or"),
    case("D5-a-list-of-numbers", settings("generate.prefixes=[1]"), 2, "must be a list of strings. Got '[1]'"),
    case("D5-option-of-generate", (*GENERATE, "--prefix", "x", "--length", "1.5"), 2, "'--length'", "valid integer"),
    case("D6-true-for-an-integer", settings("train.epochs=true"), 2, "`train.epochs`", "integer", "'true'"),
    case("D6-quotes-around-an-integer", settings('train.epochs="7"'), 2, "`train.epochs`", "integer", "'\"7\"'"),
    case("D6-one-for-a-boolean", settings("model.tie_weights=1"), 2, "must be true or false. Got '1'"),
    # D7: ranges.
    case("D7-hidden-size", settings("model.hidden_size=0"), 2, "`model.hidden_size` must be at least 1. Got 0"),
    case("D7-layers", settings("model.num_layers=-1"), 2, "`model.num_layers` must be at least 1. Got -1"),
    case("D7-dropout", settings("model.dropout=1.5"), 2, "`model.dropout` must be below 1.0. Got 1.5"),
    case("D7-learning-rate-0", settings("train.learning_rate=0"), 2, "must be above 0.0. Got 0.0"),
    case("D7-learning-rate-nan", settings("train.learning_rate=nan"), 2, "must be finite. Got nan"),
    case("D7-learning-rate-inf", settings("train.learning_rate=inf"), 2, "must be finite. Got inf"),
    case("D7-learning-rate-overflows", settings("train.learning_rate=1e999"), 2, "must be finite. Got inf"),
    case("D7-batch-size", settings("train.batch_size=0"), 2, "`train.batch_size` must be at least 1. Got 0"),
    case("D7-epochs", settings("train.epochs=-1"), 2, "`train.epochs` must be at least 1. Got -1"),
    case("D7-seed", settings("train.seed=4294967296"), 2, "`train.seed` must be at most 4294967295"),
    case("D7-split", settings("corpus.split=90/5"), 2, "`corpus.split` must be three whole numbers", "'90/5'"),
    # D8 to D10: cells and devices.
    case("D8-cell", (*RUN, "--cells", "lstn"), 2, "lstn: did you mean lstm? (known: rnn, gru, lstm, ngram)"),
    case("D8-no-cell", (*RUN, "--cells", ""), 2, "`cells` must name at least one of rnn, gru, lstm, ngram. Got none"),
    case("D9-cell-twice", (*RUN, "--cells", "rnn,gru,rnn"), 2, "`cells` must name each cell once. Got rnn twice"),
    case("D10-device", settings("train.device=cuda:99"), 5, "present: cpu", "cuda:99", "--set train.device=cpu"),
    case("D10-no-device", settings("train.device=gpu"), 2, "must be auto, cpu, cuda or cuda:N. Got 'gpu'"),
    # D12: addresses.
    case("D12-ftp", (*RUN, "--corpus", "ftp://me:secret@example.org/x"), 2, "only http and https", "ftp://me:***@"),
    case("D12-file", (*RUN, "--corpus", "file:///etc/hostname"), 2, "only http and https", "file:///etc/hostname"),
    case("D12-no-host", (*RUN, "--corpus", "https://"), 2, "only http and https", "https://"),
    case("D12-half-an-address", (*RUN, "--corpus", "http://[::1"), 2, "not an address", "http://[::1"),
    case("D12-63-digits", (*RUN, "--corpus", f"http://me:secret@h/x#sha256={'a' * 63}"), 2, "64 hexadecimal digits"),
    case("D12-another-digest", (*RUN, "--corpus", "https://example.org/x#md5=12"), 2, "#sha256= and 64", "#md5=12"),
    # D14: places that cannot be written.
    case("D14-json-is-a-folder", (*RUN, "--json", "{folder}"), 5, "{folder} (Is a directory)", "a file in a folder"),
    case("D14-json-is-a-device", (*RUN, "--json", "/dev/null"), 5, "/dev/null (no regular file)"),
    case("D14-json-in-no-folder", (*RUN, "--json", "{folder}/no/x"), 5, "{folder}/no/x (No such file or directory)"),
    case("D14-json-in-a-file", (*RUN, "--json", "{file}/x"), 5, "{file}/x (Not a directory)"),
    case("D14-json-in-proc", (*RUN, "--json", "/proc/x.json"), 5, "/proc/x.json ("),
    case("D14-json-with-a-long-name", (*RUN, "--json", "{folder}/" + "x" * 300), 5, "(File name too long)"),
    case("D14-plot", ("corpora", "show", "python-docs", "--plot", "{file}/x"), 5, "{file}/x (Not a directory)"),
    case("D14-results", ("results", "--output", "{folder}/no/x"), 5, "{folder}/no/x (No such file or directory)"),
    case("D14-home-is-a-file", ("compare",), 5, "cannot write artifacts", "{file}/artifacts", "(Not a directory)",
         "set RNNLM_HOME", environment={"RNNLM_HOME": "{file}"}),
    case("D14-home-below-a-device", ("compare",), 5, "/dev/null/x/artifacts", "(Not a directory)",
         environment={"RNNLM_HOME": "/dev/null/x"}),
    # D15 to D17, D20, D23: texts.
    text("D15-empty", b"", "the file is empty", "give a text that holds something"),
    text("D15-white-space", b" \n\t" * 5000, "no tokens left", "more than white space"),
    text("D15-white-space-as-words", b" \n\t" * 5000, "no tokens left", changes=("tokenizer.level=word",)),
    text("D15-white-space-as-bytes", b" \n\t" * 5000, "no tokens left", changes=("tokenizer.level=byte",)),
    text("D15-no-letters", "只有中文".encode() * 2000, "no tokens left after normalizer `letters`", "normalizer=none",
         changes=("corpus.normalizer=letters",)),
    text("D16-short", b"x" * 100, "at least 606 tokens", "100 tokens in", "lower train.batch_size or train.num_steps"),
    text("D16-one-token-too-short", b"x" * 605, "at least 606 tokens", "605 tokens in"),
    case("D16-nothing-there", (*RUN, "--corpus", "{folder}/none.txt"), 3, "no such file or folder", "none.txt"),
    case("D16-folder-without-text", (*RUN, "--corpus", "{folder}/sub"), 3, "holds no text (*.txt)", "{folder}/sub"),
    text("D17-latin-1", b"caf\xe9 " * 1000, "not UTF-8: byte 0xe9 at offset 3"),
    text("D17-cut-in-a-character", WORDS.encode() + "é".encode()[:1], "byte 0xc3 at offset 5340"),
    text("D17-overlong", WORDS.encode() + b"\xc0\x80", "byte 0xc0 at offset 5340"),
    text("D17-behind-the-first-block", WORDS.encode() * 200 + b"\xff", "byte 0xff at offset 1068000"),
    text("D20-lone-surrogate", WORDS.encode() + b"\xed\xa0\x80", "byte 0xed at offset 5340"),
    case("D20-lone-surrogate-from-json", settings(r'generate.prefixes=["ok","a\ud800"]'), 2,
         "`generate.prefixes` is not UTF-8 at position 1", r"'a\ud800'"),
    case("D20-lone-surrogate-in-a-stop-token", settings(r'generate.stop=["\ud800"]'), 2, "`generate.stop` is not UTF"),
    text("D23-utf-16", WORDS.encode("utf-16"), "looks like UTF-16", "convert it to UTF-8"),
    text("D23-utf-16-without-mark", WORDS.encode("utf-16-le"), "looks like UTF-16"),
    text("D23-utf-16-the-other-way", WORDS.encode("utf-16-be"), "looks like UTF-16"),
    text("D23-utf-32", WORDS.encode("utf-32"), "looks like UTF-32"),
    text("D23-gzip", b"\x1f\x8b\x08" + bytes(5000), "looks like gzip", "unpack"),
    text("D23-zip", b"PK\x03\x04" + bytes(5000), "looks like zip"),
    text("D23-bzip2", b"BZh91AY&SY" + bytes(5000), "looks like bzip2"),
    text("D23-pdf", b"%PDF-1.7\n" + WORDS.encode(), "looks like PDF"),
    text("D23-html", b"<!DOCTYPE html>\n" + WORDS.encode(), "looks like HTML"),
    text("D23-html-after-a-mark", b"\xef\xbb\xbf\n <HTML>" + WORDS.encode(), "looks like HTML"),
    # D24: the vocabulary.
    case("D24-min-freq", (*settings("tokenizer.min_freq=100000"), "--corpus", "{file}"), 3, "min_freq` leaves none of",
         "22 different tokens", "100000", "lower tokenizer.min_freq"),
    case("D24-min-freq-of-words", (*settings("tokenizer.min_freq=61", "tokenizer.level=word"), "--corpus", "{file}"),
         3, "none of 16 different tokens, the most frequent occurs 60 times: 61"),
    # D26, D28, D29: what shall be continued, and how.
    case("D26-empty", (*GENERATE, "--prefix", ""), 2, "prefix is empty"),
    case("D26-one-of-two-empty", (*GENERATE, "--prefix", "x", "--prefix", ""), 2, "prefix is empty"),
    case("D26-empty-in-the-config", settings('generate.prefixes=["a",""]'), 2, "`generate.prefixes`: prefix is empty"),
    Case("D26-empty-beside-another-mistake", (*GENERATE, "--prefix", "", "--length", "0"), 2,
         (("`generate.length` must be at least 1. Got 0",), ("prefix is empty",))),
    case("D28-prefix", (*GENERATE, "--prefix", "x" * 1_000_000), 2, "1,000,000 characters, at most 10,000 are read"),
    case("D28-prefix-in-the-config", settings(f"generate.prefixes={'x' * 10_001}"), 2, "10,001 characters, at most"),
    case("D28-length-0", (*GENERATE, "--prefix", "x", "--length", "0"), 2, "`generate.length` must be at least 1"),
    case("D28-length-below-0", (*GENERATE, "--prefix", "x", "--length", "-5"), 2, "must be at least 1. Got -5"),
    case("D28-length", (*GENERATE, "--prefix", "x", "--length", "1000000000"), 2, "at most 10000. Got 1000000000"),
    case("D28-temperature-below-0", (*GENERATE, "--prefix", "x", "--temperature", "-1"), 2, "at least 0.0. Got -1.0"),
    case("D28-temperature-nan", (*GENERATE, "--prefix", "x", "--temperature", "nan"), 2, "must be finite. Got nan"),
    case("D28-temperature", (*GENERATE, "--prefix", "x", "--temperature", "5.1"), 2, "must be at most 5.0. Got 5.1"),
    case("D29-prefix", (*GENERATE, "--prefix", "caf\udce9"), 2, "is not UTF-8 at position 3", r"'caf\udce9'"),
    case("D29-stop-token", (*GENERATE, "--prefix", "x", "--stop", "\udcff"), 2, "`generate.stop` is not UTF-8 at po"),
    case("D29-name-of-a-text", (*RUN, "--corpus", "./caf\udce9.txt"), 2, "`corpus.name` is not UTF-8 at position 5"),
]  # fmt: skip


@pytest.fixture
def rnnlm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Return a function that runs the command in this process."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["rnnlm", *map(str, arguments)])
        capsys.readouterr()
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Answer(end.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that does not exist yet."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RNNLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that is started, or a connection that is opened, is a bug: these are no errors that are told."""

    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("begun before the input was checked")

    monkeypatch.setattr(run_command, "_run_flow", begun)
    monkeypatch.setattr("socket.socket.connect", begun)


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have `rnnlm run` end where the flow would start; the list has what each flow would have been given."""
    started: list[Any] = []

    def run_flow(*arguments: Any) -> None:
        started.append(arguments)
        raise typer.Exit(0)

    monkeypatch.setattr(run_command, "_run_flow", run_flow)
    return started


def check_refused(answer: Answer, code: int, *lines: tuple[str, ...]) -> None:
    """Check that a command ended with `code` and one line per mistake, with the parts of each, and nothing else."""
    assert answer.code == code, answer
    assert answer.out == ""
    told = answer.err.splitlines()
    assert len(told) == len(lines), told
    for line, parts in zip(told, lines, strict=True):
        assert line.startswith("error: ")
        for part in parts:
            assert part in line
    assert "Traceback" not in answer.err
    assert "secret" not in answer.err
    assert all(c == "\n" or c.isprintable() for c in answer.err)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: bad.name)
def test_bad_input_is_refused_before_anything_begins(
    bad: Case,
    rnnlm: Callable[..., Answer],
    bare_home: Path,
    nothing_begins: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "input"
    (folder / "sub").mkdir(parents=True)
    (folder / "bad.txt").write_bytes(bad.content)

    def placed(value: str) -> str:
        return value.replace("{file}", str(folder / "bad.txt")).replace("{folder}", str(folder))

    for name, value in bad.environment.items():
        monkeypatch.setenv(name, placed(value))
    answer = rnnlm(*map(placed, bad.arguments))
    check_refused(answer, bad.code, *(tuple(map(placed, parts)) for parts in bad.lines))
    assert not bare_home.exists()
    assert files(folder) == ["bad.txt"]


def test_each_case_has_a_name_of_its_own() -> None:
    assert len({bad.name for bad in REFUSED}) == len(REFUSED)


# D13, D18, D19, D21, D22: texts that are read


def tokens(home: Path) -> set[str]:
    """Return the digests of the tokens that a home has."""
    return {handle.sha256 for handle in Store(home / "artifacts" / "store").handles() if handle.kind == "tokens"}


def test_d13_wrong_bytes_name_place_size_and_both_digests(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timemachine.txt").write_text("not the novel")
    entry = catalogue.CATALOGUE["time-machine"]
    alone = replace(entry, files=tuple(replace(file, addresses=()) for file in entry.files))
    monkeypatch.setitem(catalogue.CATALOGUE, "time-machine", alone)
    monkeypatch.setenv("RNNLM_MIRROR", str(tmp_path))
    answer = rnnlm("corpora", "show", "time-machine")
    assert answer.err.splitlines()[0] == "reading time-machine …"
    line = answer.err.split("\n", 1)[1]
    got = file_sha256(tmp_path / "timemachine.txt")
    parts = (f"{tmp_path}/timemachine.txt has sha256 {got} (13 bytes)", entry.files[0].sha256, "unset RNNLM_MIRROR")
    check_refused(Answer(answer.code, answer.out, line), 4, parts)
    assert files(bare_home) == []


@pytest.mark.parametrize("level", ["char", "word"])
def test_d18_line_ends_and_a_mark_change_no_token(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path, level: str
) -> None:
    path = tmp_path / "text.txt"
    for content in (WORDS, WORDS.replace("\n", "\r\n"), WORDS.replace("\n", "\r"), "\ufeff" + WORDS):
        path.write_bytes(content.encode())
        assert rnnlm("corpora", "show", path, "--level", level).code == 0
        assert len(tokens(bare_home)) == 1
    # NEL and U+2028 are characters like any other, and between words white space like any other.
    for number, end in enumerate(("\x85", "\u2028"), start=2):
        path.write_bytes(WORDS.replace("\n", end).encode())
        assert rnnlm("corpora", "show", path, "--level", level).code == 0
        assert len(tokens(bare_home)) == (number if level == "char" else 1)


def test_d19_control_characters_are_tokens_and_counted(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\0b\x1b\x07c" * 500)
    answer = rnnlm("corpora", "show", path, "--level", "char")
    assert answer.code == 0, answer
    assert "tokens: whole 3,000 " in answer.out
    for shown in (r"'\x00'  500", r"'\x1b'  500", r"'\x07'  500"):
        assert shown in answer.out
    assert all(character == "\n" or character.isprintable() for character in answer.out)


def test_d21_composed_and_decomposed_are_one_text_under_nfc_and_two_under_none(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"

    def seen(form: str, normalizer: str) -> int:
        path.write_text(unicodedata.normalize(form, "café Ångström 한국어\n" * 50), encoding="utf-8")
        assert rnnlm("corpora", "show", path, "--level", "char", "--normalizer", normalizer).code == 0
        return len(tokens(bare_home))

    # The normaliser is part of what tokens are: the same characters, kept and composed, are two artifacts.
    assert [seen(*each) for each in (("NFC", "nfc"), ("NFD", "nfc"), ("NFC", "none"), ("NFD", "none"))] == [1, 1, 2, 3]


@pytest.mark.parametrize("word", [b"x", b"x y "], ids=["one-word", "words"])
def test_d22_a_line_of_100_mb_is_read_in_bounded_memory(
    rnnlm: Callable[..., Answer], bare_home: Path, accepted: list[Any], tmp_path: Path, word: bytes
) -> None:
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(word * (1_000_000 // len(word)))
    tracemalloc.start()
    answer = rnnlm(*RUN, "--corpus", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (answer, len(accepted)) == (Answer(0, "", ""), 1)
    assert peak < 100_000_000 / 2


def test_what_is_refused_here_is_accepted_when_it_is_right(
    rnnlm: Callable[..., Answer], bare_home: Path, accepted: list[Any], tmp_path: Path
) -> None:
    """So that no case above is refused for another reason than its own."""
    path = tmp_path / "text.txt"
    path.write_bytes(WORDS.encode())
    changes = ("tokenizer.min_freq=60", "tokenizer.level=word", "train.epochs=3", f"generate.prefixes={'x' * 10_000}")
    for arguments in (settings(*changes), (*RUN, "--json", str(tmp_path / "x.json")), (*RUN, "--cells", "lstm,rnn")):
        assert rnnlm(*arguments, "--corpus", path) == Answer(0, "", "")
    path.write_bytes(b"x" * 606)
    assert rnnlm(*RUN, "--corpus", path) == Answer(0, "", "")
    assert len(accepted) == 4
    assert files(tmp_path) == ["text.txt"]


# D25, D27, D30 to D34: models


@pytest.fixture
def tracked(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that publishes a model, changed beforehand, as that of the last run; it returns its folder."""
    from tasks import tracked_runs

    def publish(change: Callable[[Path], None] = lambda _: None) -> Path:
        torch.manual_seed(0)
        vocabulary = Vocabulary({"a": 3, "b": 2, "c": 1})
        store = Store(bare_home / "artifacts" / "store")
        model = LanguageModel("gru", len(vocabulary), ModelConfig(hidden_size=8))
        with store.draft("model") as draft:
            save_model(draft.folder, model, vocabulary, tokenizer("char"), "none", {})
            change(draft.folder)
            handle = draft.publish()
        run = tracked_runs.TrackedRun("0" * 32, "FINISHED", 0.0, {"rnnlm.model_sha256": handle.sha256}, {}, {})
        monkeypatch.setattr(tracked_runs, "find_model_run", lambda _: run)
        return store.path(handle)

    return publish


def changed_json(file: str, **change: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **change}))

    return apply


def written(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


class Bomb:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("RNNLM_BOMB", "1")


def save_bomb(folder: Path) -> None:
    torch.save({"output.weight": Bomb()}, folder / WEIGHTS)


def other_cell(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    assert about["cell"] in CELLS
    (folder / ABOUT).write_text(json.dumps({**about, "cell": "lstm"}))


def other_size(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**about, "model": {**about["model"], "hidden_size": 16}}))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (changed_json(VOCABULARY_FILE, tokens=["<unk>", "a", "b", "a"]), (VOCABULARY_FILE, "'a' occurs twice")),
        (changed_json(VOCABULARY_FILE, tokens=["a", "b", "c", "d"]), (VOCABULARY_FILE, "first token is not <unk>")),
        (changed_json(VOCABULARY_FILE, counts=[1]), (VOCABULARY_FILE, "as many integers")),
        (written(VOCABULARY_FILE, b"a\nb\n"), (VOCABULARY_FILE, "not a vocabulary", "line 1 column 1")),
        (changed_json(VOCABULARY_FILE, tokens=["<unk>", "a"], counts=[0, 1]), ("weights=[24, 4]", "=[24, 2]")),
        (other_cell, ("size mismatch", "weights=[24]", "description=[32]")),
        (other_size, ("size mismatch", "weights=[24]", "description=[48]")),
        (changed_json(ABOUT, cell="no such"), ("not a complete model", "names no cell")),
        (changed_json(ABOUT, format=99), ("model format 99 is newer than 2", "upgrade rnnlm")),
        (written(ABOUT, b"{"), ("not a complete model",)),
        (written(WEIGHTS, b""), ("not a complete model",)),
        (written(WEIGHTS, b"plain text, no weights\n" * 9), ("not a complete model",)),
        (written(WEIGHTS, pickle.dumps(Bomb())), ("refused", "could run code", WEIGHTS)),
        (save_bomb, ("refused", "could run code", WEIGHTS)),
    ],
    ids=[
        "D25-token-twice", "D25-no-unk", "D25-other-counts", "D25-not-json", "D32-vocabulary", "D32-cell", "D32-size",
        "D32-no-cell", "D33-newer-format", "D31-half-a-description", "D31-no-weights", "D31-text", "D34-pickle",
        "D34-torch-save",
    ],
)  # fmt: skip
def test_a_model_that_was_written_wrong_is_refused(
    change: Callable[[Path], None], parts: tuple[str, ...], rnnlm: Callable[..., Answer], tracked: Callable[..., Path]
) -> None:
    folder = tracked(change)
    check_refused(rnnlm(*GENERATE, "--prefix", "ab"), 4, (str(folder), *parts))
    assert os.environ.get("RNNLM_BOMB") is None


def flipped(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: folder.rename(folder.with_name("moved")), "is missing"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"lacks {WEIGHTS}"),
        (written(WEIGHTS, b""), f"has a damaged {WEIGHTS}"),
        (lambda folder: os.truncate(folder / WEIGHTS, 100), f"has a damaged {WEIGHTS}"),
        (written(WEIGHTS, b"garbage" * 99), f"has a damaged {WEIGHTS}"),
        (flipped, f"has a damaged {WEIGHTS}"),
        (written(ABOUT, b"{}"), f"has a damaged {ABOUT}"),
        (written("manifest.json", b"{}"), "has a changed manifest"),
    ],
    ids=["D30-missing", "D30-incomplete", "D31-empty", "D31-cut", "D31-garbage", "D31-bit-flip", "D31-description",
         "D31-manifest"],
)  # fmt: skip
def test_a_model_that_was_damaged_later_is_one_kind_of_error(
    damage: Callable[[Path], None], part: str, rnnlm: Callable[..., Answer], tracked: Callable[..., Path]
) -> None:
    folder = tracked()
    damage(folder)
    parts = (f"the model {part}, and MLflow has no copy", str(folder), "run the training again")
    check_refused(rnnlm(*GENERATE, "--prefix", "ab"), 4, parts)


def test_d31_a_damaged_model_is_replaced_by_mlflow_s_copy_with_a_warning(
    rnnlm: Callable[..., Answer], tracked: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import tracked_models, tracked_runs

    folder = tracked()
    run = tracked_runs.find_model_run("gru")
    whole = rnnlm(*GENERATE, "--prefix", "ab", "--length", "5")
    assert (whole.code, whole.err) == (0, "")
    copy = tmp_path / "copy" / folder.name  # which is its digest
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tags = {**run.tags, "rnnlm.model_uri": "models:/m-1"}
    monkeypatch.setattr(tracked_runs, "find_model_run", lambda _: replace(run, tags=tags))
    monkeypatch.setattr(tracked_models, "model_files", lambda _: copy)
    flipped(folder)
    answer = rnnlm(*GENERATE, "--prefix", "ab", "--length", "5")
    warning = f"warning: the model has a damaged {WEIGHTS}, MLflow's copy is read instead: {folder}\n"
    assert answer == Answer(0, whole.out, warning)


def test_d27_unseen_characters_are_an_error_or_a_warning(
    rnnlm: Callable[..., Answer], tracked: Callable[..., Path]
) -> None:
    tracked()
    ask = (*GENERATE, "--prefix", "aéb€é", "--length", "3")
    what = "prefix has characters outside the vocabulary"
    check_refused(rnnlm(*ask), 3, (f"{what}: 'é', '€'", "`--unknown map`"))
    answer = rnnlm(*ask, "--unknown", "map")
    assert (answer.code, answer.err) == (0, f"warning: {what}, read as <unk>: 'é', '€'\n")
    assert answer.out.startswith("aéb€é")


def test_d28_limits_themselves_are_allowed(rnnlm: Callable[..., Answer], tracked: Callable[..., Path]) -> None:
    tracked()
    ask = (*GENERATE, "--prefix", "a" * 10_000, "--length", "1", "--temperature")
    assert rnnlm(*ask, "0").code == 0
    drawn = rnnlm(*ask, "5", "--top-k", "99999999999999999999")
    assert (drawn.code, drawn.err) == (0, "")
    assert drawn.out == rnnlm(*ask, "5").out


COMMAND = [sys.executable, "-c", "import sys; from flows.cli import main; sys.argv[0] = 'rnnlm'; main()"]


def test_d29_bytes_of_a_shell_that_are_no_text_are_told_on_any_terminal(bare_home: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [*COMMAND, "generate", "--model", "gru", "--prefix", b"caf\xe9"],
        env=environment, cwd=bare_home.parent, capture_output=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == rb"error: `generate.prefixes` is not UTF-8 at position 3. Got 'caf\udce9'" + b"\n"
    done = subprocess.run(
        [*COMMAND, "presets", "show", "lyrics"],
        env=environment, cwd=bare_home.parent, capture_output=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"generate.prefixes = \u5206\u5f00,\u4e0d\u5206\u5f00" in done.stdout
    assert not bare_home.exists()


# D36, D37, D39: databases and servers


ADDRESSES = (
    "./mlruns",
    "mlruns",
    "databricks",
    "C:\\mlruns",
    "file:///runs",
    "foo://x",
    "ftp://x/y",
    "sqlite://",
    "sqlite:///",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_d36_a_tracking_address_without_scheme_is_refused(
    rnnlm: Callable[..., Answer], bare_home: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for command in (("compare",), (*GENERATE, "--prefix", "x")):
        check_refused(rnnlm(*command), 2, ("`MLFLOW_TRACKING_URI`", "sqlite:///", address, "correct or unset it"))
    assert files(bare_home) == []


def database(path: Path) -> None:
    """Write what SQLite takes for an MLflow database, of several pages."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE experiments (name TEXT)")
        connection.executemany("INSERT INTO experiments VALUES (?)", [("x" * 500,)] * 200)


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE notes (body TEXT)")


def cut_database(path: Path) -> None:
    database(path)
    os.truncate(path, path.stat().st_size // 2)


def overwritten_database(path: Path) -> None:
    database(path)
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xa5" * (len(data) - 100))


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda path: path.write_bytes(b""), "(0 bytes)"),
        (lambda path: path.write_bytes(b"garbage"), "(7 bytes)"),
        (cut_database, "(database disk image is malformed)"),
        (overwritten_database, "malformed"),
        (other_database, "(no such table: experiments)"),
    ],
    ids=["empty", "garbage", "cut", "overwritten", "of-another-program"],
)
def test_d37_a_damaged_database_is_named_and_left_alone(
    rnnlm: Callable[..., Answer], bare_home: Path, make: Callable[[Path], None], cause: str
) -> None:
    bare_home.mkdir()
    path = bare_home / "mlflow.db"
    make(path)
    before = path.read_bytes()
    for command in (("compare",), (*GENERATE, "--prefix", "x"), ("results",)):
        parts = ("not an MLflow database", str(path), cause, "restore it, or move it away")
        check_refused(rnnlm(*command), 4, parts)
    assert path.read_bytes() == before
    assert files(bare_home) == ["mlflow.db"]


def test_d37_a_locked_database_is_named(
    rnnlm: Callable[..., Answer], bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import patience

    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.5)
    bare_home.mkdir()
    path = bare_home / "mlflow.db"
    database(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        check_refused(rnnlm("compare"), 5, ("the database is locked", str(path), "end the program that holds it"))


@pytest.fixture
def foreign_server() -> Iterator[str]:
    """The address of a server that knows nothing of Prefect."""

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            """Keep standard error clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
        server.shutdown()
        thread.join()


def test_d39_an_address_that_is_none_is_one_line(
    rnnlm: Callable[..., Answer], bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://[::1/api")
    check_refused(rnnlm(*RUN), 2, ("`PREFECT_API_URL` is not an address", "http://[::1/api", "correct or unset it"))
    assert files(bare_home) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/api", "", "rubbish", "ftp://127.0.0.1/api"])
def test_d39_a_prefect_server_that_is_none_is_one_line(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path, foreign_server: str, address: str
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = address or foreign_server
    path = tmp_path / "text.txt"
    path.write_bytes(WORDS.encode())
    with temporary_settings({PREFECT_API_URL: address}):
        answer = rnnlm(*RUN, "--corpus", path)
    parts = ("the Prefect server does not answer", f"{address} (", "start it", "or unset PREFECT_API_URL")
    check_refused(answer, 5, parts)
    assert files(bare_home) == []


# D40: figures that are no numbers


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_d40_a_figure_that_is_no_number_is_shown_marked_and_warned_of(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    from flows import language_model

    figures = {
        "run_id": "0" * 32, "train_perplexity": 2.5, "valid_perplexity": None, "test_perplexity": value,
        "dynamic_perplexity": None,
        "bits_per_char": 1.5, "tokens_per_second": 1.0, "parameters": 1, "epochs": 1, "cached": False,
        "samples": ["the "],
    }  # fmt: skip
    summary = {
        "preset": "smoke", "corpus": "book", "cells": {"gru": figures}, "best_cell": "gru",
        "parent_run_id": "1" * 32, "seconds": 1.0, "tasks": {"executed": 9, "cached": 0},
        "report": "report.html", "model": {"name": "rnnlm-book", "version": 1, "champion": False, "reason": "none"},
    }  # fmt: skip
    monkeypatch.setattr(run_command, "flows_ready", nullcontext)
    monkeypatch.setattr(language_model, "language_model", lambda *_: summary)
    answer = rnnlm(*RUN, "--json", tmp_path / "out.json")
    place = "cells.gru.test_perplexity"
    assert (answer.code, answer.err) == (0, f"warning: {place} is {value}: no figure to compare with\n")
    assert f" {value} " in answer.out

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert content["cells"]["gru"]["test_perplexity"] is None
    assert content["not_finite"] == {place: str(value)}


def test_the_store_of_a_test_is_its_own(bare_home: Path) -> None:
    """A check on the harness: what is looked for in `bare_home` is where the commands write."""
    from tasks import workspace

    assert workspace.store().root.is_relative_to(bare_home)
