"""A disk that is full, at whatever stage: one line says so, and with more room the same command goes on.

The disk is a real one: a file system in memory, mounted by the test, which only root may do.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands, Undisturbed
from homes import SMALL, artifacts, let_time_pass, wait_until_alone, what_is_wrong

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOMS = (50, 150, 300, 500, 700, 900, 1200)
"""Free kilobytes: from a disk that is full before the text is there to one that is full when the model is logged."""


@pytest.fixture
def disk(commands: Commands, tmp_path: Path) -> Iterator[Path]:
    """A home that is a disk of its own, of 64 MB."""
    home = commands.home(tmp_path.name)
    template = (home / "mlflow.db").read_bytes()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(home)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr}")
    try:
        (home / "mlflow.db").write_bytes(template)
        yield home
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


def resize(home: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(home)], check=True)


@pytest.mark.parametrize("kilobytes", ROOMS)
def test_a_disk_that_fills_up_is_named_and_with_more_room_the_command_goes_on(
    kilobytes: int, commands: Commands, undisturbed: dict[str, Undisturbed], disk: Path
) -> None:
    command = [*SMALL, "--cells", "gru"]
    resize(disk, kilobytes + (disk / "mlflow.db").stat().st_size // 1024)
    running = commands.start(disk, *command)
    code = running.wait()
    print(kilobytes, code, running.output()[-2000:])
    assert code == 5, running.output()
    assert "no space left" in running.output()
    assert "Traceback" not in running.output()
    wait_until_alone(disk)
    resize(disk, 65536)
    let_time_pass(disk)
    again = commands.start(disk, *command)
    assert again.wait() == 0, again.output()
    assert list(what_is_wrong(disk, commands.prefect)) == []
    assert set(artifacts(disk)) == undisturbed["gru"].artifacts
