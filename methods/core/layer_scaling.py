"""Rescale scores so that those of different layers can be compared: layer-wise, LAMP and Erdős-Rényi-kernel (ERK) densities.

Each scope is a strictly increasing function of the scores in a layer. One global threshold then gives the wanted densities at
every sparsity, exactly, and masks of different sparsities stay nested. Let q be the fraction of a layer's kept weights that
score at least as high (q = 1/n for the best of n weights, q = 1 for the worst):

    global  s                                     layer   1/q: a cut at t keeps the best n/t of each layer
    erk     r/q, r the kernel's raw density       lamp    s / Σ_{s' ≥ s} s'
            A cut at t keeps min(1, r/t) of the layer: ERK with saturated layers (Evci et al. 2020, section 3.1).

LAMP (Lee et al. 2021, equation 1) is defined for squared weights; here it is applied to any non-negative score.
"""

import torch
from torch import Tensor

from methods.core.interface import Problem, Values

SCOPES = ("global", "layer", "lamp", "erk")


def rescope(values: Values, scope: str, problem: Problem) -> Values:
    """Rescale the scores of each layer.

    Args:
        values: name -> scores of one layer, >= 0.
        scope: one of `SCOPES`.
        problem: the mask and the generator that breaks ties. Masked weights are ignored and get the lowest score.

    Returns:
        Name -> rescaled scores, of the same shapes.

    Raises:
        ValueError: if the scope is unknown, or a score is not finite: it would get a rank like any other.
    """
    if scope == "global":
        return values
    if scope not in SCOPES:
        raise ValueError(f"scope '{scope}' is not one of {', '.join(SCOPES)}")
    for name, s in values.items():
        if not bool(s.isfinite().all()):
            raise ValueError(f"the scores of '{name}' are not finite")
    generator = problem.generator("scope")
    return {name: _layer(s, problem.mask[name], scope, generator) for name, s in values.items()}


def _layer(scores: Tensor, mask: Tensor, scope: str, generator: torch.Generator) -> Tensor:
    alive = scores[mask].double()
    # A seeded shuffle before a stable sort ranks equal scores at random, not by position.
    shuffled = torch.randperm(len(alive), generator=generator).to(alive.device)
    order = shuffled[torch.argsort(alive[shuffled], descending=True, stable=True)]
    rescoped = torch.empty_like(alive)
    if scope == "lamp":
        best_first = alive[order]
        rescoped[order] = best_first / best_first.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    else:
        q = torch.arange(1, len(alive) + 1, device=alive.device, dtype=torch.float64) / scores.numel()
        rescoped[order] = (raw_density(scores.shape) if scope == "erk" else 1.0) / q
    out = torch.full(scores.shape, -1.0, dtype=torch.float64, device=scores.device)
    out[mask] = rescoped
    return out


def raw_density(shape: torch.Size) -> float:
    """Unnormalised ERK density of a weight of shape (out, in, *kernel): (out + in + Σ kernel) / (out · in · Π kernel)."""
    return sum(shape) / shape.numel()
