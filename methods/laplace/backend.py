"""The curvature of `methods.curvature` in laplace-torch's classes."""

from typing import Any

import torch
import torch.nn.functional as F
from laplace.curvature import GGNInterface
from laplace.utils import Kron
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.core.interface import Problem
from methods.curvature.accumulators import MAX_SIDE
from methods.curvature.blocks import Block, Diagonal, Kronecker
from methods.curvature.compute import curvature
from methods.curvature.loss_factors import half_squared_error


class Backend(GGNInterface):  # type: ignore[misc]
    """Curvature of `methods.curvature` as a backend of laplace-torch: of Σ_n ℓ_n of a batch, ℓ the cross-entropy or ½‖f - y‖².

    Inputs must be tensors, outputs (batch, outputs). "diag" works with subnetworks and last layers, "kron" with last layers. For
    regression "ef" is Σ g gᵀ with g the gradient of ½‖f - y‖²; that of laplace-torch is twice this.

    Args:
        model: the network.
        likelihood: "classification" or "regression".
        last_layer, subnetwork_indices, dict_key_x, dict_key_y: see laplace-torch.
        kind: "ggn", "mc" or "ef".
        draws: labels drawn from the model for each sample (kind "mc"); new ones for each batch.
        sharing, positions: see `methods.curvature.compute.curvature`.
        seed: seed of the draws.
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
        """(loss of a batch, name -> curvature of each of `params`, in their order). `structure`: "diagonal" or "kronecker"."""
        if not isinstance(x, Tensor):
            raise NotImplementedError("inputs must be tensors, not mappings")
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
        """(loss, factors in the shapes of `KronLaplace`: a dense block for every bias, norm layer and token).

        Raises:
            NotImplementedError: for grouped convolutions and large diagonal blocks, which `KronLaplace` cannot represent; use
                `BlockLaplace` for them.
        """
        loss, blocks = self.blocks(x, y, "kronecker")
        return loss, Kron([_dense_entry(name, block, len(y) / N) for name, block in blocks.items()])

    def entries(self, x: Tensor, y: Tensor, N: int) -> tuple[Tensor, Kron]:
        """(loss, factors in the format of `Factors`)."""
        loss, blocks = self.blocks(x, y, "kronecker")
        return loss, Kron([entry for block in blocks.values() for entry in factor_entries(block, len(y) / N)])

    def full(self, x: Tensor, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(loss, dense curvature), from Jacobians; raises NotImplementedError for "ef"."""
        if self.kind == "ef":
            raise NotImplementedError("the dense empirical Fisher is not available here: use laplace.curvature.CurvlinopsEF")
        found: tuple[Tensor, Tensor] = super().full(x, y)
        return found

    def jacobians(self, x: Tensor, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """(Jacobians J (batch, outputs, parameters), outputs f)."""
        with sdpa_kernel(SDPBackend.MATH):  # vmap does not support fused attention
            found: tuple[Tensor, Tensor] = super().jacobians(x, enable_backprop)
        return found


def factor_entries(block: Block, share: float) -> list[list[Tensor]]:
    """The entries of one parameter in `Factors`. `share`: batch size / N; B is summed over batches, A is averaged."""
    if isinstance(block, Diagonal):
        return [[block.h.flatten()]]
    assert isinstance(block, Kronecker)
    if len(block.shape) == 1:
        return [[block.outer[0]]]
    return [[b, a * share] for b, a in zip(block.outer, block.inner, strict=True)]


def _dense_entry(name: str, block: Block, share: float) -> list[Tensor]:
    """The entry of `Kron.init_from_model` for a parameter: (P, P), or (rows, rows) and (columns, columns)."""
    entries = factor_entries(block, share)
    if len(entries) == 1 and entries[0][0].dim() == 2:
        return entries[0]
    h = block.diagonal()
    if len(entries) == 1 and h.numel() <= MAX_SIDE and (h.dim() == 1 or len(h) == 1):
        dense = h.flatten().diag()
        return [dense] if h.dim() == 1 else [dense.new_full((1, 1), share), dense]
    raise NotImplementedError(f"KronLaplace cannot represent the curvature of '{name}': use methods.laplace.BlockLaplace")
