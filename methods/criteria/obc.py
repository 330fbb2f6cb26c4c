"""Optimal Brain Compression: exact Optimal Brain Surgeon for every row of a layer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.core.hyperparameters import Choice
from methods.core.interface import Problem, Scores
from methods.core.layer_scaling import ACROSS, SCOPES, rescope
from methods.core.masks import Mask
from methods.curvature.layer_inputs import Inputs, layer_inputs
from methods.curvature.layerwise import LayerWise
from methods.curvature.removal import joint_update, removal_order
from methods.registry.registry import register

HELD = 1 << 19  # numbers in the matrices of the rows that are computed together, unless one row has more


@register("obc", costly=True)
@dataclass(frozen=True, kw_only=True)
class Obc(LayerWise):
    """Optimal Brain Compression (ExactOBS): remove the weights of each output row one by one, with an exact update of the others.

    A row w of a layer with inputs X (i, n) has the loss ‖wX - ŵX‖²/n = ½ (w - ŵ)ᵀ H (w - ŵ), H = 2 (X Xᵀ/n + λ 1). Each step removes

        p = argmin_p w_p² / (2 [H⁻¹]_pp),    w ← w - [H⁻¹]_·p w_p / [H⁻¹]_pp,    H⁻¹ ← H⁻¹ - [H⁻¹]_·p [H⁻¹]_p· / [H⁻¹]_pp,

    until no weight is left. The score of a weight is the loss of its step, or that of an earlier step of its row if it is larger, so
    that a cut removes the first steps of every row. This is the selection of the paper: always the next step of the row whose next
    step has the smallest loss. `scope` decides how rows are compared: "layer", as published, removes the same fraction of each layer;
    "row" of each row (see `methods.core.layer_scaling`). Under a pattern n:m, a step may not take more than m - n weights of a group.

    The update for the mask that is made of the scores is w_K ← w_K + H_KK⁻¹ H_KQ w_Q for the kept weights K and removed weights Q of a
    row: the result of the steps above if they are those of the mask, and the least loss for any other mask.

    λ = `damping` times the mean of the diagonal of X Xᵀ/n. A convolution multiplies unfolded patches. Biases are not changed. Time:
    O(i³) for each output of a layer with i inputs, in 8 i² bytes.

    Reference: Frantar and Alistarh, "Optimal brain compression: a framework for accurate post-training quantization and pruning",
    NeurIPS 2022, equations 3-5, algorithms 1-2 and section 4. Departures: every layer has the same sparsity, where the paper may search
    layer-wise ones for a target of FLOPs; λ > 0; batch-norm statistics are not recomputed (a suite can do so for every method).
    """

    scope: str = Choice("layer", *SCOPES, drawn=ACROSS, meaning="how rows and layers are compared")

    def score(self, problem: Problem) -> Scores:
        """The losses of the steps; the state is name -> (X Xᵀ/n + λ 1, inputs)."""
        state = {n: (inputs.damped(self.damping), inputs) for n, inputs in layer_inputs(problem, self.samples).items()}
        generator = problem.generator("obc")
        values = {n: self._losses(problem, n, *state[n], generator) for n in problem.weights}
        return Scores(rescope(values, self.scope, problem), state)

    def _losses(self, problem: Problem, name: str, h: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        """Scores of a weight, in its shape. Columns are shuffled, so that a random one of equal losses is removed first."""
        limits = problem.granularity.groups(problem) if problem.granularity is not None else None
        w, alive = inputs.rows(problem.weights[name].detach()).double(), inputs.rows(problem.mask[name])
        i = w.shape[-1]
        if limits is not None and name not in limits:
            return problem.weights[name].detach().double().abs()  # this layer stays dense
        groups, most = (torch.arange(i) // limits[name].size, limits[name].size - limits[name].kept) if limits else (None, 0)
        shuffled = torch.randperm(i, generator=generator)
        groups = groups[shuffled].to(w.device) if groups is not None else None
        shuffled = shuffled.to(w.device)
        losses = torch.empty_like(w)
        for g in range(len(h)):
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(h[g][shuffled][:, shuffled]))
            for rows in torch.arange(w.shape[1], device=w.device).split(max(1, HELD // i**2)):
                found = removal_order(inverse, w[g, rows][:, shuffled], alive[g, rows][:, shuffled], groups, most)
                losses[g, rows] = found[:, shuffled.argsort()]
        return inputs.weight(losses)

    @torch.no_grad()
    def compensate(self, problem: Problem, mask: Mask, state: Any) -> None:
        """w_K ← w_K + H_KK⁻¹ H_KQ w_Q in every row."""
        for name, w in problem.weights.items():
            h, inputs = state[name]
            keep = inputs.rows(mask[name])
            removed = inputs.rows(w.double() * (problem.mask[name] & ~mask[name]))
            change = torch.zeros_like(removed)
            for g in range(len(h)):
                affected = (removed[g].any(1) & keep[g].any(1)).nonzero().squeeze(1)
                for rows in affected.split(max(1, HELD // h.shape[1] ** 2)):
                    update = joint_update(h[g], removed[g, rows].unsqueeze(2), keep[g, rows].unsqueeze(2))
                    change[g, rows] = update.squeeze(2)
            w.add_(inputs.weight(change))
