"""Stage `download`: bring a text into the store."""

from rnnlm_core import download as core
from rnnlm_core.download import Source, Text
from tasks import workspace
from tasks.caching import stage


# Without retries of Prefect's: `rnnlm_core.transfer` asks each address again itself, and both together would multiply.
@stage("rnnlm_core.download", Text)
def download(source: Source) -> Text:
    """Return the text of a source, its digest checked."""
    return core.download(source, workspace.store())
