"""Second moments of the inputs of layers, for layer-wise reconstruction after training.

The inputs X (i, n) of a layer y = W x hold one column for each sample and position: a token, or a patch of a convolution with its
padding. They are read in one pass over the network as it is. X Xᵀ/n is the factor A of the Kronecker-factored curvature.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.core.differentiation import differentiable
from methods.core.interface import Problem, Values
from methods.core.prunable import places, remedy
from methods.curvature import passes
from methods.curvature.capture import Capture
from methods.curvature.layer_calls import Product, Use
from methods.curvature.precision import full_precision


@dataclass(frozen=True)
class Inputs:
    """The second moment of the inputs of one weight, in G groups.

    Rows of the weight are (G, o), the outputs. Columns are ordered as in the patches, (kernel position, input channel), so that
    consecutive input channels are neighbours.

    Attributes:
        total: X Xᵀ (G, i, i), or its diagonal (G, i).
        count: n, the number of columns of X.
        columns: for each column of the flattened weight, its column in X (i,).
        shape: shape of the weight.
    """

    total: Tensor
    count: int
    columns: Tensor
    shape: torch.Size

    def rows(self, weight: Tensor) -> Tensor:
        """A weight, or a mask of it, as (G, o, i)."""
        return weight.reshape(len(self.total), -1, len(self.columns))[..., self.columns.argsort()]

    def weight(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows[..., self.columns].reshape(self.shape)

    def damped(self, damping: float) -> Tensor:
        """X Xᵀ/n + λ 1 in double precision, (G, i, i), with λ = `damping` times the mean of the diagonal; 1 if all inputs are zero."""
        moment = self.total.double() / max(self.count, 1)
        mean = moment.diagonal(dim1=1, dim2=2).mean(1)
        lam = torch.where(mean > 0, damping * mean, 1.0)
        return moment + torch.diag_embed(lam.unsqueeze(1).expand(moment.shape[:2]))


def layer_inputs(problem: Problem, samples: int | None = None, diagonal: bool = False) -> dict[str, Inputs]:
    """Sum the second moments of the inputs of all prunable weights.

    Args:
        problem: network and training data. The model should be in eval mode.
        samples: use about this many samples (whole batches, in the order of `problem.batches`); None for all.
        diagonal: only the diagonal.

    Returns:
        Name -> second moment. A layer that is called several times has the inputs of all calls.

    Raises:
        ValueError: if there are no batches, the inputs are not finite, or a weight is used in a way whose inputs are not known.
    """
    with full_precision(problem) as wide, differentiable(wide.model), passes.frozen(wide.model):
        wanted: Values = dict(wide.weights)
        found: dict[str, Inputs] = {}
        for x, _ in passes.first_batches(wide, samples):
            if not found:
                _check_trusted(wide.model, x, wanted)
            with torch.enable_grad(), Capture({id(p): n for n, p in wanted.items()}, len(x)) as capture:
                wide.model(x)
            _add(found, capture.uses, wanted, diagonal)
    if not found:
        raise ValueError("the inputs of the layers need training data: there are no batches")
    for name, inputs in found.items():
        if not bool(inputs.total.isfinite().all()):
            raise ValueError(f"the inputs of '{name}' are not finite: check the network and its data")
    return found


def unread(problem: Problem) -> str | None:
    """The reason why the inputs of some prunable weight cannot be read; None if they can."""
    found = list(places(problem.model))
    owners = Counter(id(p) for module in problem.model.modules() for p in module._parameters.values())
    for name, p in problem.weights.items():
        own = [place for n, place in found if n == name]
        for place in own:
            if place.stored != place.attribute:
                return f"the weight of {place.label} is computed from '{name}': {remedy(place)}"
        odd = next((x for x in own if not isinstance(x.module, (nn.Linear, nn.Conv2d)) or _of_attention(x.module)), None)
        if odd is not None or len(own) < owners[id(p)]:
            why = f"belongs to {odd.label}" if odd is not None else "is not only multiplied as a matrix"
            return f"'{name}' {why}, and only inputs of Linear and Conv2d layers are read: leave it out by exclude='{name}'"
    return None


def _of_attention(module: nn.Module) -> bool:
    """Whether `nn.MultiheadAttention` calls this layer, by its weight only."""
    return type(module).__name__ == "NonDynamicallyQuantizableLinear"


def _check_trusted(model: nn.Module, x: Tensor, wanted: Values) -> None:
    odd = [n for n in wanted if n not in passes.trusted(model, x, wanted)]
    if odd:
        raise ValueError(f"'{odd[0]}' is used in a way whose inputs are not known: leave it out by exclude='{odd[0]}'")


def _add(found: dict[str, Inputs], uses: list[Use], wanted: Values, diagonal: bool) -> None:
    """Add the inputs of one batch."""
    for use in uses:
        if use.weight is None:
            continue
        if not isinstance(use, Product):
            raise ValueError(f"'{use.weight}' is not only multiplied as a matrix: leave it out by exclude='{use.weight}'")
        total, count = _second_moment(use, diagonal)
        before = found.get(use.weight)
        columns = use.columns.to(total.device)
        if before is not None and before.count:
            total, count = before.total + total, before.count + count
        found[use.weight] = Inputs(total, count, columns, use.shape)
    for name, p in wanted.items():
        if name not in found:  # not called
            i = p.shape[1:].numel()
            total = p.new_zeros((1, i) if diagonal else (1, i, i), dtype=torch.float64)
            found[name] = Inputs(total, 0, torch.arange(i, device=p.device), p.shape)


def _second_moment(use: Product, diagonal: bool) -> tuple[Tensor, int]:
    """(X Xᵀ of one call in double precision, n). Products are summed over a few samples at a time."""
    total: Tensor | float = 0.0
    count = 0
    for part in use.parts(0):
        x = use.inputs(part).transpose(0, 1).flatten(1, 2)  # (G, n, i)
        total = total + (x.square().sum(1) if diagonal else x.mT @ x).double()
        count += x.shape[1]
    assert isinstance(total, Tensor)
    return total, count
