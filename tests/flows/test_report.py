"""The report: one page that loads nothing, escapes everything, and says what was and what was not done."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flows import report as report_module
from flows.report import Cell, Report, Stage, render
from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.compare import Row
from rnnlm_core.corpus import Corpus, SplitFacts
from rnnlm_core.download import Source
from rnnlm_core.errors import ResourceError
from rnnlm_core.outcomes import Epoch, Sample
from rnnlm_core.statistics import Grams, Statistics
from rnnlm_core.store import Handle
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import train as train_stage
from tasks import workspace
from tasks.tracking import FlowRun
from tasks.tracking_database import client

HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>{{ 7 * 7 }}"
VOID = {"meta", "img", "br", "hr", "input", "link"}
PICTURE = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@dataclass
class Page(HTMLParser):
    """What a browser would make of a page: elements in order, texts, and tags that do not match."""

    page: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.feed(self.page)
        self.close()
        self.mistakes += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attributes in self.elements for key, value in attributes.items() if key == name]


def epoch(number: int, train: float, valid: float | None) -> Epoch:
    return Epoch(number, 2, train, valid, 0.5, 1.0, 1000.0, 2.0)


def cell(name: str, **changes: Any) -> Cell:
    row = Row(name, 5.25, 6.5, 7.125, 2.8328, 12345.6, 4711, 2, 2)
    history = (epoch(1, math.log(9), math.log(11)), epoch(2, math.log(5.25), math.log(6.5)))
    samples = (Sample("the ", f"the end of {name}"),)
    made = Cell(row, history, samples, "cpu", f"run-of-{name}", "0123456789abcdef", cached=False)
    return replace(made, **changes)


def stages(cells: list[str], outcome: str) -> tuple[Stage, ...]:
    whole = [Stage(name, "", outcome) for name in ("download", "tokenize", "vocabulary", "corpus", "statistics")]
    each = [Stage(name, one, outcome) for name in ("train", "evaluate", "generate") for one in cells]
    return (*whole, *each, Stage("compare", "", outcome))


def a_report(**changes: Any) -> Report:
    settings = {
        "tokenizer.level": "char", "tokenizer.eos": "none", "corpus.normalizer": "none",
        "generate.temperature": "0.5", "generate.seed": "0", "train.epochs": "2",
    }  # fmt: skip
    made = Report(
        run=FlowRun("parent-run", "smoke", "book.txt", tuple(settings.items()), "prefect-run"),
        source=Source("book.txt", "local", "/texts/book.txt", (("whole", "ab" * 32),)),
        sha256={"whole": "ab" * 32},
        corpus=Corpus(
            Handle("corpus", "0" * 64), {"train": SplitFacts(4800, 0, 4799), "test": SplitFacts(600, 3, 599)}
        ),
        vocabulary=BuiltVocabulary(Handle("vocabulary", "0" * 64), 27),
        statistics=Statistics(Handle("statistics", "0" * 64), 6000, (Grams(1, 26, None, ()), Grams(2, 300, 1.25, ()))),
        cells=(cell("rnn"), cell("gru")),
        best_cell="gru",
        failures={},
        stages=stages(["rnn", "gru"], "done"),
        seconds=61.0,
        curves=PICTURE,
        zipf=PICTURE,
        versions={"rnnlm": "0.1.0", "torch": "2.10"},
        revision="fedcba9876543210",
        tracking_uri="sqlite:////home/mlflow.db",
        experiment_id="1",
        written=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    return replace(made, **changes)


def section(page: str, name: str) -> str:
    """Return the text of one section."""
    return Page(page.split(f'<section id="{name}">')[1].split("</section>", maxsplit=1)[0]).text


def test_the_page_is_whole_and_shows_what_a_run_came_to() -> None:
    page = Page(render(a_report()))
    assert page.mistakes == []
    assert "smoke · book.txt" in page.text
    assert "12 stages done, 0 found done before, 1m01s of work. Best cell: gru ." in page.text
    assert "gru * 5.250 6.500 7.125 2.833 12,346 4,711 2 2 4s" in page.text
    assert "1 9.000 11.000 9.000 11.000 2 5.250 6.500 5.250 6.500" in page.text
    assert "rnn the end of rnn gru the end of gru" in page.text
    assert "test 600 3 0.500%" in page.text
    assert "27 tokens" in page.text
    assert "bigram 300 1.250" in page.text
    assert "unigram 26 –" in page.text
    assert "run-of-gru" in page.text
    assert "torch 2.10" in page.text
    assert "fedcba9876543210" in page.text
    assert "train.epochs 2" in page.text


def test_a_column_of_dynamic_evaluation_is_there_where_somebody_asked() -> None:
    learnt = Page(render(a_report(cells=(cell("rnn"), cell("gru", dynamic_perplexity=6.25)))))
    assert learnt.mistakes == []
    assert "test dynamic bits/char" in learnt.text
    assert "gru * 5.250 6.500 7.125 6.250 2.833" in learnt.text
    assert "rnn 5.250 6.500 7.125 – 2.833" in learnt.text
    assert "dynamic" not in Page(render(a_report())).text


def test_nothing_is_loaded_and_nothing_is_run() -> None:
    address = "https://mlflow.example/"
    page = Page(render(a_report(source=Source("shakespeare", "catalogue", "", ()), tracking_uri=address)))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert page.attributes("src") == [report_module._data_address(PICTURE)] * 2
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "url(" not in page.page
    assert "@import" not in page.page
    # What leads elsewhere is followed by a click alone.
    links = {attributes["href"] for tag, attributes in page.elements if "href" in attributes and tag == "a"}
    assert set(page.attributes("href")) == links
    (published,) = CATALOGUE["shakespeare"].files[0].addresses
    runs = {f"https://mlflow.example/#/experiments/1/runs/{run}" for run in ("parent-run", "run-of-rnn", "run-of-gru")}
    assert links == {published, *runs}


def test_a_local_database_has_no_address_to_go_to() -> None:
    assert Page(render(a_report())).attributes("href") == []


def test_what_comes_from_outside_is_text() -> None:
    samples = (Sample(HOSTILE, HOSTILE + " and on"),)
    hostile = a_report(
        run=FlowRun(HOSTILE, HOSTILE, HOSTILE, tuple((key, HOSTILE) for key in a_report().settings), HOSTILE),
        source=Source(HOSTILE, "local", HOSTILE, ()),
        sha256={HOSTILE: HOSTILE},
        corpus=Corpus(Handle("corpus", "0" * 64), {HOSTILE: SplitFacts(1, 0, 1)}),
        cells=(cell("rnn", samples=samples, device=HOSTILE, run_id=HOSTILE, revision=HOSTILE),),
        failures={"gru": HOSTILE},
        versions={"rnnlm": HOSTILE},
        revision=HOSTILE,
        tracking_uri="https://mlflow.example/" + HOSTILE,
    )
    page, plain = Page(render(hostile)), Page(render(a_report(cells=(cell("rnn"),), failures={"gru": "why"})))
    assert page.mistakes == []
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements} | {"a"}
    assert page.attributes("src") == plain.attributes("src")
    assert page.attributes("onerror") == []
    assert "<script" not in page.page
    assert "49" not in page.page
    assert f"{HOSTILE} and on" in page.text
    assert [address.startswith("https://mlflow.example/") for address in page.attributes("href")] == [True, True]


def test_a_name_of_a_file_has_nothing_a_path_or_a_shell_would_trip_over() -> None:
    run = FlowRun("0123456789abcdef", "smoke", f"../../{HOSTILE}/歌詞 1.txt", (), "")
    name = a_report(run=run).file_name
    assert name == "smoke-script-alert-1-script-img-src-http-20260102T030405Z-01234567.html"
    assert a_report(run=replace(run, corpus="歌詞 1.txt")).file_name.startswith("smoke-歌詞-1.txt-")
    assert a_report(run=replace(run, corpus="..")).file_name.startswith("smoke-text-")


def test_what_is_no_figure_is_a_dash() -> None:
    row = replace(cell("rnn").row, valid_perplexity=None, test_perplexity=math.nan, bits_per_char=math.inf)
    history = (epoch(1, math.log(9), None), epoch(2, math.nan, None))
    page = render(a_report(cells=(cell("rnn", row=row, history=history),), best_cell="rnn"))
    assert "rnn * 5.250 – – ∞ 12,346" in section(page, "comparison")
    assert "1 9.000 – 2 – –" in section(page, "curves")
    assert "nan" not in page.lower().replace("nano", "")
    assert "None" not in page


def test_one_cell_is_enough() -> None:
    page = Page(render(a_report(cells=(cell("lstm"),), best_cell="lstm", stages=stages(["lstm"], "done"))))
    assert page.mistakes == []
    assert "10 stages done" not in page.text
    assert "9 stages done, 0 found" in page.text
    assert "gru" not in page.text


def test_cells_with_fewer_epochs_leave_their_place_empty() -> None:
    long = cell("gru")
    short = cell("rnn", row=replace(cell("rnn").row, epochs=1), history=long.history[:1])
    assert "1 9.000 11.000 9.000 11.000 2 5.250 6.500" in section(render(a_report(cells=(short, long))), "curves")


def test_a_failed_cell_is_named_with_its_reason() -> None:
    failed = [Stage("train", "gru", "failed"), Stage("evaluate", "gru", "not reached")]
    made = a_report(
        cells=(cell("rnn"),),
        best_cell="rnn",
        failures={"gru": "out of memory: 3 GB: lower train.batch_size"},
        stages=(*stages(["rnn"], "done"), *failed),
    )
    page = render(made)
    assert section(page, "failures").startswith("Failed cells cell reason gru out of memory: 3 GB: lower train.batch")
    assert "train rnn done , gru failed" in section(page, "stages")
    assert "evaluate rnn done , gru not reached" in section(page, "stages")
    assert "Not all cells could be trained" in page
    assert 'id="failures"' not in render(a_report())


def test_a_run_that_found_everything_says_so() -> None:
    cells = (cell("rnn", cached=True), cell("gru", cached=True))
    page = Page(render(a_report(cells=cells, stages=stages(["rnn", "gru"], "cached"))))
    assert "Nothing was repeated: all 12 stages were found done before." in page.text
    assert "of work" not in page.text
    assert "run-of-gru before cpu" in page.text
    assert "train rnn cached , gru cached" in page.text


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_a_corpus_of_the_catalogue_comes_with_licence_and_addresses(name: str) -> None:
    entry = CATALOGUE[name]
    kind = "catalogue" if entry.files else "embedded"
    page = render(a_report(source=Source(name, kind, "", ())))
    text = section(page, "corpus")
    assert entry.title in text
    assert entry.licence in text
    for file in entry.files:
        assert all(address in text for address in file.addresses)
    # A file that happens to be called like one is another text.
    assert entry.licence not in section(render(a_report(source=Source(name, "local", "/x", ()))), "corpus")


def test_a_flow_leaves_its_report_on_the_disk_and_in_mlflow(finished: Any, at_home: Any, tmp_path: Path) -> None:
    path = Path(finished.summary["report"])
    assert path.parent == finished.home / "artifacts" / "reports"
    assert path.name.startswith("smoke-book.txt-")
    assert path.name.endswith(f"{finished.summary['parent_run_id'][:8]}.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.mistakes == []
    for figures in finished.summary["cells"].values():
        assert figures["run_id"] in page.text
        assert f"{figures['test_perplexity']:.3f}" in page.text
    pictures = page.attributes("src")
    assert [picture.startswith("data:image/svg+xml;base64,") for picture in pictures] == [True, True]
    with at_home(finished.home):
        copy = client().download_artifacts(finished.summary["parent_run_id"], "report.html", str(tmp_path))
    assert Path(copy).read_bytes() == path.read_bytes()


def test_a_second_run_has_a_report_of_its_own_and_half_a_file_of_a_killed_one_is_swept(
    run: Callable[..., dict[str, Any]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run()
    left = workspace.reports() / ".smoke.html.x1y2z3.tmp"
    left.write_text("half")
    os.utime(left, (0, 0))
    second = run()
    assert not left.exists()
    assert first["report"] != second["report"]
    assert {str(path) for path in workspace.reports().iterdir()} == {first["report"], second["report"]}
    assert "Nothing was repeated: all 9 stages" in Page(Path(second["report"]).read_text()).text


def test_a_report_that_cannot_be_written_is_an_error_that_costs_no_training(
    run: Callable[..., dict[str, Any]], home: Path, train_here: list[str]
) -> None:
    workspace.artifacts().mkdir(parents=True)
    workspace.reports().write_text("no folder")
    with pytest.raises(ResourceError, match="cannot write the report") as caught:
        run()
    assert caught.value.exit_code == 5
    workspace.reports().unlink()
    train_here.clear()
    assert run()["tasks"] == {"executed": 0, "cached": 9}
    assert train_here == []


def test_the_report_of_a_partly_done_run_names_what_failed(
    run: Callable[..., dict[str, Any]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = train_stage.train_in_child

    def fail_gru(job: Any, *rest: Any) -> dict[str, Any]:
        if job.cell == "gru":
            raise ResourceError("training of gru was killed", "<SIGKILL>", "lower train.batch_size")
        return works(job, *rest)

    monkeypatch.setattr(train_stage, "train_in_child", fail_gru)
    with pytest.raises(Exception, match="some cells failed") as caught:
        run(("rnn", "gru"))
    summary = caught.value.summary.as_json()  # type: ignore[attr-defined]
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "training of gru was killed: <SIGKILL>" in section(page, "failures")
    assert "train rnn done , gru failed" in section(page, "stages")
    assert json.dumps(summary)
