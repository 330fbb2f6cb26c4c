"""laplace-torch with our curvature, over every kind of layer, and under every structure of the prior.

    Laplace(model, "classification", hessian_structure="diag", backend=Backend, backend_kwargs={"kind": "mc"})
    BlockLaplace(model, "classification", prior_precision=d)      d scalar, layer-, unit- or parameter-wise
    from_posterior(model, posterior)                              what SpaM left, without another pass

This module imports laplace-torch, which takes seconds: nothing in `methods` imports it.

Reference: Daxberger et al. 2021, "Laplace redux"; `methods.blocks` for P under each prior.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from laplace import BaseLaplace, DiagLaplace, KronLaplace
from laplace.curvature import GGNInterface
from laplace.utils import Kron
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector

from methods.core.interface import Posterior, Problem
from methods.curvature.accumulators import MAX_SIDE
from methods.curvature.blocks import Block, Diagonal, Kronecker, Precisions, Separable
from methods.curvature.compute import curvature
from methods.curvature.loss_factors import half_squared_error
from methods.posterior.marginal_likelihood import Units, log_marginal_likelihood

# --- our curvature in laplace-torch's classes


class Backend(GGNInterface):  # type: ignore[misc]
    """`methods.curvature` as a backend of laplace-torch: of the batch's Σ_n ℓ_n, ℓ the cross-entropy or ½‖f - y‖².

    `kind`: "ggn", "mc" (`draws` labels from the model, other ones for each batch; `seed`) or "ef"; `sharing`, `positions`: see
    `methods.curvature.curvature`. Under regression "ef" is Σ g gᵀ with g the gradient of ½‖f - y‖²; laplace-torch's own is twice
    that. Inputs are tensors, outputs (batch, outputs). With "diag", subnetworks and last layers work; with "kron", last layers.
    """

    def __init__(
        self, model: nn.Module, likelihood: str, last_layer: bool = False, subnetwork_indices: Tensor | None = None,
        dict_key_x: str = "input_ids", dict_key_y: str = "labels", kind: str = "ggn", draws: int = 1, sharing: str = "expand",
        positions: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y, kind == "mc", draws)
        self.kind, self.seed, self.batches = kind, seed, 0
        self.options: dict[str, Any] = {"draws": draws, "sharing": sharing, "positions": positions}

    def blocks(self, x: Tensor, y: Tensor, structure: str) -> tuple[Tensor, dict[str, Block]]:
        """The batch's loss, and name -> curvature of each of `params`, in their order. `structure`: see `curvature`."""
        if not isinstance(x, Tensor):
            raise NotImplementedError("this backend takes inputs that are tensors, not mappings")
        loss = F.cross_entropy if self.likelihood == "classification" else half_squared_error
        problem = Problem(self.model, [(x, y)], loss=loss, seed=self.seed)
        ours = {id(p) for p in self.params}
        names = [n for n, p in self.model.named_parameters() if id(p) in ours]
        purpose = f"laplace {self.batches}"
        self.batches += 1
        found = curvature(problem, self.kind, structure=structure, names=names, purpose=purpose, **self.options)
        return self.params[0].new_tensor(found.loss), {n: found.blocks[n] for n in names}

    def diag(self, x: Tensor, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(loss, diagonal of the curvature, flat)."""
        loss, blocks = self.blocks(x, y, "diagonal")
        h = torch.cat([block.diagonal().flatten() for block in blocks.values()])
        return loss, h if self.subnetwork_indices is None else h[self.subnetwork_indices]

    def kron(self, x: Tensor, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, Kron]:
        """(loss, factors in the shapes that `KronLaplace` sums up: a dense block for every bias, norm layer and token).

        NotImplementedError where it has no place for them: grouped convolutions, other diagonal blocks. `BlockLaplace` has.
        """
        loss, blocks = self.blocks(x, y, "kronecker")
        return loss, Kron([_dense_entry(name, block, len(y) / N) for name, block in blocks.items()])

    def entries(self, x: Tensor, y: Tensor, N: int) -> tuple[Tensor, Kron]:
        """(loss, factors as `Factors` keeps them)."""
        loss, blocks = self.blocks(x, y, "kronecker")
        return loss, Kron([entry for block in blocks.values() for entry in _entries(block, len(y) / N)])

    def full(self, x: Tensor, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(loss, dense curvature), by Jacobians; NotImplementedError for "ef"."""
        if self.kind == "ef":
            raise NotImplementedError("this backend has no dense empirical Fisher: use laplace.curvature.CurvlinopsEF")
        found: tuple[Tensor, Tensor] = super().full(x, y)
        return found

    def jacobians(self, x: Tensor, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """(J (batch, outputs, parameters), f)."""
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule
            found: tuple[Tensor, Tensor] = super().jacobians(x, enable_backprop)
        return found


def _entries(block: Block, share: float) -> list[list[Tensor]]:
    """One parameter's part of `Factors`. `share`: batch size / N; B is summed over batches and A is their mean."""
    if isinstance(block, Diagonal):
        return [[block.h.flatten()]]
    assert isinstance(block, Kronecker)
    if len(block.shape) == 1:
        return [[block.outer[0]]]
    return [[b, a * share] for b, a in zip(block.outer, block.inner, strict=True)]


def _dense_entry(name: str, block: Block, share: float) -> list[Tensor]:
    """The one entry that `Kron.init_from_model` has for a parameter: (P, P), or (rows, rows) and (columns, columns)."""
    entries = _entries(block, share)
    if len(entries) == 1 and entries[0][0].dim() == 2:
        return entries[0]
    h = block.diagonal()
    if len(entries) == 1 and h.numel() <= MAX_SIDE and (h.dim() == 1 or len(h) == 1):
        dense = h.flatten().diag()
        return [dense] if h.dim() == 1 else [dense.new_full((1, 1), share), dense]
    raise NotImplementedError(f"KronLaplace has no place for the curvature of '{name}': use methods.laplace.BlockLaplace")


# --- every layer, every prior


class Factors(Kron):  # type: ignore[misc]
    """Sums over batches of factors. For each parameter in turn: a full block [B], or a diagonal [h], or G entries [B_g, A_g].

    The weight of a grouped convolution, flattened row by row, is its groups one after the other. Empty, it is a zero.
    """

    def __init__(self, kfacs: list[list[Tensor]], shapes: Sequence[torch.Size]) -> None:
        super().__init__(kfacs)
        self.shapes = shapes

    def __add__(self, other: Kron) -> "Factors":
        if not self.kfacs:
            return Factors(other.kfacs, self.shapes)
        ours, theirs = ([[f.shape for f in entry] for entry in kron.kfacs] for kron in (self, other))
        if ours != theirs:  # they would broadcast
            raise ValueError("the factors of two batches differ in shape")
        return Factors(super().__add__(other).kfacs, self.shapes)

    def decompose(self, damping: bool = False) -> list[Block]:
        """The curvature of each parameter; eigenvectors are found when they are asked for."""
        left = iter(self.kfacs)
        return [self._block(left, shape) for shape in self.shapes]

    @staticmethod
    def _block(left: Any, shape: torch.Size) -> Block:
        own = [next(left)]
        while sum(prod(map(len, entry)) for entry in own) < shape.numel():
            own.append(next(left))
        first = own[0][0]
        if len(own[0]) == 2:
            outer, inner = (torch.stack(side) for side in zip(*own, strict=True))
            return Kronecker(outer, inner, shape)
        return Diagonal(first.view(shape)) if first.dim() == 1 else Kronecker(first.unsqueeze(0), first.new_ones(1, 1, 1), shape)


class BlockLaplace(KronLaplace):  # type: ignore[misc]
    """`KronLaplace` for every layer and under every prior; also `Laplace(..., hessian_structure="block")`.

    Curvature by `Backend` (any other backend's Kronecker factors do): B ⊗ A for weights, for each group of a convolution,
    a full block for biases, diagonals for all others. `prior_precision`, by its length:

        1           one d
        n_layers    one for each parameter tensor
        n_params    one for each parameter: projected on the eigenbasis
        n_units     unit-wise, d_ij = u_i v_j: for each weight u of its outputs and then v of its inputs (of each group in
                    turn), which kernels share; one for each entry of all other tensors. Exact up to `methods.blocks.MAX_EXACT`

    where lengths coincide, the first of these; a wrong one raises ValueError when the prior is used. With f = 1/(σ² T),
    P = f (H + d/f), hence log(det P / det D) = log(det(H + d/f) / det(d/f)). The marginal likelihood is differentiable in every
    prior and in sigma_noise, so that `optimize_prior_precision(init_prior_prec=torch.ones(la.n_units))` works; P, hence the
    predictive, is so in all priors but the unit-wise. Samples: `methods.blocks.Precision.root`. `damping` raises ValueError.
    """

    _key = ("all", "block")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"backend": Backend, **kwargs})
        if self.damping:
            raise ValueError("BlockLaplace adds the prior to the curvature: it has no damping")

    def _init_H(self) -> None:
        self.H = Factors([], [p.shape for p in self.params])

    def _curv_closure(self, X: Tensor, y: Tensor, N: int) -> tuple[Tensor, Kron]:
        take = self.backend.entries if isinstance(self.backend, Backend) else super()._curv_closure
        found: tuple[Tensor, Kron] = take(X, y, N)
        return found

    def fit(self, train_loader: Any, override: bool = True, progress_bar: bool = False) -> None:
        """See `KronLaplace.fit`."""
        super().fit(train_loader, override, progress_bar)
        self._priors()

    @BaseLaplace.prior_precision.setter  # type: ignore[untyped-decorator]
    def prior_precision(self, prior_precision: float | Tensor) -> None:
        """See the class."""
        d = torch.as_tensor(prior_precision, device=self._device, dtype=self._dtype)
        if d.dim() > 1:
            raise ValueError(f"the prior precision has {d.dim()} dimensions: it is a number or a vector")
        self._prior_precision = d.reshape(-1)

    @property
    def n_units(self) -> int:
        """The length of a unit-wise prior; AttributeError before `fit`."""
        return sum(map(sum, self._units()))

    def _units(self) -> list[tuple[int, int]]:
        """How many units of (outputs, inputs) each parameter has."""
        self._check_H_init()
        views = [Units(p.shape, b).view if p.dim() in (2, 4) else (1, p.numel(), 0, 1) for p, b in zip(self.params, self.H, strict=True)]
        return [(groups * rows, groups * columns) for groups, rows, columns, _ in views]

    def _priors(self) -> list[Tensor | Separable]:
        """The prior of each parameter, as `methods.blocks` takes it."""
        d, shapes = self.prior_precision, [p.shape for p in self.params]
        if len(d) in (1, self.n_layers):
            return list(d.expand(self.n_layers))
        if len(d) == self.n_params:
            return [part.view(shape) for part, shape in zip(d.split([s.numel() for s in shapes]), shapes, strict=True)]
        if len(d) != self.n_units:
            lengths = f"1, {self.n_layers}, {self.n_params} or {self.n_units}"
            raise ValueError(f"a prior precision of length {len(d)} is neither scalar, layer-, parameter- nor unit-wise: {lengths}")
        parts = d.log().split([n for pair in self._units() for n in pair])
        return [self._unit_prior(*pair) for pair in zip(self.H, shapes, parts[::2], parts[1::2], strict=True)]

    @staticmethod
    def _unit_prior(block: Block, shape: torch.Size, r: Tensor, c: Tensor) -> Tensor | Separable:
        if len(shape) in (2, 4):
            layout = Units(shape, block)
            return Separable(r.view(layout.groups, -1, 1), layout.over_kernel(c.view(layout.groups, 1, -1)))
        return Separable(r.view(1, -1, 1), r.new_zeros(1, 1, 1)) if len(shape) == 1 else r.exp().view(shape)

    @property
    def prior_precision_diag(self) -> Tensor:
        """d of each parameter, flat."""
        pairs = zip(self._priors(), self.params, strict=True)
        return torch.cat([(d.dense(p.shape) if isinstance(d, Separable) else d.expand(p.shape)).flatten() for d, p in pairs])

    def _scaled(self) -> list[tuple[Block, Tensor | Separable]]:
        """(H, d/f) of each parameter."""
        self._check_H_init()
        f = self._H_factor
        priors = [Separable(d.rows - f.log(), d.columns) if isinstance(d, Separable) else d / f for d in self._priors()]
        return list(zip(self.H, priors, strict=True))

    @property
    def posterior_precision(self) -> Precisions:
        """P = f (H + d/f)."""
        found = [block.precision(d) for block, d in self._scaled()]
        return Precisions([replace(p, values=p.values * self._H_factor) for p in found])

    @property
    def log_det_ratio(self) -> Tensor:
        """log det P - Σ log d, in double precision."""
        return torch.stack([block.evidence(d).complexity for block, d in self._scaled()]).sum()


