"""The `rnnlm` command: results on standard output, one line per mistake, and nothing left behind by a mistake."""

import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from flows import cli
from rnnlm_core import catalogue
from rnnlm_core.config import GenerateConfig
from rnnlm_core.config_values import override
from rnnlm_core.generate import continue_text
from rnnlm_core.presets import run_config
from rnnlm_core.saved_model import load_model
from rnnlm_core.store import Handle
from tasks import workspace
from tasks.download import download
from tasks.tracking_database import client


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


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
    """A home that does not exist yet, and shall not."""
    home = tmp_path / "home"
    monkeypatch.setenv("RNNLM_HOME", str(home))
    return home


@pytest.fixture
def trained(finished: Any, at_home: Any) -> Iterator[Any]:
    """The home of three trained cells."""
    with at_home(finished.home):
        yield finished


def refused(answer: Answer, code: int, *parts: str) -> str:
    """Check that a command ended with one line of error that has all `parts`; return it."""
    assert answer.code == code, answer
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--preset", "smok"], ["unknown preset: smok: did you mean smoke?", "quickstart"]),
        (["--corpus", "time-machin"], ["unknown corpus: time-machin: did you mean time-machine?"]),
        (["--corpus", ""], ["unknown corpus: ''", "give the path of a text"]),
        (["--corpus", "ftp://example.org/x"], ["only http and https addresses can be downloaded"]),
        (["--corpus", "http://example.org/x#sha256=12"], ["a digest is written #sha256= and 64 hexadecimal digits"]),
        (["--cells", "rnn,gruu"], ["unknown cell: gruu: did you mean gru?"]),
        (["--cells", "rnn GRU"], ["unknown cell: GRU: did you mean gru?"]),
        (["--cells", "rnn,rnn"], ["`cells` must name each cell once. Got rnn twice"]),
        (["--cells", ""], ["cell"]),
        (["--set", "train.learing_rate=1"], ["unknown config key: train.learing_rate: did you mean train.learning_r"]),
        (["--processes", "33"], ["`train.processes` must be at most train.batch_size (32): each takes rows. Got 33"]),
        (
            ["--processes", "2", "--set", "train.processes=3"],
            ["`--processes` and `--set train.processes` are one setting: 2 and 3: give one of them"],
        ),
        (["--set", "train.epochs"], ["`--set` takes KEY=VALUE: train.epochs: for example --set train.epochs=3"]),
        (["--set", "train.epochs=many"], ["`train.epochs` must be an integer. Got 'many'"]),
        (["--set", "train.epochs=0"], ["`train.epochs` must be at least 1. Got 0"]),
        (["--set", "train.learning_rate=nan"], ["`train.learning_rate` must be finite. Got nan"]),
        (["--set", "corpus.split=given"], ["`corpus.split` given needs a corpus in three files"]),
        (["--epochs", "3"], ["No such option: --epochs"]),
        (["--cell", "rnn"], ["No such option: --cell", "--cells"]),
        (["--preset"], ["--preset", "requires an argument"]),
        (["rubbish"], ["unexpected extra argument", "rubbish"]),
    ],
)
def test_a_mistake_in_a_command_is_one_line_and_leaves_nothing(
    rnnlm: Callable[..., Answer], bare_home: Path, arguments: list[str], parts: list[str]
) -> None:
    refused(rnnlm("run", *arguments), 2, *parts)
    assert not bare_home.exists()


def test_an_unknown_command_is_one_line(rnnlm: Callable[..., Answer], bare_home: Path) -> None:
    refused(rnnlm("rum"), 2, "No such command 'rum'")
    assert not bare_home.exists()


def test_several_mistakes_are_a_line_each(rnnlm: Callable[..., Answer], bare_home: Path) -> None:
    answer = rnnlm("run", "--cells", "gruu", "--set", "train.epoch=3", "--set", "train.clip_norm=-1")
    assert answer.code == 2
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert lines == answer.errors
    assert len(lines) >= 2
    assert "unknown config key: train.epoch: did you mean train.epochs?" in lines[0]
    assert lines[1] == "error: `train.clip_norm` must be at least 0.0. Got -1.0"
    assert not bare_home.exists()


@pytest.mark.parametrize(
    ("content", "options", "parts"),
    [
        (b"", [], ["the file is empty", "give a text that holds something"]),
        (b"good text \xff\xfe", [], ["UTF-8", "byte 0xff at offset 10"]),
        ("只有中文".encode() * 2000, ["--set", "corpus.normalizer=letters"], ["letters", "none"]),
    ],
)
def test_a_text_that_cannot_become_a_corpus_is_one_line_and_leaves_nothing(
    rnnlm: Callable[..., Answer],
    bare_home: Path,
    tmp_path: Path,
    content: bytes,
    options: list[str],
    parts: list[str],
) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    refused(rnnlm("run", "--preset", "smoke", "--corpus", path, *options), 3, str(path), *parts)
    assert not bare_home.exists()


def test_a_text_that_is_not_there_is_one_line_and_leaves_nothing(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path
) -> None:
    refused(rnnlm("run", "--corpus", tmp_path / "none.txt"), 3, "no such file or folder", "none.txt", "time-machine")
    refused(rnnlm("run", "--corpus", tmp_path), 3, "the folder holds no text (*.txt)")
    assert not bare_home.exists()


