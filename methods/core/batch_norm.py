"""Estimates the statistics of batch norm again, e.g. after pruning has changed what its layers see."""

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.core.interface import Batches
from methods.core.modes import own_modes, unchanged_on_error
from methods.core.reading import check_reiterable, explaining, pairs

# Inputs with up to this many numbers pass through the network as one batch; activations need about twenty times their memory.
AT_ONCE = 2**26


class _Done(Exception):
    """Ends a forward pass: the rest of the network is not needed."""


@dataclass
class _Moments:
    """The number of values per channel seen so far, their mean and the sum of their squared deviations from it, in double precision."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Merge the values of inputs (n, channels, ...) by the pairwise update of Chan et al. 1983."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        n, mean = values.shape[1], values.mean(1)
        total = self.count + n
        step = mean - self.mean
        self.squares = self.squares + (values - mean[:, None]).square().sum(1) + step.square() * (self.count * n / total)
        self.mean = self.mean + step * (n / total)
        self.count = total


def recalibrate_batchnorm(model: nn.Module, batches: Batches) -> list[str]:
    """Estimate mean and variance of every batch norm again, in place; weights stay as they are.

    The result is that of one forward pass in training mode of all samples as a single batch: each layer gets the mean and the unbiased
    variance of its inputs, which the layers before it have normalised with their new mean and biased variance, as torch does in training
    mode. It does not depend on the size of the batches. Dropout is off. Data of up to `AT_ONCE` numbers are one batch indeed; for more
    data, and layers that a forward pass uses several times, there is one pass over the data per layer, which ends at this layer.

    Args:
        model: the network. Layers of batch norm without running statistics are left alone.
        batches: re-iterable of (inputs, targets); the targets are not used.

    Returns:
        The names of the layers, in the order of the forward pass; empty if the network has no batch norm.

    Raises:
        ValueError: if there are fewer than two values per channel, or the network fails on a batch. The network is then unchanged.
    """
    check_reiterable(batches)
    names = {m: n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    if not names:
        return []
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    with unchanged_on_error(model), own_modes(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        model.eval()
        with explaining(model, "batch norm cannot be estimated again"):
            uses = _uses(model, list(names), batches)
            whole = _together(batches, _device(model)) if set(uses.values()) == {1} else None
            if whole is not None:
                _estimate_at_once(model, list(uses), whole)
            else:
                _estimate_one_by_one(model, uses, batches, names)
    return [names[layer] for layer in uses]


def _uses(model: nn.Module, layers: list[_BatchNorm], batches: Batches) -> dict[_BatchNorm, int]:
    """How often a forward pass uses each layer; the layers are in the order of their last use."""
    used: list[_BatchNorm] = []
    hooks = [layer.register_forward_pre_hook(lambda module, _: used.append(module)) for layer in layers]
    try:
        for x, _ in pairs(batches, _device(model)):
            model(x)
            break
        else:
            raise ValueError("batch norm cannot be estimated without samples: the batches are empty")
    finally:
        for hook in hooks:
            hook.remove()
    last = {layer: place for place, layer in enumerate(used)}
    return {layer: used.count(layer) for layer in sorted(last, key=last.__getitem__)}


def _together(batches: Batches, device: torch.device) -> Tensor | None:
    """All inputs as one batch; None if they are too many, only one, or differ in shape."""
    parts, size = [], 0
    for x, _ in pairs(batches, device):
        parts.append(x)
        size += x.numel()
        if size > AT_ONCE or x.shape[1:] != parts[0].shape[1:]:
            return None
    whole = torch.cat(parts)
    return whole if len(whole) > 1 else None


def _estimate_at_once(model: nn.Module, layers: list[_BatchNorm], inputs: Tensor) -> None:
    """Set the statistics of layers by a forward pass in which only they are in training mode."""
    before = [(layer, layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer in layers:
            layer.train()
            layer.momentum, layer.num_batches_tracked = 1.0, None
        model(inputs)
    finally:
        for layer, momentum, tracked in before:
            layer.momentum, layer.num_batches_tracked = momentum, tracked


def _estimate_one_by_one(model: nn.Module, uses: dict[_BatchNorm, int], batches: Batches, names: dict[_BatchNorm, str]) -> None:
    """Set the statistics of each layer in turn; variances are biased until all layers are done."""
    counts = {layer: _estimate(model, layer, count, batches, names[layer]) for layer, count in uses.items()}
    for layer, n in counts.items():
        assert layer.running_var is not None
        layer.running_var.mul_(n / (n - 1))


def _estimate(model: nn.Module, layer: _BatchNorm, uses: int, batches: Batches, name: str) -> int:
    """Set mean and biased variance of one layer, from all its uses in the forward passes of all batches; how many values there are."""
    moments, left = _Moments(), 0

    def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal left
        moments.add(inputs[0])
        left -= 1
        if not left:
            raise _Done

    hook = layer.register_forward_pre_hook(see)
    try:
        for x, _ in pairs(batches, _device(model)):
            left = uses
            with suppress(_Done):
                model(x)
    finally:
        hook.remove()
    if moments.count < 2:
        raise ValueError(f"the variance of '{name}' needs at least two values per channel")
    assert isinstance(moments.mean, Tensor)
    assert isinstance(moments.squares, Tensor)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(moments.mean)
    layer.running_var.copy_(moments.squares / moments.count)
    return moments.count


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
