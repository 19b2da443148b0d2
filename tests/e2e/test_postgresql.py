"""Both databases on PostgreSQL: everything works as on SQLite, hosts may begin together, a restart is waited for."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import mlflow
import pytest
from homes import COMMAND, PROJECT, without_settings
from mlflow import MlflowClient
from postgresql import PASSWORD, Server, asynchronous, postgresql_server

from rnnlm_core.errors import IntegrityError, ResourceError, Stopped
from tasks import database_server, patience, processes, progress, tracked_runs, tracking, tracking_database, workspace
from tasks.progress import News
from tasks.stopping import stop_requested
from tasks.tracking_database import client, experiment_id

pytest.importorskip("psycopg2", reason="no driver here: pip install '.[postgresql]'")
SMALL = [
    "--preset", "smoke", "--cells", "rnn",
    "--set", "model.hidden_size=16", "--set", "corpus.max_tokens=8000", "--set", "train.device=cpu",
]  # fmt: skip
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql_server() as running:
        yield running


def environment(home: Path, tracking_uri: str, prefect: str = "") -> dict[str, str]:
    own = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": asynchronous(prefect)} if prefect else {}
    return {
        **without_settings(),
        "RNNLM_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PYTHONPATH": str(PROJECT),
        "MLFLOW_TRACKING_URI": tracking_uri,
        **own,
    }


@pytest.fixture(scope="module")
def databases(server: Server) -> tuple[str, str]:
    """MLflow's and Prefect's, shared by the commands of this file in their order."""
    return server.new_database(), server.new_database()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def rnnlm(home: Path, databases: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Return a function that runs the command, with both databases and a Prefect server of its own."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=environment(home, *databases), cwd=elsewhere, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert list(elsewhere.iterdir()) == []
        assert PASSWORD not in done.stdout + done.stderr
        return done

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_works_and_tells_nobody_the_password(
    rnnlm: Command, home: Path, server: Server, databases: tuple[str, str]
) -> None:
    def run(*more: object) -> dict[str, object]:
        rnnlm("run", *SMALL, *more, "--json", home / "out.json")
        written: dict[str, object] = json.loads((home / "out.json").read_text())
        return written

    assert run()["tasks"] == {"executed": 9, "cached": 0}
    assert run()["tasks"] == {"executed": 0, "cached": 9}
    assert run("--set", "train.learning_rate=0.9")["best_cell"] == "rnn"
    assert rnnlm("generate", "--model", "rnn", "--prefix", "The ").stdout.startswith("The ")
    assert rnnlm("generate", "--model", "models:/rnnlm-smoke@champion", "--prefix", "The ").stdout.startswith("The ")
    assert rnnlm("compare").stdout.count("finished") == 2
    assert len(re.findall(r"rnnlm-smoke +\d", rnnlm("models").stdout)) == 2
    rnnlm("promote", "rnnlm-smoke/1", "--force")
    rnnlm("promote", "rnnlm-smoke/2", "--force")
    assert "version 1 again" in rnnlm("promote", "--rollback", "rnnlm-smoke").stdout
    rnnlm("sweep", *SMALL, "--trials", 2)
    assert rnnlm("verify").stderr == "everything is whole\n"
    rnnlm("doctor")
    (flows,) = server.sql("SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'", databases[1])
    assert int(flows[0]) == 4
    assert server.sql("SELECT DISTINCT status FROM runs", databases[0]) == [["FINISHED"]]
    assert not (home / "mlflow.db").exists()
    assert not (home / "prefect" / "prefect.db").exists()
    for database in databases:
        dumped = subprocess.run(
            [server.binaries / "pg_dump", database], capture_output=True, text=True, check=True
        ).stdout
        assert PASSWORD not in dumped
    written = [path for path in home.rglob("*") if path.is_file()]
    assert len(written) > 50
    assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_the_command_that_opens_the_runs_works_as_it_is_printed(
    rnnlm: Command, home: Path, databases: tuple[str, str]
) -> None:
    said = rnnlm("run", *SMALL).stdout
    (line,) = re.findall(r"see the runs in MLflow: +(.*)", said)
    assert line.split("  #")[0].endswith('mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"')
    typed = line.replace("mlflow ui", "mlflow ui --dev-that-there-is-not")  # parsed by the shell and by MLflow
    done = subprocess.run(
        ["/bin/sh", "-c", typed], env=environment(home, *databases), capture_output=True, text=True, check=False
    )
    assert "No such option" in done.stderr
    assert "--dev-that-there-is-not" in done.stderr


def refused(uri: str, home: Path, code: int, *told: str) -> None:
    done = subprocess.run(
        [*COMMAND, "compare"], env=environment(home, uri), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    for words in told:
        assert words in line
    assert PASSWORD not in line


@pytest.mark.slow
def test_what_cannot_be_used_is_one_line(server: Server, tmp_path: Path) -> None:
    silent = "error: the database does not answer: postgresql://127.0.0.1:"
    refused(f"postgresql://rnnlm:{PASSWORD}@127.0.0.1:9/runs", tmp_path, 5, silent, "Connection refused")
    refused(f"postgresql://127.0.0.1:9/runs?user=rnnlm&password={PASSWORD}", tmp_path, 5, silent)
    refused(f"{server.url}/nowhere", tmp_path, 5, silent, 'database "nowhere" does not exist')
    wrong = server.url.replace(PASSWORD, "mistaken")
    refused(f"{wrong}/nowhere", tmp_path, 5, silent, "password authentication failed")
    foreign = server.new_database()
    server.sql("CREATE TABLE alembic_version AS SELECT 'ffff' AS version_num", foreign)
    refused(foreign, tmp_path, 4, "not an MLflow database", "rnnlm:***@", "give MLflow a database of its own")
    server.sql("CREATE TABLE experiments (x int)", foreign)
    refused(foreign, tmp_path, 4, "an MLflow database of another version", "rnnlm:***@")
    server.sql("CREATE USER guest PASSWORD 'guest'", "postgres")
    guest = server.new_database().replace(f"rnnlm:{PASSWORD}@", "guest:guest@")
    refused(guest, tmp_path, 5, "the database cannot be used", "permission denied", "see to the rights of its user")


BEGIN = """
from tasks import workspace
workspace.prepare_environment()
from tasks import tracking, tracking_database
print(tracking_database.experiment_id())
tracking._create("mine", {}, {})
"""


def begin(home: Path, uri: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN], env=environment(home, uri), cwd=PROJECT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_hosts_that_begin_together_on_an_empty_database_all_have_it(server: Server, tmp_path: Path) -> None:
    uri = server.new_database()
    hosts = [begin(tmp_path, uri) for _ in range(4)]
    answers = [host.communicate(timeout=280) for host in hosts]
    assert answers == [("1\n", "")] * 4
    assert server.sql("SELECT count(*) FROM runs", uri) == [["4"]]


@pytest.mark.slow
def test_a_kill_while_the_tables_are_made_is_forgotten(server: Server, tmp_path: Path) -> None:
    uri = server.new_database()
    first = begin(tmp_path, uri)
    while not server.sql("SELECT 1 FROM pg_tables WHERE tablename = 'experiments'", uri):
        assert first.poll() is None, first.communicate()
    assert server.sql("SELECT 1 FROM pg_tables WHERE tablename = 'logged_models'", uri) == []
    first.kill()
    first.communicate()
    assert begin(tmp_path, uri).communicate(timeout=280) == ("1\n", "")


def start_prefect(home: Path, database: str) -> "subprocess.Popen[str]":
    home.mkdir()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.server"], env=environment(home, "", database), cwd=home, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_prefect_servers_of_several_hosts_that_start_together_all_answer(server: Server, tmp_path: Path) -> None:
    database = server.new_database()
    servers = [start_prefect(tmp_path / f"host{number}", database) for number in range(4)]
    try:
        for one in servers:
            assert one.stdout is not None
            port = one.stdout.readline().strip()
            assert httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=240).status_code == 200
    finally:
        for one in servers:
            one.communicate(timeout=60)
    (held,) = server.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", database)
    assert held == ["0"]


@pytest.mark.slow
def test_a_prefect_database_that_is_not_there_is_one_line(server: Server, tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "doctor"], env=environment(tmp_path, "", f"{server.url}/nowhere"), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 5
    _, line = done.stderr.splitlines()
    assert "Prefect's database does not answer: postgresql+asyncpg://rnnlm:***@" in line
    assert 'database "nowhere" does not exist' in line


@pytest.mark.slow
def test_a_restart_of_the_server_in_the_middle_of_a_run_is_waited_for(tmp_path: Path) -> None:
    with postgresql_server() as server:
        uri = server.new_database()
        command = [*COMMAND, "run", *SMALL, "--set", "train.epochs=300"]
        with subprocess.Popen(
            command, env=environment(tmp_path, uri), cwd=tmp_path, text=True, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            said: list[str] = []
            stopped = False
            for line in process.stderr:
                said.append(line)
                if line.startswith("train rnn      epoch") and not stopped:
                    server.stop()
                    stopped = True
                if "does not answer: waiting for it" in line:
                    server.start()
        assert process.returncode == 0, said
        assert len([line for line in said if "waiting for it" in line]) == 1
        assert "Traceback" not in "".join(said)
        steps = "SELECT count(*), count(DISTINCT step) FROM metrics WHERE key = 'train/loss' AND step > 0"
        assert server.sql(steps, uri) == [["300", "300"]]
        assert server.sql("SELECT DISTINCT status FROM runs", uri) == [["FINISHED"]]


@pytest.fixture(scope="module")
def filled(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with MLflow's tables; what a test takes is a copy of it."""
    uri = server.new_database()
    assert begin(tmp_path_factory.mktemp("filling"), uri).communicate(timeout=280) == ("1\n", "")
    server.sql("DELETE FROM tags; DELETE FROM runs; DELETE FROM experiments WHERE name = 'rnnlm'", uri)
    return uri


