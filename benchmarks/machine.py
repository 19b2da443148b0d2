"""The machine of a run: what stands above every table, because no figure means anything without it."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers import VERSIONS

PACKAGES = ("torch", "numpy", "pyarrow", "prefect", "mlflow")
_CPU_INFO = Path("/proc/cpuinfo")


def machine(device: str) -> dict[str, Any]:
    """Return processor, cores, device, date and the versions of what is measured, `None` for what is not here."""
    import torch

    versions = {name: _version(name) for name in PACKAGES}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(torch.device(device)),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {"python": platform.python_version(), **versions, "d2l": " and ".join(VERSIONS)},
    }


def load() -> float | None:
    """Return the load average of the last minute, None where the system has none."""
    return round(os.getloadavg()[0], 2) if sys.platform != "win32" else None


def _version(name: str) -> str | None:
    return importlib.metadata.version(name) if importlib.util.find_spec(name) else None


def _processor() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
