"""What other packages bring, used as people use it: the example package installed beside the project, and a module."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from homes import COMMAND, PROJECT, without_settings

EXAMPLE = PROJECT / "examples" / "rnnlm-mgu"
SMALL = [
    "--preset", "smoke", "--set", "model.hidden_size=16", "--set", "corpus.max_tokens=8000",
    "--set", "train.device=cpu",
]  # fmt: skip
MODULE = """
from rnnlm_core import CatalogueEntry, CorpusFile, Normalizer, Tokenizer


class Pairs(Tokenizer):
    level = "pairs"
    noun = "pairs of characters"

    def split(self, text):
        return [text[i : i + 2] for i in range(0, len(text), 2)]


LOWER = Normalizer("lower", lambda blocks: (block.lower() for block in blocks), str.lower)
POEM = CatalogueEntry(
    name="poem", title="A poem", licence="ours", normalizer="lower", split="80/10/10", prefixes=("the sea",),
    files=(CorpusFile("whole", "poem.txt", "{sha256}", {size}, ("https://localhost:9/poem.txt",)),),
)
"""
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def commands_in(home: Path, **settings: str) -> Command:
    """Return a function that runs `rnnlm` in a home and waits for it."""

    def run(*arguments: object, **others: str) -> "subprocess.CompletedProcess[str]":
        own = {"RNNLM_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), **settings, **others}
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=without_settings() | own, cwd=home, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip

    return run


def summary(rnnlm: Command, home: Path, *arguments: object) -> dict[str, Any]:
    done = rnnlm("run", *SMALL, *arguments, "--json", home / "out.json")
    assert done.returncode == 0, done.stderr
    written: dict[str, Any] = json.loads((home / "out.json").read_text())
    return written


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example package is installed as pip installs it."""
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "rnnlm-mgu")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
         "--no-build-isolation", "--target", folder, source], check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def rnnlm(home: Path, site: Path) -> Command:
    return commands_in(home, PYTHONPATH=f"{site}:{PROJECT}")


@pytest.fixture(scope="module")
def first(rnnlm: Command, home: Path) -> dict[str, Any]:
    return summary(rnnlm, home, "--cells", "gru,mgu")


def test_the_example_is_short() -> None:
    assert len((EXAMPLE / "rnnlm_mgu.py").read_text().splitlines()) <= 40


def test_an_installed_cell_runs_beside_our_own(first: dict[str, Any], home: Path) -> None:
    assert set(first["cells"]) == {"gru", "mgu"}
    assert first["cells"]["mgu"]["test_perplexity"] > 1
    assert first["cells"]["mgu"]["samples"]
    (report,) = (home / "artifacts" / "reports").glob("*.html")
    assert "mgu" in report.read_text()


def test_it_is_known_by_its_name_afterwards(first: dict[str, Any], rnnlm: Command) -> None:
    written = rnnlm("generate", "--model", "mgu", "--prefix", "The ", "--length", "10")
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("The ")
    assert "mgu" in rnnlm("compare").stdout
    refused = rnnlm("export", "--model", "mgu", "--output", "mgu.onnx")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("error: an ONNX file holds one of rnn, gru, lstm: mgu: ")


def test_the_stored_model_asks_for_the_package(first: dict[str, Any], home: Path) -> None:
    needed = [path.read_text() for path in (home / "artifacts").rglob("requirements.txt")]
    assert sum("rnnlm-mgu==0.1.0" in text for text in needed) == 1
    assert len(needed) == 2


@pytest.mark.slow
def test_a_second_run_does_nothing_and_an_edit_of_the_package_repeats_its_cell_alone(
    first: dict[str, Any], rnnlm: Command, home: Path, site: Path
) -> None:
    again = summary(rnnlm, home, "--cells", "gru,mgu")
    assert again["tasks"]["executed"] == 0
    source = site / "rnnlm_mgu.py"
    source.write_text(source.read_text() + "\n# edited\n")
    edited = summary(rnnlm, home, "--cells", "gru,mgu")
    assert edited["cells"]["gru"]["cached"]
    assert not edited["cells"]["mgu"]["cached"]
    assert edited["cells"]["mgu"]["test_perplexity"] == first["cells"]["mgu"]["test_perplexity"]


def test_without_the_package_its_name_and_its_model_are_refused(first: dict[str, Any], rnnlm: Command) -> None:
    refused = rnnlm("run", *SMALL, "--cells", "gru,mgu", PYTHONPATH=str(PROJECT))
    assert refused.returncode == 2
    assert "unknown cell: mgu" in refused.stderr
    run_id = first["cells"]["mgu"]["run_id"]
    refused = rnnlm("generate", "--model", run_id, "--prefix", "The ", PYTHONPATH=str(PROJECT))
    assert (refused.returncode, refused.stderr.count("\n")) == (5, 1)
    assert refused.stderr.startswith("error: this model needs the cell mgu: ")


@pytest.mark.slow
def test_a_module_brings_a_tokenizer_a_normalizer_and_a_corpus(home: Path, tmp_path: Path) -> None:
    text = "".join(f"The Sea, the sea: wave {i} of many\n" for i in range(500)).encode()
    (tmp_path / "poem.txt").write_bytes(text)
    content = MODULE.replace("{sha256}", hashlib.sha256(text).hexdigest()).replace("{size}", str(len(text)))
    (tmp_path / "marine.py").write_text(content)
    named = ["tokenizer:pairs=marine:Pairs", "normalizer:lower=marine:LOWER", "corpus:poem=marine:POEM"]
    rnnlm = commands_in(
        home, PYTHONPATH=f"{tmp_path}:{PROJECT}", RNNLM_EXTENSIONS=",".join(named), RNNLM_MIRROR=str(tmp_path)
    )
    assert "poem           A poem · 0.0 MB to download · ours" in rnnlm("corpora").stdout
    done = summary(rnnlm, home, "--corpus", "poem", "--cells", "rnn", "--set", "tokenizer.level=pairs")
    assert done["corpus"] == "poem"
    (sample,) = done["cells"]["rnn"]["samples"]
    assert sample.startswith("the sea")
    written = rnnlm("generate", "--model", "rnn", "--prefix", "The SEA,", "--length", "3")  # pairs: an even number
    assert written.stdout.startswith("the sea,"), written.stderr
    refused = rnnlm("run", "--set", "tokenizer.level=pears")
    assert refused.returncode == 2
    assert "`tokenizer.level` must be one of char, word, byte, bpe, pairs. Got 'pears'" in refused.stderr
