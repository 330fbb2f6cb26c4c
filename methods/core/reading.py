"""Reads batches, and explains in one line what a network or a loss cannot do with them."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from methods.core.differentiation import Repairs

# What networks and losses raise for inputs that they cannot take. Running out of memory says enough, and is not the input's fault.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError)


def check_reiterable(batches: Any) -> None:
    """Raise ValueError if batches cannot be read once per epoch."""
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise ValueError("batches is a data set: pass torch.utils.data.DataLoader(dataset, batch_size=...)")
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise ValueError(f"batches must be an iterable of (inputs, targets), not a {type(batches).__name__}")
    if isinstance(batches, Iterator):
        raise ValueError("batches must be re-iterable (a list, a DataLoader), not an iterator that can be read only once")


def pairs(batches: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches on a device, as (inputs, targets); empty ones are left out.

    Args:
        batches: iterable of (inputs, targets), two tensors with one row per sample.
        device: where to.

    Yields:
        (inputs, targets).

    Raises:
        ValueError: if a batch is anything else.
    """
    for batch in batches:
        fault = _fault(batch)
        if fault:
            raise ValueError(f"batches must be pairs (inputs, targets) of tensors with one row per sample; {fault}")
        x, y = (t.clone() if t.is_inference() else t for t in batch)  # autograd refuses tensors made in inference mode
        if len(y):
            yield x.to(device), y.to(device)


def _fault(batch: Any) -> str:
    """What is wrong with a batch, in a few words; '' if nothing is."""
    if not isinstance(batch, (tuple, list)):
        keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        return f"one is a {type(batch).__name__}{keys}: turn it into a pair, e.g. [(b['x'], b['y']) for b in batches]"
    if len(batch) != 2:
        return f"one has {len(batch)} parts: keep two, e.g. [(b[0], b[1]) for b in batches]"
    for word, part in zip(("inputs", "targets"), batch, strict=True):
        if not isinstance(part, Tensor):
            if word == "inputs" and isinstance(part, (tuple, list, dict)):
                return f"the inputs of one are a {type(part).__name__}: wrap the network in a module that takes a single tensor"
            return f"the {word} of one are a {type(part).__name__}: convert them, e.g. with torch.as_tensor"
    x, y = batch
    if not x.dim() or not y.dim():
        return "one holds a single sample: is it a data set? Pass torch.utils.data.DataLoader(dataset, batch_size=...)"
    return "" if len(x) == len(y) else f"one has {len(x)} inputs and {len(y)} targets"


def outputs_and_loss(model: nn.Module, loss: Callable[[Any, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Any, Tensor]:
    """The outputs of a batch and its loss.

    Raises:
        ValueError: if the network or the loss fails, in one line that names the layer; or the loss is not a scalar.
    """
    try:
        # torch differentiates normalisation of a single sample wrongly in some layouts.
        with Repairs() if len(x) == 1 else nullcontext():
            outputs = model(x)
    except FAILURES as error:
        raise explained(error, model, f"the network fails on {described('inputs', x)}") from error
    try:
        value = loss(outputs, y)
    except FAILURES as error:
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"the network returns a {type(outputs).__name__}, not a tensor, and the loss fails on it: wrap the network in a module "
                "that returns one tensor, or pass a loss that takes what it returns"
            ) from error
        raise explained(error, model, f"the loss fails on {described('outputs', outputs)} and {described('targets', y)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"the loss must be a scalar tensor, the mean over the samples of a batch, but is {kind}: use reduction='mean'")
    return outputs, value


def explained(error: Exception, model: nn.Module, what: str) -> Exception:
    """A ValueError of one line; the error itself if memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return error
    where = _layer(error.__traceback__, model)
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "more than 1 value per channel" in line:
        line = "batch norm needs more than one value per channel in training: use drop_last=True, or another batch size"
    return ValueError(f"{what}: {where}{line.rstrip('.')}")


def _layer(traceback: TracebackType | None, model: nn.Module) -> str:
    """The innermost module in a traceback, as a prefix of a message."""
    names = {id(m): n for n, m in model.named_modules()}
    found = ""
    while traceback is not None:
        own = traceback.tb_frame.f_locals.get("self")
        if isinstance(own, nn.Module) and names.get(id(own)):
            found = f"layer '{names[id(own)]}' ({type(own).__name__}): "
        traceback = traceback.tb_next
    return found


def described(word: str, t: Tensor) -> str:
    """A tensor in a message."""
    return f"{word} of type {str(t.dtype).removeprefix('torch.')} and shape {tuple(t.shape)}"
