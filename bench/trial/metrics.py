"""The quality of a network: one function for each metric, with the name of its column in `bench.spec.row`.

To add a metric, write a function here with `@metric`, and declare its column. A function of a plug-in needs no column: its values go to
the JSON column `plugin_metrics`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data import Split
from bench.spec.row import COLUMNS

BATCH = 500
ECE_BINS = 15


@dataclass(frozen=True)
class Outputs:
    """A network's outputs on a split, on the CPU: `logits` and `probabilities` float64 (n, classes), `targets` int64 (n,)."""

    logits: Tensor
    probabilities: Tensor
    targets: Tensor

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.logits.shape[1]


Metric = Callable[[Outputs], float | None]
METRICS: dict[str, Metric] = {}


def metric(function: Metric) -> Metric:
    """Register a metric, a function of `Outputs` that returns a number or None. A decorator.

        @bench.metric
        def confidence(outputs: bench.Outputs) -> float:
            return float(outputs.probabilities.amax(1).mean())

    Its value fills the column of the same name in every row; that of a plug-in is in the JSON column `plugin_metrics`.

    Raises:
        ValueError: another column or plug-in has this name.
    """
    name, known = function.__name__, METRICS.get(function.__name__)
    own = function.__module__ == __name__
    if not own and (name in COLUMNS or (known is not None and known.__module__ != function.__module__)):
        raise ValueError(f"there already is a column or metric '{name}': choose another name")
    METRICS[name] = function
    return function


def plugin_metrics() -> dict[str, Metric]:
    """The metrics of plug-ins, by name."""
    return {name: function for name, function in sorted(METRICS.items()) if name not in COLUMNS}


def of_module(module: ModuleType) -> list[str]:
    """The names of the metrics that a plug-in has registered; those that it no longer has, after an edit, are forgotten."""
    own = [name for name, function in METRICS.items() if function.__module__ == module.__name__]
    for name in own:
        if getattr(module, name, None) is not METRICS[name]:
            del METRICS[name]
    return [name for name in own if name in METRICS]


def quality(logits: Tensor, targets: Tensor) -> dict[str, float | str | None]:
    """The value of every metric: the columns of a row.

    Args:
        logits: (n, classes).
        targets: (n,), labels.

    Raises:
        FloatingPointError: a logit is not finite.
        ValueError: the metric of a plug-in does not return a number.
    """
    if not logits.isfinite().all():
        raise FloatingPointError("the network's outputs are not finite")
    logits = logits.double()
    outputs = Outputs(logits, logits.softmax(1), targets.cpu())
    others = plugin_metrics()
    own: dict[str, float | str | None] = {name: function(outputs) for name, function in METRICS.items() if name not in others}
    return own | {"plugin_metrics": json.dumps({name: number_of(name, function(outputs)) for name, function in others.items()})}


def number_of(name: str, value: Any) -> float | None:
    """The value of a plug-in's metric as a number; raises ValueError if it is not a finite number or None."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"metric '{name}' returned a {type(value).__name__}, not a number or None") from None
    if not math.isfinite(number):
        raise ValueError(f"metric '{name}' returned {number}")
    return number


def _top(outputs: Outputs, k: int) -> float:
    """Top-k accuracy as an exact fraction: torchmetrics rounds it to single precision."""
    # Imported here because it takes seconds, and planning, which imports this module, computes no metric.
    from torchmetrics.functional.classification import multiclass_accuracy

    value = multiclass_accuracy(outputs.logits, outputs.targets, outputs.classes, average="micro", top_k=k, validate_args=False)
    return round(float(value) * len(outputs.targets)) / len(outputs.targets)


@metric
def accuracy(outputs: Outputs) -> float:
    """The fraction of samples whose largest logit is that of their label."""
    return _top(outputs, 1)


@metric
def top5(outputs: Outputs) -> float | None:
    """The fraction of samples whose label has one of the five largest logits; None for fewer than six classes."""
    return _top(outputs, 5) if outputs.classes > 5 else None


@metric
def nll(outputs: Outputs) -> float:
    """The mean cross-entropy in nats, from logits in double precision, so that it is finite at any confidence."""
    return float(F.cross_entropy(outputs.logits, outputs.targets))


@metric
def brier(outputs: Outputs) -> float:
    """The mean of Σ_c (p_c - 1[c = y])², in [0, 2] (Brier 1950, the multi-class form)."""
    return float((outputs.probabilities - F.one_hot(outputs.targets, outputs.classes)).square().sum(1).mean())


@metric
def ece(outputs: Outputs) -> float:
    """The expected calibration error with 15 equal bins of confidence, L1 norm (Guo et al. 2017)."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    return float(
        multiclass_calibration_error(outputs.probabilities, outputs.targets, outputs.classes, ECE_BINS, norm="l1", validate_args=False)
    )


@metric
def worst_class_accuracy(outputs: Outputs) -> float:
    """The lowest accuracy of any class that has samples."""
    right = (outputs.logits.argmax(1) == outputs.targets).double()
    counts = outputs.targets.bincount(minlength=outputs.classes)
    rights = outputs.targets.bincount(right, minlength=outputs.classes)
    return float((rights / counts)[counts > 0].min())


@torch.no_grad()
def logits_of(model: nn.Module, split: Split) -> Tensor:
    """The model's outputs on a split: float32 (n, classes), on the CPU. The model is left in eval mode."""
    model.eval()
    return torch.cat([model(x) for x in split.batches(BATCH)]).float().cpu()


def hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether each prediction is correct: bool (n,) on the CPU; `logits` (n, classes), `targets` (n,)."""
    return logits.argmax(1).cpu() == targets.cpu()


def hit_rate(logits: Tensor, targets: Tensor) -> float:
    """The fraction of samples with a correct prediction; `logits` (n, classes), `targets` (n,)."""
    return int(hits(logits, targets).sum()) / len(targets)


def at_chance(logits: Tensor, targets: Tensor) -> bool:
    """Whether a network is not clearly better than always predicting the most frequent class.

    True if its accuracy is at most p + 2 √(p (1 - p) / n), with p the fraction of that class: two standard errors above p.

    Args:
        logits: (n, classes).
        targets: (n,), labels.
    """
    n = len(targets)
    p = int(targets.bincount().max()) / n
    return hit_rate(logits, targets) <= p + 2 * math.sqrt(p * (1 - p) / n)
