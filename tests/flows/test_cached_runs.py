"""Running again repeats what changed, and nothing else."""

import base64
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.language_model import language_model
from tasks import caching, tracked_runs, workspace
from tasks.progress import News
from tasks.tracking_database import client

Run = Callable[..., dict[str, Any]]
ALL = ["download", "tokenize", "statistics", "vocabulary", "corpus", "train", "evaluate", "generate", "compare"]


def stages(heard: list[News], done: str = "done") -> set[str]:
    """Return the stages that were executed, and forget the news."""
    found = {news.stage for news in heard if news.done == done}
    heard.clear()
    return found


def record_of(stage: str) -> Path:
    (record,) = (workspace.artifacts() / "results").glob(f"{stage}-*")
    return record


def test_a_second_run_repeats_nothing_and_says_the_same(run: Run, heard: list[News], train_here: list[str]) -> None:
    first = run()
    assert stages(heard) == set(ALL)
    second = run()
    assert stages(heard, "cached") == set(ALL)
    assert second["tasks"] == {"executed": 0, "cached": 9}
    assert train_here == ["rnn"]
    assert second["cells"]["rnn"] == {**first["cells"]["rnn"], "cached": True}
    assert second["parent_run_id"] != first["parent_run_id"]
    tags = client().get_run(second["parent_run_id"]).data.tags
    assert tags["rnnlm.child.rnn"] == first["cells"]["rnn"]["run_id"]
    assert tags["rnnlm.found_trained"] == "rnn"
    run_id = first["cells"]["rnn"]["run_id"]
    experiment = client().get_run(run_id).info.experiment_id
    link = f"Already trained, nothing repeated: [rnn](#/experiments/{experiment}/runs/{run_id})."
    assert link in tags["mlflow.note.content"]
    assert len(client().get_run(run_id).inputs.dataset_inputs) == 1


def test_fewer_or_more_cells_train_only_what_is_new(run: Run, heard: list[News], train_here: list[str]) -> None:
    run(("rnn", "gru"))
    train_here.clear()
    heard.clear()
    assert run(("gru",))["tasks"] == {"executed": 1, "cached": 8}  # the comparison is another one
    assert stages(heard) == {"compare"}
    run(("gru", "lstm"))
    assert train_here == ["lstm"]


def test_each_change_repeats_the_stages_it_reaches(run: Run, heard: list[News], text: Path, home: Path) -> None:
    run()
    heard.clear()
    for changes, reached in [
        ({"generate__length": 12}, {"generate"}),
        ({"generate__temperature": 0.7}, {"generate"}),
        ({"evaluate__split": "valid"}, {"evaluate", "generate", "compare"}),
        ({"train__learning_rate": 2e-3}, {"train", "evaluate", "generate", "compare"}),
        ({"model__hidden_size": 9}, {"train", "evaluate", "generate", "compare"}),
        ({"tokenizer__min_freq": 2}, {"vocabulary"}),  # no character is that rare: the same vocabulary
    ]:
        run(**changes)
        assert stages(heard) == reached, changes
    text.write_text(text.read_text()[::-1])
    run()
    assert stages(heard) == set(ALL)


@pytest.mark.parametrize(("level", "kept"), [("char", {"download", "tokenize", "statistics"}), ("bpe", {"download"})])
def test_another_division_cuts_the_text_again_only_where_tokens_are_learnt_from_it(
    run: Run, heard: list[News], level: str, kept: set[str]
) -> None:
    pairs = {"tokenizer__bpe_size": 270} if level == "bpe" else {}
    run(tokenizer__level=level, **pairs)
    assert stages(heard) == set(ALL)
    run(tokenizer__level=level, **pairs, corpus__split="70/20/10")
    assert stages(heard) == set(ALL) - kept


