"""Wanda: weights and activations."""

from dataclasses import dataclass
from typing import ClassVar

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice, Int
from methods.core.interface import Problem, Scores, Stage
from methods.core.layer_scaling import SCOPES, rescope
from methods.curvature.layer_inputs import layer_inputs, unread
from methods.curvature.precision import widened
from methods.registry.registry import register


@register("wanda")
@dataclass(frozen=True, kw_only=True)
class Wanda(Criterion):
    """Wanda: remove the weights with the smallest product of magnitude and norm of their input. Kept weights are not changed.

    s_ij = |W_ij| · ‖X_j‖₂, with X_j the j-th input of the layer in all calibration samples and positions: tokens of a Linear layer,
    patches of a convolution, so that each kernel position and input channel has a norm of its own, padding included.

    `scope` decides which weights are compared: "row", as published, removes the same fraction of every output row of every layer;
    the others are those of `methods.core.layer_scaling`. A pattern n:m compares the weights of each group, whatever the scope.

    Supported are the weights of Linear and Conv2d layers, also if a layer is called several times; others must be left out.

    Reference: Sun, Liu, Bair, Kolter, "A simple and effective pruning approach for large language models", ICLR 2024, equation 1 and
    section 3. Departure: all layers read the inputs that they have before the cut; the paper goes through a network block by
    block, with the inputs that the pruned blocks before give.
    """

    stages: ClassVar = (Stage.AFTER, Stage.DURING)

    samples: int = Int(1024, 64, 4096, log=True, minimum=1, meaning="calibration samples that are read, at most (whole batches)")
    scope: str = Choice("row", *SCOPES, meaning="which weights are compared")

    @property
    def granularities(self) -> tuple[str, ...]:
        """Single weights and patterns: whole channels have no order within a row."""
        return ("weight", "2:4") if self.scope == "row" else ()

    def unsupported(self, problem: Problem) -> str | None:
        """A reason if inputs of a layer cannot be read."""
        return unread(problem)

    def score(self, problem: Problem) -> Scores:
        """|W| ⊙ ‖X‖₂, rescaled by scope."""
        values = {}
        for name, inputs in layer_inputs(problem, self.samples, diagonal=True).items():
            w = widened(problem.weights[name].detach())
            values[name] = inputs.weight(inputs.rows(w).abs().double() * inputs.total.sqrt().unsqueeze(1))
        return Scores(rescope(values, self.scope, problem))
