"""Names from anyone: of texts, cells, presets, models. None becomes a path, and none is shown as it was written."""

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm_core.download import download, resolve
from rnnlm_core.errors import DataError, RnnlmError, UsageError, one_line
from rnnlm_core.presets import run_config
from rnnlm_core.store import Store
from tasks import progress, tracked_runs, tracking, tracking_database
from tasks.progress import News

HOSTILE = [
    "../x",
    "..",
    "../../../../../../etc/cron.d/x",
    "/etc/x",
    "//etc/x",
    "~root/x",
    "~nobody-of-this-name/x",
    "a\0b",
    "\0",
    "CON",
    "NUL.txt",
    "x" * 300,
    "x/" * 3000,
    "line\nerror: forged",
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\r overwritten",
    "[red]markup[/red]",
    "\u202eright to left",
    "\u2028separator",
    "\ud800 surrogate",
    "$(touch x)",
    "`touch x`",
    "; touch x",
    "x' OR '1'='1",
    "%2e%2e%2fx",
    "{0.__class__}",
    "!!python/object/apply:os.system ['touch x']",
    "-rf",
]
FILE_NAMES = [name for name in HOSTILE if "/" not in name and "\0" not in name and len(name) < 200 and name != ".."]


def _check_line(error: RnnlmError) -> None:
    (line,) = error.lines
    assert line.isprintable()
    assert len(line) < 2100


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_text_of_that_name_is_told_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises((UsageError, DataError)) as caught:
        resolve(name)
    _check_line(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize("what", ["preset", "cells", "key", "normalizer", "level", "split", "device", "stop"])
def test_no_setting_of_that_name_is_told_in_one_line(what: str, name: str) -> None:
    settings_of = {
        "preset": lambda: run_config(name),
        "cells": lambda: run_config(cells=[name]),
        "key": lambda: run_config(changes={name: "1"}),
        "normalizer": lambda: run_config(changes={"corpus.normalizer": name}),
        "level": lambda: run_config(changes={"tokenizer.level": name}),
        "split": lambda: run_config(changes={"corpus.split": name}),
        "device": lambda: run_config(changes={"train.device": name}),
        "stop": lambda: run_config(changes={"train.epochs": name}),
    }
    with pytest.raises(UsageError) as caught:
        settings_of[what]()
    for line in caught.value.lines:
        assert line.isprintable()
        assert len(line) < 2100


@pytest.mark.parametrize("name", FILE_NAMES, ids=ascii)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_text_of_that_name_is_read_and_shown_harmlessly(kind: str, name: str, tmp_path: Path) -> None:
    place = tmp_path / "texts" / name.encode(errors="surrogateescape" if max(name) >= "\udc80" else "replace").decode()
    place.parent.mkdir()
    if kind == "file":
        place.write_text("some text\n")
    else:
        place.mkdir()
        (place / "a.txt").write_text("some text\n")
    store = Store(tmp_path / "store")
    source = resolve(str(place))
    assert source.name.isprintable()
    assert 0 < len(source.name) <= 100
    handle = download(source, store).handle
    made = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}
    assert made == {f"text/{handle.sha256}/whole.txt", f"text/{handle.sha256}/manifest.json"}


@pytest.mark.parametrize(
    "path",
    ["/%0aerror:%20forged", "/" + "x" * 300, "/%1b[31m.txt", "/..", "/../../etc/x", "/CON", "/\x1b[31m", "/a\tb", "/"],
    ids=ascii,
)
def test_an_address_is_named_harmlessly(path: str) -> None:
    source = resolve(f"https://example.org{path}")
    assert source.name.isprintable()
    assert 0 < len(source.name) <= 100
    assert one_line(source.place).isprintable()


@settings(deadline=None, max_examples=300, database=None, derandomize=True)
@given(st.text(st.characters(codec=None), max_size=600))
def test_any_name_of_no_text_is_told_in_one_line(name: str) -> None:
    nowhere = "no-such-folder-of-this-name/" + name  # `/` alone would be read, with all that lies there
    with pytest.raises((UsageError, DataError)) as caught:
        resolve(nowhere)
    _check_line(caught.value)


# ---------------------------------------------------------------- what is logged


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 2_000_000], ids=lambda name: ascii(name[:40]))
def test_a_warning_is_one_short_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[News] = []
    with progress.listening(heard.append):
        progress.warn("train", f"prefix has {name}")
    (news,) = heard
    assert news.warning.isprintable()
    assert len(news.warning) <= 501


def test_a_warning_in_the_log_is_one_short_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    caplog.set_level(logging.INFO, logger="prefect")
    progress.warn("train", "\x1b[31m\nERROR forged" + "x" * 1000, "gru")
    (record,) = [record for record in caplog.records if record.name.startswith("prefect")]
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 520


@pytest.mark.parametrize("name", FILE_NAMES, ids=ascii)
def test_names_are_shown_in_tables_as_they_are(name: str) -> None:
    """Square brackets mark up nothing: what is printed holds them."""
    from io import StringIO

    from rich.console import Console

    from flows.tables import summary_table

    shown = one_line(name)[:100]
    screen = StringIO()
    summary = {"preset": "quickstart", "corpus": shown, "cells": {}, "best_cell": ""}
    Console(file=screen, width=1000, highlight=False, markup=False, emoji=False).print(summary_table(summary))
    assert shown in screen.getvalue()


# ---------------------------------------------------------------- what is tracked


@pytest.mark.parametrize(
    "name", ["../x", "x" * 300, "line\nend\x1b[31m", "x' OR '1'='1", "a\0b", "[red]x", "\u202ex"], ids=ascii
)
def test_a_run_of_a_text_of_that_name_is_tracked_and_found(name: str, home: Path) -> None:
    shown = one_line(name)[:100]
    with tracking.parent_run("quickstart", shown, {"corpus.name": name}, "flow") as flow:
        pass
    run = tracking_database.client().get_run(flow.parent_run_id)
    assert run.data.tags["rnnlm.corpus"] == shown
    assert tracked_runs.tracked_cells(shown) == []
    outside = [path for path in home.parent.iterdir() if path != home]
    assert outside == []


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\0" not in name and "\ud800" not in name], ids=ascii)
def test_no_model_of_that_name_is_told_in_one_line(name: str, home: Path) -> None:
    with pytest.raises(DataError, match="no such model") as caught:
        tracked_runs.find_model_run(name)
    _check_line(caught.value)


def test_a_filter_is_no_query(home: Path) -> None:
    with tracking.parent_run("quickstart", "book", {}, "flow") as flow, tracking.child_run(flow, "gru", "key", {}):
        pass
    assert len(tracked_runs.tracked_cells("book")) == 1
    for name in ("x' OR tags.`rnnlm.kind` = 'cell", "book' --", "%", "boo_", "' OR '1'='1", 'x" OR "1"="1'):
        assert tracked_runs.tracked_cells(name) == []
