"""Sums of the curvature of one parameter over batches: its diagonal, or Kronecker factors."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from methods.core.interface import Values
from methods.curvature.blocks import Block, Diagonal, Kronecker
from methods.curvature.layer_calls import Product, Use

MAX_SIDE = 8192  # larger Kronecker factors are not computed: the parameter gets a diagonal block


class Sum:
    """The sum of the curvature of one parameter."""

    def add(self, name: str, uses: list[Use], first: bool) -> None:
        """Add one batch and some of its columns. `first`: whether they are the first columns of the batch."""
        raise NotImplementedError

    def add_squares(self, squares: Tensor) -> None:
        """Add a sum of squared gradients of samples, in the shape of the parameter."""
        raise NotImplementedError

    def block(self, scale: float) -> Block:
        """The curvature summed so far, times `scale`."""
        raise NotImplementedError


class DiagonalSum(Sum):
    """Σ g² over samples and columns, g the gradient of a sample."""

    def __init__(self, p: Tensor) -> None:
        self.total = torch.zeros_like(p, requires_grad=False)

    def add(self, name: str, uses: list[Use], first: bool) -> None:
        self.total += squares(name, uses)

    def add_squares(self, squares: Tensor) -> None:
        self.total += squares

    def block(self, scale: float) -> Block:
        return Diagonal(self.total * scale)


class KroneckerSum(Sum):
    """B = Σ g gᵀ over samples, positions and columns; A = the mean of a aᵀ over samples and positions."""

    def __init__(self, p: Tensor, columns: Tensor, sharing: str, positions: int | None, generator: torch.Generator) -> None:
        self.p, self.columns, self.reduce = p, columns, sharing == "reduce"
        self.positions, self.generator = positions, generator
        self.inner: Tensor | float = 0.0
        self.outer: Tensor | float = 0.0
        self.count = 0

    def add(self, name: str, uses: list[Use], first: bool) -> None:
        for use in uses:
            assert isinstance(use, Product)
            if first:
                self._add_inputs(use)
            for gradient in use.gradients:
                g = use.outputs(gradient)
                self.outer = self.outer + _second_moment(g.sum(2, keepdim=True) if self.reduce else g)

    def _add_inputs(self, use: Product) -> None:
        shared = math.prod(use.grid)
        drawn = use.draw(self.positions, self.generator) if self.positions and not self.reduce else None
        for part in use.parts(0) if drawn is None else [slice(None)]:
            a = use.inputs(part, drawn)
            a = a.mean(2, keepdim=True) if self.reduce else a
            stands_for = 1 if self.reduce else shared / a.shape[2]  # the drawn positions represent all positions
            self.inner = self.inner + _second_moment(a) * stands_for
            self.count += a.shape[0] * (1 if self.reduce else shared)

    def block(self, scale: float) -> Block:
        if not isinstance(self.outer, Tensor) or not isinstance(self.inner, Tensor):  # the outputs do not depend on the parameter
            return Diagonal(torch.zeros_like(self.p, requires_grad=False))
        return Kronecker(self.outer * scale, self._arranged(self.inner / self.count), self.p.shape)

    def _arranged(self, inner: Tensor) -> Tensor:
        """A with rows and columns in the order of the flattened weight."""
        rows = self.columns.to(inner.device)
        return inner[:, rows][:, :, rows]


class FullSum(Sum):
    """Σ g gᵀ over samples and columns, g the gradient of a sample by a bias: exact, over all groups."""

    def __init__(self, p: Tensor) -> None:
        self.total = p.new_zeros(1, len(p), len(p), requires_grad=False)

    def add(self, name: str, uses: list[Use], first: bool) -> None:
        for g in samples(name, uses):
            self.total += g.mT @ g

    def block(self, scale: float) -> Block:
        return Kronecker(self.total * scale, torch.ones_like(self.total[:, :1, :1]), self.total.shape[1:2])


def _second_moment(a: Tensor) -> Tensor:
    """Σ_{n,t} a aᵀ of each group: (n, G, T, d) -> (G, d, d)."""
    flat = a.transpose(0, 1).flatten(1, 2)
    return flat.mT @ flat


def kronecker_sums(uses: list[Use], parameters: Values, sharing: str, positions: int | None, generator: torch.Generator) -> dict[str, Sum]:
    """Sums for the parameters with factors: used only as the weight, or only as the bias, of products, and not too large."""
    found: dict[str, Sum] = {}
    for name, p in parameters.items():
        own = [use for use in uses if name in (use.weight, use.bias)]
        if not own or not all(isinstance(use, Product) for use in own):
            continue
        first = own[0]
        assert isinstance(first, Product)
        if all(use.bias == name for use in own):
            if len(p) <= MAX_SIDE:
                found[name] = FullSum(p)
        elif all(use.weight == name for use in own) and max(p.shape[0] // first.groups, p.shape[1:].numel()) <= MAX_SIDE:
            found[name] = KroneckerSum(p, first.columns, sharing, positions, generator)
    return found


def squares(name: str, uses: list[Use]) -> Tensor:
    """Σ_n (gradient of sample n)². The gradient of a parameter that is used several times is the sum over its uses."""
    if len(uses) == 1:
        return uses[0].squares(name)
    return torch.stack([g.square_().sum(0) for g in samples(name, uses)]).sum(0)


def samples(name: str, uses: list[Use]) -> Iterator[Tensor]:
    """For each backward pass, the gradient of each sample, summed over the uses: (batch, *shape)."""
    for gradients in zip(*(use.gradients for use in uses), strict=True):
        terms = [use.samples(name, g) for use, g in zip(uses, gradients, strict=True)]
        yield torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
