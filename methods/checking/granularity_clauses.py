"""The checks of a granularity: masks have the requested sparsity, and physically smaller networks compute the same outputs."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from methods.checking.fixtures import Breach, ConvNet, Skip, mlp, problem_of, require, same, tied
from methods.core.configurations import Granularity
from methods.core.cutting import score
from methods.core.interface import Problem
from methods.core.masks import apply_mask, kept_weights
from methods.core.modes import evaluating
from methods.registry.registry import lookup

SPARSITIES = (0.0, 0.5, 0.9, 0.99)


def _cuts_inside_the_mask(entry: type[Granularity]) -> None:
    problem = problem_of()
    first, second = (score(problem, lookup("criteria", name)()) for name in ("magnitude", "random"))  # type: ignore[arg-type]
    only = entry().fixed_sparsity
    outer, deeper = (0.5, 0.9) if only is None else (only / 2, only)
    half = entry().cut(problem, first, outer)
    inner = entry().cut(replace(problem, mask=half), second, deeper)
    require(all(not (inner[n] & ~half[n]).any() for n in half), "a second cut must not keep weights that the first one removed")


def _cuts(entry: type[Granularity]) -> Iterator[tuple[Problem, float]]:
    """Networks with a mask, and its sparsity. A cut may refuse sparsities above 0.5 as unreachable."""
    for make in (ConvNet, mlp, tied):
        problem = problem_of(make)
        scores = score(problem, lookup("criteria", "magnitude")())  # type: ignore[arg-type]
        for sparsity in SPARSITIES:
            try:
                mask = entry().cut(problem, scores, sparsity)
            except ValueError:
                require(sparsity > 0.5, f"cut must accept sparsity {sparsity}")
            else:
                yield replace(problem, mask=mask), sparsity


def _cuts_what_it_promises(entry: type[Granularity]) -> None:
    for problem, sparsity in _cuts(entry):
        wanted = {n: w.shape for n, w in problem.weights.items()}
        require({n: m.shape for n, m in problem.mask.items()} == wanted, "the mask must have the names and shapes of the weights")
        require(all(m.dtype == torch.bool for m in problem.mask.values()), "the mask must consist of bool tensors")
        try:
            entry().check(problem, sparsity)
        except RuntimeError as error:
            raise Breach(f"check rejects the mask that cut made for sparsity {sparsity}: {error}") from error


def _checks(entry: type[Granularity]) -> None:
    for make in (ConvNet, mlp):
        problem = problem_of(make)
        scrambled = {n: torch.arange(m.numel()).view(m.shape) % 7 == 0 for n, m in problem.mask.items()}
        for wrong in (problem.mask, scrambled):
            try:
                entry().check(replace(problem, mask=wrong), 0.5)
            except RuntimeError:
                continue
            share = 1 - kept_weights(wrong)[0] / kept_weights(wrong)[1]
            raise Breach(f"check must raise for a mask of the wrong sparsity; it accepted sparsity {share:.2f} when 0.5 was requested")


def _costs_parameters(entry: type[Granularity]) -> None:
    def cost(model: nn.Module) -> float:
        return sum(p.numel() for p in model.parameters())

    problem = problem_of()
    scores = score(problem, lookup("criteria", "magnitude")())  # type: ignore[arg-type]
    try:
        cut_to_cost = replace(problem, mask=entry().cut(problem, scores, 0.5, cost))
    except ValueError:
        require(not entry.compacts, "cut must accept a cost, because compacts = True")
        return
    require(entry.compacts, "cut must raise ValueError for a cost, because compacts = False")
    entry().check(cut_to_cost, 0.5, cost)


def _smaller_computes_the_same(entry: type[Granularity]) -> None:
    if not entry.compacts:
        raise Skip("does not make networks smaller")
    for problem, _ in _cuts(entry):
        apply_mask(problem.model, problem.mask)
        before = copy.deepcopy(problem.model.state_dict())
        small = entry().compact(problem)
        require(same(before, problem.model.state_dict()), "compact must not change the model")
        kept = kept_weights(problem.mask)[0]
        left = kept_weights(small.mask)[1]
        require(
            kept_weights(small.mask) == (kept, kept),
            f"the smaller network must have {kept} weights, not {left}",
        )
        with torch.no_grad(), evaluating(problem.model), evaluating(small.model):
            apart = max(float((problem.model(x) - small.model(x)).abs().max()) for x, _ in problem.batches)
        require(
            apart < 1e-4,
            f"the smaller network must compute the outputs of the masked one; they differ by {apart:.2g}",
        )


GRANULARITY: dict[str, Callable[[Any], None]] = {
    "cut makes masks that check accepts, also if all scores are equal": _cuts_what_it_promises,
    "a later cut keeps no weight that an earlier one removed": _cuts_inside_the_mask,
    "check raises for a mask of the wrong sparsity": _checks,
    "a cost is reached, or refused if networks stay as large": _costs_parameters,
    "the smaller network computes the same outputs": _smaller_computes_the_same,
}
