"""What a process has used is its own, whoever started it."""

import os
import subprocess
import sys
from pathlib import Path

from rnnlm_core.process_usage import Meter

ROOT = Path(__file__).resolve().parents[2]


def test_memory_is_that_of_the_process_alone() -> None:
    held = bytearray(os.urandom(1)) * 200_000_000  # in the parent, when the child starts
    code = "from rnnlm_core.process_usage import peak_bytes; print(peak_bytes())"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(told) < len(held)


def test_memory_and_processor_are_read_as_they_are_used() -> None:
    meter = Meter()
    before = meter.read()["peak_memory_megabytes"]
    held = bytearray(os.urandom(1)) * 300_000_000
    figures = meter.read()
    assert figures["peak_memory_megabytes"] > before
    assert figures["cpu_utilization_percentage"] > 0
    assert len(held) == 300_000_000
