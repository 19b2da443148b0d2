"""Deployments that start by themselves: `rnnlm up`, a schedule, a watched file, and how all of it ends."""

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from homes import PROJECT
from stack import TINY, Stack, databases, invented_text, now, stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for the tests of this file, in their order."""
    with databases(request.param) as settings, stack(tmp_path_factory.mktemp("up"), **settings) as one:
        one.start()
        yield one


@pytest.fixture(scope="module")
def text(up: Stack) -> Path:
    """The text that the deployments of this file read."""
    path = up.home / "text.txt"
    path.write_text(invented_text(0))
    return path


def test_it_prints_the_addresses_and_they_answer(up: Stack) -> None:
    assert f"Prefect:  http://127.0.0.1:{up.prefect_port}\n" in up.said
    assert f"MLflow:   http://127.0.0.1:{up.mlflow_port}\n" in up.said
    for address in (f"{up.api}/health", f"http://127.0.0.1:{up.mlflow_port}/health"):
        assert httpx.get(address, timeout=60).status_code == 200
    found = f"http://127.0.0.1:{up.mlflow_port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=rnnlm"
    assert httpx.get(found, timeout=60).status_code == 200
    names = {one["name"] for one in up.ask("deployments")}
    assert names == {"smoke", "train-cell", "nightly-time-machine", "weekly-words", "watch-corpus"}


def test_a_schedule_fires_twice_and_the_second_run_does_only_cached_work(up: Stack, text: Path) -> None:
    parameters = {"preset": "smoke", "corpus": str(text), "cells": ["gru"], "changes": TINY}
    up.deploy("every-20-seconds", "flows.retrain.retrain", parameters)
    first, second = up.wait_for(
        lambda: up.completed("every-20-seconds")[:2][1:] and up.completed("every-20-seconds")[:2], 240
    )
    assert first["auto_scheduled"]
    assert second["auto_scheduled"]
    assert up.trainings(text.name) == 1
    pipelines = [run for run in up.tagged("rnnlm.corpus", text.name) if run["rnnlm.kind"] == "pipeline"][:2]
    assert [run["status"] for run in pipelines] == ["FINISHED", "FINISHED"]
    assert [run.get("rnnlm.found_trained") for run in pipelines] == [None, "gru"]
    messages = [one["state"]["message"].split(":")[0] for one in (first, second)]
    assert messages == ["promoted", "unchanged"]
    (verdict, *_) = up.ask("artifacts", artifacts={"key": {"any_": ["verdict-rnnlm-text-txt"]}})
    assert "validation perplexity" in verdict["data"]
    up.deploy("every-20-seconds", "flows.retrain.retrain", parameters, every=None)


def test_a_watched_file_is_trained_when_it_was_edited_and_only_then(up: Stack) -> None:
    watched = up.home / "watched.txt"
    watched.write_text(invented_text(2))
    parameters = {"preset": "smoke", "corpus": str(watched), "cells": ["gru"], "changes": TINY}
    up.deploy("watch-text", "flows.watch_corpus.watch_corpus", parameters)
    up.wait_for(lambda: len(up.completed("watch-text")) >= 3, 280)
    assert [run["state_name"] for run in up.completed("watch-text")[:3]] == ["Completed", "Unchanged", "Unchanged"]
    assert up.trainings(watched.name) == 1
    watched.write_text(invented_text(2) + " " + invented_text(1, 500))
    edited = now()
    up.wait_for(lambda: len(up.completed("watch-text", edited)) >= 2, 280)
    assert [run["state_name"] for run in up.completed("watch-text", edited)[:2]] == ["Completed", "Unchanged"]
    assert up.trainings(watched.name) == 2
    up.deploy("watch-text", "flows.watch_corpus.watch_corpus", parameters, every=None)


def test_a_wrong_parameter_is_refused_before_there_is_a_run(up: Stack) -> None:
    for parameter, said in (
        ("preset=smokey", "'smokey' is not one of"),
        ('changes={"train.epochz": 1}', "train.epochz"),
    ):
        refused = up.run("prefect", "deployment", "run", "watch-corpus/watch-corpus", "-p", parameter)
        assert refused.returncode == 1
        assert said in refused.stdout + refused.stderr


def test_a_regression_pauses_its_deployment_by_the_example_automation(up: Stack, text: Path) -> None:
    made = up.run(
        "prefect", "automation", "create", "--from-file", PROJECT / "docs/automations/pause-after-regression.yaml"
    )
    assert made.returncode == 0, made.stdout + made.stderr
    spoilt = TINY | {"train.learning_rate": 1e-6}
    parameters = {"preset": "smoke", "corpus": str(text), "cells": ["gru"], "changes": spoilt}
    up.deploy("worse", "flows.retrain.retrain", parameters, every=3600)
    (deployment,) = up.ask("deployments", deployments={"name": {"any_": ["worse"]}})
    assert not deployment["paused"]
    assert up.run("prefect", "deployment", "run", "retrain/worse").returncode == 0
    (run,) = up.wait_for(lambda: up.completed("worse"), 240)
    assert run["state"]["message"].startswith("regression: ")
    up.wait_for(lambda: up.ask("deployments", deployments={"name": {"any_": ["worse"]}})[0]["paused"], 60)


def test_a_flow_that_fails_raises_an_event(up: Stack) -> None:
    missing = up.home / "missing.txt"
    up.deploy("fails", "flows.retrain.retrain", {"preset": "smoke", "corpus": str(missing)}, every=None)
    assert up.run("prefect", "deployment", "run", "retrain/fails").returncode == 0
    (run,) = up.wait_for(
        lambda: up.runs("fails") and up.runs("fails")[0]["state_type"] == "FAILED" and up.runs("fails"), 240
    )
    assert str(missing) in run["state"]["message"]
    found = up.wait_for(lambda: up.events("rnnlm.retraining.failed"), 60)
    assert found[0]["resource"]["prefect.resource.id"] == "rnnlm.model.rnnlm-missing.txt"
    assert str(missing) in found[0]["payload"]["reason"]


def test_a_second_one_is_refused_in_one_line(up: Stack) -> None:
    refused = up.run("rnnlm", "up", "--prefect-port", up.prefect_port)
    assert refused.returncode == 5
    assert refused.stderr == f"error: it is up already: http://127.0.0.1:{up.prefect_port}: `rnnlm down` ends it\n"


def test_what_ctrl_c_ends_goes_on_and_what_is_due_meanwhile_is_cancelled(up: Stack) -> None:
    text = up.home / "long.txt"
    text.write_text(invented_text(3))
    longer = TINY | {"model.hidden_size": 64, "train.epochs": 60}
    parameters = {"preset": "smoke", "corpus": str(text), "cells": ["gru"], "changes": longer}
    up.deploy("long", "flows.retrain.retrain", parameters)
    up.wait_for(lambda: any("rnnlm_core.train_process" in process.cmdline() for process in up.processes()), 240)
    up.wait_for(lambda: [run for run in up.runs("long") if run["state_type"] == "CANCELLED"], 120)
    assert up.stop() == 0
    assert up.processes() == []
    stopped = now()
    up.start()
    assert "goes on where" in up.said
    up.wait_for(lambda: up.completed("long", stopped), 280)
    assert up.trainings(text.name) == 1
    up.deploy("long", "flows.retrain.retrain", parameters, every=None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_when_asked(up: Stack, number: int) -> None:
    if up.process is None or up.process.poll() is not None:
        up.start()
    assert up.stop(number) == 0
    assert up.processes() == []
    assert not (up.home / "prefect" / "up.json").exists()
    assert up.run("rnnlm", "down").stdout == "nothing is up\n"


def test_detached_it_is_ended_by_down(up: Stack) -> None:
    ports = ["--prefect-port", up.prefect_port, "--mlflow-port", up.mlflow_port]
    done = up.run("rnnlm", "up", "--detach", *ports)
    assert done.returncode == 0, done.stderr
    assert "`rnnlm down` ends it" in done.stdout
    assert httpx.get(f"{up.api}/health", timeout=60).status_code == 200
    assert up.run("rnnlm", "down").returncode == 0
    assert up.processes() == []


def test_a_port_that_is_taken_is_told_in_one_line(up: Stack) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = up.run("rnnlm", "up", "--prefect-port", up.prefect_port, "--mlflow-port", port)
    assert refused.returncode == 5
    assert f"error: the port is taken: 127.0.0.1:{port}" in refused.stderr


def test_a_port_without_effect_is_refused(up: Stack) -> None:
    refused = up.run("rnnlm", "up", "--prefect-port", up.prefect_port + 1)
    assert refused.returncode == 2
    assert "`--prefect-port` has no effect while `PREFECT_API_URL` names a server" in refused.stderr
