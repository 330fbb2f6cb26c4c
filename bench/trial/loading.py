"""Data sets as a protocol splits them, kept in memory for the next jobs."""

from functools import lru_cache
from pathlib import Path

from bench import data
from bench.spec.suite import Protocol
from bench.trial import architecture
from bench.trial.job import Environment


@lru_cache(maxsize=2)
def _load(
    name: str, root: Path | None, cache: Path, validation: float, split_seed: int, limit: int | None,
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None, device: str,
) -> data.Dataset:  # fmt: skip
    loaded = data.load(name, root, validation=validation, split_seed=split_seed, cache=cache / "data", train_limit=limit, moments=moments)
    return loaded.to(device)


def forget() -> None:
    """Read data sets and build networks again at their next use, because files that they depend on may have changed."""
    _load.cache_clear()
    architecture.forget()


def load_data(name: str, protocol: Protocol, environment: Environment) -> data.Dataset:
    """The data set with the protocol's splits, on the environment's device. The last two are kept in memory for the next jobs."""
    moments = None if protocol.mean is None or protocol.std is None else (protocol.mean, protocol.std)
    return _load(
        name, environment.data_root, environment.cache, protocol.validation, protocol.split_seed, protocol.train_limit, moments,
        environment.device,
    )  # fmt: skip
