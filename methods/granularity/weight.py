"""Unstructured pruning: single weights, one global ranking."""

from dataclasses import dataclass

import torch

from methods.core.configurations import Granularity
from methods.core.interface import Cost, Problem, Scores, count_masked
from methods.core.masks import Mask
from methods.registry.registry import register


@register("weight")
@dataclass(frozen=True, kw_only=True)
class Weight(Granularity):
    """Remove the round(s·n) lowest-scored of all n prunable weights (unstructured pruning).

    The count is exact. Weights with a score above the k-th largest are kept; among those with the same score as the k-th, a random
    choice by the problem's seed decides. It does not depend on the sparsity, so masks of the same scores are nested. The time is
    O(n): the threshold is found by selection, not by sorting.
    """

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        """See `Granularity.cut`.

        Raises:
            ValueError: if the current mask keeps fewer weights than the sparsity requires.
        """
        self.refuse(cost)
        names = list(problem.mask)
        alive = torch.cat([problem.mask[n].flatten() for n in names])
        flat = torch.cat([scores.values[n].detach().flatten().to(problem.mask[n].device, torch.float64) for n in names])
        keep = flat.numel() - count_masked(sparsity, flat.numel())
        candidates = alive.nonzero().squeeze(1)
        if keep > len(candidates):
            raise ValueError(f"sparsity {sparsity} keeps {keep} weights, but the current mask has only {len(candidates)} left")
        values = flat[candidates]
        threshold = values.kthvalue(len(values) - keep + 1).values if keep else values.new_tensor(torch.inf)
        chosen = values > threshold
        ties = (values == threshold).nonzero().squeeze(1)
        tie_breakers = torch.rand(flat.numel(), generator=problem.generator("ties"), dtype=torch.float64).to(flat.device)
        missing = keep - int(chosen.sum())
        if missing:
            chosen[ties[tie_breakers[candidates[ties]].topk(missing).indices]] = True
        kept = torch.zeros_like(alive)
        kept[candidates[chosen]] = True
        pieces = kept.split([problem.mask[n].numel() for n in names])
        return {n: piece.view(problem.mask[n].shape) for n, piece in zip(names, pieces, strict=True)}