# --- from training


def from_posterior(
    model: nn.Module, posterior: Posterior, likelihood: str = "classification", outputs: int = 0, **options: Any
) -> DiagLaplace | BlockLaplace:
    """A fitted `DiagLaplace`, or `BlockLaplace` where the posterior has factors, of the weights as SpaM left them, without data.

    The loss is what the last marginal likelihood leaves, NaN where there is none. Regression: SpaM's loss is to have been
    `half_squared_error`, and `outputs`, their number, enters the normaliser. A unit-wise prior comes as one for each
    parameter, so under factors it is projected, and its evidence is never above that which SpaM has found exactly. `options`:
    further ones of the class. ValueError where a trainable parameter has no curvature.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    missing = [n for n in parameters if n not in posterior.curvature]
    if missing:
        raise ValueError(f"the posterior has no curvature of '{missing[0]}': train by 'spam', or fit a Laplace approximation on data")
    blocks: dict[str, Block] = {
        n: Kronecker(*posterior.factors[n], p.shape) if n in posterior.factors else Diagonal(posterior.curvature[n])
        for n, p in parameters.items()
    }
    prior = {n: posterior.prior[n] for n in parameters}
    if any(d.dim() for d in prior.values()):
        vector = torch.cat([prior[n].expand(p.shape).flatten() for n, p in parameters.items()])
    else:
        vector = torch.stack(list(prior.values()))
        vector = vector[:1] if bool((vector == vector[0]).all()) else vector
    t = posterior.temperature
    cls = BlockLaplace if posterior.factors else DiagLaplace
    la = cls(model, likelihood, **{"prior_precision": vector, "temperature": t, "backend": Backend, **options})
    la.mean = parameters_to_vector(la.params).detach()
    la.n_data, la.n_outputs, la.loss = posterior.samples, outputs, float("nan")
    if posterior.marginal_likelihood:
        squares = {n: p.detach().square() for n, p in parameters.items()}
        la.loss = t * (log_marginal_likelihood(blocks, prior, squares, 0.0) - posterior.marginal_likelihood[-1])
    unscaled = [block.scaled(t) for block in blocks.values()]
    if isinstance(la, BlockLaplace):
        la.H_facs = Factors([entry for block in unscaled for entry in _entries(block, 1.0)], [p.shape for p in la.params])
        la.H = la.H_facs.decompose()
    else:
        la.H = torch.cat([block.diagonal().flatten() for block in unscaled])
    return la
