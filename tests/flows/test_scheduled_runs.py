"""What is done for runs nobody sits in front of, with a real Prefect server: dead ones closed, late ones dropped."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings
from prefect.states import Completed, Crashed, Pending, Running, Scheduled

from tasks import processes, scheduled_runs


@flow
def nothing(number: int = 0) -> int:
    return number


class Pool:
    """A work pool with one deployment of a flow that does nothing."""

    def __init__(self, api: SyncPrefectClient) -> None:
        self.api = api
        self.name = f"pool-{uuid4()}"
        api.create_work_pool(WorkPoolCreate(name=self.name, type="process"))
        self.deployment = api.create_deployment(
            flow_id=api.create_flow(nothing),
            name=f"often-{uuid4()}",
            work_pool_name=self.name,
            parameters={"number": 3},
        )

    def run(self, *states: object, tags: list[str] | None = None, number: int = 3) -> UUID:
        """Make a run of the deployment go through some states."""
        run = self.api.create_flow_run_from_deployment(self.deployment, tags=tags or [], parameters={"number": number})
        for state in states:
            self.api.set_flow_run_state(run.id, state, force=True)
        return run.id

    def due(self, minutes_ago: float) -> UUID:
        """Make a run that was due so long ago."""
        run = self.asked(minutes_ago)
        # Only Prefect's scheduler says so of a run.
        with closing(sqlite3.connect(get_current_settings().home / "prefect.db", timeout=60)) as database, database:
            database.execute("UPDATE flow_run SET auto_scheduled = 1 WHERE id = ?", [str(run)])
        return run

    def asked(self, minutes_ago: float, **parameters: int) -> UUID:
        """Make a run that somebody wanted so long ago."""
        when = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        state = Scheduled(scheduled_time=when)
        return self.api.create_flow_run_from_deployment(self.deployment, state=state, parameters=parameters).id

    def read(self, run: UUID) -> FlowRun:
        return self.api.read_flow_run(run)

    def waiting(self) -> list[FlowRun]:
        return [
            run
            for run in self.api.read_flow_runs()
            if run.deployment_id == self.deployment and run.state.is_scheduled()
        ]


@pytest.fixture
def pool(server: object) -> Iterator[Pool]:
    with get_client(sync_client=True) as api:
        yield Pool(api)


def dead_tag() -> str:
    return f"{processes.PREFIX}{processes.host()}:999999:long-ago"


def test_a_run_that_was_killed_is_closed_and_goes_on_once_with_its_parameters(pool: Pool) -> None:
    killed = pool.run(Pending(), Running(), tags=[dead_tag()], number=7)
    done = list(scheduled_runs.repair(pool.name))
    assert pool.read(killed).state.is_crashed()
    (goes_on,) = pool.waiting()
    assert goes_on.parameters == {"number": 7}
    assert done == [
        f"closed Prefect flow run {pool.read(killed).name}, whose worker is gone",
        f"run {goes_on.name} of {pool.api.read_deployment(pool.deployment).name} goes on where "
        f"{pool.read(killed).name} has ended",
    ]
    list(scheduled_runs.repair(pool.name))
    assert len(pool.waiting()) == 1


def test_a_run_that_had_not_said_whose_it_is_is_closed_too(pool: Pool) -> None:
    pending = pool.run(Pending())
    list(scheduled_runs.repair(pool.name))
    assert pool.read(pending).state.is_crashed()


def test_a_run_of_a_living_process_or_of_another_machine_is_left_alone(pool: Pool) -> None:
    mine = pool.run(Pending(), Running(), tags=[processes.flow_run_tag()])
    elsewhere = pool.run(Pending(), Running(), tags=[f"{processes.PREFIX}another-machine:999999:long-ago"])
    assert list(scheduled_runs.repair(pool.name)) == []
    assert pool.read(mine).state.is_running()
    assert pool.read(elsewhere).state.is_running()


def test_while_another_machine_works_for_the_pool_what_has_no_owner_yet_may_be_its(pool: Pool) -> None:
    pool.api.send_worker_heartbeat(pool.name, "rnnlm@another-machine", heartbeat_interval_seconds=30)
    pending = pool.run(Pending())
    list(scheduled_runs.repair(pool.name))
    assert pool.read(pending).state.is_pending()


def test_of_the_missed_runs_the_newest_catches_up(pool: Pool) -> None:
    oldest, older, newest = pool.due(30), pool.due(20), pool.due(10)
    future = pool.due(-10)
    assert len(list(scheduled_runs.repair(pool.name))) == 2
    assert {run.id for run in pool.waiting()} == {newest, future}
    assert [pool.read(run).state.name for run in (oldest, older)] == ["Missed", "Missed"]
    assert pool.read(oldest).state.is_cancelled()


def test_beside_a_run_that_goes_on_no_missed_one_is_left(pool: Pool) -> None:
    pool.run(Pending(), Running(), Crashed())
    missed = pool.due(10)
    list(scheduled_runs.repair(pool.name))
    assert pool.read(missed).state.name == "Missed"
    assert len(pool.waiting()) == 1


def test_a_run_that_somebody_asked_for_is_not_dropped(pool: Pool) -> None:
    asked, missed, newest = pool.asked(30, number=9), pool.due(20), pool.due(10)
    list(scheduled_runs.repair(pool.name))
    assert {run.id for run in pool.waiting()} == {asked, newest}
    assert pool.read(missed).state.name == "Missed"


def test_a_run_that_is_tried_again_belongs_to_its_new_process(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    @flow
    def starts() -> list[str]:
        run = UUID(str(scheduled_runs.flow_run.id))
        pool.api.update_flow_run(run, tags=[dead_tag(), "mine"])
        with scheduled_runs.claimed():
            return pool.read(run).tags

    tags = starts()
    assert set(tags) == {"mine", processes.flow_run_tag()}
    assert not processes.has_ended([dead_tag(), processes.flow_run_tag()])
    assert processes.has_ended([dead_tag()])


def test_a_deployment_that_the_file_does_not_know_is_named(pool: Pool) -> None:
    name = pool.api.read_deployment(pool.deployment).name
    assert scheduled_runs.not_among(pool.name, ["other"]) == [f"nothing/{name}"]
    assert scheduled_runs.not_among(pool.name, [name]) == []


def test_what_has_completed_does_not_go_on(pool: Pool) -> None:
    pool.run(Pending(), Running(), Crashed())
    pool.run(Pending(), Running(), Completed())
    assert list(scheduled_runs.repair(pool.name)) == []
    assert pool.waiting() == []


def test_a_pool_is_made_once_and_stays_as_it_is(pool: Pool) -> None:
    name = f"made-{uuid4()}"
    assert scheduled_runs.make_pool(name)
    assert not scheduled_runs.make_pool(name)
    assert not scheduled_runs.make_pool(pool.name)
    made = pool.api.read_work_pool(name)
    assert made.type == "process"
    assert "env" in made.base_job_template["variables"]["properties"]


def test_a_flow_that_starts_says_whose_it_is_and_drops_what_it_comes_too_late_for(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed, future = pool.due(10), pool.due(-10)

    @flow
    def starts(number: int) -> list[str]:
        monkeypatch.setattr(scheduled_runs.deployment, "id", str(pool.deployment), raising=False)
        with scheduled_runs.claimed():
            return pool.read(UUID(str(scheduled_runs.flow_run.id))).tags

    assert processes.flow_run_tag() in starts(3)
    assert pool.read(missed).state.name == "Missed"
    assert {run.id for run in pool.waiting()} == {future}
