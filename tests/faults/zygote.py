"""A process that has imported everything and forks: each child is one `rnnlm` command, without the seconds of imports.

It reads a job per line (JSON: arguments, environment, folder, file for the output) and answers with the child's
process id; `wait PID` is answered with its exit code as `subprocess` gives it. It ends with its standard input.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any

HEAVY = ("flows.smoke", "flows.display", "flows.tables", "tasks.health", "mlflow.pyfunc", "mlflow.models",
         "mlflow.store.tracking.sqlalchemy_store", "matplotlib.figure", "tokenizers")  # fmt: skip


def be_the_command(job: dict[str, Any]) -> None:
    """Be the command, from here to its end."""
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    os.environ.update(job["environment"])
    os.chdir(job["folder"])

    from prefect.context import refresh_global_settings_context

    from flows.cli import main

    refresh_global_settings_context()
    sys.argv = ["rnnlm", *job["arguments"]]
    main()


def serve() -> None:
    """Fork until standard input ends."""
    from tasks import workspace

    workspace.prepare_environment()
    for module in HEAVY:
        importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it may be ignored
    print("ready", flush=True)
    for line in sys.stdin:
        if line.startswith("wait "):
            _, status = os.waitpid(int(line.split()[1]), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        job = json.loads(line)
        child = os.fork()
        if not child:
            be_the_command(job)
            return
        print(child, flush=True)


if __name__ == "__main__":
    serve()
