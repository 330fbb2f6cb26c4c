"""Eigendecompositions of positive semi-definite matrices."""

import torch
from torch import Tensor


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors.

    Eigenvalues up to the rounding error ε √n λ_max are set to zero. A factor seldom has full rank, and in single precision the
    rounding error times the largest eigenvalue of the other factor could exceed the prior.
    """
    values, vectors = _stable_eigh(matrix)
    least = torch.finfo(matrix.dtype).eps * matrix.shape[-1] ** 0.5 * values[..., -1:]
    return torch.where(values > least, values, 0.0), vectors


def _stable_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`; where LAPACK fails, as it does for many zero rows (of dead units), in double precision, then without them."""
    for dtype in dict.fromkeys((matrix.dtype, torch.float64)):
        try:
            values, vectors = torch.linalg.eigh(matrix.to(dtype))
            if vectors.isfinite().all():
                return values.to(matrix.dtype), vectors.to(matrix.dtype)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
    if not matrix.isfinite().all():
        raise ValueError("the curvature is not finite: check the network's outputs and its weights")
    pairs = [_eigh_of_alive(m) for m in matrix.double()]
    values, vectors = (torch.stack(part).to(matrix.dtype) for part in zip(*pairs, strict=True))
    return values, vectors


def _eigh_of_alive(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, zero for zero rows and then ascending, and eigenvectors of a positive semi-definite matrix in double precision."""
    alive, dead = ((matrix != 0).any(1) == wanted for wanted in (True, False))
    values, vectors = torch.zeros_like(matrix[0]), torch.zeros_like(matrix)
    zeros = int(dead.sum())
    vectors[dead.nonzero().squeeze(1), torch.arange(zeros, device=matrix.device)] = 1.0
    part = matrix[alive][:, alive]
    if part.numel():
        try:
            found, own = torch.linalg.eigh(part)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            own, found, _ = torch.linalg.svd(part)  # another algorithm; the same for a positive semi-definite matrix
            found, own = found.flip(0), own.flip(1)
        values[zeros:] = found
        vectors[alive, zeros:] = own
    return values, vectors