def test_the_same_text_elsewhere_under_another_name_repeats_nothing(
    run: Run, heard: list[News], text: Path, tmp_path: Path
) -> None:
    from_here = run()
    heard.clear()
    shutil.move(text, tmp_path / "moved.md")
    parent = client().get_run(from_here["parent_run_id"])
    changes = {key: value for key, value in parent.data.params.items() if key not in ("corpus.name", "cells")}
    # MLflow shows True and False, which are typed true and false.
    changes = {key: value.lower() if value in ("True", "False") else value for key, value in changes.items()}
    again = language_model("time-machine", str(tmp_path / "moved.md"), ["rnn"], changes)
    assert stages(heard, "cached") == set(ALL)
    assert again["tasks"]["executed"] == 0
    assert again["corpus"] == "moved.md"


def test_the_same_model_from_another_training_has_figures_in_its_own_run(run: Run, train_here: list[str]) -> None:
    first = run()
    second = run(train__device="auto")
    assert train_here == ["rnn", "rnn"]
    one, other = (summary["cells"]["rnn"]["run_id"] for summary in (first, second))
    assert one != other
    figures = [client().get_run(run_id).data.metrics["test/perplexity"] for run_id in (one, other)]
    assert figures[0] == figures[1] == second["cells"]["rnn"]["test_perplexity"]


@pytest.mark.parametrize("stage", ["download", "tokenize", "statistics", "vocabulary", "corpus", "compare"])
def test_a_lost_or_edited_artifact_is_made_again_alone_with_one_warning(
    run: Run, home: Path, heard: list[News], train_here: list[str], stage: str
) -> None:
    first = run()
    heard.clear()
    train_here.clear()
    record = json.loads(json.loads(record_of(stage).read_text())["result"])
    handle = record["value"]["handle"]
    folder = home / "artifacts" / "store" / handle["kind"] / handle["sha256"]
    if stage in ("tokenize", "compare"):
        shutil.rmtree(folder)
    else:
        victim = next(path for path in sorted(folder.iterdir()) if path.name != "manifest.json")
        victim.write_bytes(victim.read_bytes() + b" ")
    second = run()
    warnings = [news.warning for news in heard if news.warning]
    assert len(warnings) == 1, warnings
    assert f"artifact {handle['kind']}:{handle['sha256'][:12]}" in warnings[0]
    assert "doing it again" in warnings[0]
    assert stages(heard) == {stage}
    assert train_here == []
    assert second["tasks"] == {"executed": 1, "cached": 8}
    assert second["cells"]["rnn"] == {**first["cells"]["rnn"], "cached": True}


def test_a_lost_model_is_trained_again_into_the_same_run(
    run: Run, home: Path, heard: list[News], train_here: list[str]
) -> None:
    first = run()
    heard.clear()
    shutil.rmtree(home / "artifacts" / "store" / "model")
    second = run()
    warnings = [news.warning for news in heard if news.warning]
    assert len(warnings) == 1, warnings
    assert "artifact model:" in warnings[0]
    assert train_here == ["rnn", "rnn"]
    assert stages(heard) == {"train"}
    assert second["cells"]["rnn"]["run_id"] == first["cells"]["rnn"]["run_id"]
    assert [step for step, _ in tracked_runs.curve(first["cells"]["rnn"]["run_id"], "train/loss")] == [1, 2]


def test_a_deleted_mlflow_run_is_trained_again(run: Run, heard: list[News], train_here: list[str]) -> None:
    first = run()["cells"]["rnn"]
    heard.clear()
    client().delete_run(first["run_id"])
    second = run()["cells"]["rnn"]
    assert train_here == ["rnn", "rnn"]
    assert {news.warning.split(" is gone")[0] for news in heard if news.warning} == {f"MLflow run {first['run_id']}"}
    assert len([news for news in heard if news.warning]) == 1
    assert second["run_id"] != first["run_id"]
    assert second["test_perplexity"] == first["test_perplexity"]
    run_of = client().get_run(second["run_id"])
    assert run_of.info.status == "FINISHED"
    assert run_of.data.metrics["perplexity"] == first["test_perplexity"]


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return Path.write_text, (self.place, "run")


