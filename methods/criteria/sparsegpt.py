"""SparseGPT: one-shot pruning with a sweep over the columns of each layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.core.hyperparameters import Int
from methods.core.interface import Groups, Problem, Scores
from methods.core.masks import Mask
from methods.curvature.layer_inputs import layer_inputs
from methods.curvature.layerwise import LayerWise
from methods.registry.registry import register

Choose = Callable[[Tensor, slice], Tensor]  # (saliencies (G, o, c), their columns) -> True for weights that are removed


@register("sparsegpt", costly=True)
@dataclass(frozen=True, kw_only=True)
class SparseGpt(LayerWise):
    """SparseGPT: go through the columns of each layer once, and let the columns to the right correct the error of the removed weights.

    With H = X Xᵀ/n + λ 1 of the inputs X (i, n) of a layer, H⁻¹ = Uᵀ U and U upper triangular: for each column j of W (o, i), from left
    to right, the weights M_j of this column are removed,

        E_j = M_j ⊙ W_·j / U_jj,    W_·k ← W_·k - E_j U_jk for all k ≥ j.

    M is chosen for `block` columns at a time when the sweep arrives at them, with the weights as updated so far: the lowest
    s_ij = W_ij² / U_jj² of all rows. Every block loses the same fraction, the target; fractions of a weight are carried to the next
    block, and from layer to layer, so that the number of all removed weights is exact. For a pattern n:m, M is chosen for each group
    of m columns on arrival.

    The order of the scores is the choice of the sweep for `problem.target`: removed weights have -1 / (1 + s), kept ones s. The mask
    that is made of them is then swept again, now given, and this sweep sets the weights. They are those of the first sweep unless
    earlier cuts removed more than the fraction of some block.

    λ = `damping` times the mean of the diagonal of X Xᵀ/n. Convolutions multiply unfolded patches, with columns ordered (kernel
    position, input channel). Biases are not changed.

    Reference: Frantar and Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot", ICML 2023, algorithm 1
    and sections 3.2-3.4. Departures: all layers read the inputs that they have before the cut, where the paper uses those that the
    pruned layers before give; fractions of weights are carried, where the released code rounds in each block.
    """

    nested: ClassVar = False

    block: int = Int(128, 16, 512, log=True, minimum=1, meaning="columns for which the mask is chosen at a time")

    def score(self, problem: Problem) -> Scores:
        """See the class; the state is name -> (U, inputs)."""
        found = layer_inputs(problem, self.samples)
        state = {n: (_factor(found[n].damped(self.damping)), found[n]) for n in problem.weights}
        limits = problem.granularity.groups(problem) if problem.granularity is not None else None
        share = problem.target
        if limits is not None and problem.granularity is not None and problem.granularity.fixed_sparsity:
            share /= problem.granularity.fixed_sparsity
        choice = _Choice(share, problem.generator("sparsegpt"))
        values = {}
        for name, w in problem.weights.items():
            factor, inputs = state[name]
            rows = inputs.rows(w.detach()).double()
            if limits is not None and name not in limits:
                values[name] = w.detach().double().square()  # this layer stays dense
                continue
            choice.begin(inputs.rows(problem.mask[name]), limits[name] if limits is not None else None)
            width = self.block if limits is None else limits[name].size
            sweep(rows, factor, width, choice)
            values[name] = inputs.weight(choice.scores)
        return Scores(values, state)

    @torch.no_grad()
    def compensate(self, problem: Problem, mask: Mask, state: Any) -> None:
        """The sweep with a given mask."""
        for name, w in problem.weights.items():
            factor, inputs = state[name]
            if not bool(mask[name].all()):
                w.copy_(inputs.weight(sweep(inputs.rows(w).double(), factor, self.block, _given(~inputs.rows(mask[name])))))


def _given(removed: Tensor) -> Choose:
    """The choice of a given mask; `removed`: (G, o, i)."""
    return lambda _, part: removed[..., part]


class _Choice:
    """Chooses the weights of each block of columns that are removed, and scores them.

    `share`: the fraction that is removed, of all weights or of those that a pattern may remove.
    """

    def __init__(self, share: float, generator: torch.Generator) -> None:
        self.share, self.generator = share, generator
        self.seen = self.taken = 0

    def begin(self, alive: Tensor, limits: Groups | None) -> None:
        """Begin a layer; `alive`: its present mask (G, o, i)."""
        self.alive, self.limits = alive, limits
        self.scores = torch.zeros(alive.shape, dtype=torch.float64, device=alive.device)

    def __call__(self, saliencies: Tensor, part: slice) -> Tensor:
        s = saliencies.where(self.alive[..., part], -1.0)
        allowed = torch.ones_like(s, dtype=torch.bool)
        if self.limits is not None:
            allowed = torch.zeros_like(allowed)
            allowed.scatter_(-1, self._order(s)[..., : self.limits.size - self.limits.kept], True)
        places = allowed.flatten().nonzero().squeeze(1)
        self.seen += len(places)
        count = round(self.share * self.seen) - self.taken
        self.taken += count
        removed = torch.zeros(s.numel(), dtype=torch.bool, device=s.device)
        removed[places[self._order(s.flatten()[places])[:count]]] = True
        removed = removed.view(s.shape)
        self.scores[..., part] = torch.where(removed, -1.0 / (1.0 + saliencies), saliencies)
        return removed

    def _order(self, s: Tensor) -> Tensor:
        """Indices along the last dimension, smallest first, equal ones at random."""
        shuffled = torch.rand(s.shape, generator=self.generator, dtype=torch.float64).argsort(dim=-1).to(s.device)
        order = s.gather(-1, shuffled).argsort(dim=-1, stable=True)
        return shuffled.gather(-1, order)


def _factor(h: Tensor) -> Tensor:
    """U with H⁻¹ = Uᵀ U, (G, i, i)."""
    lower: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)))
    return lower.mT


def sweep(w: Tensor, factor: Tensor, width: int, choose: Choose) -> Tensor:
    """Remove weights column by column and correct the columns to the right.

    Args:
        w: W (G, o, i).
        factor: U (G, i, i).
        width: number of columns for which `choose` is called at a time.
        choose: says which weights of these columns are removed.

    Returns:
        W after the sweep, with zeros where weights were removed.
    """
    w = w.clone()
    diagonal = factor.diagonal(dim1=1, dim2=2).unsqueeze(1)
    for start in range(0, w.shape[2], width):
        part = slice(start, min(start + width, w.shape[2]))
        removed = choose((w[..., part] / diagonal[..., part]).square(), part)
        errors = torch.zeros_like(w[..., part])
        for j in range(part.start, part.stop):
            errors[..., j - start] = w[..., j] * removed[..., j - start] / diagonal[..., j]
            w[..., j : part.stop] -= errors[..., j - start, None] * factor[:, None, j, j : part.stop]
        w[..., part] = w[..., part].masked_fill(removed, 0.0)
        w[..., part.stop :] -= errors @ factor[:, part, part.stop :]
    return w
