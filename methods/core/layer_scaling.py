"""Rescale scores so that those of different layers or rows can be compared: layer-wise, row-wise, LAMP and Erdős-Rényi-kernel (ERK).

Each scope is a strictly increasing function of the scores in a layer, or in an output row of it. One global threshold then gives the
wanted densities at every sparsity, exactly, and masks of different sparsities stay nested. Let q be the fraction of a layer's kept
weights that score at least as high (q = 1/n for the best of n weights, q = 1 for the worst), q_row the same in an output row:

    global  s                                     layer   1/q: a cut at t keeps the best n/t of each layer
    erk     r/q, r the kernel's raw density       lamp    s / Σ_{s' ≥ s} s'
            A cut at t keeps min(1, r/t) of the layer: ERK with saturated layers (Evci et al. 2020, section 3.1).
    row     1/q_row: a cut at t keeps the best n/t of each row of n weights (Sun et al. 2024, section 3)

LAMP (Lee et al. 2021, equation 1) is defined for squared weights; here it is applied to any non-negative score.
"""

import torch
from torch import Tensor

from methods.core.interface import Problem, Values
from methods.core.prunable import summed

ACROSS = ("global", "layer", "lamp", "erk")  # also for whole channels
SCOPES = (*ACROSS, "row")


def rescope(values: Values, scope: str, problem: Problem) -> Values:
    """Rescale the scores of each layer.

    Args:
        values: name -> scores of one layer, >= 0.
        scope: one of `SCOPES`.
        problem: the mask and the generator that breaks ties. Masked weights are ignored and get the lowest score.

    Returns:
        Name -> rescaled scores, of the same shapes.

    Raises:
        ValueError: if the scope is unknown, a score is not finite (it would get a rank like any other), or whole channels are to be
            removed and the scope is "row", which gives all of them the same sum.
    """
    if scope == "global":
        return values
    if scope not in SCOPES:
        raise ValueError(f"scope '{scope}' is not one of {', '.join(SCOPES)}")
    if scope == "row" and problem.granularity is not None and problem.granularity.compacts:
        raise ValueError(f"scope 'row' keeps the same fraction of every row, so it cannot rank a whole {problem.granularity.name}")
    for name, s in values.items():
        if not bool(s.isfinite().all()):
            raise ValueError(f"the scores of '{name}' are not finite")
    generator = problem.generator("scope")
    if scope == "row":
        along = summed(problem.model)
        return {n: _by_row(s, problem.mask[n], output_rows(s.shape, *along.get(n, (1, 1))), generator) for n, s in values.items()}
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


def _by_row(scores: Tensor, mask: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """1/q_row; `rows`: see `output_rows`."""
    tie_breakers = torch.rand(rows.shape, generator=generator, dtype=torch.float64).argsort(dim=1)
    places = rows.gather(1, tie_breakers).to(scores.device)
    values = scores.double().masked_fill(~mask, -torch.inf).flatten()[places]
    best_first = places.gather(1, values.argsort(dim=1, descending=True, stable=True)).flatten()
    q = torch.arange(1, rows.shape[1] + 1, device=scores.device, dtype=torch.float64) / rows.shape[1]
    out = torch.empty(scores.numel(), dtype=torch.float64, device=scores.device)
    out[best_first] = (1.0 / q).repeat(rows.shape[0])
    return out.view(scores.shape).masked_fill(~mask, -1.0)


def output_rows(shape: torch.Size, dim: int, count: int) -> Tensor:
    """Indices into a flattened weight, (rows, columns): each row has the weights of one output.

    Args:
        shape: shape of the weight.
        dim: the dimension that products sum over, see `methods.core.prunable.summed`.
        count: number of entries along it that one product sums.
    """
    places = torch.arange(shape.numel()).view(shape)
    if dim == 0:  # a transposed convolution: (groups, in / groups, out / groups, ...)
        return places.view(-1, count, *shape[1:]).transpose(1, 2).flatten(2).flatten(0, 1)
    return places.flatten(1)


def raw_density(shape: torch.Size) -> float:
    """Unnormalised ERK density of a weight of shape (out, in, *kernel): (out + in + Σ kernel) / (out · in · Π kernel)."""
    return sum(shape) / shape.numel()
