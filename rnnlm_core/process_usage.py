"""What a process takes of its machine: processor, memory, memory of its GPU."""

import resource
import sys
import time

import torch

MEGABYTE = 1e6
# The unit of getrusage(2): kilobytes on Linux, bytes on macOS.
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


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
            "peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT / MEGABYTE,
        }
        self.wall, self.cpu = wall, cpu
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            peaks = [torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())]
            figures["gpu_peak_memory_megabytes"] = max(peaks) / MEGABYTE
        return figures