@pytest.fixture
def tracked(server: Server, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process tracks in a database of its own."""
    uri = f"{filled}_{tmp_path.name}"
    server.sql(f'CREATE DATABASE "{uri.rpartition("/")[2]}" TEMPLATE {filled.rpartition("/")[2]}', "postgres")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("RNNLM_HOME", str(tmp_path / "home"))
    before = mlflow.get_tracking_uri()
    stop_requested.clear()
    yield uri
    stop_requested.clear()
    mlflow.set_tracking_uri(before)


def test_the_files_of_the_runs_lie_in_the_home(tracked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracking._create("mine", {}, {})
    tracking.log_text(run, "kept", "kept.txt")
    (kept,) = (tmp_path / "home" / "artifacts" / "mlflow").rglob("kept.txt")
    assert kept.read_text() == "kept"
    monkeypatch.setenv("RNNLM_HOME", str(tmp_path / "other"))
    assert experiment_id() == client().get_run(run).info.experiment_id  # another home of this host finds them
    (tmp_path / "home").rename(tmp_path / "away")
    with pytest.raises(ResourceError, match=r"folder that is not on this machine: .*/home/artifacts/mlflow: mount"):
        experiment_id()


def test_threads_that_ask_first_together_agree_on_the_experiment(tracked: str) -> None:
    client()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(experiment_id())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_dead_run_is_closed_and_a_living_one_is_not(tracked: str) -> None:
    alive = tracking._create("alive", {}, {})
    dead = tracking._create("dead", {"rnnlm.pid": "1", "rnnlm.started": "long ago"}, {})
    assert [run.run_id for run in tracking.close_dead_runs()] == [dead]
    assert client().get_run(dead).info.status == "KILLED"
    assert client().get_run(alive).info.status == "RUNNING"
    assert client().get_run(alive).data.tags["rnnlm.host"] == processes.host()


@pytest.fixture
def heard() -> Iterator[list[News]]:
    told: list[News] = []
    with progress.listening(told.append):
        yield told


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server that this test may stop, and that this process tracks in."""
    with postgresql_server() as running:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", running.new_database())
        monkeypatch.setenv("RNNLM_HOME", str(tmp_path / "home"))
        before = mlflow.get_tracking_uri()
        yield running
        stop_requested.clear()
        mlflow.set_tracking_uri(before)


@pytest.mark.slow
def test_a_server_that_is_gone_is_waited_for_once_and_not_against_the_wish_to_stop(
    own_server: Server, heard: list[News], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "TELL_SECONDS", 0.2)
    run = tracking._create("mine", {}, {})

    own_server.stop()
    threading.Timer(2, own_server.start).start()
    tracking.log_metrics(run, {"a": 1.0})
    assert tracked_runs.tracked(client().get_run(run)).metrics == {"a": 1.0}
    (word,) = [news.warning for news in heard]
    assert word.startswith("postgresql://127.0.0.1:")
    assert word.endswith(" does not answer: waiting for it")

    own_server.stop()
    monkeypatch.setattr(patience, "WAIT_SECONDS", 1.0)
    with pytest.raises(ResourceError, match=r"the database does not answer: .*waited in vain") as caught:
        tracking.log_metrics(run, {"a": 2.0})
    assert PASSWORD not in str(caught.value)
    monkeypatch.setattr(patience, "patiently", None)  # nobody waits a second time
    with pytest.raises(ResourceError, match=r"the database does not answer: .*Connection refused"):
        tracking.log_metrics(run, {"a": 2.0})
    monkeypatch.undo()


@pytest.mark.slow
def test_the_wish_to_stop_ends_the_waiting(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STOP_SECONDS", 0.5)
    run = tracking._create("mine", {}, {})
    own_server.stop()
    threading.Timer(1, stop_requested.set).start()
    with pytest.raises(Stopped, match="does not answer: run the same command again"):
        tracking.log_metrics(run, {"a": 1.0})


def cut_when_blocked(server: Server, uri: str, holder: "subprocess.Popen[str]") -> None:
    """End the connection that waits for the holder's lock, then the holder."""
    blocked = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    while not server.sql(blocked, uri):
        pass
    holder.communicate()


def test_a_statement_that_is_cut_is_said_again(server: Server, tracked: str, capfd: pytest.CaptureFixture[str]) -> None:
    run = tracking._create("mine", {}, {})
    holder = subprocess.Popen(
        [server.binaries / "psql", "--quiet", "--tuples-only", tracked],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write("BEGIN; LOCK TABLE tags; SELECT 'held';\n")
    holder.stdin.flush()
    assert holder.stdout.readline().strip() == "held"
    cutter = threading.Thread(target=cut_when_blocked, args=(server, tracked, holder))
    cutter.start()
    tracking.set_tags(run, {"said": "once"})
    cutter.join()
    assert server.sql("SELECT value FROM tags WHERE key = 'said'", tracked) == [["once"]]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("undone", "made"), [(True, 1), (False, 0)])
def test_what_may_have_been_made_is_not_made_twice(
    tracked: str, undone: bool, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_id()
    real = MlflowClient.create_run
    cuts = [database_server.Cut("cut", "", "", undone)]

    def cut_once(self: MlflowClient, *arguments: object, **more: object) -> object:
        if cuts:
            raise cuts.pop()
        return real(self, *arguments, **more)

    monkeypatch.setattr(MlflowClient, "create_run", cut_once)
    if undone:
        client().create_run(experiment)
    else:
        with pytest.raises(ResourceError, match="cut"):
            client().create_run(experiment)
    assert len(client().search_runs([experiment])) == made


def test_a_database_of_another_version_is_refused_by_every_call(server: Server, tracked: str) -> None:
    server.sql("UPDATE alembic_version SET version_num = 'ffff'", tracked)
    with pytest.raises(IntegrityError, match=r"an MLflow database of another version: .* this MLflow has"):
        tracking_database.client()
    assert workspace.tracking_uri() == os.environ["MLFLOW_TRACKING_URI"]
