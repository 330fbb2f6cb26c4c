"""GraSP: gradient signal preservation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core.configurations import Criterion
from methods.core.differentiation import Repairs, differentiable, differentiable_once_only
from methods.core.hyperparameters import Choice, Float, Int
from methods.core.interface import Problem, Scores, Stage
from methods.core.scoring_modes import MODES, scored_in
from methods.curvature.precision import full_precision
from methods.curvature.sample_mean import SampleMean, check_outputs
from methods.registry.registry import register


@register("grasp")
@dataclass(frozen=True, kw_only=True)
class Grasp(Criterion):
    """GraSP: remove the weights whose removal reduces the gradient flow least, or increases it.

    s = w ⊙ Hg; the LARGEST scores are kept. g = ∇L, H = ∇²L, L the loss of the logits divided by the temperature T.

    The paper's importance is S(-w) = -w ⊙ Hg, and it removes the weights with the largest importance. The sign matters: no absolute
    value is taken. Data: `per_class` training samples of each class, in the order of the batches.

    `mode`: batch norm uses the statistics of these samples ("train"; the running ones do not change) or its running statistics
    ("eval", at initialisation 0 and 1: no normalisation). Dropout is off. A norm whose γ are all zero, as at the end of residual
    branches of many networks at initialisation, is scored with γ = 1: otherwise all scores in its branch are zero (as `synflow` does).

    Reference: Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow", ICLR 2020, equations 6-8;
    T = 200 and 10 samples per class are its settings for CIFAR, and its code scores in train mode. Departures: the Hessian is that
    of the mean over all samples at once, where the released code sums over two halves; γ = 1 for γ = 0.
    """

    stages: ClassVar = (Stage.INIT, Stage.AFTER, Stage.DURING)

    temperature: float = Float(200.0, 1.0, 1000.0, log=True, above=0, meaning="temperature that divides the logits")
    per_class: int = Int(10, 1, 50, log=True, minimum=1, meaning="training samples of each class")
    mode: str = Choice("train", *MODES, tuned=False, meaning="statistics of batch norm while scoring: running ones, or those of the batch")

    def score(self, problem: Problem) -> Scores:
        """w ⊙ Hg from a double backward pass: Hg = ∇(ĝᵀ∇L) with ĝ constant.

        Raises:
            ValueError: if the targets are not class labels, there are no batches, the loss is not a mean over samples, or an
                operation of the network has no second derivative.
        """
        with full_precision(problem) as wide, differentiable(wide.model, twice=True), Repairs(twice=True):
            mean = SampleMean(wide.loss)
            x, y = self._balanced(wide, mean.cross_entropy.ignore_index if mean.cross_entropy else None)
            names, weights = list(wide.weights), list(wide.weights.values())
            with scored_in(wide.model, self.mode):
                loss = mean(wide.model(x) / self.temperature, y)
                hg = _hessian_times_gradient(loss, list(weights))
            return Scores({n: w.detach() * h for n, w, h in zip(names, weights, hg, strict=True)})

    def _balanced(self, problem: Problem, ignored: int | None) -> tuple[Tensor, Tensor]:
        """The first `per_class` samples of each class, or all if there are fewer; none with the label `ignored`."""
        xs, ys = [], []
        taken: dict[int, int] = {}
        classes = 0
        for x, y in problem.read():
            if y.is_floating_point() or y.dim() != 1:
                raise ValueError("grasp needs integer class labels of shape (n,), because it draws samples per class")
            if not classes:
                classes = self._classes(problem, x)
            chosen = []
            for i, label in enumerate(y.tolist()):
                if label != ignored and taken.get(label, 0) < self.per_class:
                    taken[label] = taken.get(label, 0) + 1
                    chosen.append(i)
            xs.append(x[chosen])
            ys.append(y[chosen])
            if sum(taken.values()) == classes * self.per_class:
                break
        if not xs:
            raise ValueError("grasp needs training data: there are no batches")
        return torch.cat(xs), torch.cat(ys)

    @staticmethod
    def _classes(problem: Problem, x: Tensor) -> int:
        """The number of outputs of the network."""
        with torch.no_grad():
            f = problem.model(x[:1])
        check_outputs(f, x[:1])
        return f.shape[1] if f.dim() > 1 else 1


def _hessian_times_gradient(loss: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Hg; raises ValueError if an operation has no second derivative."""
    reason = "a function of it is marked with once_differentiable"
    try:
        g = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        flow = torch.stack([(a.detach() * a).sum() for a in g]).sum()
        if not differentiable_once_only(flow):
            return torch.autograd.grad(flow, weights, materialize_grads=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    raise ValueError(f"grasp needs second derivatives, which torch does not have for this network: {reason}")
