"""Hosts that share a store share their stages: homes that know of each other by `RNNLM_STORE` alone."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnlm_core.remote import Remote
from rnnlm_core.store import Handle
from tasks import caching, health, workspace
from tasks.progress import News

AtHome = Callable[[Path], Any]
Run = Callable[..., dict[str, Any]]
TEXT_STAGES = {"download", "tokenize", "statistics", "vocabulary", "corpus"}


@pytest.fixture(params=["file", "s3"])
def remote(
    request: pytest.FixtureRequest, home: Path, address: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Remote:
    """The place that all homes of the test share."""
    monkeypatch.setenv("RNNLM_STORE", address(request.param))
    shared = workspace.remote()
    assert shared is not None
    return shared


@pytest.fixture
def on_file(address: Callable[[str], str], home: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """The same in a folder, where the kind of place makes no difference."""
    monkeypatch.setenv("RNNLM_STORE", address("file"))
    shared = workspace.remote()
    assert shared is not None
    return shared


def stages(heard: list[News], done: str) -> set[str]:
    return {news.stage for news in heard if news.done == done}


def warnings(heard: list[News]) -> list[str]:
    return [news.warning for news in heard if news.warning]


def test_a_second_host_that_tracks_in_the_same_place_repeats_nothing(
    run: Run, remote: Remote, home: Path, at_home: AtHome, heard: list[News], train_here: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = run()
    assert first["tasks"] == {"executed": 9, "cached": 0}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    heard.clear()
    with at_home(home.parent / "other") as other:
        second = run()
        assert second["tasks"] == {"executed": 0, "cached": 9}
        assert second["cells"]["rnn"] == {**first["cells"]["rnn"], "cached": True}
        assert warnings(heard) == []
        assert list(health.verify(copies=True)) == []
        kinds = {path.name for path in (other / "artifacts" / "store").iterdir()}
        assert "ids" not in kinds
    assert train_here == ["rnn"]
    assert [name for name in remote.names() if name.startswith("checkpoint/")] == []


def test_a_second_host_that_tracks_for_itself_trains_for_itself_and_shares_the_text(
    run: Run, on_file: Remote, home: Path, at_home: AtHome, heard: list[News], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    heard.clear()
    with at_home(home.parent / "other") as other:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other / 'mlflow.db'}")  # it was told the first one's
        run()
        assert stages(heard, "cached") == TEXT_STAGES
        assert warnings(heard) == []  # its runs are gone for nobody: they never were here
        assert list(health.verify()) == []


def test_what_was_made_before_there_was_a_shared_store_is_shared_by_the_next_run(
    run: Run, home: Path, at_home: AtHome, address: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setenv("RNNLM_STORE", address("file"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    assert run()["tasks"] == {"executed": 0, "cached": 9}
    with at_home(home.parent / "other"):
        assert run()["tasks"] == {"executed": 0, "cached": 9}


def test_artifacts_that_were_deleted_here_are_fetched(run: Run, on_file: Remote, home: Path) -> None:
    run()
    shutil.rmtree(home / "artifacts" / "store")
    assert list(health.verify()) == []
    assert run()["tasks"] == {"executed": 0, "cached": 9}


def test_a_damaged_copy_is_told_and_the_stage_done_again(
    run: Run, on_file: Remote, home: Path, at_home: AtHome, heard: list[News]
) -> None:
    run()
    (text,) = on_file.handles("text")
    on_file.write(f"text/{text.sha256}/whole.txt", b"something else")
    (fault,) = health.verify(copies=True)
    assert fault == f"copy of {text} has a damaged whole.txt: {on_file}"
    heard.clear()
    with at_home(home.parent / "other"):
        run()
        assert "download" in stages(heard, "done")
        (told,) = warnings(heard)
        assert told.startswith(f"artifact {text} is missing, and the copy in {on_file} has a damaged whole.txt: doing")
        assert list(health.verify(copies=True)) == []


def test_a_damaged_artifact_here_is_replaced_by_the_copy_and_told(run: Run, on_file: Remote, heard: list[News]) -> None:
    run()
    (text,) = on_file.handles("text")
    (workspace.store().path(text) / "whole.txt").write_text("something else")
    heard.clear()
    assert run()["tasks"] == {"executed": 0, "cached": 9}
    assert warnings(heard) == [f"artifact {text} has a damaged whole.txt: fetched from {on_file}"]


def test_doctor_mends_a_damaged_copy_by_the_artifact_here(run: Run, on_file: Remote) -> None:
    run()
    (text,) = on_file.handles("text")
    lost = Handle("text", "f" * 64)
    on_file.write(f"text/{text.sha256}/whole.txt", b"something else")
    on_file.write(f"text/{lost.sha256}/manifest.json", b"{}")
    done = list(health.repair(copies=True))
    assert f"replaced the copy of {text} in {on_file}, which has a damaged whole.txt, by the one here" in done
    assert any(f"withdrew the copy of {lost}" in line for line in done)
    assert list(health.verify(copies=True)) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", pickle.dumps(print), b'{"metadata": {"serializer": '
                                     b'{"type": "pickle"}}, "result": "gAQu"}'])  # fmt: skip
def test_a_record_that_is_none_is_not_taken_over(
    content: bytes, on_file: Remote, home: Path, heard: list[News]
) -> None:
    on_file.write("records/download-x", content)
    caching._fetch_record("download-x")
    assert not (home / "artifacts" / "results" / "download-x").exists()
    assert heard == []


def test_a_record_that_names_what_nobody_has_is_not_taken_over(run: Run, on_file: Remote, home: Path) -> None:
    run()
    (record,) = (home / "artifacts" / "results").glob("download-*")
    assert on_file.read(f"records/{record.name}") == record.read_bytes()
    record.unlink()
    (text,) = on_file.handles("text")
    workspace.store().discard(text)
    caching._fetch_record(record.name)
    assert not record.exists()


def test_the_failure_of_a_stage_is_nobody_elses(on_file: Remote, home: Path) -> None:
    record = home / "artifacts" / "results" / "train-x"
    record.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"serializer": {"type": caching.READER}}
    record.write_text(json.dumps({"metadata": metadata, "result": json.dumps({"failure": "no"})}))
    caching._share_record("train-x")
    caching._share_record("never-recorded")
    assert on_file.names() == []
