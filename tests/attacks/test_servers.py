"""What listens, listens on this machine alone; what has known holes is not accepted in an old version."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from tasks import workspace

PROJECT = Path(__file__).parents[2]


def test_prefects_own_server_listens_on_loopback() -> None:
    """It listens before its heavy imports, so it need not be waited for."""
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        listening = [c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]
    finally:
        server.kill()
        server.communicate()


def test_the_user_interfaces_are_started_on_loopback() -> None:
    """Every command that starts a server, in the Makefile and where people are told how, names loopback or nothing."""
    makefile = (PROJECT / "Makefile").read_text()
    servers = re.findall(r"(?:prefect server start|mlflow ui|mlflow server)[^&\n]*", makefile)
    assert len(servers) == 2
    assert all("--host 127.0.0.1" in server for server in servers)
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in makefile
    sources = [path for folder in ("flows", "tasks", "rnnlm_core") for path in (PROJECT / folder).glob("*.py")]
    texts = [*sources, *PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), PROJECT / "Makefile"]
    assert [path.name for path in texts if "0.0.0.0" in path.read_text()] == []  # noqa: S104 - looked for


def test_the_readme_says_what_has_no_login() -> None:
    (paragraph,) = [part for part in (PROJECT / "README.md").read_text().split("\n\n") if "What has no login" in part]
    assert all(word in paragraph for word in ("Prefect", "MLflow", "127.0.0.1"))


@pytest.mark.parametrize(
    ("package", "least"),
    [
        ("torch", (2, 10)),  # CVE-2025-32434, CVE-2026-24747: `weights_only` could be got round
        ("prefect", (3, 6, 22)),  # CVE-2026-7722, -7723, -3514
        ("mlflow", (3, 17)),  # CVE-2025-11201, CVE-2026-0545, -2651, -2614, and paths before them
    ],
)
def test_versions_with_known_holes_are_not_accepted(package: str, least: tuple[int, ...]) -> None:
    content = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    (wanted,) = [line for line in content["project"]["dependencies"] if re.match(rf"{package}\b", line)]
    (floor,) = re.findall(r">=([\d.]+)", wanted)
    assert _numbers(floor) >= least
    assert _numbers(version(package)) >= least


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+", maxsplit=1)[0]))


def test_mlflow_is_told_to_unpickle_nothing(home: Path) -> None:
    import os

    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert (workspace.artifacts() / "results").stat().st_mode & 0o777 == 0o700
