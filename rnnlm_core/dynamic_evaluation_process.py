"""Dynamic evaluation in a child process, as trainings are: with the threads of its place alone, to the bits of one.

PyTorch's number of threads is that of a whole process, and divides the products that the bits depend on.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rnnlm_core.child_process import Child, begin, report, watch_parent
from rnnlm_core.config import EvaluateConfig
from rnnlm_core.errors import Stopped
from rnnlm_core.outcomes import Evaluated
from rnnlm_core.store import Handle
from rnnlm_core.training_job import store_of

REMEDY = "if memory ran out lower evaluate.dynamic_steps, then run the same command again"


@dataclass(frozen=True)
class Job:
    """What a child is asked to measure; `threads`, `store` and `remote` are as in `training_job.Job`."""

    cell: str
    model: Handle
    corpus: Handle
    config: EvaluateConfig
    store: str
    device: str = "cpu"
    threads: int = 1
    remote: str = ""


def evaluate_in_child(job: Job, should_stop: Callable[[], bool]) -> Evaluated:
    """Return what `evaluate_dynamically` does; raises what the child raised, `ResourceError` if it was killed."""
    child = Child("rnnlm_core.dynamic_evaluation_process", f"dynamic evaluation of {job.cell}", job.threads, REMEDY)
    return Evaluated(**child.run(asdict(job), lambda _: None, should_stop))


def stopped(cell: str) -> Stopped:
    """Return the error of who was asked to end."""
    return Stopped("dynamic evaluation stopped", cell, "run the same command again: it begins anew")


def main() -> None:
    """Be the child."""
    fields, out = begin()

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    should_stop = watch_parent()
    report(fields["cell"], say, lambda: _run(fields, should_stop), "lower evaluate.dynamic_steps")


def _run(fields: dict[str, Any], should_stop: Callable[[], bool]) -> dict[str, Any]:
    import torch

    from rnnlm_core.dynamic_evaluation import evaluate_dynamically

    def check() -> None:
        if should_stop():
            raise stopped(fields["cell"])

    if fields["threads"]:
        torch.set_num_threads(fields["threads"])
    evaluated = evaluate_dynamically(
        Handle(**fields["model"]),
        Handle(**fields["corpus"]),
        EvaluateConfig(**fields["config"]),
        store_of(fields),
        device=fields["device"],
        check=check,
    )
    return asdict(evaluated)


if __name__ == "__main__":
    main()
