"""Stage `tokenize`: normalise a text and cut it into tokens."""

from rnnlm_core import tokenize as core
from rnnlm_core.download import Text
from rnnlm_core.tokenize import Tokens
from tasks import workspace
from tasks.caching import stage


@stage("rnnlm_core.tokenize", Tokens)
def tokenize(
    text: Text,
    normalizer: str,
    max_chars: int,
    level: str,
    eos: str,
    bpe_size: int,
    shares: tuple[int, int, int] | None,
) -> Tokens:
    """Return the tokens of a text; `bpe_size` and `shares` matter to level `bpe` alone."""
    return core.tokenize(
        text.handle, normalizer, level, workspace.store(),
        eos=eos, max_chars=max_chars, bpe_size=bpe_size, shares=shares,
    )  # fmt: skip
