"""Which process has done a thing, in words that another process can check: is it still there?"""

import socket

import psutil

PREFIX = "process:"


def this_process() -> dict[str, str]:
    """Return host, id and start of this process as tags of an MLflow run: an id alone is given again."""
    me = psutil.Process()
    return {"rnnlm.host": host(), "rnnlm.pid": str(me.pid), "rnnlm.started": f"{me.create_time():.2f}"}


def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def is_alive(pid: str, started: str) -> bool:
    """Whether the process of this machine with this id and start is there."""
    try:
        process = psutil.Process(int(pid))
        return f"{process.create_time():.2f}" == started and process.status() != psutil.STATUS_ZOMBIE
    except (ValueError, psutil.NoSuchProcess):
        return False


def flow_run_tag() -> str:
    """Return the tag that a flow run of this process carries from its first moment on."""
    return PREFIX + ":".join(this_process().values())


def has_ended(tags: list[str]) -> bool:
    """Whether a flow run with these tags belonged to a process of this machine that is gone."""
    for tag in tags:
        if tag.startswith(PREFIX):
            machine, pid, started = tag.removeprefix(PREFIX).rsplit(":", 2)
            return machine == host() and not is_alive(pid, started)
    return False
