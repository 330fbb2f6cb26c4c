"""The cells of a request (one per data set, architecture and seed), and the keys of their results.

A key is the digest of everything that determines a result: data, splits, protocol, hyperparameters, seed, tensors of the network, source
code of the trial and of the method, versions of packages, kind of device, number of threads. So an interrupted run continues where it
stopped, a repeated run computes nothing, and edited code is never mixed with old results.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import methods
from bench import data
from bench.networks import build, weights
from bench.planning.request import Request
from bench.planning.trained import protocol_of
from bench.spec.digest import digest
from bench.spec.errors import UserError
from bench.spec.protocol import Protocol
from bench.spec.row import PROTOCOL_VERSION
from bench.spec.setting import Setting
from bench.trial import architecture as networks
from bench.trial import loading, metrics, trial
from bench.trial.provenance import versions
from methods import Method


@dataclass(frozen=True)
class Cell:
    """A data set, architecture and seed of a request. `common`: what determines the results of all methods in this cell."""

    request: Request
    dataset: str
    architecture: str
    protocol: Protocol
    seed: int
    common: dict[str, Any]

    def network(self, training: str, hyperparameters: dict[str, Any]) -> str:
        """The key of a dense network.

        Args:
            training: name of the training.
            hyperparameters: all its hyperparameters.
        """
        source = methods.source_hash(trial, methods.lookup("trainings", training))
        return digest({**self.common, "training": training, "hyperparameters": hyperparameters, "source": source})

    def setting(self, method: Method) -> Setting | None:
        """All hyperparameters of a method in this cell: default or tuned. None if the request is tuned but has none for this method."""
        found: Setting | None = Setting({}, {})
        if self.request.tuned is not None:
            found = self.request.tuned.get((self.dataset, self.architecture, method.name))
        if found is None:
            return None
        return Setting(
            training=hyperparameters_of(method.make_training(**found.training)),
            criterion=hyperparameters_of(method.make_criterion(**(found.criterion or {}))),
            schedule=None if method.schedule is None else method.schedule.as_dict(),
            finetune_lr_scale=self.protocol.finetune_lr_scale if found.finetune_lr_scale is None else found.finetune_lr_scale,
            search=found.search,
        )

    def decided(self, method: Method, criterion: dict[str, Any]) -> dict[str, Any]:
        """What determines a method's results in addition to its dense network.

        Args:
            method: the method.
            criterion: all hyperparameters of its criterion.
        """
        suite = self.request.suite
        classes = methods.lookup("criteria", method.criterion), type(methods.get_granularity(suite.granularity))
        decided = {
            "method": method.name, "stage": method.stage, "granularity": suite.granularity, "match": suite.match,
            "criterion": method.criterion, "hyperparameters": criterion, "source": methods.source_hash(trial, *classes),
        }  # fmt: skip
        return decided | ({"schedule": method.schedule.as_dict()} if method.schedule is not None else {})


class PointKeys:
    """The keys of rows that the same things determine, except sparsity and fine-tuning. What they share is encoded once.

    Args:
        decided: what determines the rows before fine-tuning, without the sparsity.
    """

    def __init__(self, decided: dict[str, Any]) -> None:
        others = {name: methods.source_hash(sys.modules[m.__module__]) for name, m in metrics.plugin_metrics().items()}
        self._shared = {name: encoded(value) for name, value in {**decided, **({"metrics": others} if others else {})}.items()}

    def key(self, finetune_epochs: int, lr_scale: float | None, **more: float) -> str:
        """The key of one row.

        Args:
            finetune_epochs: number of fine-tuning epochs.
            lr_scale: learning rate of fine-tuning, as a fraction of the training's.
            more: what else determines the row, its sparsity.
        """
        own = {"finetune_epochs": finetune_epochs, "finetune_lr_scale": lr_scale if finetune_epochs else None, **more}
        return digest_of(self._shared | {name: _number(value) for name, value in own.items()})


def cells(request: Request, seeds: Iterable[int], notes: list[str]) -> Iterator[Cell]:
    """The cells of a request. Data sets are opened only if the cache has no card of them, see `bench.data.cards`.

    Args:
        request: what to run.
        seeds: seeds of the cells.
        notes: a message is added for each data set that an architecture does not support.

    Raises:
        UserError: the augmentation does not fit a data set, the optimizer does not fit a method's training, or there are no pretrained
            weights.
    """
    for dataset, architecture in ((b.dataset, a) for b in request.suite.blocks for a in b.architectures):
        protocol = protocol_of(request.suite, dataset, architecture)
        card = loading.load_card(dataset, protocol, request.environment)
        if not build.accepts(architecture, card.input_shape):
            shape = "x".join(map(str, card.input_shape))
            notes.append(f"{architecture} does not support {dataset} (inputs of shape {shape}); skipped")
            continue
        data.check_augmentation(card, protocol.augment)
        for method in request.methods:
            _check_optimizer(method, protocol)
        _check_given(protocol, architecture, dataset, card)
        common = _common(request, protocol, card.fingerprint, architecture)
        common["tensors"] = networks.tensors(architecture, card.input_shape, card.classes, protocol.include, protocol.exclude)
        common |= _own(protocol, architecture, card.input_shape, card.classes)
        for seed in seeds:
            yield Cell(request, dataset, architecture, protocol, seed, {**common, "seed": seed})


def _check_optimizer(method: Method, protocol: Protocol) -> None:
    """Raise UserError if the optimizer decouples weight decay and the method's training has it in the loss."""
    try:
        methods.Recipe(epochs=protocol.epochs, optimizer=protocol.optimizer).check(method.make_training())
    except ValueError as error:
        raise UserError(f"{method.name}: {error}; all@decoupled are all methods") from None


