"""From scores to a pruned network: the one place where a criterion is called and a mask is cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from methods.core.interface import Cost, Criterion, Granularity, Mask, Problem, Scores, apply_mask, count_masked, prunable
from methods.core.schedule import Lap, Schedule


@contextmanager
def own_modes(model: nn.Module) -> Iterator[None]:
    """Every module's train or eval mode as it was, whatever happens inside."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode restored after: scoring must not move batch-norm statistics.

    Prunable weights require gradients inside, so that frozen layers can be scored as well.
    """
    frozen = [p for p in prunable(model).values() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        with own_modes(model):
            model.eval()
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def score(problem: Problem, criterion: Criterion) -> Scores:
    """The criterion's scores for the problem as it stands.

    Raises ValueError where the criterion does not support the network, or returns scores that are not finite, not of the
    weights' names and shapes.
    """
    _check_supported(problem, criterion)
    with evaluating(problem.model):
        scores = criterion.score(problem)
    fault = faults(problem, scores)
    if fault:
        raise ValueError(f"'{criterion.name}' {fault}")
    return scores


def _check_supported(problem: Problem, criterion: Criterion) -> None:
    reason = criterion.unsupported(problem)
    if reason is not None:
        raise ValueError(f"'{criterion.name}' does not support this network: {reason}")


def faults(problem: Problem, scores: Scores) -> str:
    """What is wrong with the scores, in a few words; '' where nothing is."""
    weights = problem.weights
    if set(scores.values) != set(weights):
        odd = sorted(set(scores.values) ^ set(weights))
        return f"must score exactly the prunable weights; missing or extra: {', '.join(odd)}"
    for name, values in scores.values.items():
        if values.shape != weights[name].shape:
            return f"scores '{name}' with shape {tuple(values.shape)}, the weight has {tuple(weights[name].shape)}"
        if not values.is_floating_point() or values.requires_grad:
            return f"scores '{name}' must be a floating-point tensor without gradient"
        if not values.isfinite().all():
            return f"scores '{name}' are not finite"
    return ""


def scored_once(criterion: Criterion) -> bool:
    """Whether one scoring of a network serves all sparsities: nothing in it depends on the target."""
    return criterion.nested and len(criterion.rounds(0.0, 0.99)) == 1


def cut(
    problem: Problem,
    criterion: Criterion,
    granularity: Granularity,
    sparsity: float,
    scores: Scores | None = None,
    cost: Cost | None = None,
) -> Mask:
    """Prune the problem's model in place to the sparsity, and return the mask.

    `scores`: those of a nested criterion, already computed. Otherwise the criterion scores in each of its rounds, with the mask
    of the one before applied. `cost`: what the sparsity is a share of, in place of the prunable weights, for a granularity that
    makes networks smaller; the targets of the rounds are such shares too. Masked weights are zero afterwards, kept ones as they
    were, or as `compensate` sets them.
    """
    reason = granularity.unsupported(problem)
    if reason is not None:
        raise ValueError(f"granularity '{granularity.name}' does not support this network: {reason}")
    rounds = (sparsity,) if scores is not None else criterion.rounds(_present(problem, granularity, cost), sparsity)
    present = problem
    apply_mask(problem.model, problem.mask)
    for target in rounds:
        present = replace(present, target=target)
        found = scores if scores is not None else score(present, criterion)
        mask = granularity.cut(present, found, target, cost)
        with evaluating(present.model):
            criterion.compensate(present, mask, found.state)
        apply_mask(present.model, mask)
        present = replace(present, mask=mask)
    return present.mask


def _present(problem: Problem, granularity: Granularity, cost: Cost | None) -> float:
    """The share removed by the present mask: of the prunable weights, or of the dense network's cost."""
    if cost is None or all(bool(m.all()) for m in problem.mask.values()):
        return sparsity_of(problem.mask)
    granularity.refuse(cost)
    return 1.0 - cost(granularity.compact(replace(problem, posterior=None)).model) / cost(problem.model)


@dataclass(frozen=True)
class Pruner:
    """What `methods.fit` cuts with while it trains, when, and down to which sparsity: a share of the weights, or of `cost`."""

    criterion: Criterion
    granularity: Granularity
    schedule: Schedule
    sparsity: float
    cost: Cost | None = None

    def laps(self, problem: Problem, epochs: int) -> tuple[Lap, ...]:
        """The laps of the schedule, without cuts that ask for no more than the present mask.

        Raises ValueError where the schedule cannot be followed, the network is not supported, or the mask goes further than
        the sparsity already.
        """
        kept, total = kept_weights(problem.mask)
        laps = self.schedule.laps(epochs, 1.0 - kept / total, self.sparsity)
        _check_supported(problem, self.criterion)
        if count_masked(self.sparsity, total) < total - kept:
            raise ValueError(f"sparsity {self.sparsity} is below that of the present mask, {1.0 - kept / total:.4g}")
        more = [{epoch: s for epoch, s in lap.cuts.items() if count_masked(s, total) > total - kept} for lap in laps]
        return tuple(replace(lap, cuts=cuts) for lap, cuts in zip(laps, more, strict=True))


def shuffled(mask: Mask, generator: torch.Generator) -> Mask:
    """The mask permuted at random within each layer: the same density of every layer, and nothing else of it."""
    return {n: m.flatten()[torch.randperm(m.numel(), generator=generator).to(m.device)].view(m.shape) for n, m in mask.items()}


def sparsity_of(mask: Mask) -> float:
    """The fraction of masked weights."""
    kept, total = kept_weights(mask)
    return 1.0 - kept / total


def kept_weights(mask: Mask) -> tuple[int, int]:
    """(kept, all) prunable weights: counts of the mask, not of non-zero values."""
    return sum(int(m.sum()) for m in mask.values()), sum(m.numel() for m in mask.values())


def mask_holds(model: nn.Module, mask: Mask) -> bool:
    """Whether every masked weight of the model is exactly zero."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        return all(not parameters[name][~m].any() for name, m in mask.items())
