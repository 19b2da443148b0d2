"""What can go wrong, as one tree: every error a user can cause names the rule, the value and the remedy.

    RnnlmError
    ├── UsageError      2   a command, option or config value that is not allowed
    │   └── ConfigError 2   several mistakes of one config
    ├── DataError       3   a text that cannot become a corpus, a prefix that cannot be read
    ├── IntegrityError  4   bytes that are not the bytes that were promised
    │   └── Diverged    4   a training whose numbers are none any more
    ├── ResourceError   5   a disk, device, memory or server that is not there
    │   └── TooLarge    5   a training for which the memory was too small
    ├── NetworkError    6   nothing answered
    ├── PartialError    7   some cells failed, the others are done
    └── Stopped       130   asked to stop, and did
        └── Pruned    130   given up by a sweep: others were better

The number is the exit code of the command line.
"""

LONGEST_VALUE = 500


def one_line(text: object) -> str:
    """Return `text` on one line: control characters escaped (a log cannot be forged), cut at 500 characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return shown if len(shown) <= LONGEST_VALUE else shown[:LONGEST_VALUE] + "…"


class RnnlmError(ValueError):
    """An error that its user can mend: `what` rule was broken, by which `value`, and the `remedy`."""

    exit_code = 1

    def __init__(self, what: str, value: object = "", remedy: str = "") -> None:
        super().__init__(what, str(value), remedy)

    @property
    def lines(self) -> list[str]:
        """The message, one line per mistake."""
        return [": ".join(one_line(part) for part in self.args if part)]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class UsageError(RnnlmError):
    """A command, option or config value that is not allowed."""

    exit_code = 2


class ConfigError(UsageError):
    """Several mistakes of one config, reported together."""

    def __init__(self, *mistakes: str) -> None:
        ValueError.__init__(self, *mistakes)

    @property
    def lines(self) -> list[str]:
        return [one_line(mistake) for mistake in self.args]


class DataError(RnnlmError):
    """Input data that cannot be used."""

    exit_code = 3


class IntegrityError(RnnlmError):
    """Bytes that do not match their digest or their format."""

    exit_code = 4


class Diverged(IntegrityError):  # noqa: N818 - it says what happened
    """A training whose loss, gradients or weights are no longer finite."""


class ResourceError(RnnlmError):
    """Something of the machine that is missing: disk, memory, device, server."""

    exit_code = 5


class TooLarge(ResourceError):  # noqa: N818 - it says what happened
    """A training that ran out of memory, or that the system ended."""


class NetworkError(RnnlmError):
    """No address answered."""

    exit_code = 6


class PartialError(RnnlmError):
    """Some cells failed, the others are done."""

    exit_code = 7


class Stopped(RnnlmError):  # noqa: N818 - being asked to stop is no error of anybody's
    """A training that ended because it was asked to."""

    exit_code = 130


class Pruned(Stopped):
    """A training that a sweep ended early: other trials were better after as many epochs."""


def by_name(name: str) -> type[RnnlmError]:
    """Return the class of this tree called `name` (errors cross process borders by name)."""
    classes = [
        RnnlmError,
        UsageError,
        ConfigError,
        DataError,
        IntegrityError,
        Diverged,
        ResourceError,
        TooLarge,
        NetworkError,
        PartialError,
        Stopped,
        Pruned,
    ]
    return {cls.__name__: cls for cls in classes}.get(name, RnnlmError)


def unknown_name(kind: str, name: str, known: list[str]) -> UsageError:
    """Return the error for an unknown `name`: it lists the `known` ones and suggests the closest."""
    return UsageError(f"unknown {kind}", name, suggestion(name, known))


def suggestion(name: str, known: list[str]) -> str:
    """Return "did you mean …?" when some known name is close (GRU is gru), and the known names in any case."""
    import difflib

    folded = {one.casefold(): one for one in reversed(known)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    listed = "known: " + ", ".join(known)
    if not close:
        return listed
    return f"did you mean {folded[close[0]]}?" + (f" ({listed})" if len(known) > 1 else "")
