"""The FLOPs of training: of the forward and backward passes of its steps.

A backward pass computes the gradients of the activations and those of the weights, each with as many FLOPs as a forward pass. A step
under a mask takes 3 f_S for each sample, f_S the FLOPs of the masked network. A step that also uses the gradients of removed weights
takes 2 f_S + f_D, f_D the FLOPs of the dense network (Evci et al. 2020, "Rigging the lottery", appendix on FLOPs). The gradient of the
inputs, which no layer needs, is counted as it is there. Scoring, curvature and the optimiser's own operations are not counted.
"""

from methods import EpochRecord
from methods.core.callbacks import Work

FACTOR = 3  # FLOPs of a forward and a backward pass, in forward passes


class Tally:
    """Adds up the FLOPs of a training: a callback of `methods.fit`.

    Args:
        total: FLOPs of the network without a mask, for one input.
        layers: name of each prunable weight -> FLOPs of its products, for one input.
    """

    def __init__(self, total: int, layers: dict[str, int]) -> None:
        self.total, self.layers, self.flops = total, layers, 0

    def __call__(self, record: EpochRecord) -> None:
        """Add one epoch."""
        self.flops += sum(self._of(work) for work in record.work)

    def _of(self, work: Work) -> int:
        saved = sum(self.layers[n] * (size - kept) / size for n, (kept, size) in work.masked.items())
        sparse = self.total - saved
        return round(work.samples * ((FACTOR - 1) * sparse + (self.total if work.dense else sparse)))
