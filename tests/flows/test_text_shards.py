"""A long text goes through its stages shard by shard: the same bits, whoever does it, however often it breaks off."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client

from flows import runners, text_shards, text_stages
from flows.runners import Runner
from rnnlm_core import shards
from rnnlm_core.config import RunConfig
from rnnlm_core.download import Text, download, resolve
from rnnlm_core.errors import DataError, IntegrityError, ResourceError, UsageError
from rnnlm_core.pieces import piece_files
from rnnlm_core.presets import run_config
from tasks import health, workspace
from tasks import text_shards as shard_tasks
from tasks.progress import News

SIZE = 600
LOCAL, DASK, RAY = Runner("local"), Runner("dask"), Runner("ray")
CHANGES = {"corpus.normalizer": "none", "corpus.max_chars": 0, "corpus.max_tokens": 0, "corpus.split": "80/10/10"}


@pytest.fixture(scope="module")
def lines(book: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of 6,000 characters in lines."""
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    words = book.read_text(encoding="utf-8").split()
    path.write_text("".join(" ".join(words[at : at + 8]) + "\n" for at in range(0, len(words), 8)), encoding="utf-8")
    return path


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", SIZE)


def config_of(path: Path, **changes: Any) -> RunConfig:
    more = {key.replace("__", "."): value for key, value in changes.items()}
    return run_config("smoke", str(path), ["rnn"], {**CHANGES, **more})


def made_by(runner: Runner, path: Path, size: int = SIZE, **changes: Any) -> text_shards.Made:
    """Do the text stages of a text in this home."""
    text: Text = download(resolve(str(path)), workspace.store())
    with runners.started(runner) as task_runner:
        flow = text_shards.text_shards.with_options(task_runner=task_runner)
        return flow(f"lines, {runner}", text, config_of(path, **changes), size, False)


@dataclass(frozen=True)
class Known:
    """What a text comes to, worked on by threads of this process."""

    made: text_shards.Made

    def check(self, other: text_shards.Made) -> None:
        assert (other.tokens, other.vocabulary, other.corpus) == (
            self.made.tokens,
            self.made.vocabulary,
            self.made.corpus,
        )


