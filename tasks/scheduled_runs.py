"""What Prefect is told about runs that nobody sits in front of: whose they are, which are too late, which go on.

A run that a worker has started carries its process as a tag from here on, as those of the command line do, so that
any later start can tell whether it is still there.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect import tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, Worker, WorkerStatus
from prefect.client.schemas.sorting import DeploymentSort, FlowRunSort
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed

from rnnlm_core.errors import one_line
from tasks import processes, progress

LATE = "a later run of the same deployment has started: it does the same work"


@contextmanager
def claimed() -> Iterator[None]:
    """Say which process this flow run, and all that it starts, belongs to; drop the runs it comes too late for."""
    tag = processes.flow_run_tag()
    with get_client(sync_client=True) as api:
        mine = api.read_flow_run(UUID(str(flow_run.id)))
        if tag not in mine.tags:  # of a run that is tried again, the process before is told no more
            api.update_flow_run(mine.id, tags=sorted({tag, *processes.untagged(mine.tags)}))
        if deployment.id:
            for _ in drop_missed(api, UUID(str(deployment.id)), mine.parameters):
                progress.warn("schedule", f"a missed run is dropped: {LATE}")
    with tags(tag):
        yield


def drop_missed(
    api: SyncPrefectClient, deployment_id: UUID, parameters: dict[str, Any] | None = None, but: FlowRun | None = None
) -> Iterator[FlowRun]:
    """Cancel what the schedule of a deployment has missed: all that does what a run with `parameters` does anyway.

    Of what has other parameters the newest is left. Runs that somebody asked for are no part of it. Yields what went.
    """
    missed = api.read_flow_runs(
        deployment_filter=_deployment(deployment_id),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    served = [] if parameters is None else [parameters]
    for run in missed:
        if not run.auto_scheduled or (but is not None and run.id == but.id):
            continue
        if run.parameters not in served:
            served.append(run.parameters)
            continue
        api.set_flow_run_state(run.id, Cancelled(name="Missed", message=f"Missed: {LATE}."))
        yield run


def make_pool(pool: str) -> bool:
    """Make a work pool of processes, unless Prefect knows it; say whether it was made."""
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as api:
        try:
            api.create_work_pool(WorkPoolCreate(name=pool, type=ProcessWorker.type, base_job_template=template))
        except ObjectAlreadyExists:
            return False
        return True


def repair(pool: str) -> Iterator[str]:
    """Put the runs of a work pool in order before a worker of this machine starts; yield what was done, line by line.

    Nothing that this machine's worker had started may be under way. A run that ended in the middle goes on at once,
    as a new one; of the runs whose time has passed meanwhile only the newest is left, and none beside one that goes on.
    """
    with get_client(sync_client=True) as api:
        for run in _left_open(api, pool):
            api.set_flow_run_state(run.id, Crashed(message="Its worker is gone."), force=True)
            yield f"closed Prefect flow run {run.name}, whose worker is gone"
        for one in _pages(api.read_deployments, work_pool_filter=_in(pool), sort=DeploymentSort.NAME_ASC):
            broken = _broken_off(api, one.id)
            try:
                goes_on = broken and _going_on(api, one.id, broken)
            except PrefectHTTPStatusError as refusal:  # its parameters fit the deployment no more
                goes_on = None
                yield f"run {broken.name if broken else ''} of {one.name} cannot go on: {one_line(refusal)}"
            for run in drop_missed(api, one.id, goes_on.parameters if goes_on else None, goes_on):
                yield f"dropped run {run.name} of {one.name}, which was missed"
            if broken and goes_on:
                yield f"run {goes_on.name} of {one.name} goes on where {broken.name} has ended"


def _going_on(api: SyncPrefectClient, deployment_id: UUID, broken: FlowRun) -> FlowRun | None:
    """Return the run that goes on with one that broke off, made if need be; None if it has had its turn."""
    run = api.create_flow_run_from_deployment(
        deployment_id, parameters=broken.parameters, idempotency_key=f"goes-on-{broken.id}"
    )
    return run if run.state is not None and run.state.is_scheduled() else None


def not_among(pool: str, names: Collection[str]) -> list[str]:
    """Return the deployments of a pool that have none of these names, as Prefect's commands call them."""
    with get_client(sync_client=True) as api:
        found = list(_pages(api.read_deployments, work_pool_filter=_in(pool), sort=DeploymentSort.NAME_ASC))
        return [f"{api.read_flow(one.flow_id).name}/{one.name}" for one in found if one.name not in names]


def _in(pool: str) -> WorkPoolFilter:
    return WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))


def _pages(read: Callable[..., list[Any]], **query: Any) -> Iterator[Any]:
    """Yield everything that a query of Prefect finds, page after page."""
    seen = 0
    while page := read(**query, offset=seen):
        yield from page
        seen += len(page)


def _left_open(api: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """Return the runs that Prefect believes under way and that no living process of another machine can hold."""
    under_way = FlowRunFilter(
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
        )
    )
    found = list(_pages(api.read_flow_runs, flow_run_filter=under_way, work_pool_filter=_in(pool)))
    alone = all(worker.name == processes.worker_name() for worker in _online(api, pool))
    return [run for run in found if processes.has_ended(run.tags) or (alone and not processes.is_tagged(run.tags))]


def _online(api: SyncPrefectClient, pool: str) -> list[Worker]:
    return [worker for worker in api.read_workers_for_work_pool(pool) if worker.status == WorkerStatus.ONLINE]


def _broken_off(api: SyncPrefectClient, deployment_id: UUID) -> FlowRun | None:
    """Return the newest run of a deployment that has started, if it has crashed: killed, or asked to stop."""
    ended = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.RUNNING]
    newest = api.read_flow_runs(
        deployment_filter=_deployment(deployment_id),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ended))),
        sort=FlowRunSort.START_TIME_DESC,
        limit=1,
    )
    return next((run for run in newest if run.state is not None and run.state.is_crashed()), None)


def _deployment(deployment_id: UUID) -> DeploymentFilter:
    return DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
