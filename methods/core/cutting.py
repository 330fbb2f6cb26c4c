"""From scores to a pruned network. Criteria are called, and masks are made and applied, here only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from methods.core.configurations import Criterion, Granularity
from methods.core.interface import Cost, Mask, Problem, Scores, apply_mask, count_masked, prunable
from methods.core.schedule import Lap, Schedule


@contextmanager
def own_modes(model: nn.Module) -> Iterator[None]:
    """Context in which train and eval modes may change; they are restored at the end."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context with the model in eval mode, so that scoring does not change batch-norm statistics.

    Prunable weights require gradients inside, so that frozen layers can be scored too. Modes and flags are restored at the end.
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
    """Score the prunable weights of a problem, and check the result.

    Args:
        problem: network, data and current mask.
        criterion: the criterion.

    Returns:
        The scores.

    Raises:
        ValueError: if the criterion does not support the network, or the scores are not finite or do not have the names and
            shapes of the weights.
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
    """The first error found in scores, in a few words; '' if they are valid."""
    weights = problem.weights
    if set(scores.values) != set(weights):
        odd = sorted(set(scores.values) ^ set(weights))
        return f"must score exactly the prunable weights; missing or extra: {', '.join(odd)}"
    for name, values in scores.values.items():
        if values.shape != weights[name].shape:
            return f"must give '{name}' scores of shape {tuple(weights[name].shape)}, not {tuple(values.shape)}"
        if not values.is_floating_point() or values.requires_grad:
            return f"must give '{name}' scores that are a floating-point tensor without gradient"
        if not values.isfinite().all():
            return f"gives '{name}' scores that are not finite"
    return ""


def scored_once(criterion: Criterion) -> bool:
    """Whether a network needs to be scored only once for all sparsities, because nothing in the scores depends on the target."""
    return criterion.nested and len(criterion.rounds(0.0, 0.99)) == 1


def cut(
    problem: Problem,
    criterion: Criterion,
    granularity: Granularity,
    sparsity: float,
    scores: Scores | None = None,
    cost: Cost | None = None,
) -> Mask:
    """Prune the model of a problem in place.

    Afterwards masked weights are zero, and kept weights are unchanged or as `criterion.compensate` sets them.

    Args:
        problem: network, data and current mask.
        criterion: the criterion.
        granularity: the granularity.
        sparsity: fraction to remove, in [0, 1).
        scores: scores of a nested criterion, if they were computed before. Otherwise the criterion scores in each of its rounds,
            with the mask of the round before applied.
        cost: the quantity that the sparsities (also those of the rounds) are fractions of; None for prunable weights.

    Returns:
        The mask: name -> bool tensor, True = kept.

    Raises:
        ValueError: if the network is not supported or the sparsity cannot be reached.
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
    """The fraction removed by the current mask: of the prunable weights, or of the dense network's cost."""
    if cost is None or all(bool(m.all()) for m in problem.mask.values()):
        return sparsity_of(problem.mask)
    granularity.refuse(cost)
    return 1.0 - cost(granularity.compact(replace(problem, posterior=None)).model) / cost(problem.model)


@dataclass(frozen=True)
class Pruner:
    """How `methods.fit` prunes while it trains.

    Attributes:
        criterion: scores the weights at each cut.
        granularity: makes the masks.
        schedule: when to cut, and to which sparsity.
        sparsity: the final sparsity.
        cost: the quantity that the sparsities are fractions of; None for prunable weights.
    """

    criterion: Criterion
    granularity: Granularity
    schedule: Schedule
    sparsity: float
    cost: Cost | None = None

    def laps(self, problem: Problem, epochs: int) -> tuple[Lap, ...]:
        """The laps of the schedule, without the cuts that would remove nothing more than the current mask.

        Args:
            problem: network and current mask.
            epochs: length of the training.

        Raises:
            ValueError: if the schedule does not fit the number of epochs, the network is not supported, or the current mask
                removes more than `sparsity`.
        """
        kept, total = kept_weights(problem.mask)
        laps = self.schedule.laps(epochs, 1.0 - kept / total, self.sparsity)
        _check_supported(problem, self.criterion)
        if count_masked(self.sparsity, total) < total - kept:
            raise ValueError(f"sparsity {self.sparsity} is lower than the sparsity of the current mask, {1.0 - kept / total:.4g}")
        more = [{epoch: s for epoch, s in lap.cuts.items() if count_masked(s, total) > total - kept} for lap in laps]
        return tuple(replace(lap, cuts=cuts) for lap, cuts in zip(laps, more, strict=True))


def shuffled(mask: Mask, generator: torch.Generator) -> Mask:
    """A random permutation of the mask within each layer; the density of each layer stays the same."""
    return {n: m.flatten()[torch.randperm(m.numel(), generator=generator).to(m.device)].view(m.shape) for n, m in mask.items()}


def sparsity_of(mask: Mask) -> float:
    """The fraction of weights that the mask removes."""
    kept, total = kept_weights(mask)
    return 1.0 - kept / total


def kept_weights(mask: Mask) -> tuple[int, int]:
    """(kept, all): numbers of weights in the mask. Kept weights whose value is zero count as kept."""
    return sum(int(m.sum()) for m in mask.values()), sum(m.numel() for m in mask.values())


def mask_holds(model: nn.Module, mask: Mask) -> bool:
    """Whether every masked weight of the model is exactly zero."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        return all(not parameters[name][~m].any() for name, m in mask.items())