def test_control_characters_of_a_value_do_not_reach_the_screen(rnnlm: Callable[..., Answer], bare_home: Path) -> None:
    line = refused(rnnlm("run", "--corpus", "./evil\x1b[31m\nerror: forged.txt"), 3, r"evil\x1b[31m\nerror: forged")
    assert "\x1b" not in line


def test_a_short_text_names_its_length_and_the_minimum(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "short.txt"
    path.write_text("x" * 100)
    options = ["--set", "train.batch_size=4", "--set", "train.num_steps=8", "--set", "corpus.max_tokens=0"]
    line = refused(rnnlm("run", "--preset", "smoke", "--corpus", path, *options, "--set", "corpus.split=100/0/0",
                         "--set", "evaluate.split=train", "--set", "train.batch_size=40"), 3)  # fmt: skip
    assert "100" in line
    assert str(40 * 8 + 8 + 1) in line
    assert not bare_home.exists()


@pytest.mark.parametrize("place", ["", "nowhere/out.json"])
def test_a_json_file_that_cannot_be_written_is_told_before_the_work(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path, place: str, book: Path
) -> None:
    answer = rnnlm("run", "--preset", "smoke", "--corpus", book, "--json", tmp_path / place)
    refused(answer, 5, "cannot write the results", "give the name of a file in a folder that exists")
    assert not bare_home.exists()


def test_wrong_bytes_in_the_mirror_name_both_digests(
    rnnlm: Callable[..., Answer], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "timemachine.txt").write_text("not the novel")
    monkeypatch.setenv("RNNLM_MIRROR", str(mirror))
    only_loopback(monkeypatch, closed_port)
    answer = rnnlm("run", "--preset", "smoke", "--corpus", "time-machine", "--cells", "rnn")
    assert answer.code == 4, answer
    assert answer.out == ""
    (line,) = answer.errors
    assert catalogue.CATALOGUE["time-machine"].files[0].sha256 in line
    assert hashlib.sha256(b"not the novel").hexdigest() in line
    assert "correct or unset RNNLM_MIRROR" in line
    assert "Traceback" not in answer.err
    assert not (home / "artifacts" / "store" / "tokens").exists()


def test_without_network_the_tries_and_two_remedies_are_named(
    rnnlm: Callable[..., Answer], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("RNNLM_MIRROR", str(mirror))
    only_loopback(monkeypatch, closed_port)
    monkeypatch.setattr(download, "retry_delay_seconds", [0.01, 0.01])
    answer = rnnlm("run", "--preset", "smoke", "--corpus", "time-machine", "--cells", "rnn")
    assert answer.code == 6, answer
    assert answer.out == ""
    (line,) = answer.errors
    assert f"{mirror}/timemachine.txt (no such file)" in line
    assert f"http://127.0.0.1:{closed_port}/timemachine.txt (no connection)" in line
    assert "set RNNLM_MIRROR to a folder or address that holds timemachine.txt" in line
    assert "--corpus PATH" in line
    assert "Traceback" not in answer.err


def only_loopback(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Replace the addresses of the catalogue by one that nobody serves."""
    entry = catalogue.CATALOGUE["time-machine"]
    files = tuple(replace(file, addresses=(f"http://127.0.0.1:{port}/{file.name}",)) for file in entry.files)
    monkeypatch.setitem(catalogue.CATALOGUE, "time-machine", replace(entry, files=files))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that refuses connections: bound, so that nobody else takes it, and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_the_results_go_to_standard_output_and_the_news_to_standard_error(
    rnnlm: Callable[..., Answer], trained: Any, book: Path, tmp_path: Path
) -> None:
    settings = [
        "model.hidden_size=8", "model.embedding_size=0", "corpus.max_tokens=0", "corpus.split=80/10/10",
        "train.epochs=2", "train.batch_size=16", "train.num_steps=16", "train.device=cpu",
        "generate.prefixes=the ", "generate.length=10",
    ]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    answer = rnnlm("run", "--preset", "smoke", "--corpus", book, *options, "--json", tmp_path / "out.json")
    assert answer.code == 0, answer
    assert "nothing to do: all 15 stages are cached" in answer.out
    assert "rnn writes: the " in answer.out
    assert f"mlflow ui --backend-store-uri sqlite:///{trained.home}/mlflow.db" in answer.out
    assert answer.err.splitlines()[0] == "download       cached"
    assert len(answer.err.splitlines()) == 15
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == list(trained.summary)
    assert written["tasks"] == {"executed": 0, "cached": 15}
    assert {cell: figures["run_id"] for cell, figures in written["cells"].items()} == {
        cell: figures["run_id"] for cell, figures in trained.summary["cells"].items()
    }


def test_a_partly_done_run_prints_and_writes_what_there_is(
    rnnlm: Callable[..., Answer],
    home: Path,
    book: Path,
    tmp_path: Path,
    train_here: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rnnlm_core.errors import ResourceError
    from tasks import train as train_stage

    works = train_stage.train_in_child

    def fail_gru(job: Any, *rest: Any) -> dict[str, Any]:
        if job.cell == "gru":
            raise ResourceError("training of gru was killed", "SIGKILL", "lower train.batch_size")
        return works(job, *rest)

    monkeypatch.setattr(train_stage, "train_in_child", fail_gru)
    answer = rnnlm(
        "run", "--preset", "smoke", "--corpus", book, "--cells", "rnn,gru", "--json", tmp_path / "out.json",
        "--set", "corpus.max_tokens=0", "--set", "corpus.split=80/10/10",
        "--set", "model.hidden_size=8", "--set", "generate.length=5",
    )  # fmt: skip
    assert answer.code == 7, answer
    (line,) = answer.errors
    assert line.startswith("error: some cells failed: gru: training of gru was killed: SIGKILL")
    assert "rnn writes: " in answer.out
    assert list(json.loads((tmp_path / "out.json").read_text())["cells"]) == ["rnn"]


@pytest.mark.parametrize("reference", ["cell", "run id", "address"])
def test_generate_prints_the_continuation_and_nothing_else(
    rnnlm: Callable[..., Answer], trained: Any, reference: str
) -> None:
    run_id = trained.summary["cells"]["gru"]["run_id"]
    address = client().get_run(run_id).data.tags["rnnlm.model_uri"]
    model = {"cell": "gru", "run id": run_id, "address": address}[reference]
    answer = rnnlm("generate", "--model", model, "--prefix", "the ", "--length", "10", "--temperature", "0.5")
    assert answer.code == 0, answer
    assert answer.out == trained.summary["cells"]["gru"]["samples"][0] + "\n"
    # A bare cell is the newest one, whatever its text was: it is said whose.
    whose = r"gru of book\.txt, trained \d{4}-\d\d-\d\d \d\d:\d\d\n" if reference == "cell" else ""
    assert re.fullmatch(whose, answer.err)


def test_a_cell_that_is_misspelt_is_told_which_was_meant(rnnlm: Callable[..., Answer], trained: Any) -> None:
    refused(rnnlm("generate", "--model", "gur", "--prefix", "the "), 3, "no such model: gur: did you mean gru?")


def test_generate_reads_mlflows_copy_when_the_artifact_is_gone(
    rnnlm: Callable[..., Answer], trained: Any, at_home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnnlm_core.store.Store.fault", lambda *_: "is missing")
    answer = rnnlm("generate", "--model", "lstm", "--prefix", "the ", "--length", "10", "--temperature", "0.5")
    assert answer.code == 0, answer
    assert answer.out == trained.summary["cells"]["lstm"]["samples"][0] + "\n"


def test_generate_draws_the_same_text_from_the_same_seed(rnnlm: Callable[..., Answer], trained: Any) -> None:
    def draw(seed: int) -> str:
        ask = ["--model", "rnn", "--prefix", "the ", "--temperature", "1", "--length", "60", "--seed", seed]
        return rnnlm("generate", *ask).out

    assert draw(1) == draw(1) != draw(2)


SAMPLING = [
    (["--temperature", "1", "--seed", "3", "--top-k", "2"], {"temperature": 1.0, "seed": 3, "top_k": 2}),
    (["--temperature", "1", "--seed", "3", "--top-p", "0.3"], {"temperature": 1.0, "seed": 3, "top_p": 0.3}),
    (["--repetition-penalty", "3"], {"repetition_penalty": 3.0}),
    (["--beam", "4"], {"beam": 4}),
    (["--beam", "4", "--length-penalty", "2", "--stop", " "], {"beam": 4, "length_penalty": 2.0, "stop": (" ",)}),
    (["--stop", " ", "--stop", "e"], {"stop": (" ", "e")}),
    (["--temperature", "1", "--seed", "3", "--stop", " "], {"temperature": 1.0, "seed": 3, "stop": (" ",)}),
]


@pytest.fixture
def written(trained: Any) -> Callable[..., str]:
    """Return a function that lets the trained gru write without the command."""
    digest = client().get_run(trained.summary["cells"]["gru"]["run_id"]).data.tags["rnnlm.model_sha256"]
    saved = load_model(workspace.store().path(Handle("model", digest)))
    return lambda prefix, **settings: continue_text(saved, prefix, GenerateConfig(length=60, **settings)).text


@pytest.mark.parametrize(("options", "settings"), SAMPLING, ids=" ".join)
def test_generate_samples_as_its_options_say(
    rnnlm: Callable[..., Answer], written: Callable[..., str], options: list[str], settings: dict[str, Any]
) -> None:
    answer = rnnlm("generate", "--model", "gru", "--prefix", "we ", "--length", "60", *options)
    assert answer.code == 0, answer
    assert answer.err.count("\n") == 1
    assert answer.out == written("we ", **settings) + "\n"


def test_an_option_of_generate_changes_the_text(written: Callable[..., str]) -> None:
    """So that the test above can tell an option that is heard from one that is not."""
    plain, drawn = written("we "), written("we ", temperature=1.0, seed=3)
    for _, settings in SAMPLING:
        if "beam" not in settings:
            assert written("we ", **settings) != (drawn if "temperature" in settings else plain), settings


def test_generate_ends_before_a_stop_token(rnnlm: Callable[..., Answer], trained: Any) -> None:
    ask = ["generate", "--model", "gru", "--prefix", "we", "--length", "60"]
    whole = rnnlm(*ask, "--temperature", "1", "--seed", "1").out.removesuffix("\n")
    added = whole.removeprefix("we")
    stop = added[20]
    answer = rnnlm(*ask, "--temperature", "1", "--seed", "1", "--stop", stop)
    assert answer.out == "we" + added.split(stop)[0] + "\n"
    refused(rnnlm(*ask, "--stop", "€"), 2, "`generate.stop` must hold single tokens of the model", "'€'")
    refused(rnnlm(*ask, "--stop", "the"), 2, "`generate.stop` must hold single tokens of the model", "'the'")


def test_several_prefixes_are_continued_each_as_alone(
    rnnlm: Callable[..., Answer], written: Callable[..., str]
) -> None:
    prefixes = ["we ", "the time ", "l"]
    asked = [part for prefix in prefixes for part in ("--prefix", prefix)]
    answer = rnnlm("generate", "--model", "gru", *asked, "--length", "60", "--temperature", "1", "--seed", "2")
    assert answer.code == 0, answer
    assert answer.out.splitlines() == [written(prefix, temperature=1.0, seed=2) for prefix in prefixes]


def test_a_stream_is_the_same_text_token_by_token(
    rnnlm: Callable[..., Answer], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ["generate", "--model", "gru", "--prefix", "we ", "--length", "30", "--temperature", "0.7", "--seed", "5"]
    whole = rnnlm(*ask)
    pieces: list[str] = []
    echo = cli.typer.echo

    def note(text: str = "", **options: Any) -> None:
        if not options.get("err"):
            pieces.append(text)
        echo(text, **options)

    monkeypatch.setattr(cli.typer, "echo", note)
    streamed = rnnlm(*ask, "--stream")
    assert streamed == whole
    assert pieces == [*whole.out.removesuffix("\n"), ""]
    pieces.clear()
    assert rnnlm(*ask, "--stream", "--stop", "€").code == 2
    assert pieces == []


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--prefix", ""], ["prefix is empty"]),
        (["--prefix", "x", "--length", "0"], ["`generate.length` must be at least 1. Got 0"]),
        (["--prefix", "x", "--temperature", "-1"], ["`generate.temperature` must be at least 0.0. Got -1.0"]),
        (["--prefix", "x", "--seed", "3"], ["`generate.seed` has no effect at temperature 0"]),
        (["--prefix", "x", "--top-k", "5"], ["`generate.top_k` has no effect at temperature 0"]),
        (["--prefix", "x", "--top-p", "0.5"], ["`generate.top_p` has no effect at temperature 0"]),
        (["--prefix", "x", "--beam", "2", "--temperature", "1"], ["`generate.beam` has no effect on drawn samples"]),
        (["--prefix", "x", "--length-penalty", "1"], ["`generate.length_penalty` has no effect without beam search"]),
        (["--prefix", "x", "--top-k", "-1", "--temperature", "1"], ["`generate.top_k` must be at least 0. Got -1"]),
        (["--prefix", "x", "--top-p", "0", "--temperature", "1"], ["`generate.top_p` must be above 0.0. Got 0.0"]),
        (["--prefix", "x", "--beam", "0"], ["`generate.beam` must be at least 1. Got 0"]),
        (["--prefix", "x", "--repetition-penalty", "0.5"], ["`generate.repetition_penalty` must be at least 1.0"]),
        (["--prefix", "x", "--stop", ""], ["`generate.stop` must hold no empty token"]),
        (["--prefix", "x", "--prefix", ""], ["prefix is empty"]),
        (["--prefix", "x", "--stream", "--beam", "2"], ["`--stream` prints one text as it grows", "leave one of them"]),
        (["--prefix", "x", "--prefix", "y", "--stream"], ["`--stream` prints one text as it grows"]),
        (["--prefix", "x", "--unknown", "drop"], ["`generate.unknown` must be one of map, error. Got 'drop'"]),
        (["--prefix", "x", "--length", "many"], ["'--length'", "integer"]),
        ([], ["Missing option '--prefix'"]),
    ],
)
def test_a_mistake_in_generate_is_one_line_and_leaves_nothing(
    rnnlm: Callable[..., Answer], bare_home: Path, options: list[str], parts: list[str]
) -> None:
    refused(rnnlm("generate", "--model", "gru", *options), 2, *parts)
    assert not bare_home.exists()


def test_unknown_characters_of_a_prefix_are_refused_or_mapped(rnnlm: Callable[..., Answer], trained: Any) -> None:
    ask = ["--model", "rnn", "--prefix", "thé €", "--length", "5"]
    refused(rnnlm("generate", *ask), 3, "prefix has characters outside the vocabulary: 'é', '€'", "`--unknown map`")
    answer = rnnlm("generate", *ask, "--unknown", "map")
    assert answer.code == 0
    assert answer.out.startswith("thé €")
    warning, whose = answer.err.splitlines()
    assert warning == "warning: prefix has characters outside the vocabulary, read as <unk>: 'é', '€'"
    assert whose.startswith("rnn of book.txt, trained ")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("gruu", ["no such model: gruu: did you mean gru? (known: rnn, gru, lstm, ngram)"]),
        ("mine", ["no such model: mine: give a cell (rnn, gru, lstm, ngram), a run id, or models:/"]),
        ("models:/nobody@champion", ["no such model: models:/nobody@champion"]),
    ],
)
def test_a_model_that_is_not_there_is_one_line(
    rnnlm: Callable[..., Answer], trained: Any, reference: str, parts: list[str]
) -> None:
    line = refused(rnnlm("generate", "--model", reference, "--prefix", "the "), 3, *parts)
    assert reference in line


def test_a_run_without_model_is_told(rnnlm: Callable[..., Answer], trained: Any) -> None:
    answer = rnnlm("generate", "--model", trained.summary["parent_run_id"], "--prefix", "the ")
    assert answer.code != 0
    assert answer.errors == [
        f"error: this run has no model: {trained.summary['parent_run_id']} (FINISHED): run the training again"
    ]


def test_an_exported_model_writes_the_same_text_without_pytorch(
    rnnlm: Callable[..., Answer], trained: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    path = tmp_path / "model.onnx"
    answer = rnnlm("export", "--model", "lstm", "--output", path)
    assert answer.code == 0, answer
    assert answer.out.startswith(f"{path}: {path.stat().st_size:,} bytes, lstm, ")
    assert answer.err.startswith("lstm of book.txt, trained ")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens = json.loads(session.get_modelmeta().custom_metadata_map["rnnlm.tokens"])
    text, state = "the ", {name: np.zeros((1, 1, 8), np.float32) for name in ("h", "c")}
    fresh = [tokens.index(character) for character in text]
    for _ in range(20):
        logits, *after = session.run(None, {"ids": np.array([fresh]), **state})
        state, fresh = dict(zip(state, after, strict=True)), [int(logits[0, -1].argmax())]
        text += tokens[fresh[0]]
    assert rnnlm("generate", "--model", "lstm", "--prefix", "the ", "--length", "20").out == text + "\n"


def test_an_export_that_cannot_be_is_one_line_before_the_model_is_read(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere" / "model.onnx"
    refused(rnnlm("export", "--model", "gru", "--output", nowhere), 5, "cannot write the results", str(nowhere))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    asked = rnnlm("export", "--model", "gru", "--output", tmp_path / "model.onnx")
    refused(asked, 5, "needs a package that is not installed", "pip install '.[onnx]'")
    assert not bare_home.exists()


def test_compare_lists_the_cells_of_tracked_runs(rnnlm: Callable[..., Answer], trained: Any) -> None:
    answer = rnnlm("compare", "--last", "50")
    assert answer.code == 0, answer
    for figures in trained.summary["cells"].values():
        (row,) = [line for line in answer.out.splitlines() if figures["run_id"] in line]
        assert "finished" in row
        assert f"{figures['test_perplexity']:.3f}" in row
        best = figures["run_id"] == trained.summary["cells"][trained.summary["best_cell"]]["run_id"]
        assert (" yes " in row) is best  # the champion
    other = rnnlm("compare", "--corpus", "nobody's")
    assert other.code == 0
    assert other.out == ""
    assert other.err == "no tracked runs on corpus nobody's: known: book.txt\n"


@pytest.mark.parametrize(("command", "names"), [("presets", ["smoke", "quickstart"]), ("corpora", ["time-machine"])])
def test_what_exists_is_listed_a_line_each(
    rnnlm: Callable[..., Answer], bare_home: Path, command: str, names: list[str]
) -> None:
    answer = rnnlm(command)
    assert answer.code == 0
    assert answer.err == ""
    listed = [line.split()[0] for line in answer.out.splitlines()]
    assert set(names) <= set(listed)
    assert len(listed) == len(set(listed))
    assert not bare_home.exists()


@pytest.mark.parametrize(
    ("level", "most"), [("word", "of  75 "), ("char", "' '  1,079 "), ("byte", "Ġ  1,079 "), ("bpe", r"Ġ[a-z]+  \d+ ")]
)
def test_a_corpus_is_shown_at_every_level(
    rnnlm: Callable[..., Answer], bare_home: Path, book: Path, level: str, most: str
) -> None:
    answer = rnnlm("corpora", "show", book, "--level", level)
    assert answer.code == 0, answer
    assert answer.err == "reading book.txt …\n"
    first, *table, last = answer.out.splitlines()
    if level == "bpe":
        assert re.fullmatch(
            r"book.txt · bpe tokens: train [\d,]+, valid \d+, test \d+ · normalizer none · eos none", first
        )
    else:
        length = len(book.read_text().split()) if level == "word" else 6000
        assert first == f"book.txt · {level} tokens: whole {length:,} · normalizer none · eos none"
    text = "\n".join(table)
    assert re.search(r"unigrams \([\d,]+ types.*bigrams \([\d,]+ types.*trigrams \([\d,]+ types", text)
    assert re.search(most, text)
    picture = Path(last.removeprefix("rank-frequency plot: "))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.is_relative_to(bare_home / "artifacts" / "store" / "statistics")
    assert not (bare_home / "mlflow.db").exists()


def test_the_counts_of_a_corpus_are_those_of_its_text(
    rnnlm: Callable[..., Answer], bare_home: Path, book: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "zipf.png"
    answer = rnnlm("corpora", "show", book, "--level", "word", "--normalizer", "letters", "--plot", plot)
    assert answer.code == 0, answer
    words = book.read_text().split()
    (word, count), *_ = Counter(words).most_common()
    ((one, other), pairs), *_ = Counter(itertools.pairwise(words)).most_common()
    assert f"unigrams ({len(set(words))} types" in answer.out
    rows = [line for line in answer.out.splitlines() if line.strip().startswith(f"{word}  {count}")]
    assert len(rows) == 1
    assert f"{one} {other}  {pairs}" in rows[0]
    assert "normalizer letters" in answer.out.splitlines()[0]
    assert answer.out.splitlines()[-1] == f"rank-frequency plot: {plot}"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_tokens_are_shown_as_they_are(rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes[draft].txt"
    text.write_text("[/b] [red] :smile: \x1b[31mred " * 30)
    answer = rnnlm("corpora", "show", text, "--level", "word")
    assert answer.code == 0, answer
    assert answer.out.startswith("notes[draft].txt · word tokens: ")
    for token in ("[/b]", "[red]", ":smile:", repr("\x1b[31mred")):
        assert f" {token}  30 " in answer.out.replace("\n", "\n ")
    assert "\x1b" not in answer.out


def test_a_folder_in_three_files_is_shown(rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text("one two three\n" * 9)
    answer = rnnlm("corpora", "show", tmp_path, "--level", "word")
    assert answer.code == 0, answer
    assert "word tokens: test 27, train 27, valid 27 " in answer.out


def test_a_preset_is_shown_as_its_keys_are_set(rnnlm: Callable[..., Answer], bare_home: Path) -> None:
    answer = rnnlm("presets", "show", "lyrics")
    assert answer.code == 0, answer
    values = dict(line.split(" = ", 1) for line in answer.out.splitlines())
    assert values["generate.prefixes"] == "分开,不分开"
    assert override(run_config("smoke"), values) == run_config("lyrics")
    assert not bare_home.exists()
    refused(rnnlm("presets", "show", "lyric"), 2, "unknown preset: lyric: did you mean lyrics?")


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["time-machin"], 2, ["unknown corpus: time-machin: did you mean time-machine?"]),
        (["./nowhere/mine.txt"], 3, ["no such file or folder", "mine.txt"]),
        (["python-docs", "--level", "words"], 2, ["`tokenizer.level` must be one of char, word, byte, bpe"]),
        (["python-docs", "--normalizer", "lettres"], 2, ["`corpus.normalizer` must be one of", "Got 'lettres'"]),
        (["python-docs", "--plot", "/nowhere/zipf.png"], 5, ["cannot write", "/nowhere/zipf.png"]),
        (["python-docs", "--lvl", "word"], 2, ["No such option: --lvl"]),
        ([], 2, ["Missing argument"]),
    ],
)
def test_a_mistake_in_showing_a_corpus_is_one_line_and_leaves_nothing(
    rnnlm: Callable[..., Answer], bare_home: Path, arguments: list[str], code: int, parts: list[str]
) -> None:
    refused(rnnlm("corpora", "show", *arguments), code, *parts)
    assert not bare_home.exists()


def test_the_results_page_is_printed_or_written(rnnlm: Callable[..., Answer], trained: Any, tmp_path: Path) -> None:
    printed = rnnlm("results")
    assert printed.code == 0, printed
    assert printed.err == ""
    assert printed.out.startswith("# Results\n")
    assert "`eb28759521dc48b68b8bbed9e2d25814`" in printed.out  # a record of the repository, whatever is tracked here
    path, records = tmp_path / "results.md", tmp_path / "results.json"
    for _ in range(2):
        written = rnnlm("results", "--output", path)
        assert (written.code, written.out, written.err) == (0, "", "")
        assert path.read_text(encoding="utf-8").startswith("# Results\n")
        assert json.loads(records.read_text(encoding="utf-8")) == {"format": 1, "rows": []}
    shutil.copyfile(workspace.PROJECT / "docs" / "results.json", records)
    assert rnnlm("results", "--output", path).code == 0
    assert path.read_text(encoding="utf-8") == printed.out
    records.write_text("{}")
    refused(rnnlm("results", "--output", path), 4, "measured figures must be of format 1", str(records))


def test_missing_rows_are_printed_as_commands(rnnlm: Callable[..., Answer], trained: Any, tmp_path: Path) -> None:
    answer = rnnlm("results", "--missing", "wikitext")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines
    assert all(line.startswith("rnnlm run --preset wikitext2-") for line in lines)
    refused(rnnlm("results", "--missing", "nothing"), 2, "unknown section: nothing", "Ablations")
    path = tmp_path / "results.md"
    refused(rnnlm("results", "--missing", "all", "--output", path), 2, "`--missing` writes no page")
    refused(rnnlm("results", "--output", tmp_path / "x.json"), 2, "the page must not be called as its records are")
    assert not path.exists()


@pytest.mark.parametrize("place", ["", "nowhere/results.md"])
def test_a_results_page_that_cannot_be_written_is_one_line(
    rnnlm: Callable[..., Answer], bare_home: Path, tmp_path: Path, place: str
) -> None:
    refused(rnnlm("results", "--output", tmp_path / place), 5, "cannot write the results", str(tmp_path))
    assert not (bare_home / "mlflow.db").exists()


def test_help_is_complete_and_needs_nothing_heavy(bare_home: Path) -> None:
    ask = (
        "import sys; sys.argv = ['rnnlm', 'run', '--help']\n"
        "from flows.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('HEAVY', [m for m in ('torch', 'mlflow', 'prefect') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--preset", "--corpus", "--cells", "--set", "--json"):
        assert option in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert not bare_home.exists()


def test_debug_shows_the_traceback_of_a_mistake(rnnlm: Callable[..., Answer], bare_home: Path) -> None:
    answer = rnnlm("--debug", "run", "--preset", "smok")
    assert answer.code == 2
    assert "Traceback (most recent call last)" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: unknown preset: smok")


def test_a_prefect_server_that_does_not_answer_is_one_line(tmp_path: Path, book: Path, closed_port: int) -> None:
    home = tmp_path / "home"
    environment = {
        **os.environ,
        "RNNLM_HOME": str(home),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{closed_port}/api",
    }
    command = "import sys; from flows.cli import main; sys.argv[0] = 'rnnlm'; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "run", "--preset", "smoke", "--corpus", book,
         "--set", "corpus.max_tokens=0", "--set", "corpus.split=80/10/10"],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: the Prefect server does not answer: http://127.0.0.1:{closed_port}/api (ConnectEr")
    assert "start it with `prefect server start`, or unset PREFECT_API_URL" in line
    assert not (home / "mlflow.db").exists()


def test_a_damaged_database_is_named_and_kept(rnnlm: Callable[..., Answer], bare_home: Path) -> None:
    bare_home.mkdir()
    (bare_home / "mlflow.db").write_bytes(b"garbage")
    for command in (["compare"], ["generate", "--model", "gru", "--prefix", "x"]):
        refused(rnnlm(*command), 4, "not an MLflow database", f"{bare_home}/mlflow.db (7 bytes)", "move it away")
    assert (bare_home / "mlflow.db").read_bytes() == b"garbage"


def test_a_tracking_address_without_scheme_is_one_line(
    rnnlm: Callable[..., Answer], bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns/mine.db")
    refused(rnnlm("compare"), 2, "`MLFLOW_TRACKING_URI` must be an address", "mlruns/mine.db", "correct or unset it")
    assert list(bare_home.rglob("*.db")) == []


# Verify and doctor


def test_a_home_that_is_whole_is_said_to_be(rnnlm: Callable[..., Answer], trained: Any) -> None:
    answer = rnnlm("verify")
    assert answer == Answer(0, "", "everything is whole\n")
    assert rnnlm("doctor").out == ""


def test_a_shared_store_is_named_and_read_only_when_asked_for(
    rnnlm: Callable[..., Answer], trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(rnnlm("verify", "--remote"), 2, "`--remote` needs a store that hosts share", "set `RNNLM_STORE`")
    refused(rnnlm("doctor", "--remote"), 2, "`--remote` needs a store that hosts share", "set `RNNLM_STORE`")
    (tmp_path / "shared" / "text" / ("0" * 64)).mkdir(parents=True)
    address = (tmp_path / "shared").as_uri()
    monkeypatch.setenv("RNNLM_STORE", address)
    told = f"everything is whole (`--remote` would read the copies in {address} too)\n"
    assert rnnlm("verify") == Answer(0, "", told)
    assert rnnlm("verify", "--remote") == Answer(0, "", "everything is whole\n")
    (tmp_path / "shared" / "text" / ("0" * 64) / "manifest.json").write_bytes(b"{}")
    answer = rnnlm("verify", "--remote")
    assert (answer.code, answer.out) == (4, f"copy of text:{'0' * 12} has a changed manifest: {address}\n")
    mended = rnnlm("doctor", "--remote")
    assert mended.out.startswith(f"withdrew the copy of text:{'0' * 12} in {address}, which has a changed manifest")
    assert rnnlm("verify", "--remote").code == 0


@pytest.mark.parametrize(
    ("store", "code", "told"),
    [
        ("bucket/folder", 2, "`RNNLM_STORE` must be an address"),
        ("s4://bucket", 2, "known: file, s3, "),
        ("file:///nowhere/at/all", 5, "no such bucket or folder"),
    ],
)
def test_a_store_that_cannot_be_is_refused_before_anything_is_done(
    store: str, code: int, told: str, rnnlm: Callable[..., Answer], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNLM_STORE", store)
    refused(rnnlm("run", "--preset", "smoke", "--cells", "rnn"), code, told, store.partition("://")[0])
    assert not (home / "artifacts" / "store").exists()


def test_what_is_damaged_is_listed_mended_and_made_again(
    rnnlm: Callable[..., Answer], finished: Any, at_home: Any, book: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.home, tmp_path / "home")
    with at_home(tmp_path / "home") as home:
        before = (home / "mlflow.db").read_bytes()
        planned = rnnlm("doctor", "--dry-run")
        assert planned.code == 0
        assert re.search(rf"would tell MLflow the new place of \d+ runs: {finished.home} → {home}\n", planned.out)
        assert (home / "mlflow.db").read_bytes() == before
        refused(rnnlm("compare"), 4, "the folder was moved", str(finished.home), "`rnnlm doctor`")
        (corpus,) = (home / "artifacts" / "store" / "corpus").iterdir()
        data = bytearray((corpus / "train.parquet").read_bytes())
        data[len(data) // 2] ^= 4
        (corpus / "train.parquet").write_bytes(data)
        answer = rnnlm("verify")
        assert answer.code == 4
        assert f"artifact corpus:{corpus.name[:12]} has a damaged train.parquet" in answer.out
        assert answer.err.startswith("error: the project is damaged: ")
        mended = rnnlm("doctor")
        assert mended.code == 0, mended
        assert re.search(rf"told MLflow the new place of \d+ runs: {finished.home} → {home}\n", mended.out)
        assert f"removed artifact corpus:{corpus.name[:12]}" in mended.out
        assert rnnlm("verify").code == 0


def test_the_best_cell_is_the_champion_and_every_command_knows_it(
    rnnlm: Callable[..., Answer], trained: Any, tmp_path: Path
) -> None:
    best, figures = trained.summary["best_cell"], trained.summary["cells"][trained.summary["best_cell"]]
    model = trained.summary["model"]
    perplexity = f"{figures['valid_perplexity']:.2f}"
    why = f"the first with a validation perplexity ({perplexity})"
    assert model == {"name": "rnnlm-book.txt", "version": 1, "champion": True, "reason": why}
    answer = rnnlm("models", "--corpus", "somewhere/book.txt")
    assert answer.code == 0, answer
    (row,) = [line for line in answer.out.splitlines() if "rnnlm-book.txt" in line]
    assert row.split()[:6] == [
        "rnnlm-book.txt", "book.txt", "1", best,
        f"{figures['valid_perplexity']:.3f}", f"{figures['test_perplexity']:.3f}",
    ]  # fmt: skip
    assert row.rstrip().endswith(f"yes       {why}")
    address = "models:/rnnlm-book.txt@champion"
    told = rnnlm("generate", "--model", address, "--prefix", "the ", "--length", "10", "--temperature", "0.5")
    assert told.out == figures["samples"][0] + "\n"
    assert rnnlm("promote", best).out == "champion of rnnlm-book.txt: version 1 (it is the champion already)\n"
    table = rnnlm("compare", "--sort", "valid", "--json", tmp_path / "runs.json")
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert runs == sorted(runs, key=lambda one: one["valid_perplexity"])
    assert [one["cell"] for one in runs if one["champion"]] == [best]
    assert all(one["minutes"] > 0 and one["implementation"] == "concise" for one in runs)
    assert table.out.index(runs[0]["run_id"]) < table.out.index(runs[1]["run_id"])


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["promote"], 2, ["give a REF, or --rollback CORPUS: nothing"]),
        (["promote", "gru", "--rollback", "x"], 2, ["give a REF, or --rollback CORPUS: gru --rollback"]),
        (["promote", "--force"], 2, ["give a REF, or --rollback CORPUS: --force"]),
        (["promote", "models:/rnnlm-book.txt@champion"], 2, ["an alias is no version", "give NAME/VERSION"]),
        (["promote", "nonsense"], 3, ["no such model: nonsense"]),
        (["promote", "rnnlm-bok.txt/1"], 3, ["no such registered model: rnnlm-bok.txt: known: rnnlm-book.txt"]),
        (["promote", "models:/rnnlm-book.txt/9"], 3, ["no such version: rnnlm-book.txt/9"]),
        (["promote", "--rollback", "book.txt"], 2, ["nothing to roll back to: rnnlm-book.txt (champion: version 1)"]),
        (["promote", "--rollback", "other.txt"], 3, ["no such registered model: other.txt: known: rnnlm-book.txt"]),
        (["models", "--corpus", "other.txt"], 3, ["no such registered model: other.txt: known: rnnlm-book.txt"]),
        (["compare", "--sort", "tests"], 2, ["unknown order: tests: did you mean test?"]),
        (["compare", "--json", "/nowhere/x.json"], 5, ["cannot write the results"]),
    ],
)
def test_a_mistake_about_models_is_one_line(
    rnnlm: Callable[..., Answer], trained: Any, arguments: list[str], code: int, parts: list[str]
) -> None:
    refused(rnnlm(*arguments), code, *parts)


def test_a_worse_model_is_no_champion_until_it_is_forced_and_the_place_can_be_given_back(
    rnnlm: Callable[..., Answer], run: Callable[..., dict[str, Any]]
) -> None:
    name = run()["model"]["name"]
    again = run()["model"]
    assert (again["version"], again["champion"]) == (1, True)
    worse = run(train__learning_rate=1e-6)["model"]
    assert (worse["version"], worse["champion"]) == (2, False)
    assert re.fullmatch(r"valid perplexity [\d.]+ is not below champion's [\d.]+ \(version 1\)", worse["reason"])
    line = refused(rnnlm("promote", "rnn"), 2, f"not promoted: version 2 of {name}: {worse['reason']}: `--force`")
    assert line.endswith("`--force` makes it the champion all the same")
    forced = rnnlm("promote", f"models:/{name}/2", "--force")
    assert forced.out == f"champion of {name}: version 2 (forced: {worse['reason']})\n"
    told = rnnlm("models").out
    assert "against the rule: valid perplexity" in told
    assert "replaced by version 2 on " in told
    back = rnnlm("promote", "--rollback", name)
    assert back.out == f"champion of {name}: rnn, version 1 again, after version 2\n"
    assert run()["model"]["champion"] is True


def test_without_a_model_the_list_says_how_to_get_one(rnnlm: Callable[..., Answer], home: Path) -> None:
    answer = rnnlm("models")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == "no registered models: train with `rnnlm run`\n"
    refused(rnnlm("models", "--corpus", "text"), 3, "none yet, train with `rnnlm run`")
