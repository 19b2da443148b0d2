"""The commands and programs of the pages, run as a reader runs them: page by page, in a fresh clone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import yaml
from code_blocks import PROJECT, READMES, Block, blocks_of, pages
from homes import without_settings

from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.presets import PRESETS

OWN_TEXTS = ("my.txt", "我的小说.txt")
"""Texts that the pages take for the reader's own."""
MADE = (
    ".git",
    ".venv",
    "artifacts",
    "mlflow.db*",
    ".prefect",
    "__pycache__",
    ".*_cache",
    "*.egg-info",
    "shared",
    "site",
)
STAMPS = (".installed", ".browser", ".servers", ".bench", ".docs")
"""What says that something is installed: `make` shall not look at their age, the tests have installed nothing."""
FIRST_RUN = """rnnlm run --cells gru --set corpus.max_tokens=30000 --set train.epochs=1 --set model.hidden_size=64 \\
  --set train.batch_size=16 --set train.num_steps=32 --set generate.length=40
"""
PATIENCE = 280.0


@dataclass
class Reader:
    """A clone that is the home of all commands, beside a Prefect server that runs already."""

    clone: Path
    environment: dict[str, str]
    page: str = ""

    def turn_to(self, page: str) -> None:
        """Begin a page in the clone as it was before the first one."""
        if page == self.page:
            return
        if self.page:
            shutil.rmtree(self.clone)
            shutil.copytree(self.kept, self.clone, symlinks=True)
        else:
            shutil.copytree(self.clone, self.kept, symlinks=True)
        self.page = page

    @property
    def kept(self) -> Path:
        """The clone as it was before the first page; MLflow's database knows the place of the other."""
        return self.clone.with_name("kept")

    def command(self, block: Block) -> list[str]:
        """Return what runs a block."""
        if block.language == "python":
            return [str(self.clone / ".venv" / "bin" / "python"), "-c", block.text]
        old = " ".join(f"--assume-old=.venv/{name}" for name in STAMPS)
        return ["bash", "-euo", "pipefail", "-c", f'make() {{ command make {old} "$@"; }}\n{block.text}']

    def run(self, block: Block, seconds: float) -> None:
        """Run a block to its end."""
        with self.started(block, subprocess.PIPE) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                pytest.fail(f"still running after {seconds:.0f} s")
        assert process.returncode == 0, f"exit code {process.returncode} of\n{block.text}\n{said.decode()}"

    @contextmanager
    def started(self, block: Block, output: int) -> "Iterator[subprocess.Popen[bytes]]":
        """A block under way; afterwards nothing of it runs any more."""
        with subprocess.Popen(
            self.command(block), env=self.environment, cwd=self.clone, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                _end_group(process)

    @contextmanager
    def serving(self, block: Block) -> Iterator[None]:
        """A block that serves; it answers from here on."""
        port = urlsplit(block.address).port
        if any(one.laddr.port == port for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN):
            pytest.skip(f"somebody else listens on port {port}")
        with self.started(block, subprocess.DEVNULL) as process:
            deadline = time.monotonic() + PATIENCE
            while not _answers(block.address):
                assert process.poll() is None, f"exit code {process.returncode} of\n{block.text}"
                assert time.monotonic() < deadline, f"no answer from {block.address}"
                time.sleep(0.3)
            yield


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=10, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody who has done `make run`, of one cell, on the beginning of the text."""
    clone = tmp_path_factory.mktemp("reader") / "rnnlm"
    shutil.copytree(PROJECT, clone, ignore=shutil.ignore_patterns(*MADE), symlinks=True)
    (clone / ".venv").symlink_to(sys.prefix)
    line = "人走进了时间的机器。 They listened until all lamps burned low.\n"
    for name in OWN_TEXTS:
        (clone / name).write_text("".join(f"{number} {line}" for number in range(900)), encoding="utf-8")
    environment = without_settings() | {
        "RNNLM_HOME": str(clone),
        "PREFECT_HOME": str(clone.with_name("prefect")),
        "PYTHONPATH": str(clone),
        "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}",
        "NO_PROXY": "127.0.0.1",
    }
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.server"],
        env=environment, cwd=clone, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{server.stdout.readline().strip()}/api"
        httpx.get(f"{environment['PREFECT_API_URL']}/health", timeout=240).raise_for_status()
        someone = Reader(clone, environment)
        someone.run(Block("", 0, "sh", FIRST_RUN), PATIENCE)
        yield someone
        server.stdin.close()
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest) -> Iterator[ExitStack]:
    """What blocks of one page have started, ended with the page."""
    with ExitStack() as started:
        yield started


def _programs() -> Iterator[object]:
    first, second = ([block for block in blocks_of(page) if not block.fault] for page in READMES)
    commands = [block.code for block in first]
    own = [block for block in second if block.code not in commands]  # most are the same in both languages
    for block in [*first, *own, *(block for page in pages() if page not in READMES for block in blocks_of(page))]:
        if block.language != "text" and not block.fault:
            marks = [pytest.mark.slow, pytest.mark.timeout(4000)] if block.slow else []
            yield pytest.param(block.page, block, marks=marks, id=f"{block.page}:{block.line}")


@pytest.mark.parametrize(("servers", "block"), list(_programs()), indirect=["servers"])
def test_a_block_does_what_the_page_says(
    servers: ExitStack, block: Block, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.reason:
        pytest.skip(block.reason)
    if block.language in PARSERS:
        PARSERS[block.language](block.text)
        if not block.file:
            return
    reader: Reader = request.getfixturevalue("reader")
    reader.turn_to(block.page)
    if block.file:
        (reader.clone / block.file).write_text(block.text, encoding="utf-8")
        return
    if _named_corpora(block.text):
        monkeypatch.setitem(reader.environment, "RNNLM_MIRROR", str(request.getfixturevalue("mirror")))
    if block.address:
        servers.enter_context(reader.serving(block))
    else:
        reader.run(block, 3600 if block.slow else PATIENCE)


PARSERS = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}


def _named_corpora(text: str) -> set[str]:
    """Return the corpora of a program that are not in every Python: by their names, and those of presets."""
    words = set(re.findall(r"[\w-]+", text))
    named = (words & CATALOGUE.keys()) | {PRESETS[word]().corpus.name for word in words & PRESETS.keys()}
    return {name for name in named if CATALOGUE[name].files}


@pytest.mark.parametrize("page", pages())
def test_every_block_says_its_language_and_why_it_does_not_run(page: str) -> None:
    faults = [f"{page}:{block.line}: {block.fault}" for block in blocks_of(page) if block.fault]
    assert faults == []


PAGE = """Text.

<!-- runs: slow -->
```sh
rnnlm run  # all
```

1. In a list

   <!-- runs: not, it takes a week -->
   ```python
   if True:
       print(1)
   ```

```
no language
```

<!-- runs: not -->
```sh
a \\
  b
```
<!-- runs: slow, until http://127.0.0.1:1/health -->
```sh
serve
```
<!-- runs: as my_cell.py -->
```python
import this
```
"""


def test_comments_above_blocks_are_understood() -> None:
    blocks = blocks_of("page.md", PAGE)
    assert [
        (block.line, block.language, block.slow, block.reason or block.address or block.file) for block in blocks
    ] == [
        (4, "sh", True, ""),
        (11, "python", False, "it takes a week"),
        (16, "", False, ""),
        (21, "sh", False, ""),
        (26, "sh", True, "http://127.0.0.1:1/health"),
        (30, "python", False, "my_cell.py"),
    ]
    assert blocks[1].text == "if True:\n    print(1)\n"
    assert [block.fault.partition(":")[0] for block in blocks] == ["", "", "language ''", "`runs", "", ""]
    assert [block.code for block in blocks] == [
        ["rnnlm run"], ["if True:", "    print(1)"], ["no language"], ["a b"], ["serve"], ["import this"],
    ]  # fmt: skip


def test_corpora_are_found_by_their_names_and_in_presets() -> None:
    assert _named_corpora("rnnlm run --preset smoke\nrnnlm run --corpus my.txt") == set()
    assert _named_corpora("rnnlm run --preset d2l-time-machine") == {"time-machine"}
    assert _named_corpora("rnnlm corpora show lyrics") == {"lyrics"}