def test_planted_and_garbled_records_run_nothing_and_do_not_count(
    run: Run, home: Path, heard: list[News], tmp_path: Path
) -> None:
    first = run()
    traces = [tmp_path / "trace-pickle", tmp_path / "trace-compressed"]
    pickled = [base64.encodebytes(pickle.dumps(Planted(trace))).decode() for trace in traces]

    def plant(stage: str, serializer: dict[str, Any], result: str) -> None:
        record = json.loads(record_of(stage).read_text())
        record["metadata"]["serializer"] = serializer
        record["result"] = result
        record_of(stage).write_text(json.dumps(record))

    plant("download", {"type": "pickle"}, pickled[0])
    plant("tokenize", {"type": "compressed/pickle"}, pickled[1])
    plant("vocabulary", {"type": "json"}, '{"handle": null}')
    record_of("corpus").write_bytes(b"\x80\x04garbage")
    record_of("compare").write_bytes(b"")
    heard.clear()
    second = run()
    warnings = [news.warning for news in heard if news.warning]
    assert len(warnings) == 5, warnings
    assert all("not a record of ours" in warning for warning in warnings)
    assert stages(heard) == {"download", "tokenize", "vocabulary", "corpus", "compare"}
    assert [trace.exists() for trace in traces] == [False, False]
    assert second["cells"]["rnn"] == {**first["cells"]["rnn"], "cached": True}


def test_an_honest_pickle_would_have_run(tmp_path: Path) -> None:
    """What is planted above does leave its trace when it is read as a pickle."""
    pickle.loads(pickle.dumps(Planted(tmp_path / "trace")))  # noqa: S301 - our own
    assert (tmp_path / "trace").read_text() == "run"


def truncated(record: Path) -> None:
    record.write_bytes(record.read_bytes()[:-40])


def a_folder(record: Path) -> None:
    record.unlink()
    record.mkdir()
    (record / "within").write_text("something")


@pytest.mark.parametrize("spoil", [truncated, a_folder])
def test_what_is_no_record_any_more_is_made_again_with_one_warning(
    run: Run, heard: list[News], train_here: list[str], spoil: Callable[[Path], None]
) -> None:
    first = run()
    heard.clear()
    spoil(record_of("vocabulary"))
    second = run()
    (warning,) = [news.warning for news in heard if news.warning]
    assert "not a record of ours" in warning
    assert stages(heard) == {"vocabulary"}
    assert second["cells"]["rnn"] == {**first["cells"]["rnn"], "cached": True}
    assert run()["tasks"]["executed"] == 0


@pytest.fixture
def full_disk_for_records(home: Path) -> Iterator[Path]:
    """A file system of its own for the records, on which nothing fits any more until the file `ballast` is removed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = workspace.artifacts() / "results"
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],  # noqa: S607
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        (place / "ballast").write_bytes(bytes(shutil.disk_usage(place).free))
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: S607


def test_records_that_do_not_fit_on_the_disk_are_told_and_made_by_the_next_run(
    run: Run, heard: list[News], train_here: list[str], full_disk_for_records: Path
) -> None:
    first = run()
    warnings = [news.warning for news in heard if news.warning]
    assert len(warnings) == 9
    assert all("cannot be kept, the next run does it again: no space left" in warning for warning in warnings)
    (full_disk_for_records / "ballast").unlink()
    heard.clear()
    second = run()
    assert len([news for news in heard if "not a record of ours" in news.warning]) == 9  # empty files
    assert second["tasks"] == {"executed": 9, "cached": 0}
    third = run()
    assert third["tasks"] == {"executed": 0, "cached": 9}
    assert first["cells"]["rnn"]["test_perplexity"] == third["cells"]["rnn"]["test_perplexity"]


def test_what_was_made_while_its_code_changed_is_not_kept(
    run: Run, heard: list[News], train_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    present = caching.present_digest
    with monkeypatch.context() as patch:
        patch.setattr(caching, "present_digest", lambda module: present(module) + "?" * module.endswith(".tokenize"))
        run()
    told = "tokenize: its code has changed since this command began: the next run does it again"
    assert [news.warning for news in heard if news.warning] == [told]
    heard.clear()
    run()
    assert stages(heard) == {"tokenize"}
    run()
    assert stages(heard) == set()
