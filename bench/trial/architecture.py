"""Facts about an architecture that do not depend on its training: tensors, counts, initial values. They are cached.

The key of a cache contains the version of the architecture's code (`bench.networks.build.version`), so that a network of the user's own
that has changed is looked at again.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import nn

import methods
from bench import data
from bench.networks import build, plugins, weights
from bench.spec.errors import UserError
from bench.trial import cost
from bench.trial.job import Job

Patterns = tuple[str, ...]


def sources(dataset: str, architecture: str, files: Iterable[str]) -> str:
    """The versions of a user's own code behind a data set, an architecture and plug-in files, which are loaded; '' without such code."""
    loaded = [methods.source_hash(plugins.load(file).module) for file in files]
    return ",".join(filter(None, (data.version(dataset), build.version(architecture), *loaded)))


def check_source(job: Job) -> None:
    """Raise UserError if the user's files of a job are not those that it was planned with, which decide the key of its rows."""
    if job.sources is not None and sources(job.dataset, job.architecture, job.environment.plugins) != job.sources:
        names = ", ".join([job.architecture, job.dataset, *job.environment.plugins])
        raise UserError(f"code of your own has changed since this run was started ({names}); start it again")
    checkpoint = job.protocol.weights
    if checkpoint is not None and (found := initial_weights(False, checkpoint)) != job.initial_weights:
        raise UserError(f"weights '{checkpoint}' are {found}, but the rows of this run start from {job.initial_weights}")


def check_data(job: Job, fingerprint: str) -> None:
    """Raise UserError if the data of a job are not those that it was planned with, which decide the key of its rows."""
    if job.fingerprint not in (None, fingerprint):
        raise UserError(
            f"dataset '{job.dataset}' has changed since this run was started, or its function returns other data each time; start it again"
        )


def initial_weights(pretrained: bool, checkpoint: str | None) -> str:
    """The column `initial_weights` for the settings of a protocol.

    Raises:
        UserError: the checkpoint is missing, or has another format.
    """
    if checkpoint is not None:
        return f"sha256:{weights.digest(checkpoint)}"
    return "pretrained" if pretrained else "random"


def forget() -> None:
    """Clear the caches: a user's function may read files that no version shows, such as a checkpoint."""
    for cached in (_has_paths, _tensors, _initial_values, _dense):
        cached.cache_clear()


def has_paths(architecture: str, input_shape: tuple[int, ...], classes: int) -> bool:
    """Whether effective sparsity is defined for an architecture. It takes seconds for a large transformer."""
    return _has_paths(architecture, input_shape, classes, build.version(architecture))


def tensors(architecture: str, input_shape: tuple[int, ...], classes: int, include: Patterns = (), exclude: Patterns = ()) -> str:
    """A text that changes with the architecture: names, shapes and types of its state, and its `repr`.

    Raises:
        UserError: a pattern of `include` or `exclude` matches no weight of the architecture.
    """
    return _tensors(architecture, input_shape, classes, include, exclude, build.version(architecture))


def initial_values(architecture: str, input_shape: tuple[int, ...], classes: int) -> str:
    """The hash of the initial state of an architecture for one seed; it shows a checkpoint that the function itself loads.

    Raises:
        UserError: two networks with the same seed differ, so that methods would not start from the same network.
    """
    return _initial_values(architecture, input_shape, classes, build.version(architecture))


def dense(architecture: str, input_shape: tuple[int, ...], classes: int, include: Patterns, exclude: Patterns) -> cost.Dense:
    """The counts of the dense network."""
    return _dense(architecture, input_shape, classes, include, exclude, build.version(architecture))


@lru_cache(maxsize=64)
def _has_paths(architecture: str, input_shape: tuple[int, ...], classes: int, _: str) -> bool:
    model = _seeded(architecture, input_shape, classes)
    return methods.effective_sparsity(model, methods.full_mask(model), input_shape) is not None


@lru_cache(maxsize=64)
def _tensors(architecture: str, input_shape: tuple[int, ...], classes: int, include: Patterns, exclude: Patterns, _: str) -> str:
    model = _seeded(architecture, input_shape, classes)
    try:
        methods.prunable(model, include, exclude)
    except ValueError as error:
        raise UserError(f"architecture '{architecture}': {error}; [architecture.{architecture}] may have patterns of its own") from None
    return "\n".join([*(f"{n} {tuple(t.shape)} {t.dtype}" for n, t in model.state_dict().items()), repr(model)])


@lru_cache(maxsize=64)
def _initial_values(architecture: str, input_shape: tuple[int, ...], classes: int, _: str) -> str:
    first, second = (state_digest(_seeded(architecture, input_shape, classes)) for _ in range(2))
    if first != second:
        raise UserError(
            f"architecture '{architecture}': its initial weights differ between two calls with the same seed; draw them from torch's"
            " global generator, so that all methods start from the same network"
        )
    return first


@lru_cache(maxsize=64)
def _dense(architecture: str, input_shape: tuple[int, ...], classes: int, include: Patterns, exclude: Patterns, _: str) -> cost.Dense:
    return cost.dense(_seeded(architecture, input_shape, classes), input_shape, include, exclude)


def _seeded(architecture: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build.create(architecture, input_shape, classes)


def state_digest(model: nn.Module) -> str:
    """SHA-256 (hex) of the names, types, shapes and values of a network's state on the CPU."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
