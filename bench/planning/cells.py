"""The cells of a request, one for each block and seed, and the keys of what is computed in them.

A key is the digest of all that decides a result: data, splits, protocol, hyperparameters, seed, the network's tensors, the code that a job
executes and that of the method's files, versions of packages, kind of device, threads. So a run that was killed continues, a repeated
run costs nothing, and edited code is computed anew.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import methods
from bench.networks import build
from bench.planning.request import Request
from bench.spec.digest import digest
from bench.spec.row import PROTOCOL_VERSION
from bench.spec.setting import Setting
from bench.spec.suite import Protocol
from bench.trial import trial, workbench
from bench.trial.provenance import versions
from methods import Method


@dataclass(frozen=True)
class Cell:
    """A block and seed of a request. `common`: what decides every result in it, whatever the method."""

    request: Request
    dataset: str
    architecture: str
    protocol: Protocol
    seed: int
    common: dict[str, Any]

    def network(self, training: str, hyperparameters: dict[str, Any]) -> str:
        """The key of the dense network of one training configuration."""
        source = methods.source_hash(trial, methods.lookup("trainings", training))
        return digest({**self.common, "training": training, "hyperparameters": hyperparameters, "source": source})

    def setting(self, method: Method) -> Setting | None:
        """All hyperparameters of a method here: its defaults, or what tuning has found. None where tuning has found nothing."""
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
        """What decides a method's results besides its dense network."""
        suite = self.request.suite
        classes = methods.lookup("criteria", method.criterion), type(methods.get_granularity(suite.granularity))
        decided = {
            "method": method.name, "stage": method.stage, "granularity": suite.granularity, "match": suite.match,
            "criterion": method.criterion, "hyperparameters": criterion, "source": methods.source_hash(trial, *classes),
        }  # fmt: skip
        return decided | ({"schedule": method.schedule.as_dict()} if method.schedule is not None else {})


def point_key(decided: dict[str, Any], finetune_epochs: int, lr_scale: float | None) -> str:
    """The key of one row, given what decides it before fine-tuning."""
    return digest({**decided, "finetune_epochs": finetune_epochs, "finetune_lr_scale": lr_scale if finetune_epochs else None})


def cells(request: Request, seeds: Iterable[int], notes: list[str]) -> Iterator[Cell]:
    """Every block and seed. `notes` takes in the blocks that are left out. Loads each data set once, for its fingerprint."""
    for dataset, architecture in ((b.dataset, a) for b in request.suite.blocks for a in b.architectures):
        protocol = request.suite.protocol(architecture)
        loaded = workbench.load_data(dataset, protocol, dataclasses.replace(request.environment, device="cpu"))
        if not build.accepts(architecture, loaded.input_shape):
            shape = "x".join(map(str, loaded.input_shape))
            notes.append(f"{architecture} does not take {dataset} (inputs of shape {shape}): left out")
            continue
        if protocol.pretrained:  # weights that cannot be had are said before anything runs
            build.create(architecture, loaded.input_shape, loaded.classes, pretrained=True)
        common = _common(request, protocol, loaded.fingerprint, architecture)
        common["tensors"] = workbench.tensors(architecture, loaded.input_shape, loaded.classes)
        for seed in seeds:
            yield Cell(request, dataset, architecture, protocol, seed, {**common, "seed": seed})


def _common(request: Request, protocol: Protocol, fingerprint: str, architecture: str) -> dict[str, Any]:
    decides = dataclasses.asdict(protocol)
    del decides["finetune_lr_scale"]  # does not decide a dense network: see `point_key`
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


def hyperparameters_of(configuration: methods.Configuration) -> dict[str, Any]:
    """All hyperparameters with their values, defaults included: what a row records."""
    return {name: getattr(configuration, name) for name in methods.ranges(configuration)}
