"""First-order Taylor importance."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn

from methods.core.configurations import Criterion
from methods.core.differentiation import Repairs, differentiable
from methods.core.filters import filters
from methods.core.hyperparameters import Choice, Int
from methods.core.interface import Problem, Scores, Stage, Values
from methods.core.modes import evaluating
from methods.curvature.precision import full_precision
from methods.curvature.sample_mean import SampleMean
from methods.granularity.channel import coupling_of
from methods.registry.registry import register
from methods.structure.channel_norms import batch_norms, rows_of_units


@register("taylor")
@dataclass(frozen=True, kw_only=True)
class Taylor(Criterion):
    """Taylor importance: remove what changes the loss least to first order when it is set to zero.

    g = ∂L/∂θ is the gradient of the mean loss of a mini-batch; scores are means over the first `n_batches` mini-batches. `form`:

    - "gate": s_c = mean of (∂L/∂z_c)², z_c = 1 a gate that multiplies channel c: behind its batch norm ∂L/∂z_c = γ_c g_γc + β_c g_βc;
      without batch norm the sum of w g over the filter of the channel, and of b g of its bias. Of a channel that several layers or
      norms produce the squares are added. For output channels only.
    - "sum_abs": s_k = mean of |w_k g_k| of every weight; a channel has the sum over all its weights. Also for single weights.

    The gradients of a mini-batch are squared (or their absolute values taken) before the mean, so gradients of opposite sign do not
    cancel as in `snip`.

    Reference: Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance estimation for neural network pruning", CVPR 2019, sections 3.1
    and 3.2: the squared contribution of a group of weights, "Taylor-FO" with gates behind batch norm. Departures: scores are taken
    in eval mode after training, at fixed weights, and channels are cut once; the paper removes some channels every few mini-batches
    of fine-tuning and averages over these. The paper compares channels of all layers without scaling:
    `channel(normalisation=none)`. "sum_abs" replaces the paper's (w_k g_k)² of single weights by its root.
    """

    stages: ClassVar = (Stage.AFTER, Stage.DURING)

    form: str = Choice("gate", "gate", "sum_abs", tuned=False, meaning="squared effect of a whole channel, or sum of |w g| of weights")
    n_batches: int = Int(10, 1, 50, log=True, minimum=1, meaning="training batches that are read")

    @property
    def granularities(self) -> tuple[str, ...]:
        """Output channels only, if `form` is "gate"."""
        return ("channel",) if self.form == "gate" else ()

    def score(self, problem: Problem) -> Scores:
        """The scores, from one forward and backward pass per batch.

        Raises:
            ValueError: if there are no batches, or the loss is not a mean over samples.
        """
        parameters = {n: p for n, p in problem.model.named_parameters() if p.is_floating_point()}
        wanted = {n: p for n, p in parameters.items() if n in problem.weights or self.form == "gate"}
        with evaluating(problem.model, wanted):
            return self._gates(problem, wanted) if self.form == "gate" else self._weights(problem, wanted)

    def _weights(self, problem: Problem, weights: dict[str, nn.Parameter]) -> Scores:
        """The mean of |w g| of every weight."""
        total, count = {n: torch.zeros_like(w, dtype=torch.float64) for n, w in weights.items()}, 0
        for effects in self._effects(problem, weights):
            total, count = {n: total[n] + effects[n].abs() for n in total}, count + 1
        return Scores({n: t / count for n, t in total.items()})

    def _gates(self, problem: Problem, parameters: dict[str, nn.Parameter]) -> Scores:
        """The mean of (∂L/∂z)² of every channel."""
        coupling, names = coupling_of(problem), {id(p): n for n, p in problem.model.named_parameters()}
        norms = [(names[id(m.weight)], names.get(id(m.bias)), units) for m, units in batch_norms(problem.model, coupling)]
        normed = torch.zeros(len(coupling.pools), dtype=torch.bool)
        for _, _, units in norms:
            normed[units[units >= 0]] = True
        units_total, rows, count = torch.zeros(len(normed), dtype=torch.float64), dict[str, Tensor](), 0
        for effects in self._effects(problem, parameters):
            for scale, shift, units in norms:
                inside = units >= 0
                effect = effects[scale] + effects[shift] if shift else effects[scale]
                units_total.index_add_(0, units[inside], effect.square().cpu()[inside])
            for name, effect in _of_filters(problem, effects).items():
                rows[name] = rows.get(name, 0.0) + effect.square()
            count += 1
        plain = {
            n: rows[n] / count
            for n in rows
            if any(a.owner == n and a.kind == "rows" and not bool(normed[a.units[a.units >= 0]].any()) for a in coupling.axes)
        }
        behind = rows_of_units(coupling, units_total / count, normed)
        return Scores(rows=plain | {n: r.to(problem.weights[n].device) for n, r in behind.items()})

    def _effects(self, problem: Problem, parameters: dict[str, nn.Parameter]) -> Iterator[Values]:
        """For each mini-batch: name -> θ g, in double precision."""
        read = False
        with full_precision(problem) as wide, differentiable(wide.model), Repairs():
            mean = SampleMean(wide.loss)
            for x, y in islice(wide.read(), self.n_batches):
                gradients = torch.autograd.grad(mean(wide.model(x), y), list(parameters.values()), materialize_grads=True)
                read = True
                yield {n: p.detach().double() * g.double() for (n, p), g in zip(parameters.items(), gradients, strict=True)}
        if not read:
            raise ValueError("taylor needs training data: there are no batches")


def _of_filters(problem: Problem, effects: Values) -> Values:
    """Name of a weight -> (outputs,): the sum of θ g over each filter and its bias."""
    found = {n: f.sum(1) for n, f in filters(problem.model, {n: effects[n] for n in problem.weights}).items()}
    for name in found:
        bias = effects.get(name.removesuffix("weight") + "bias")
        if name.endswith("weight") and bias is not None and bias.shape == found[name].shape:
            found[name] = found[name] + bias
    return found
