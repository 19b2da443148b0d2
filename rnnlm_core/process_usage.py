"""What a process takes of its machine: processor, memory, memory of its GPU."""

import contextlib
import resource
import sys
import time
from pathlib import Path

MEGABYTE = 1e6


class Meter:
    """Reads what this process has used; the share of the processor is that since the last reading."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """Return the figures by name.

        `cpu_utilization_percentage`: of one core, so that two busy threads are 200; `peak_memory_megabytes`: the
        largest resident set so far; on CUDA `gpu_peak_memory_megabytes`: the largest sum of tensors so far.
        """
        wall, cpu = time.monotonic(), time.process_time()
        passed = max(wall - self.wall, 1e-9)
        figures = {
            "cpu_utilization_percentage": 100 * (cpu - self.cpu) / passed,
            "peak_memory_megabytes": peak_bytes() / MEGABYTE,
        }
        self.wall, self.cpu = wall, cpu
        torch = sys.modules.get("torch")  # what has not been imported has used nothing
        if torch is not None and torch.cuda.is_initialized():
            peaks = [torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())]
            figures["gpu_peak_memory_megabytes"] = max(peaks) / MEGABYTE
        return figures


def peak_bytes() -> int:
    """Return the largest resident set of this process so far."""
    # On Linux getrusage(2) begins with that of the process which started this one.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes elsewhere
