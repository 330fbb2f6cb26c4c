"""The part of training that is the same for all methods: optimisers, the shape of the learning rate, precision."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from methods.core.arguments import require, require_names
from methods.core.configurations import Training

# `Training.lr` is the learning rate of SGD with momentum; that of another optimiser is this factor times it.
OPTIMIZERS: dict[str, float] = {"sgd": 1.0, "adam": 0.01, "adamw": 0.01}
# How the forward passes of training compute; weights, gradients and the optimiser stay as they are.
PRECISIONS: dict[str, torch.dtype | None] = {"full": None, "bfloat16": torch.bfloat16}


def _cosine(progress: float, warmup: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def _linear(progress: float, warmup: float) -> float:
    return (1.0 - progress) / (1.0 - warmup)


def _constant(progress: float, warmup: float) -> float:
    return 1.0


def _step(progress: float, warmup: float) -> float:
    return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


# Name -> factor on the peak learning rate after the warm-up, from the fractions of all steps done and of the warm-up.
LR_SCHEDULES: dict[str, Callable[[float, float], float]] = {"cosine": _cosine, "linear": _linear, "constant": _constant, "step": _step}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The part of training that is the same for all methods: length, optimiser, shape of the learning rate.

    The peak learning rate is `training.lr · lr_scale · OPTIMIZERS[optimizer]`. It is reached by a linear warm-up. Then, with p the
    fraction of all steps that are done and w the fraction of the warm-up, it is multiplied by

    - "cosine": ½ (1 + cos(π (p - w) / (1 - w))) (Loshchilov and Hutter 2017, "SGDR");
    - "linear": (1 - p) / (1 - w);
    - "constant": 1;
    - "step": 0.1 from p = ½ on, 0.01 from p = ¾ on (He et al. 2016, "Deep residual learning for image recognition", on CIFAR-10:
      after 32,000 and 48,000 of 64,000 steps).

    Attributes:
        epochs: number of epochs.
        optimizer: "sgd" (with momentum), "adam" or "adamw". The last two take the same gradient step. They differ in what they
            accept: "adamw" requires a training with decoupled weight decay.
        momentum: momentum of SGD; β₁ of Adam.
        warmup: fraction of the steps with a rising learning rate.
        lr_scale: factor on the learning rate.
        precision: "full": forward passes compute in the precision of the weights; "bfloat16": under `torch.autocast`.
        schedule: "cosine", "linear", "constant" or "step".

    Raises:
        ValueError: if the optimiser, the precision or the schedule is unknown, or `epochs` is negative.
    """

    epochs: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    warmup: float = 0.1
    lr_scale: float = 1.0
    precision: str = "full"
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        require_names(optimizer=self.optimizer, precision=self.precision, lr_schedule=self.schedule)
        known: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
            ("precision", self.precision, PRECISIONS),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("lr_schedule", self.schedule, LR_SCHEDULES),
        )
        for what, value, allowed in known:
            if value not in allowed:
                raise ValueError(f"{what} '{value}' is not one of {', '.join(allowed)}")
        require(self.epochs, int, "epochs", "an integer")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")

    def check(self, training: Training) -> None:
        """Raise ValueError if the optimiser decouples weight decay and the training has it in the loss."""
        if self.optimizer == "adamw" and training.decoupled_decay is None:
            raise ValueError(
                f"'adamw' decouples weight decay, '{training.name}' has it in the loss: use training='decoupled' "
                "(a method with @decoupled, e.g. magnitude@decoupled), or optimizer='adam'"
            )

    def with_lr(self, training: Training, lr: float) -> Training:
        """The training with `lr` set so that the peak learning rate under this recipe is the given one."""
        return replace(training, lr=lr / (self.lr_scale * OPTIMIZERS[self.optimizer]))

    def with_given_lr(self, training: Training, given: Mapping[str, Any]) -> Training:
        """The training; its `lr`, if it is among the given hyperparameters, is that of the optimiser, otherwise that of SGD."""
        return self.with_lr(training, training.lr) if "lr" in given else training

    def make(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """The optimiser for SGD's learning rate `lr`, without weight decay: the loop applies it, in the loss or decoupled."""
        lr *= self.lr_scale * OPTIMIZERS[self.optimizer]
        fused = not any(p.is_complex() for p in parameters)
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=self.momentum, fused=fused)
        return torch.optim.Adam(parameters, lr=lr, betas=(self.momentum, 0.999), fused=fused)

    def cast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of forward passes."""
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

    def factor(self, progress: float) -> float:
        """The factor on the peak learning rate after a fraction `progress` of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        return LR_SCHEDULES[self.schedule](progress, self.warmup)
