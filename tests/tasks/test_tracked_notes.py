"""What a run's page says, what the run is called, and whose words are kept."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from rnnlm_core.outcomes import Epoch, Evaluated, Trained
from rnnlm_core.store import Handle
from tasks import run_origin, tracked_notes, tracking, wording
from tasks.tracking import FlowRun
from tasks.tracking_database import client, experiment_id

HISTORY = tuple(Epoch(n, 20, 1.6, 1.5 - 0.1 * n, 1e-3, 0.5, 26000.0, 16.0) for n in range(1, 6))
TRAINED = Trained("gru", Handle("model", "0" * 64), 5, 271000, "cpu", 26000.0, HISTORY)
TEST = Evaluated("test", 1.366, 3.92, 1.97, 0.0, 1000, "none")
PARAMETERS = {"corpus.name": "python-docs", "tokenizer.level": "char", "model.hidden_size": 256, "train.epochs": 10}


@pytest.fixture
def run_id(home: Path) -> str:
    with (
        tracking.parent_run("quickstart", "python-docs", PARAMETERS, "") as flow,
        tracking.child_run(flow, "gru", "key", {}) as run,
    ):
        return run


def tags_of(run_id: str) -> dict[str, str]:
    return dict(client().get_run(run_id).data.tags)


def test_a_cell_says_in_words_what_it_came_to(run_id: str) -> None:
    tracked_notes.note_cell(run_id, TRAINED, TEST)
    tags = tags_of(run_id)
    assert tags["mlflow.runName"] == "gru ppl 3.920 · python-docs"
    assert tags["mlflow.note.content"] == (
        "**GRU**, 256 hidden, 1 layer, on python-docs (characters): "
        "test perplexity **3.920** (1.970 bits per character).\n\n"
        "The weights are those of epoch 5 of 5 (stopped early, 20 allowed), the best by validation perplexity (2.718). "
        "Trained in 1m20s on cpu at 26,000 tokens/s; 271,000 parameters.\n\n"
        "Run again with `rnnlm run --preset quickstart --cells gru --set model.hidden_size=256 --set train.epochs=10`"
    )


def test_words_and_names_of_somebody_else_are_kept(run_id: str) -> None:
    tracked_notes.note_cell(run_id, TRAINED, TEST)
    other = Evaluated("valid", 1.0, 2.718, 1.44, 0.25, 1000, "none")
    tracked_notes.note_cell(run_id, TRAINED, other)
    assert tags_of(run_id)["mlflow.runName"] == "gru valid ppl 2.718 · python-docs"
    assert "25.00% of the tokens unknown" in tags_of(run_id)["mlflow.note.content"]
    client().set_tag(run_id, "mlflow.note.content", "the one for the talk")
    client().update_run(run_id, name="my favourite")
    tracked_notes.note_cell(run_id, TRAINED, TEST)
    assert tags_of(run_id)["mlflow.note.content"] == "the one for the talk"
    assert tags_of(run_id)["mlflow.runName"] == "my favourite"


def test_a_parent_names_its_best_links_what_was_found_and_tells_what_failed(parent: FlowRun) -> None:
    (link,) = tracked_notes.links({"rnn": "abc"}).values()
    assert link == f"[rnn](#/experiments/{experiment_id()}/runs/abc)"
    tracked_notes.note_pipeline(
        parent, "rnn", "ppl 4.000, chosen by validation perplexity", "| t |", [link], "gru: died"
    )
    tags = tags_of(parent.parent_run_id)
    assert tags["mlflow.runName"] == "smoke · rnn ppl 4.000 · text"
    assert tags["mlflow.note.content"].split("\n\n") == [
        "smoke on text: **rnn** is best, ppl 4.000, chosen by validation perplexity.",
        "| t |",
        f"Already trained, nothing repeated: {link}.",
        "Failed: gru: died",
        "Run again with `rnnlm run --preset smoke --cells rnn,gru --set model.hidden_size=8`",
    ]


def test_the_command_names_what_differs_from_the_preset_alone() -> None:
    told = {"corpus.name": "/a b/text.txt", "cells": "rnn,gru,lstm", "train.epochs": "3", "model.tie_weights": "True"}
    assert shlex.split(wording.command("smoke", told, "gru"))[2:] == [
        "--preset", "smoke", "--corpus", "/a b/text.txt", "--cells", "gru",
        "--set", "train.epochs=3", "--set", "model.tie_weights=true",
    ]  # fmt: skip
    assert wording.command("a preset of last year", told) == ""


@pytest.mark.parametrize(
    ("settings", "link"),
    [
        ({"PREFECT_API_URL": "http://prefect:4200/api"}, "http://prefect:4200/runs/flow-run/f-1"),
        ({"PREFECT_API_URL": "http://x/api", "PREFECT_UI_URL": "https://ui"}, "https://ui/runs/flow-run/f-1"),
        ({"PREFECT_API_URL": "http://127.0.0.1:1234/api"}, None),  # our own, which ends with the command
        (
            {"PREFECT_API_URL": "http://127.0.0.1:1234/api", "PREFECT_UI_URL": "https://ui"},
            "https://ui/runs/flow-run/f-1",
        ),
    ],
)
def test_a_run_links_to_prefect_where_that_will_still_be_there(
    settings: dict[str, str], link: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import settings as prefect

    monkeypatch.setattr(run_origin, "_own_servers", [])
    run_origin.note_own_server("http://127.0.0.1:1234/api")
    changed: dict[Any, Any] = {getattr(prefect, name): value for name, value in settings.items()}
    with prefect.temporary_settings(changed, restore_defaults={prefect.PREFECT_API_URL, prefect.PREFECT_UI_URL}):
        assert run_origin.prefect_link("f-1") == ({} if link is None else {"prefect.flow_run_url": link})
