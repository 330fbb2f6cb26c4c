"""Data sets as a protocol splits them, kept in memory for the next jobs."""

import dataclasses
from collections import OrderedDict

from bench import data
from bench.spec.protocol import Protocol
from bench.trial import architecture
from bench.trial.job import Environment

BOUND = 2**30  # bytes of data sets in memory; the last one is kept in any case

_Key = tuple[object, ...]
_loaded: OrderedDict[_Key, data.Dataset] = OrderedDict()  # the one that was used last is the last
_cards: dict[_Key, data.Card] = {}


def forget() -> None:
    """Read data sets and build networks again at their next use, because files that they depend on may have changed."""
    _loaded.clear()
    _cards.clear()
    architecture.forget()


def load_data(name: str, protocol: Protocol, environment: Environment) -> data.Dataset:
    """The data set with the protocol's splits, on the environment's device.

    It is kept in memory for the next jobs. Data sets that were not used for longest are dropped when all together need more than
    `BOUND` bytes; memory-mapped examples do not count.
    """
    options = _options(protocol)
    key = (name, environment.data_root, environment.cache, options, environment.device)
    if key not in _loaded:
        found = data.load(name, environment.data_root, cache=environment.cache / "data", **vars(options))
        _loaded[key] = found.to(environment.device)
    _loaded.move_to_end(key)
    while len(_loaded) > 1 and sum(dataset.nbytes for dataset in _loaded.values()) > BOUND:
        _loaded.popitem(last=False)
    return _loaded[key]


def load_card(name: str, protocol: Protocol, environment: Environment) -> data.Card:
    """What planning needs to know of a data set. The data are loaded only if the cache has no card of them."""
    options = _options(protocol)
    key = (name, environment.data_root, environment.cache, options)
    if key not in _cards:
        found = data.known_card(name, environment.data_root, environment.cache / "data", options)
        _cards[key] = found or data.card_of(load_data(name, protocol, dataclasses.replace(environment, device="cpu")))
    return _cards[key]


def _options(protocol: Protocol) -> data.Options:
    moments = None if protocol.mean is None or protocol.std is None else (protocol.mean, protocol.std)
    return data.Options(protocol.validation, protocol.split_seed, protocol.train_limit, moments)
