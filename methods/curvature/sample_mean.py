"""The loss of a problem as a mean over samples, checked on the first batch."""

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from methods.core.interface import Loss
from methods.curvature.loss_factors import cross_entropy_of, half_squared_error

COMPARED = 64  # samples of the first batch whose losses are computed one by one, at most
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # relative difference that rounding explains
# Of a loss that holds a tensor of another type, needs outputs in a container of its own, or does not take a single sample.
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
REMEDY = 'write it as a mean over samples, e.g. `lambda f, y: (w[y] * F.cross_entropy(f, y, reduction="none")).mean()`'


class SampleMean:
    """L(f, y) = (1/n) Σ_n ℓ(f_n, y_n) for the outputs f and targets y of n samples.

    Gradients and curvature of single samples are defined only for such a loss. Class weights, `ignore_index` or `reduction="sum"` break
    it: they depend on how samples fall into batches. For cross-entropy with `ignore_index`, ℓ is the mean over the positions of the
    sample that are not ignored (`methods.curvature.loss_factors`).

    Args:
        loss: (outputs, targets) -> mean loss of a batch.
    """

    def __init__(self, loss: Loss) -> None:
        self.cross_entropy = cross_entropy_of(loss)
        self.loss: Loss = self.cross_entropy if self.cross_entropy is not None and loss is not self.cross_entropy else loss
        self.known = loss is half_squared_error or self.cross_entropy is not None
        self.compared = False
        _check_reduction(loss)
        if self.cross_entropy is not None and self.cross_entropy.weight is not None:
            raise ValueError(f"the loss has class weights, so it is not a mean over samples: {REMEDY}")

    def __call__(self, f: Any, y: Tensor) -> Tensor:
        """L, a scalar tensor. A loss of one's own may take outputs that are tuples, lists or dicts of tensors.

        Raises:
            ValueError: if the outputs or targets do not fit, or the loss is not a mean over samples.
        """
        if isinstance(f, Tensor) or self.known:
            check_outputs(f, y)
        if self.cross_entropy is not None:
            _check_classes(f, y)
        value = _scalar(self.loss(f, y))
        if not self.known and not self.compared and len(y) > 1:
            _compare(self.loss, f, y)
            self.compared = True
        return value


def check_outputs(f: object, y: Tensor) -> None:
    """Raise ValueError if the outputs of a network are not one tensor whose first dimension is the samples."""
    if not isinstance(f, Tensor):
        raise ValueError(f"the network returns a {type(f).__name__}, not a tensor: wrap it in a module that returns one tensor")
    if f.dim() == 0 or len(f) != len(y):
        raise ValueError(
            f"the network returns outputs of shape {tuple(f.shape)} for {len(y)} samples: the first dimension must be the samples; "
            "wrap it in a module that returns such a tensor"
        )


def _check_reduction(loss: Loss) -> None:
    """Raise ValueError for a loss of torch, or a `functools.partial` of one, that does not average."""
    function, reduction = loss, getattr(loss, "reduction", None)
    if isinstance(loss, functools.partial):
        function, reduction = loss.func, loss.keywords.get("reduction")
    known = str(getattr(function, "__module__", "")).startswith("torch.nn")
    if known and reduction in ("sum", "none"):
        raise ValueError(f'the loss has reduction="{reduction}", so it is not a mean over samples: use reduction="mean"')


def _check_classes(f: Tensor, y: Tensor) -> None:
    """Raise ValueError where cross-entropy is not defined, or is always zero."""
    if f.dim() < 2:
        raise ValueError(f"cross_entropy needs outputs of shape (samples, classes, ...), not {tuple(f.shape)}")
    if f.shape[1] == 1:
        raise ValueError("cross_entropy of one output is always zero: use F.binary_cross_entropy_with_logits")
    wanted = f.shape if y.is_floating_point() else (f.shape[0], *f.shape[2:])
    if tuple(y.shape) != tuple(wanted):
        raise ValueError(f"cross_entropy of outputs {tuple(f.shape)} needs targets of shape {tuple(wanted)}, not {tuple(y.shape)}")


def _scalar(value: object) -> Tensor:
    """The value of a loss; raises ValueError if it is not one number."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f'the loss must return the mean over the samples of a batch, one number, not {got}: use reduction="mean"')
    return value.squeeze()


def _compare(loss: Loss, f: Any, y: Tensor) -> None:
    """Raise ValueError if the loss of some samples is not the mean of their losses."""
    some = torch.linspace(0, len(y) - 1, min(COMPARED, len(y))).round().long().to(y.device)
    for dtype, tolerance in TOLERANCE.items():
        try:
            together, single, rounding = _losses(loss, _part(f, some, dtype), _part(y, some, dtype))
        except FAILURES:
            continue
        tolerance = max(tolerance, rounding)
        mean = sum(single) / len(single)
        scale = max(abs(together), sum(map(abs, single)) / len(single))
        if math.isfinite(together) and not abs(together - mean) <= tolerance * scale:
            summed = abs(together - mean * len(single)) <= tolerance * abs(together)
            remedy = 'divide it by the number of samples, e.g. by reduction="mean"' if summed else REMEDY
            raise ValueError(f"the loss of {len(single)} samples is {together:.4g}, the mean of their single losses {mean:.4g}: {remedy}")
        return


@torch.no_grad()
def _losses(loss: Loss, f: Any, y: Tensor) -> tuple[float, list[float], float]:
    """The loss of all samples together, that of each, and the relative rounding of the type in which it is returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loss of the whole batch has given its warnings
        together = loss(f, y)
        single = [float(loss(_part(f, slice(n, n + 1)), y[n : n + 1])) for n in range(len(y))]
    return float(together), single, torch.finfo(together.dtype).eps if together.is_floating_point() else 0.0


def _part(value: Any, samples: Tensor | slice, dtype: torch.dtype | None = None) -> Any:
    """Some samples of outputs or targets, real numbers as `dtype`."""
    if isinstance(value, dict):
        return {key: _part(v, samples, dtype) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([_part(v, samples, dtype) for v in value])
    part = value[samples].detach()
    return part.to(dtype) if dtype is not None and part.is_floating_point() else part
