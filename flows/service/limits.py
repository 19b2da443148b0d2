"""What the service refuses, and in which words: limits on size, number and time, and the answer to each error."""

from dataclasses import dataclass
from typing import Any

from rnnlm_core.errors import DataError, RnnlmError, UsageError, one_line


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a request may ask for: tokens added (`length`), continuations in beam search (`beam`), bytes of its
    `body`, `seconds` from its arrival to the end of its answer; how many may wait (`waiting`), and how many are worked
    on at once (`workers`)."""

    length: int = 2000
    beam: int = 16
    body: int = 64 * 1024
    seconds: float = 30.0
    waiting: int = 256
    workers: int = 2


class Refused(RnnlmError):  # noqa: N818 - named as what has happened, like `Stopped`
    """A request that gets an answer of status `status` instead of what it asks for."""

    def __init__(self, status: int, what: str, value: object = "", remedy: str = "", retry_after: int = 0) -> None:
        super().__init__(what, value, remedy)
        self.status, self.retry_after = status, retry_after


def status_of(error: RnnlmError) -> int:
    """Return the HTTP status of an error: that of the refusal, 422 for what a user asked for, else 500."""
    if isinstance(error, Refused):
        return error.status
    return 422 if isinstance(error, UsageError | DataError) else 500


def error_content(error: RnnlmError) -> dict[str, Any]:
    """Return an error as the answers have it: one sentence, and its parts where it is about one value."""
    content = {"message": "; ".join(error.lines), "rule": "; ".join(error.lines), "value": "", "remedy": ""}
    if len(error.args) == 3 and len(error.lines) == 1:
        content |= zip(("rule", "value", "remedy"), map(one_line, error.args), strict=True)
    return {"error": content}