@pytest.fixture(scope="module")
def known(at_home: Any, lines: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    with at_home(tmp_path_factory.mktemp("known") / "home"):
        return Known(made_by(LOCAL, lines))


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("places", [1, 5])
def test_how_many_shards_run_at_a_time_changes_no_bit(
    known: Known, lines: Path, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "cpu_slots", lambda: places)
    made = made_by(LOCAL, lines)
    known.check(made)
    assert set(made.cached.values()) == {False}
    assert made.corpus is not None
    assert len(piece_files(workspace.store().open(made.corpus.handle), "train")) == 8
    assert set(made_by(LOCAL, lines).cached.values()) == {True}


@pytest.mark.usefixtures("home")
def test_dask_s_workers_make_the_same_bits(known: Known, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prefect_dask")
    monkeypatch.setattr(workspace, "cpu_slots", lambda: 2)
    made = made_by(DASK, lines)
    known.check(made)
    assert set(made.cached.values()) == {False}
    assert set(made_by(LOCAL, lines).cached.values()) == {True}  # what workers have done is on record


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_ray_s_workers_make_the_same_bits(known: Known, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prefect_ray")
    monkeypatch.setattr(workspace, "cpu_slots", lambda: 2)
    made = made_by(RAY, lines)
    known.check(made)
    assert set(made.cached.values()) == {False}
    assert set(made_by(LOCAL, lines).cached.values()) == {True}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("level", ["word", "byte", "bpe"])
def test_other_levels_go_through_the_flow(lines: Path, level: str) -> None:
    made = made_by(LOCAL, lines, tokenizer__level=level)
    whole = made_by(LOCAL, lines, size=1 << 20, tokenizer__level=level)
    assert made.tokens != whole.tokens
    assert made.vocabulary == whole.vocabulary
    assert made.corpus is not None
    assert whole.corpus is not None
    assert made.corpus.splits == whole.corpus.splits


@pytest.mark.usefixtures("small_shards")
def test_a_run_in_shards_has_the_figures_of_one_without(
    home: Path, lines: Path, run: Callable[..., dict[str, Any]], heard: list[News], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines.with_name("text.txt")
    changes = {"corpus__name": str(lines), "corpus__max_chars": 0}
    found = run(**changes)
    assert found["tasks"] == {"executed": 9, "cached": 0}
    assert [news.done for news in heard if news.stage in ("tokenize", "vocabulary", "corpus")] == ["done"] * 3
    assert not [news.warning for news in heard if news.warning]
    again = run(**changes)
    assert again["tasks"] == {"executed": 0, "cached": 9}
    assert list(health.verify()) == []
    monkeypatch.setattr(shards, "SHARD_BYTES", 1 << 20)
    whole = run(**changes)
    assert whole["tasks"]["executed"] > 0
    ours, theirs = found["cells"]["rnn"], whole["cells"]["rnn"]
    assert {**ours, "run_id": "", "tokens_per_second": 0} == {**theirs, "run_id": "", "tokens_per_second": 0}
    with get_client(sync_client=True) as api:
        assert [one.name for one in api.read_flow_runs()].count("lines.txt in shards, local") >= 2


@pytest.mark.usefixtures("home", "server")
def test_a_runner_without_effect_is_told(
    run: Callable[..., dict[str, Any]], text: Path, heard: list[News], train_here: list[str]
) -> None:
    from flows.language_model import language_model
    from flows.text_stages import TextStages  # noqa: F401 - what is asked

    pytest.importorskip("prefect_dask")
    run()
    config = {key: value for key, value in CHANGES.items() if key != "corpus.normalizer"}
    language_model("smoke", str(text), ["rnn"], config | {"train.device": "cpu"}, "dask")
    told = [news.warning for news in heard if news.warning]
    assert told == ["the text is not divided into shards: no effect of --runner dask"]


def test_damage_is_listed_removed_and_made_again(home: Path, lines: Path, known: Known) -> None:
    made = made_by(LOCAL, lines)
    assert list(health.verify()) == []
    assert made.corpus is not None
    path = piece_files(workspace.store().open(made.corpus.handle), "train")[2]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    told = list(health.verify())
    assert [line for line in told if "damaged train-00002-of-00008.parquet" in line]
    assert [line for line in told if line.startswith("artifact pieces:") and "has a damaged train.parquet" in line]
    assert [line for line in told if line.startswith("record encode_shard-")]
    list(health.repair())
    assert list(health.verify()) == []
    again = made_by(LOCAL, lines)
    known.check(again)
    assert again.cached == {"tokenize": True, "vocabulary": True, "corpus": False}


CRASHING = """
import sys
from pathlib import Path
from rnnlm_core import shards
shards.SHARD_BYTES = {size}
sys.argv = ["rnnlm", "run", "--preset", "smoke", "--corpus", {path!r}, "--cells", "rnn", *{more!r}]
if __name__ == "__main__":
    from flows.cli import main
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["drafted:tokens@4", "published:counts@2", "filled:pieces@3", "sealed:corpus"])
def test_a_run_that_is_killed_goes_on(
    point: str, known: Known, lines: Path, home: Path, server: Any, tmp_path: Path
) -> None:
    settings = [part for key, value in CHANGES.items() for part in ("--set", f"{key}={value}")]
    script = tmp_path / "command.py"
    script.write_text(CRASHING.format(size=SIZE, path=str(lines), more=settings))
    there = {**os.environ, "PREFECT_API_URL": server.url, "PYTHONPATH": str(Path.cwd()), "RNNLM_CRASH": point}
    command = [sys.executable, str(script)]
    first = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    assert first.returncode == -9, first.stderr
    before = dict.fromkeys(workspace.store().handles("tokens"))
    del there["RNNLM_CRASH"]
    second = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    known.check(made_by(LOCAL, lines))
    assert set(before) <= set(workspace.store().handles("tokens"))
    assert list(health.verify()) == []


@pytest.mark.usefixtures("home")
def test_a_shard_that_fails_ends_the_flow_with_its_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a good line of text\n" * 100 + b"\xff\n")
    with pytest.raises(DataError, match="byte 0xff at offset 2000"):
        made_by(LOCAL, path)


@pytest.mark.usefixtures("home")
def test_a_split_that_is_too_short_is_told_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("aa\n" * 3)
    with pytest.raises(DataError, match="text too short, needs at least 2 tokens: 1 tokens in split `valid`"):
        made_by(LOCAL, path, size=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_text(server: Any, tmp_path: Path) -> None:
    """74 MB beside a text of `RNNLM_TEXT_MB` megabytes (default 222), both with shards of their real size."""
    from benchmarks.texts import write_long

    peaks = {}
    for megabytes in (74, int(os.environ.get("RNNLM_TEXT_MB", "222"))):
        home = tmp_path / str(megabytes)
        write_long(home.with_suffix(".txt"), megabytes * 1_000_000)
        script = [sys.executable, str(Path(__file__).with_name("long_text.py")), str(home.with_suffix(".txt")), "char"]
        there = {**os.environ, "PREFECT_API_URL": server.url, "RNNLM_HOME": str(home), "PYTHONPATH": str(Path.cwd())}
        there["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] = str(home / "artifacts" / "results")
        told = subprocess.run(script, env=there, capture_output=True, text=True, check=True).stdout
        peaks[megabytes] = json.loads(told.splitlines()[-1])["peak"]
        shutil.rmtree(home)
        home.with_suffix(".txt").unlink()
    short, long = peaks.values()
    assert long < 1e9
    assert long <= 1.15 * short, peaks


# Clusters that are there already


@contextmanager
def dask_cluster(**environment: str) -> Iterator[str]:
    """Give the address of a scheduler with one worker, in processes of their own."""
    distributed = pytest.importorskip("distributed")
    pytest.importorskip("prefect_dask")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, env=environment
    ) as cluster:
        yield cluster.scheduler_address.removeprefix("tcp://")


@pytest.mark.usefixtures("home")
def test_a_dask_cluster_that_is_there_is_used(known: Known, lines: Path) -> None:
    with dask_cluster() as address:
        known.check(made_by(Runner("dask", address), lines))


@pytest.mark.usefixtures("home")
def test_workers_that_write_elsewhere_are_told(lines: Path, tmp_path: Path) -> None:
    with (
        dask_cluster(RNNLM_HOME=str(tmp_path / "elsewhere")) as address,
        pytest.raises((ResourceError, IntegrityError), match="RNNLM_HOME"),
    ):
        made_by(Runner("dask", address), lines)


# The option


@pytest.mark.parametrize(
    ("text", "runner"),
    [
        ("local", LOCAL),
        ("dask", DASK),
        ("ray", RAY),
        ("dask:127.0.0.1:8786", Runner("dask", "127.0.0.1:8786")),
        ("dask:tls://host:1", Runner("dask", "tls://host:1")),
        ("ray:ray://head:10001", Runner("ray", "ray://head:10001")),
        ("ray:[::1]:6379", Runner("ray", "[::1]:6379")),
    ],
)
def test_a_runner_is_read_as_it_is_shown(text: str, runner: Runner) -> None:
    assert runners.parse(text) == runner
    assert str(runner) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "unknown runner: known: local, dask, ray"),
        ("dsk", "unknown runner: dsk: did you mean dask? (known: local, dask, ray)"),
        ("local:1", "the runner `local` has no address: local:1: leave it out"),
        ("dask:", "a runner's address is HOST:PORT: dask:: for example dask:127.0.0.1:8786, or `dask` alone"),
        ("ray:host", "a runner's address is HOST:PORT: ray:host: for example ray:127.0.0.1:10001, or `ray` alone"),
        ("dask:host:70000", "a runner's address is HOST:PORT: dask:host:70000"),
        ("dask:ray://host:1", "a runner's address is HOST:PORT"),
    ],
)
def test_what_is_no_runner_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        runners.parse(text)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(("kind", "package"), [("dask", "prefect-dask"), ("ray", "prefect-ray")])
def test_a_missing_extra_is_named(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ResourceError) as caught:
        runners.check(Runner(kind))
    remedy = f"pip install '.[{kind}]' in the project folder"
    assert str(caught.value) == f"the runner needs a package that is not installed: {package}: {remedy}"
    runners.check(LOCAL)


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_an_address_where_nobody_listens_is_told_at_once(kind: str) -> None:
    pytest.importorskip(f"prefect_{kind}")
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        runner = Runner(kind, f"127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(ResourceError, match=r"the runner does not answer: .*: start it, or use `--runner"):
            runners.check(runner)


@contextmanager
def deaf_server() -> Iterator[str]:
    """Give the address of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def take() -> None:
            with suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for one in taken:
            one.close()


def test_who_listens_and_is_no_dask_scheduler_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prefect_dask")
    monkeypatch.setattr(runners, "CONNECT_SECONDS", 1.0)
    with (
        deaf_server() as address,
        pytest.raises(ResourceError, match="the runner does not answer"),
        runners.started(Runner("dask", address)),
    ):
        pass


def test_a_scheduler_without_workers_is_told(home: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        runner = Runner("dask", cluster.scheduler_address)
        why = r"the scheduler has no workers: .*: start one"
        with pytest.raises(ResourceError, match=why), runners.started(runner):
            pass


def test_workers_elsewhere_need_a_server_that_they_reach(heard: list[News]) -> None:
    runners.warn_of(DASK)
    runners.warn_of(Runner("dask", "127.0.0.1:8786"))
    assert heard == []
    runners.warn_of(Runner("dask", "10.1.2.3:8786"))
    (news,) = heard
    assert "do not reach Prefect's server: set PREFECT_API_URL" in news.warning


def test_every_task_of_a_shard_is_found_by_its_name_in_another_process() -> None:
    import cloudpickle

    tasks = [one for one in vars(shard_tasks).values() if hasattr(one, "cache_policy")]
    assert len(tasks) == 8
    for task in tasks:
        assert cloudpickle.loads(cloudpickle.dumps(task)) is task
    assert text_stages.LOCAL == LOCAL
