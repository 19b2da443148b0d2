"""MLflow's server, and one that speaks S3, on loopback for the length of a test."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest

PATIENCE = 180.0
"""Seconds for a server to start, on a machine that has other things to do."""
BUCKET = "models"


@contextmanager
def mlflow_server(store: str, *options: str, **settings: str) -> Iterator[str]:
    """MLflow's server over a database; give its address, end it afterwards with all its processes."""
    port = free_port()
    command = [
        "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", store, *options,
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    with running(command, f"http://127.0.0.1:{port}", "/health", quiet | settings) as address:
        yield address


class ObjectStore:
    """A server that speaks S3, holds its objects in memory, and has a bucket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.settings = {
            "MLFLOW_S3_ENDPOINT_URL": address,
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client().create_bucket(Bucket=BUCKET)

    def names(self) -> list[str]:
        """Return the names of the objects in the bucket."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        """Return the content of an object."""
        content: bytes = self._client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def _client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=self.settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.settings["AWS_SECRET_ACCESS_KEY"],
            region_name=self.settings["AWS_DEFAULT_REGION"],
        )


@contextmanager
def object_store(port: int = 0) -> Iterator[ObjectStore]:
    """A running one with an empty bucket; skips the test where moto is not installed."""
    pytest.importorskip("moto.server", reason="no S3 here: pip install '.[servers]'")
    port = port or free_port()
    command = ["moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, f"http://127.0.0.1:{port}", "/moto-api/data.json", {}) as address:
        yield ObjectStore(address)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], address: str, health: str, settings: dict[str, str]) -> Iterator[str]:
    """A Python module that serves; give its address once it answers, end all its processes afterwards."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as server:  # fmt: skip
        try:
            _wait_until_healthy(server, address + health)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def _wait_until_healthy(server: "subprocess.Popen[bytes]", address: str) -> None:
    direct = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        try:
            with direct.open(address, timeout=10) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {address}")
