"""The clauses of the contract for granularities: what is cut is what was asked for, and what can be removed computes the same."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from methods.checking.fixtures import Breach, ConvNet, Skip, mlp, problem_of, require, same, tied
from methods.core.cutting import evaluating, kept_weights, score
from methods.core.interface import Granularity, Problem, apply_mask
from methods.registry.registry import lookup

SPARSITIES = (0.0, 0.5, 0.9, 0.99)


def _cuts_inside_the_mask(entry: type[Granularity]) -> None:
    problem = problem_of()
    first, second = (score(problem, lookup("criteria", name)()) for name in ("magnitude", "random"))  # type: ignore[arg-type]
    only = entry().fixed_sparsity
    outer, deeper = (0.5, 0.9) if only is None else (only / 2, only)
    half = entry().cut(problem, first, outer)
    inner = entry().cut(replace(problem, mask=half), second, deeper)
    require(all(not (inner[n] & ~half[n]).any() for n in half), "a second cut revived masked weights")


def _cuts(entry: type[Granularity]) -> Iterator[tuple[Problem, float]]:
    """The specimens, each with a mask, and its sparsity. What cannot be reached may be refused, half of the weights may not."""
    for make in (ConvNet, mlp, tied):
        problem = problem_of(make)
        scores = score(problem, lookup("criteria", "magnitude")())  # type: ignore[arg-type]
        for sparsity in SPARSITIES:
            try:
                mask = entry().cut(problem, scores, sparsity)
            except ValueError:
                require(sparsity > 0.5, f"refuses sparsity {sparsity}")
            else:
                yield replace(problem, mask=mask), sparsity


def _cuts_what_it_promises(entry: type[Granularity]) -> None:
    for problem, sparsity in _cuts(entry):
        wanted = {n: w.shape for n, w in problem.weights.items()}
        require({n: m.shape for n, m in problem.mask.items()} == wanted, "the mask does not have the weights' names and shapes")
        require(all(m.dtype == torch.bool for m in problem.mask.values()), "the mask is not one of bools")
        try:
            entry().check(problem, sparsity)
        except RuntimeError as error:
            raise Breach(f"at sparsity {sparsity}, {error}") from error


def _checks(entry: type[Granularity]) -> None:
    for make in (ConvNet, mlp):
        problem = problem_of(make)
        scrambled = {n: torch.arange(m.numel()).view(m.shape) % 7 == 0 for n, m in problem.mask.items()}
        for wrong in (problem.mask, scrambled):
            try:
                entry().check(replace(problem, mask=wrong), 0.5)
            except RuntimeError:
                continue
            raise Breach(f"check accepts a mask that removes {1 - kept_weights(wrong)[0] / kept_weights(wrong)[1]:.2f} in place of 0.5")


def _costs_parameters(entry: type[Granularity]) -> None:
    def cost(model: nn.Module) -> float:
        return sum(p.numel() for p in model.parameters())

    problem = problem_of()
    scores = score(problem, lookup("criteria", "magnitude")())  # type: ignore[arg-type]
    try:
        cut_to_cost = replace(problem, mask=entry().cut(problem, scores, 0.5, cost))
    except ValueError:
        require(not entry.compacts, "refuses a cost, though what it cuts can be removed")
        return
    require(entry.compacts, "takes a cost, though its networks stay as large as they are")
    entry().check(cut_to_cost, 0.5, cost)


def _smaller_computes_the_same(entry: type[Granularity]) -> None:
    if not entry.compacts:
        raise Skip("leaves networks as large as they are")
    for problem, sparsity in _cuts(entry):
        apply_mask(problem.model, problem.mask)
        before = copy.deepcopy(problem.model.state_dict())
        small = entry().compact(problem)
        require(same(before, problem.model.state_dict()), "compact changed the model")
        kept = kept_weights(problem.mask)[0]
        require(kept_weights(small.mask) == (kept, kept), f"at sparsity {sparsity} the smaller network has {kept_weights(small.mask)[1]} "
                 f"weights, its mask {kept_weights(small.mask)[0]}, that of the large one {kept}")  # fmt: skip
        with torch.no_grad(), evaluating(problem.model), evaluating(small.model):
            apart = max(float((problem.model(x) - small.model(x)).abs().max()) for x, _ in problem.batches)
        require(apart < 1e-4, f"at sparsity {sparsity} the outputs of the masked and of the smaller network are {apart:.2g} apart")


GRANULARITY: dict[str, Callable[[Any], None]] = {
    "cuts what it promises, also with total ties": _cuts_what_it_promises,
    "a later cut lies inside the earlier mask": _cuts_inside_the_mask,
    "check refuses what was not asked for": _checks,
    "a cost refused, or reached": _costs_parameters,
    "the smaller network computes the same": _smaller_computes_the_same,
}
