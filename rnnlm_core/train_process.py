"""Training in a child process, `python -m rnnlm_core.train_process`; `child_process.py` says how the two talk.

A job for several processes is theirs (`rank_process.py`): the child starts them and waits, they share its standard
input and output.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rnnlm_core.child_process import Child, begin, report, watch_parent
from rnnlm_core.errors import RnnlmError
from rnnlm_core.training_job import MEMORY_RAN_OUT, Job, run_job


def train_in_child(
    job: Job,
    progress: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
    warn: Callable[[str], None],
    usage: Callable[[dict[str, float]], None] = lambda _: None,
    num_cores: Callable[[], int] = lambda: 1,
    resumed: Callable[[int], None] = lambda _: None,
    begun: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run a job in a child process and return its result as plain data (see `train.Trained`).

    `progress` receives each `train.Epoch` as plain data, once, `usage` before that what the child has used
    (`process_usage.Meter`). `begun` is called when the child has imported its code and done nothing yet, `resumed` with
    the number of epochs that follow from a checkpoint, if the training goes on from one. `num_cores` says how many
    cores the child may use from now on: that changes no digit of a job with one thread. Raises what the child
    raised; a child that died raises `ResourceError` with the signal.
    """
    if job.train.processes > 1:
        progress = _once(progress)

    def hear(message: dict[str, Any]) -> None:
        if "epoch" in message:
            progress(message["epoch"])
        elif "usage" in message:
            usage(message["usage"])
        elif "resumed" in message:
            resumed(message["resumed"])
        else:
            warn(message["warning"])

    child = Child("rnnlm_core.train_process", f"training of {job.cell}", job.threads, MEMORY_RAN_OUT)
    return child.run(asdict(job), hear, should_stop, num_cores, begun=begun, torn=job.train.processes > 1)


def _once(progress: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Return `progress` for epochs that are told anew after each new beginning."""
    last = 0

    def tell(epoch: dict[str, Any]) -> None:
        nonlocal last
        if epoch["number"] > last:
            last = epoch["number"]
            progress(epoch)

    return tell


def main() -> None:
    """Be the child."""
    fields, out = begin()

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    if fields["train"]["processes"] > 1:
        from rnnlm_core.rank_process import launch

        try:
            launch(fields, out)
        except RnnlmError as error:
            say(error={"kind": type(error).__name__, "args": list(error.args)})
        return
    should_stop = watch_parent()
    report(fields["cell"], say, lambda: run_job(fields, say, should_stop))


if __name__ == "__main__":
    main()
