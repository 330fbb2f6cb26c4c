"""What differs between a CPU and a GPU: waiting for its work, its memory, and how its numbers repeat."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its sums only with a workspace of fixed size


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Context in which the same job gives the same numbers on the same kind of GPU.

    Operations that have a deterministic algorithm use it. The others only warn: to refuse them would fail the rows of every network
    with, for example, adaptive pooling. On the CPU nothing changes: with a fixed number of threads its numbers repeat anyway.

    Args:
        device: the device of the job.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault(*WORKSPACE)  # read when cuBLAS is first used
    cudnn, memory = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    filling = memory.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # it finds reads of such memory, and costs time
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filling
        cudnn.deterministic, cudnn.benchmark = switches


def numerics(device: torch.device) -> dict[str, Any]:
    """How jobs on a GPU compute, for provenance: by deterministic algorithms, and what is rounded to TensorFloat-32. Empty for a CPU."""
    if device.type == "cpu":
        return {}
    switches: dict[str, Any] = {"conv": cast(Any, torch.backends.cudnn).conv, "matmul": torch.backends.cuda.matmul}
    return {"deterministic": True, "tf32": [name for name, switch in switches.items() if switch.fp32_precision == "tf32"]}


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


class Memory:
    """The memory of a GPU that a job needs in addition to what is there when it starts: its data, and those of other jobs.

    Args:
        device: the device of the job, with its data.
    """

    def __init__(self, device: torch.device) -> None:
        self._module = None if device.type == "cpu" else torch.get_device_module(device)
        self._device = device
        self._before = 0
        if self._module is not None:
            self._before = self._module.memory_allocated(device)
            self._module.reset_peak_memory_stats(device)

    def peak(self) -> float | None:
        """Megabytes at the peak since the last call; None on a CPU."""
        if self._module is None:
            return None
        peak = (self._module.max_memory_allocated(self._device) - self._before) / 1e6
        self._module.reset_peak_memory_stats(self._device)
        return float(peak)
