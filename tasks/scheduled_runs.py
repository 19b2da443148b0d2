"""What Prefect is told about runs that nobody sits in front of: whose they are, which are too late, which go on.

A run that a worker has started carries its process as a tag from here on, as those of the command line do, so that
any later start can tell whether it is still there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

from prefect import tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled

from tasks import processes, progress

LATE = "a later run of the same deployment has started: it does the same work"


@contextmanager
def claimed() -> Iterator[None]:
    """Say which process this flow run, and all that it starts, belongs to; drop the runs it comes too late for."""
    tag = processes.flow_run_tag()
    with get_client(sync_client=True) as api:
        mine = api.read_flow_run(UUID(str(flow_run.id)))
        if tag not in mine.tags:
            api.update_flow_run(mine.id, tags=sorted({*mine.tags, tag}))
        if deployment.id:
            for _ in drop_missed(api, UUID(str(deployment.id)), keep=0):
                progress.warn("schedule", f"a missed run is dropped: {LATE}")
    with tags(tag):
        yield


def drop_missed(api: SyncPrefectClient, deployment_id: UUID, keep: int) -> Iterator[FlowRun]:
    """Cancel the runs of a deployment whose time has passed, but for the `keep` newest; yield those that went."""
    missed = api.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    for run in missed[keep:]:
        api.set_flow_run_state(run.id, Cancelled(name="Missed", message=f"Missed: {LATE}."))
        yield run
