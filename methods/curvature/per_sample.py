"""Gradients of the loss of single samples, or of mini-batches."""

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from methods.core.differentiation import Repairs, differentiable
from methods.core.interface import Problem, Values
from methods.curvature import passes
from methods.curvature.accumulators import samples as gradients_of
from methods.curvature.loss_factors import columns_of
from methods.curvature.passes import by_name, directly, first_batches, forward, frozen, trusted
from methods.curvature.precision import full_precision
from methods.curvature.sample_mean import SampleMean

PASS = 128  # samples of one forward pass, at most


def sample_gradients(
    problem: Problem, names: list[str], *, samples: int | None = None, mini_batch: int = 1
) -> Generator[tuple[str, Tensor], None, None]:
    """Compute the gradients of the loss of single samples at the current weights.

    At most `passes.FORMED` numbers are computed at once, which decides n below. The model should be in eval mode. Until the last
    gradient, or until `close`, weights of half precision are float32.

    Args:
        problem: network, training data and loss.
        names: names of the parameters.
        samples: use the first so many training samples; None for all.
        mini_batch: m: the gradients of the mean loss of m consecutive samples instead, whatever the batches. An incomplete
            last mini-batch is left out, unless it is the only one.

    Yields:
        (name, gradients (n, *shape)), for every name in turn. In total each name has the same number of gradients, zeros if the
        loss does not depend on it.

    Raises:
        ValueError: if there are no batches, or the loss is not a mean over samples.
    """
    with full_precision(problem) as wide, differentiable(wide.model):
        parameters = dict(wide.model.named_parameters())
        wanted: Values = {n: parameters[n] for n in names}
        yield from _one_by_one(wide, wanted, samples) if mini_batch == 1 else _by_mini_batch(wide, wanted, samples, mini_batch)


def _one_by_one(problem: Problem, wanted: Values, samples: int | None) -> Iterator[tuple[str, Tensor]]:
    model, captured, mean = problem.model, None, SampleMean(problem.loss)
    size = max(1, min(PASS, passes.FORMED // max(p.numel() for p in wanted.values())))
    for x, y in _regrouped(problem, size, samples):
        with frozen(model):
            if captured is None:
                captured = trusted(model, x, wanted)
            f, capture = forward(model, x, {n: wanted[n] for n in captured})
            (column,) = columns_of("ef", mean, f.detach(), y, 1, problem.generator())
            capture.backward(f, [column], keep=False)
        uses = by_name(capture.uses)
        for name in captured:
            yield name, next(gradients_of(name, uses[name])) if name in uses else y.new_zeros(len(y), *wanted[name].shape, dtype=f.dtype)
        rest = {n: p for n, p in wanted.items() if n not in captured}
        for part in directly(model, x, column, rest) if rest else ():
            yield from part.items()


def _by_mini_batch(problem: Problem, wanted: Values, samples: int | None, size: int) -> Iterator[tuple[str, Tensor]]:
    together, mean = max(1, passes.FORMED // sum(p.numel() for p in wanted.values())), SampleMean(problem.loss)
    stored: list[tuple[Tensor, ...]] = []
    for k, (x, y) in enumerate(_regrouped(problem, size, samples)):
        if k and len(y) < size:
            break
        with frozen(problem.model), torch.enable_grad(), Repairs():
            for p in wanted.values():
                p.requires_grad_(True)
            loss = mean(problem.model(x), y)
            stored.append(torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True))
        if len(stored) == together:
            yield from zip(wanted, map(torch.stack, zip(*stored, strict=True)), strict=True)
            stored = []
    if stored:
        yield from zip(wanted, map(torch.stack, zip(*stored, strict=True)), strict=True)


def _regrouped(problem: Problem, size: int, samples: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The first samples of the training data in batches of `size`; only the last one may be smaller."""
    seen = 0
    rest: tuple[Tensor, Tensor] | None = None
    for x, y in first_batches(problem, samples):
        if samples is not None:
            x, y = x[: samples - seen], y[: samples - seen]
        seen += len(y)
        if rest is not None:
            x, y = torch.cat([rest[0], x]), torch.cat([rest[1], y])
        whole = len(y) - len(y) % size
        for k in range(0, whole, size):
            yield x[k : k + size], y[k : k + size]
        rest = x[whole:], y[whole:]
    if rest is None:
        raise ValueError("gradients need training data: there are no batches")
    if len(rest[1]):
        yield rest
