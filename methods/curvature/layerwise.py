"""What criteria have in common that reconstruct the outputs of each layer from its inputs."""

from dataclasses import dataclass
from typing import ClassVar

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Float, Int
from methods.core.interface import Problem, Stage
from methods.curvature.layer_inputs import unread


@dataclass(frozen=True, kw_only=True)
class LayerWise(Criterion):
    """A criterion that removes single weights of each layer and adjusts the others, with the second moment X Xᵀ/n + λ 1 of its inputs."""

    stages: ClassVar = (Stage.AFTER, Stage.DURING)

    samples: int = Int(1024, 64, 4096, log=True, minimum=1, meaning="calibration samples that are read, at most (whole batches)")
    damping: float = Float(1e-2, 1e-4, 1e-1, log=True, above=0, meaning="λ, as a multiple of the mean diagonal of X Xᵀ/n")

    @property
    def granularities(self) -> tuple[str, ...]:
        """Single weights and patterns: whole channels have no order within a row."""
        return ("weight", "2:4")

    def unsupported(self, problem: Problem) -> str | None:
        """A reason if inputs of a layer cannot be read."""
        return unread(problem)
