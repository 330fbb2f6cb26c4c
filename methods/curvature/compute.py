"""Curvature of the training loss, diagonal or Kronecker-factored, in one pass over the data.

With J_n the Jacobian of the outputs f(x_n) with respect to the parameters, every kind of curvature is Σ_n J_nᵀ V_n V_nᵀ J_n. The
columns of V_n are propagated backward:

    "ef"    empirical Fisher           one column, ∂ℓ(f(x_n), y_n)/∂f
    "mc"    Monte-Carlo Gauss-Newton   `draws` columns, ∂ℓ(f(x_n), ỹ)/∂f / √draws with ỹ ~ softmax(f(x_n))
    "ggn"   generalised Gauss-Newton   classes - 1 columns, V Vᵀ = diag(p) - p pᵀ with p = softmax(f(x_n))

Outputs with several positions, ignored labels and other losses: see `methods.curvature.loss_factors` and `sample_mean`. Networks in
half precision are computed in float32.

For `half_squared_error`, V Vᵀ = 1: "mc" draws standard normal columns, "ggn" has one column per output.

For cross-entropy the generalised Gauss-Newton matrix equals the Fisher of the model's predictions (Martens 2020, JMLR 21:146,
section 9), so "mc" is an unbiased estimate of "ggn". "ef" uses the labels: it vanishes where the training data are fitted and
cannot replace "ggn" after training. The square of the mean gradient of a mini-batch is none of these, so the gradient of every
sample is computed on its own: see `methods.curvature.passes`.
"""

from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from methods.core.differentiation import differentiable
from methods.core.interface import Problem, Values
from methods.curvature import passes
from methods.curvature.accumulators import DiagonalSum, Sum, kronecker_sums
from methods.curvature.blocks import Block
from methods.curvature.capture import Capture
from methods.curvature.loss_factors import KINDS, PositionColumns, columns_of, cross_entropy_of, half_squared_error
from methods.curvature.precision import full_precision
from methods.curvature.sample_mean import SampleMean, check_outputs

STRUCTURES = ("diagonal", "kronecker")
SHARING = ("expand", "reduce")
TOGETHER = 10  # columns whose output gradients are stored at once, at most


@dataclass(frozen=True)
class Curvature:
    """Curvature of a network.

    Attributes:
        blocks: parameter name -> curvature, summed over the N training samples.
        loss: Σ_n ℓ(f(x_n), y_n) in nats.
    """

    blocks: dict[str, Block]
    loss: float

    @property
    def diagonal(self) -> Values:
        """Name -> diagonal of the curvature, in the shape of the parameter."""
        return {n: block.diagonal() for n, block in self.blocks.items()}


def curvature(
    problem: Problem,
    kind: str,
    *,
    structure: str = "diagonal",
    draws: int = 1,
    sharing: str = "expand",
    positions: int | None = None,
    samples: int | None = None,
    names: list[str] | None = None,
    purpose: str = "curvature",
) -> Curvature:
    """Compute the curvature at the current weights, summed over the N training samples.

    The model should be in eval mode, because batch statistics couple the samples.

    Args:
        problem: network, training data, loss and seed.
        kind: "ef", "mc" or "ggn", see the module.
        structure: "diagonal"; or "kronecker": B ⊗ A for the weights of Linear and Conv layers (per group), a full block for their
            biases, diagonals for all other parameters.
        draws: labels drawn for each sample (kind "mc").
        sharing: how positions that share a weight enter the factors (Eschenhagen et al. 2023, "KFAC for modern neural network
            architectures"). "expand": A is the mean of a aᵀ over samples and positions, B the sum of g gᵀ. "reduce": a is averaged
            and g summed over the positions first.
        positions: with "expand", A is computed from about this many positions of each sample, drawn anew for each batch; None for all.
        samples: use about this many samples (whole batches, in the order of `problem.batches`) and scale the sum up to N; None
            for all.
        names: names of the parameters; None for all trainable ones.
        purpose: name of the random stream.

    Returns:
        The curvature and the loss.

    Raises:
        ValueError: if an argument is unknown, "mc" or "ggn" is used with a loss other than cross-entropy and `half_squared_error`, the
            loss is not a mean over samples, the outputs are not one tensor with the samples first, the curvature is not finite, or
            there are no batches.
    """
    _check(problem, kind, structure, sharing)
    wanted = _parameters(problem, names)
    with full_precision(problem) as wide, differentiable(wide.model), passes.frozen(wide.model):
        summed = _Sums(wide, kind, structure, draws, sharing, positions, wanted, purpose)
        for x, y in passes.first_batches(wide, samples):
            summed.add(x, y)
        if not summed.seen:
            raise ValueError("the curvature needs training data: there are no batches")
        return summed.scaled(problem.samples / summed.seen)


