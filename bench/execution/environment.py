"""Check the user's choice of machines and folders, and open store and executor."""

import os
from collections.abc import Iterable
from pathlib import Path

from bench.execution import executors
from bench.execution.resources import check
from bench.planning.catalogue import load_plugins
from bench.planning.request import Request, make_request
from bench.spec.choices import Narrowing, Resources
from bench.spec.errors import UserError
from bench.storage.database import DEFAULT_URL, file_of, is_temporary
from bench.storage.rows import Store
from bench.trial.job import Environment

CACHE = Path(".bench")


def environment_of(resources: Resources) -> Environment:
    """The environment of jobs: device, folders, plug-ins.

    Raises:
        UserError: an option is invalid, or there is no GPU.
    """
    import torch

    check(resources)
    if resources.device == "cuda" and resources.executor == "local" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU on this machine; use --device cpu or auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if resources.device == "auto" else resources.device
    plugins = tuple(str(Path(file).resolve()) for file in resources.plugin)
    log = None if resources.log is None else resources.log.resolve()
    root = None if resources.data_root is None else resources.data_root.resolve()
    return Environment(device, root, CACHE.resolve(), plugins, log=log, stack=resources.stack)


def open_request(suite: str, narrowing: Narrowing, resources: Resources, ablations: Iterable[str] = ()) -> Request:
    """The request of a user, with the plug-ins loaded.

    Args:
        suite: a suite by name, or a .toml file.
        narrowing: what replaces the suite's own values.
        resources: machines, folders and plug-ins.
        ablations: controls for each method.

    Raises:
        UserError: a name or value is wrong.
    """
    environment = environment_of(resources)
    load_plugins(environment.plugins)
    return make_request(suite, narrowing, environment, ablations)


def open_store(resources: Resources) -> Store:
    """The store of results.

    Raises:
        UserError: it cannot be opened, or is in memory.
    """
    url = _store_url(resources)
    if is_temporary(url):
        raise UserError(f"the store '{url}' is in memory: workers cannot share it; expected a URL such as {DEFAULT_URL}")
    return Store(url)


def _store_url(resources: Resources) -> str:
    return DEFAULT_URL if resources.store is None else resources.store


def open_executor(resources: Resources, environment: Environment) -> executors.Executor:
    """The executor of the jobs.

    Args:
        resources: the user's choice.
        environment: of the jobs.

    Raises:
        UserError: Ray is not installed, or its cluster cannot be reached.
    """
    device = environment.device
    workers = worker_count(resources, device) if resources.executor == "local" else resources.workers
    files = [*map(Path, environment.plugins), *filter(None, (environment.data_root, file_of(_store_url(resources))))]
    return executors.make(
        resources.executor, workers, gpus=device == "cuda", address=resources.ray_address, cache=environment.cache, files=files
    )


def worker_count(resources: Resources, device: str) -> int:
    """The number of jobs at a time on this machine.

    Args:
        resources: the user's choice.
        device: "cpu" or "cuda".

    Returns:
        The chosen number, or by default 1 on a GPU and the number of cores on a CPU.
    """
    return resources.workers or (1 if device == "cuda" else os.cpu_count() or 1)
