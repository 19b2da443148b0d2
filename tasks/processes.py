"""Which process has done a thing, in words that another process can check: is it still there?"""

import socket
from pathlib import Path

import psutil

PREFIX = "rnnlm-process:"


def this_process() -> dict[str, str]:
    """Return host, id and start of this process as tags of an MLflow run: an id alone is given again."""
    me = psutil.Process()
    return {"rnnlm.host": host(), "rnnlm.pid": str(me.pid), "rnnlm.started": start_of(me)}


def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def worker_name() -> str:
    """Return what the worker of this machine that `rnnlm up` starts is called."""
    return f"rnnlm@{host()}"


def start_of(process: psutil.Process) -> str:
    """Return when a process began, in words that stay the same when somebody sets the clock.

    Where there is a `/proc`: which start of the machine, and the clock ticks since; elsewhere the time of day.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        # The name in brackets may hold anything, brackets too; the start is the 20th field after it (proc(5)).
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return f"{process.create_time():.2f}"
    return f"{boot}-{fields[19]}"


def is_alive(pid: str, started: str) -> bool:
    """Whether the process of this machine with this id and start is there."""
    try:
        process = psutil.Process(int(pid))
        return start_of(process) == started and process.status() != psutil.STATUS_ZOMBIE
    except (ValueError, psutil.NoSuchProcess, ProcessLookupError):
        return False


def flow_run_tag() -> str:
    """Return the tag that a flow run of this process carries from its first moment on."""
    return PREFIX + ":".join(this_process().values())


def is_tagged(tags: list[str]) -> bool:
    """Whether a flow run with these tags says which process it belongs to."""
    return any(tag.startswith(PREFIX) for tag in tags)


def untagged(tags: list[str]) -> list[str]:
    """Return the tags of a flow run that do not say which process it belongs to."""
    return [tag for tag in tags if not tag.startswith(PREFIX)]


def has_ended(tags: list[str]) -> bool:
    """Whether a flow run with these tags belonged to processes of this machine, all of them gone."""
    owners = [tag.removeprefix(PREFIX).rsplit(":", 2) for tag in tags if tag.startswith(PREFIX)]
    known = [owner for owner in owners if len(owner) == 3]
    return bool(known) and all(machine == host() and not is_alive(pid, started) for machine, pid, started in known)
