"""The smoke command: what it says of checks that fail, and the summary that it appends to a file."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from flows import cli, smoke_summary
from flows import smoke as smoke_module
from flows.comparison import COLUMNS, CellFigures
from flows.report import versions
from flows.summary import CellSummary, PartlyDoneError, RunSummary
from rnnlm_core.errors import ResourceError, UsageError
from rnnlm_core.presets import run_config

NASTY = "a | b\n```\n## forged\n````\n| x | y |\n|---|---|\n</details> `c` *d*"
HELD = [{"what": "every stage ran", "held": True}, {"what": "gru: bits | *per* `character` agree", "held": True}]
GRU = CellFigures("gru", "con|cise\n\\|", 4711, 5.25, 6.5, 7.125, 2.8328, 12345.6, 1.5, True)


def run_of(executed: int, cached: int, sample: str = "the end") -> dict[str, Any]:
    cell = CellSummary("run-g", 5.25, 6.5, 7.125, 2.8328, 12345.6, 4711, 3, False, (sample, "another"))
    tasks = {"executed": executed, "cached": cached}
    return RunSummary("smoke", "text", {"gru": cell}, "gru", "run-p", 75.0, tasks, "/report.html").as_json()


def parsed(page: str) -> list[Token]:
    """Return a page as a reader of Markdown with tables sees it."""
    return MarkdownIt("commonmark").enable("table").parse(page)


def shown(token: Token) -> str:
    """Return the text of a token as a reader sees it."""
    return "".join(child.content for child in token.children or [])


def after(tokens: list[Token], kind: str) -> list[str]:
    """Return the texts that stand in blocks of a kind."""
    return [shown(tokens[place + 1]) for place, token in enumerate(tokens) if token.type == kind]


def blocks(tokens: list[Token]) -> list[str]:
    return [token.content for token in tokens if token.type == "fence"]


def test_a_summary_tells_verdict_figures_effort_checks_samples_and_versions() -> None:
    page = smoke_summary.render(HELD, [run_of(15, 0), run_of(0, 15)], [GRU], {"python": "3.11.7", "torch": "2.13.0"})
    tokens = parsed(page)
    assert after(tokens, "heading_open") == ["✓ rnnlm smoke: all 2 checks hold", "Checks", "Samples"]
    assert after(tokens, "th_open") == list(COLUMNS)
    assert after(tokens, "td_open")[2:6] == ["4,711", "5.250", "6.500", "7.125"]
    paragraphs = after(tokens, "paragraph_open")
    assert "run 1: 15 stages done, 0 cached, 1m15s" in paragraphs
    assert "run 2: 0 stages done, 15 cached, 1m15s" in paragraphs
    assert "✓ every stage ran" in paragraphs
    assert "gru" in paragraphs
    assert blocks(tokens) == ["the end\n"]
    assert paragraphs[-1] == "python 3.11.7 · torch 2.13.0"


def test_a_failed_check_is_counted_and_marked() -> None:
    checks = [*HELD, {"what": "a second run repeats nothing", "held": False}]
    tokens = parsed(smoke_summary.render(checks, [run_of(15, 0)], [GRU], {}))
    assert after(tokens, "heading_open")[0] == "✗ rnnlm smoke: 1 of 3 checks failed"
    assert [text for text in after(tokens, "paragraph_open") if text.startswith("✗")] == [
        "✗ a second run repeats nothing"
    ]


def test_no_text_of_a_model_or_a_corpus_is_read_as_markdown() -> None:
    tokens = parsed(smoke_summary.render(HELD, [run_of(15, 0, NASTY)], [GRU], {"a|b": "*1*"}, f"error {NASTY}"))
    assert after(tokens, "heading_open") == ["✗ rnnlm smoke: ended with an error", "Checks", "Samples"]
    assert blocks(tokens) == [f"error {NASTY}\n", f"{NASTY}\n"]
    assert len(after(tokens, "td_open")) == len(COLUMNS)
    assert after(tokens, "td_open")[1] == r"con|cise\n\|"
    paragraphs = after(tokens, "paragraph_open")
    assert "✓ gru: bits | *per* `character` agree" in paragraphs
    assert paragraphs[-1] == "a|b *1*"
    assert sum(token.type == "html_block" for token in tokens) == 0


def test_an_error_is_told_and_names_its_class_only_if_it_is_none_of_ours() -> None:
    for error, told in (
        (UsageError("unknown cell", "gruu", "known: gru"), "unknown cell: gruu: known: gru\n"),
        (KeyError("what\nnow"), r"KeyError: 'what\nnow'" + "\n"),
    ):
        tokens = parsed(smoke_summary.of_error(error))
        assert after(tokens, "heading_open") == ["✗ rnnlm smoke: ended with an error"]
        assert blocks(tokens) == [told]


@pytest.mark.parametrize("before", [None, "", "# Job\n", "# Job"])
def test_a_summary_is_appended_and_its_heading_begins_a_line(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "summary.md"
    if before is not None:
        path.write_text(before)
    smoke_summary.append(path, "## one\n")
    smoke_summary.append(path, "## two\n")
    assert path.read_text().startswith(before or "")
    headings = after(parsed(path.read_text()), "heading_open")
    assert headings == (["Job"] if before else []) + ["one", "two"]


def test_a_summary_that_cannot_be_appended_is_an_error_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"cannot write the summary: .*Is a directory"):
        smoke_summary.append(tmp_path, "## one\n")


@pytest.fixture
def smoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[Any, ...]]:
    """Return a function that runs `rnnlm smoke --summary FILE` in this process: exit code, output, errors."""

    def run(summary: Path) -> tuple[Any, ...]:
        monkeypatch.setattr(sys, "argv", ["rnnlm", "smoke", "--summary", str(summary)])
        capsys.readouterr()
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that does not exist yet, and shall not."""
    monkeypatch.setenv("RNNLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("place", ["", "nowhere/summary.md"])
def test_a_summary_that_cannot_be_written_is_told_before_the_work(
    smoke: Callable[[Path], tuple[Any, ...]], bare_home: Path, tmp_path: Path, place: str
) -> None:
    code, out, err = smoke(tmp_path / place)
    assert (code, out) == (5, "")
    (line,) = err.splitlines()
    assert line.startswith("error: cannot write the results: ")
    assert line.endswith(": give the name of a file in a folder that exists")
    assert not bare_home.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write any file")
def test_a_file_that_takes_no_more_is_told_before_the_work(
    smoke: Callable[[Path], tuple[Any, ...]], bare_home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "summary.md"
    path.touch(mode=0o400)
    code, _, err = smoke(path)
    assert code == 5
    assert "summary.md (Permission denied)" in err
    assert not bare_home.exists()


@pytest.fixture
def done_before(finished: Any, at_home: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A home where both runs of the smoke flow are a tiny one that did all its stages: its second repeats them."""
    config = run_config("smoke", changes={"generate.prefixes": ["the "], "generate.length": 10})
    monkeypatch.setattr(smoke_module, "smoke_config", lambda: config)
    monkeypatch.setattr(smoke_module, "language_model", lambda _: finished.summary)
    with at_home(finished.home):
        yield finished.summary


def test_checks_that_fail_are_printed_summarized_and_end_the_command(
    smoke: Callable[[Path], tuple[Any, ...]], done_before: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "summary.md"
    path.write_text("# Job\n")
    code, out, err = smoke(path)
    assert code == 1, err
    printed = {line[8:]: line[:8].strip() for line in out.splitlines()}
    assert printed["a second run repeats nothing"] == "FAILED"
    assert printed["rnn: bits per character agree"] == "ok"
    tokens = parsed(path.read_text(encoding="utf-8"))
    failed = list(printed.values()).count("FAILED")
    heading = f"✗ rnnlm smoke: {failed} of {len(printed)} checks failed"
    assert after(tokens, "heading_open") == ["Job", heading, "Checks", "Samples"]
    paragraphs = after(tokens, "paragraph_open")
    for what, outcome in printed.items():
        assert f"{'✓' if outcome == 'ok' else '✗'} {what}" in paragraphs
    cells = after(tokens, "td_open")
    assert cells[:: len(COLUMNS)] == list(done_before["cells"])
    assert cells[len(COLUMNS) - 1 :: len(COLUMNS)].count("yes") == 1
    assert blocks(tokens) == [f"{figures['samples'][0]}\n" for figures in done_before["cells"].values()]
    assert paragraphs[-1] == " · ".join(f"{name} {version}" for name, version in versions().items())


def test_a_chain_that_is_partly_done_is_summarized_and_ends_as_it_does_without(
    smoke: Callable[[Path], tuple[Any, ...]],
    done_before: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = done_before["cells"]["rnn"]
    known = CellSummary(**{**cell, "samples": tuple(cell["samples"])})
    done = RunSummary("smoke", "text", {"rnn": known}, "rnn", "run-p", 1.0, {"executed": 9, "cached": 0}, "/r.html")

    def fail(preset: str) -> None:
        raise PartlyDoneError(done, "gru: out of memory")

    monkeypatch.setattr(smoke_module, "language_model", fail)
    code, out, err = smoke(tmp_path / "summary.md")
    assert (code, out) == (7, ""), err
    tokens = parsed((tmp_path / "summary.md").read_text(encoding="utf-8"))
    assert after(tokens, "heading_open") == ["✗ rnnlm smoke: ended with an error", "Samples"]
    line = err.splitlines()[-1]
    assert blocks(tokens) == [line.removeprefix("error: ") + "\n", f"{cell['samples'][0]}\n"]
    assert after(tokens, "td_open")[:: len(COLUMNS)] == ["rnn"]
