"""One process of several that train together, and how they are started: by torchrun's agent, in the child's place.

The agent (`train_process` becomes it) starts `python -m rnnlm_core.rank_process JOB RENDEZVOUS` as often as the job
says, and all of them anew when one dies: they go on from the newest checkpoint. On several hosts `torchrun` itself
starts `-m rnnlm_core.rank_process JOB`. Messages come from the first rank, errors from any.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from rnnlm_core.child_process import STOP_SECONDS, report
from rnnlm_core.errors import ResourceError, Stopped, by_name
from rnnlm_core.training_job import MEMORY_RAN_OUT, run_job

RESTARTS = 3
"""How often a training begins again from its checkpoint because one of its processes died."""
LOST = 75
"""Exit code of a rank whose fellows are gone: none of its own fault."""


def launch(fields: dict[str, Any], out: IO[str]) -> None:
    """Start the ranks of a job and wait for them; what they say goes to `out`.

    Raises `ResourceError` when they were killed once too often, with the signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.setsid()  # Ctrl-C is the parent's; it closes standard input, which the ranks share
    os.dup2(out.fileno(), 1)
    # Nobody outside this machine shall reach them: they meet in a file, and talk over the loopback interface.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    with tempfile.TemporaryDirectory(prefix="rnnlm-ranks-") as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(fields))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=fields["train"]["processes"],
            run_id="rnnlm",
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder) / "agents"),
            rdzv_configs={"store_type": "file"},
            max_restarts=RESTARTS,
            local_addr="localhost",
            logs_specs=DefaultLogsSpecs(log_dir=str(Path(folder) / "logs")),
        )
        try:
            elastic_launch(config, sys.executable)(
                "-P", "-m", "rnnlm_core.rank_process", str(job), str(Path(folder) / "ranks")
            )
        except ChildFailedError as error:
            killed = [one.signal_name() for one in error.failures.values() if one.exitcode < 0]
            if not killed:
                raise
            # SIGTERM is for the others of one that was killed.
            name = min(killed, key=lambda name: name == "SIGTERM")
            often = f"{name}, after {RESTARTS} new beginnings"
            raise ResourceError(f"training of {fields['cell']} was killed", often, MEMORY_RAN_OUT) from error


def main() -> None:
    """Be one rank of the job whose file is named, which meets the others as torchrun says or at a file."""
    stopped = threading.Event()
    # While it waits for the others it would hear of nothing: one of them may have been killed before they met.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    agent = os.getppid()
    out = os.dup(1)
    os.dup2(2, 1)
    fields = json.loads(Path(sys.argv[1]).read_text())
    rendezvous = sys.argv[2] if len(sys.argv) > 2 else ""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    first = os.environ["RANK"] == "0"
    if rendezvous:
        threading.Thread(target=_watch_parent, args=(stopped,), daemon=True).start()

    failed = 0

    def say(**message: Any) -> None:
        nonlocal failed
        if os.getppid() != agent:  # it was killed: nobody has asked to stop
            return
        if "error" in message:
            failed = by_name(message["error"].get("kind", "")).exit_code
        if first or ("error" in message and failed != Stopped.exit_code):
            # On a line of its own: another rank may have been killed in the middle of one.
            line = memoryview(b"\n" + json.dumps(message).encode() + b"\n")
            while line:
                line = line[os.write(out, line) :]

    def work() -> dict[str, Any]:
        from rnnlm_core.model import pick_device
        from rnnlm_core.ranks import RanksLostError, joined

        try:
            if pick_device(fields["train"]["device"]).type == "cuda":
                fields["train"]["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
            with joined(f"{rendezvous}-{restart}" if rendezvous else "") as ranks:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: stopped.set())
                if int(restart):
                    most = os.environ["TORCHELASTIC_MAX_RESTARTS"]
                    told = f"a process of this training died: all {ranks.size} go on from the last checkpoint"
                    say(warning=f"{told} ({restart} of {most} times)")
                return run_job(fields, say, lambda: stopped.is_set() or os.getppid() != agent, ranks=ranks)
        except RanksLostError:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(LOST)  # the threads of the connection would wait for those that are gone

    report(fields["cell"], say, work)
    if not rendezvous:  # the parent has heard of it, torchrun looks at the exit code
        sys.exit(failed)


def _watch_parent(stopped: threading.Event) -> None:
    """Ask to stop when standard input ends, and make sure that it is done."""
    agent = os.getppid()
    while os.read(0, 4096):
        pass
    stopped.set()
    # Measuring may take minutes, and ends by itself; only whoever has lost its agent must not be left behind.
    while os.getppid() == agent:
        time.sleep(1.0)
    time.sleep(STOP_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