class _Sums:
    """The curvature and the loss, summed over the batches so far. Arguments: see `curvature`; `wanted`: name -> parameter."""

    def __init__(
        self, problem: Problem, kind: str, structure: str, draws: int, sharing: str, positions: int | None, wanted: Values, purpose: str
    ) -> None:
        self.problem, self.kind, self.structure, self.draws, self.wanted = problem, kind, structure, draws, wanted
        self.factors = sharing, positions, problem.generator(purpose, "positions")
        self.generator = problem.generator(purpose)
        self.mean = SampleMean(problem.loss)
        self.loss, self.seen = 0.0, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch."""
        model, wanted = self.problem.model, self.wanted
        if not self.seen:
            self.captured = passes.trusted(model, x, wanted)
            self.totals: dict[str, Sum] = {n: DiagonalSum(p) for n, p in wanted.items()}
        f, capture = passes.forward(model, x, {n: wanted[n] for n in self.captured})
        check_outputs(f, y)
        outputs = f.detach()
        self.loss += float(self.mean(outputs, y)) * len(y)
        columns = columns_of(self.kind, self.mean.loss, outputs, y, self.draws, self.generator)
        if not self.seen and self.structure == "kronecker":
            self.totals |= kronecker_sums(capture.uses, wanted, *self.factors)
        _add(capture, f, columns, self.totals)
        rest = {n: p for n, p in wanted.items() if n not in self.captured}
        if rest:
            passes.add_directly(model, x, columns, rest, self.totals)
        self.seen += len(y)

    def scaled(self, scale: float) -> Curvature:
        """The sums times `scale`; raises ValueError if one is not finite."""
        blocks = {n: total.block(scale) for n, total in self.totals.items()}
        for name, block in blocks.items():
            if not bool(block.diagonal().isfinite().all()):
                raise ValueError(f"the curvature of '{name}' is not finite: check the network's outputs and its weights")
        return Curvature(blocks, self.loss * scale)


def _check(problem: Problem, kind: str, structure: str, sharing: str) -> None:
    for word, value, known in (("curvature", kind, KINDS), ("structure", structure, STRUCTURES), ("sharing", sharing, SHARING)):
        if value not in known:
            raise ValueError(f"{word} '{value}' is not one of {', '.join(known)}")
    if kind != "ef" and problem.loss is not half_squared_error and cross_entropy_of(problem.loss) is None:
        raise ValueError(
            f"curvature='{kind}' works only with F.cross_entropy, nn.CrossEntropyLoss() or methods.curvature.loss_factors."
            "half_squared_error; for any other loss use curvature='ef'"
        )


def _parameters(problem: Problem, names: list[str] | None) -> Values:
    parameters = dict(problem.model.named_parameters())
    wanted = names if names is not None else [n for n, p in parameters.items() if p.requires_grad]
    for name in wanted:
        if parameters[name].is_complex():
            raise ValueError(f"'{name}' is complex, and curvature is computed for real parameters only: set requires_grad=False for it")
    return {n: parameters[n] for n in wanted}


def _add(capture: Capture, f: Tensor, columns: list[Tensor] | PositionColumns, totals: dict[str, Sum]) -> None:
    """Propagate the columns of a batch backward, and add what the captured calls receive."""
    left = iter(columns)
    for k in range(0, len(columns), TOGETHER):
        capture.backward(f, list(islice(left, TOGETHER)), keep=k + TOGETHER < len(columns))
        for name, own in passes.by_name(capture.uses).items():
            totals[name].add(name, own, first=k == 0)
        for use in capture.uses:
            use.gradients.clear()
