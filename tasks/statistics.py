"""Stage `statistics`: what the text looks like."""

from rnnlm_core import statistics as core
from rnnlm_core.statistics import Statistics
from rnnlm_core.tokenize import Tokens
from tasks import workspace
from tasks.caching import stage


@stage("rnnlm_core.statistics", Statistics)
def statistics(tokens: Tokens) -> Statistics:
    """Return n-gram counts and the picture of Zipf's law."""
    return core.statistics(tokens, workspace.store())
