"""Prefect's own commands that start everything by hand, as docs/scheduling.md has them."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from homes import COMMAND, PROJECT
from stack import Stack, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SECTION = "## With Prefect's own commands"
STAYS = ("prefect server start", "prefect worker start")


def written(port: int) -> list[str]:
    """Return the commands of the page, with another port."""
    section = (PROJECT / "docs" / "scheduling.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    return "".join(blocks).replace("127.0.0.1:4200", f"127.0.0.1:{port}").splitlines()


@pytest.fixture
def terminals() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """What is started and stays, ended as Ctrl-C ends it, in turn."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in reversed(started):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_commands_of_the_page_deploy_and_run(tmp_path: Path, terminals: list["subprocess.Popen[bytes]"]) -> None:
    port = free_port()
    environment = Stack(tmp_path, prefect_port=port).environment | {"PREFECT_SERVER_API_PORT": str(port)}
    environment["PATH"] = f"{Path(COMMAND[0]).parent}:{environment['PATH']}"
    commands = written(port)
    assert sum(command.startswith(STAYS) for command in commands) == 2
    for command in commands:
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            environment[name] = value
        elif command.startswith(STAYS):
            with (tmp_path / "output.txt").open("ab") as out:
                terminals.append(
                    subprocess.Popen(
                        shlex.split(command),
                        env=environment,
                        cwd=PROJECT,
                        start_new_session=True,
                        stdout=out,
                        stderr=out,
                    )
                )
            wait_for_server(port)
        else:
            done = subprocess.run(
                shlex.split(command), env=environment, cwd=PROJECT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
    run = ["prefect", "deployment", "run", "smoke/smoke", "--watch"]
    done = subprocess.run(run, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + (tmp_path / "output.txt").read_text()


def wait_for_server(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=10).status_code == 200
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
