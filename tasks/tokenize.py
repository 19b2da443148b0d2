"""Stage `tokenize`: normalise a text and cut it into tokens."""

from rnnlm_core import tokenize as core
from rnnlm_core.download import Text
from rnnlm_core.tokenize import Tokens
from tasks import workspace
from tasks.caching import stage


@stage("rnnlm_core.tokenize", Tokens)
def tokenize(text: Text, normalizer: str, level: str) -> Tokens:
    """Return the tokens of a text."""
    return core.tokenize(text.handle, normalizer, level, workspace.store())
