"""Stage `download`: bring a text into the store."""

from prefect.tasks import exponential_backoff

from rnnlm_core import download as core
from rnnlm_core.download import Source, Text
from rnnlm_core.errors import NetworkError
from tasks import workspace
from tasks.caching import stage


def _outside_world(task: object, run: object, state: object) -> bool:  # noqa: ARG001 - Prefect's signature
    """Only a network that does not answer may answer later; a wrong digest stays wrong."""
    error = getattr(state, "data", None)
    return isinstance(getattr(error, "exception", error), NetworkError)


@stage(
    "rnnlm_core.download",
    Text,
    retries=2,
    retry_delay_seconds=exponential_backoff(1),
    retry_jitter_factor=0.5,
    retry_condition_fn=_outside_world,
)
def download(source: Source) -> Text:
    """Return the text of a source, its digest checked."""
    return core.download(source, workspace.store())
