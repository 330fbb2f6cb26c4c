"""Standard training with decoupled weight decay."""

from dataclasses import dataclass

from methods.core.configurations import Training
from methods.core.hyperparameters import Float
from methods.core.interface import Posterior, Problem
from methods.registry.registry import register


@register("decoupled")
@dataclass(frozen=True, kw_only=True)
class Decoupled(Training):
    """Standard training with decoupled weight decay (AdamW, SGDW).

    Minimises the mean loss. Each step also shrinks all trainable parameters, apart from the gradient step:

        θ ← θ - lr_t · λ · θ,    λ = `weight_decay`, lr_t the learning rate of the step, with its schedule.

    With the optimiser "adamw" (or "adam": the same steps) this is AdamW, with "sgd" it is SGDW. Fine-tuning keeps this decay; the
    penalty of an earlier training is not added to it.

    Prior precision: a Gaussian prior belongs to this decay for SGD only. Where SGDW with momentum μ comes to rest, the gradient of the
    mean loss is -(1 - μ) λ θ: this is `map` with weight decay (1 - μ) λ, so d = (1 - μ) λ N with N training samples. Adam divides the
    gradient of each weight by its own running size, but not the decay, so that no prior has the same optimum. A training does not know
    its optimiser. Therefore the posterior has no prior, and `opd` uses its own `precision`, as on a network without a posterior.

    The default is the one of `torch.optim.AdamW`; under SGD with momentum 0.9 it corresponds to the default of `map`. The search range
    covers usual values of AdamW, whose learning rate is a hundredth of SGD's, and the range of `map` under SGD.

    Reference: Loshchilov and Hutter 2019, "Decoupled weight decay regularization". Departure, as in `torch.optim.AdamW`: the decay is
    multiplied by the learning rate, not only by the schedule's factor.
    """

    weight_decay: float = Float(1e-2, 1e-3, 1.0, log=True, minimum=0, meaning="decoupled weight decay λ: θ ← θ - lr · λ · θ in each step")

    @property
    def decoupled_decay(self) -> float:
        """λ."""
        return self.weight_decay

    def prepare(self, problem: Problem) -> Posterior:
        """A posterior without a prior."""
        return Posterior({}, problem.samples)
