"""Where jobs run, and where their results are kept: what a user says of it, checked and opened."""

import os
from pathlib import Path

from bench.execution import executors
from bench.spec.choices import DEVICES, Resources
from bench.spec.errors import UserError, unknown
from bench.storage.rows import DEFAULT_URL, Store
from bench.trial.job import Environment

CACHE = Path(".bench")


def check(resources: Resources) -> None:
    """Raise UserError for what cannot be, as far as that can be said without torch."""
    if resources.executor not in executors.EXECUTORS:
        raise unknown("executor", resources.executor, executors.EXECUTORS)
    if resources.device not in DEVICES:
        raise unknown("device", resources.device, DEVICES)
    if resources.workers is not None and resources.workers < 1:
        raise UserError(f"--workers must be at least 1, got {resources.workers}")
    if resources.data_root is not None and not resources.data_root.is_dir():
        raise UserError(f"--data-root '{resources.data_root}' is not a directory")


def environment_of(resources: Resources) -> Environment:
    """What the jobs run with. Raises UserError for a GPU or a folder that is not there."""
    import torch

    check(resources)
    if resources.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU on this machine; use --device cpu or auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if resources.device == "auto" else resources.device
    return Environment(device, resources.data_root, CACHE.resolve(), tuple(str(Path(file).resolve()) for file in resources.plugin))


def open_store(resources: Resources) -> Store:
    """The store of results. Raises UserError where it cannot be opened."""
    return Store(resources.store or DEFAULT_URL)


def open_executor(resources: Resources, device: str) -> "executors.Local | executors.Ray":
    """The executor for jobs on a device, "cpu" or "cuda"."""
    workers = worker_count(resources, device) if resources.executor == "local" else resources.workers
    return executors.make(resources.executor, workers, gpus=device == "cuda", address=resources.ray_address)


def worker_count(resources: Resources, device: str) -> int:
    """The number of jobs at a time on this machine: one on a GPU, unless more are asked for."""
    return resources.workers or (1 if device == "cuda" else os.cpu_count() or 1)
