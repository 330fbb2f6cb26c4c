"""Reads batches, and explains in one line what a network or a loss cannot do with them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from methods.core.differentiation import Repairs

# What networks and losses raise for inputs that they cannot take. Running out of memory says enough, and is not the input's fault.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ZeroDivisionError)
# Part of a message of torch -> what to do.
REMEDIES = {
    "expected target dtype to be Long": "class labels must be int64, e.g. y.long()",
    "0D or 1D target tensor expected": "class labels must have one dimension, e.g. y.flatten()",
    "Expected floating point type for target with class prob": "pass labels, e.g. y.argmax(1), or probabilities, e.g. y.float()",
    "is out of bounds": "labels must be 0, 1, ... up to the number of classes minus 1",
    "Expected target size": "the classes must be dimension 1 of the outputs, e.g. outputs.transpose(1, 2)",
    "must have the same dtype": "convert the inputs to the type of the weights, e.g. x.float()",
    "should be the same": "convert the inputs to the type of the weights, e.g. x.float()",
    "scalar types: Long, Int": "tokens must be integers, e.g. x.long()",
}


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
    for batch in each(batches):
        fault = _fault(batch)
        if fault:
            raise ValueError(f"batches must be pairs (inputs, targets) of tensors with one row per sample; {fault}")
        x, y = map(_leaf, batch)
        if y.shape[0]:
            yield x.to(device), y.to(device)


def each(batches: Any) -> Iterator[Any]:
    """One pass over batches; raises ValueError, in one line, if one cannot be read."""
    number = 1
    try:
        for batch in batches:
            yield batch
            number += 1
    except FAILURES as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if isinstance(error, ValueError) and len(lines) == 1:
            raise
        raise ValueError(f"batch {number} of batches cannot be read: {lines[-1]}") from error


def is_empty(batch: Any) -> bool:
    """Whether a batch is a pair without samples."""
    return isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor) and batch[1].shape[:1] == (0,)


def _leaf(t: Tensor) -> Tensor:
    """A tensor without a graph: a batch is used several times. Autograd refuses tensors made in inference mode."""
    if t.is_inference():
        return t.clone()
    return t.detach().requires_grad_(t.requires_grad) if t.grad_fn is not None else t


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
        if part.is_meta:
            return f"the {word} of one have no values, because they are on the meta device"
        if part.is_nested or part.layout != torch.strided:
            kind = "nested; pad them, e.g. with torch.nn.utils.rnn.pad_sequence" if part.is_nested else "sparse; use to_dense()"
            return f"the {word} of one are {kind}"
    x, y = batch
    if not x.dim() or not y.dim():
        return "one holds a single sample: is it a data set? Pass torch.utils.data.DataLoader(dataset, batch_size=...)"
    return "" if x.shape[0] == y.shape[0] else f"one has {len(x)} inputs and {len(y)} targets"


def outputs_and_loss(model: nn.Module, loss: Callable[[Any, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Any, Tensor]:
    """The outputs of a batch and its loss.

    Raises:
        ValueError: if the network or the loss fails, in one line that names the layer; or the loss is not a scalar with a gradient.
    """
    if isinstance(loss, type) or not callable(loss):
        kind = f"the class {loss.__name__}: pass {loss.__name__}(...)" if isinstance(loss, type) else f"a {type(loss).__name__}"
        raise ValueError(f"loss must be a function of (outputs, targets), e.g. torch.nn.functional.cross_entropy, not {kind}")
    try:
        # torch differentiates normalisation of a single sample wrongly in some layouts.
        with Repairs() if x.shape[0] == 1 else nullcontext():
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
    if not value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "the loss has no gradient: neither the network nor the loss may detach, round or count, and a parameter must require a gradient"
        )
    return outputs, value


@contextmanager
def explaining(model: nn.Module, what: str) -> Iterator[None]:
    """Context in which errors of torch and of the network become a ValueError of one line; errors of other code pass through."""
    try:
        yield
    except FAILURES as error:
        if isinstance(error, ValueError) or not _raised_by_network(error):
            raise
        raise explained(error, model, what) from error


def _raised_by_network(error: BaseException) -> bool:
    """Whether an exception comes from the code of torch, from below a call of a module, or is torch's answer to this package."""
    names = []
    traceback = error.__traceback__
    while traceback is not None:
        names.append(str(traceback.tb_frame.f_globals.get("__name__", "")))
        traceback = traceback.tb_next
    inner = names[-1] if names else ""
    answered = isinstance(error, RuntimeError) and inner.startswith("methods.")
    return inner.startswith("torch.") or "torch.nn.modules.module" in names[1:] or answered


def explained(error: Exception, model: nn.Module, what: str) -> Exception:
    """A ValueError of one line; the error itself if memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return error
    where = _layer(error.__traceback__, model)
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "more than 1 value per channel" in line:
        line = "batch norm needs more than one value per channel in training: use drop_last=True, or another batch size"
    remedy = next((f"; {said}" for part, said in REMEDIES.items() if part in line), "")
    return ValueError(f"{what}: {where}{line.rstrip('.')}{remedy}")


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