def _check_given(protocol: Protocol, architecture: str, dataset: str, card: data.Card) -> None:
    """Raise UserError, before anything runs, if given weights cannot be loaded or there are too few samples for calibration."""
    if protocol.pretrained or protocol.weights is not None:
        model = build.create(architecture, card.input_shape, card.classes, protocol.pretrained)
        if protocol.weights is not None:
            weights.load(model, protocol.weights, f"architecture '{architecture}'")
        elif not protocol.epochs:
            build.check_head(architecture, card.classes)
    if protocol.calibration is not None and protocol.calibration > card.train:
        raise UserError(
            f"calibration = {protocol.calibration}, but dataset '{dataset}' has {card.train} training samples: "
            f"use --calibration {card.train} or fewer"
        )


def _common(request: Request, protocol: Protocol, fingerprint: str, architecture: str) -> dict[str, Any]:
    decides = dataclasses.asdict(protocol)
    del decides["finetune_lr_scale"]  # has no effect on a dense network: see `PointKeys`
    del decides["weights"]  # their content decides, not their path: see `_own`
    return {
        "protocol": decides,
        "version": PROTOCOL_VERSION,
        "data": fingerprint,
        "architecture": architecture,
        "torch": torch.__version__,
        "packages": versions(),
        "device": torch.device(request.environment.device).type,
        "threads": request.environment.threads,
    }


def _own(protocol: Protocol, architecture: str, input_shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """What determines the results of a network or a checkpoint of the user's own: code, initial values, content of the checkpoint."""
    found: dict[str, Any] = {}
    source = build.version(architecture)
    if source:
        found |= {"network": source, "initial": networks.initial_values(architecture, input_shape, classes)}
    if protocol.weights is not None:
        found["weights"] = weights.digest(protocol.weights)
    return found


def encoded(value: Any) -> str:
    """A value as `bench.spec.digest.digest` encodes it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@functools.lru_cache(maxsize=1000, typed=True)
def _number(value: float | None) -> str:
    return encoded(value)


def digest_of(parts: dict[str, str]) -> str:
    """The digest of an object. `parts`: name -> value as `encoded` returns it."""
    text = ",".join([f'"{name}":{parts[name]}' for name in sorted(parts)])
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


def hyperparameters_of(configuration: methods.Configuration) -> dict[str, Any]:
    """Hyperparameter -> value, for all hyperparameters, as recorded in a row."""
    return {name: getattr(configuration, name) for name in methods.ranges(configuration)}
