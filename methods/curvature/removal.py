"""Removal of weights under a quadratic loss: the update of the others, and the order of greedy removal."""

import torch
from torch import Tensor


def joint_update(f: Tensor, removed: Tensor, keep: Tensor) -> Tensor:
    """δw_K = F_KK⁻¹ F_KQ w_Q, the minimum of ½ δwᵀ F δw for given δw_Q = -w_Q, for several blocks at once.

    Rows and columns outside K are those of the identity, so that blocks are solved together.

    Args:
        f: F, (blocks, c, c), or (c, c) for all blocks.
        removed: w at Q, zero elsewhere (blocks, c, 1).
        keep: K (blocks, c, 1).

    Returns:
        δw, zero outside K (blocks, c, 1).
    """
    kept = torch.where(keep & keep.mT, f, torch.eye(f.shape[-1], dtype=f.dtype, device=f.device))
    return torch.cholesky_solve((f @ removed) * keep, torch.linalg.cholesky(kept))


def removal_order(inverse: Tensor, w: Tensor, alive: Tensor, groups: Tensor | None = None, most: int = 0) -> Tensor:
    """Remove the weights of each row one by one, those of least loss first, and update the others after each step.

    Args:
        inverse: A⁻¹ (i, i), the loss of a row being δwᵀ A δw.
        w: the rows (R, i).
        alive: weights that are not removed yet (R, i); the others are zero in w and are removed first.
        groups: group of each column (i,); None for no limits.
        most: number of weights that may be removed from each group.

    Returns:
        (R, i): the loss of the step that removes a weight, but more than the steps before of the same row, so that they rise
        strictly. Weights that the limits keep have more than all of their row.
    """
    rows = _Rows(inverse, w, alive)
    taken = None if groups is None else w.new_zeros(len(w), int(groups.max()) + 1)
    for _ in range(w.shape[1] if taken is None else taken.shape[1] * most):
        if taken is None or groups is None:
            rows.step(None)
            rows.shrink()
        else:
            p, went = rows.step((taken < most)[:, groups])
            taken.scatter_add_(1, groups[p], went.to(taken.dtype))
    return rows.scores if taken is None else torch.where(rows.left, rows.above(), rows.scores)


class _Rows:
    """Rows of weights from which one after the other is removed; k columns are left. Arguments: see `removal_order`."""

    def __init__(self, inverse: Tensor, w: Tensor, alive: Tensor) -> None:
        self.w, self.alive, self.left = w.clone(), alive, torch.ones_like(alive)
        self.inverse = inverse.expand(len(w), *inverse.shape).clone()  # (R, k, k)
        self.places = torch.arange(w.shape[1], device=w.device).expand(w.shape)  # (R, k) -> column of `scores`
        self.scores = torch.zeros_like(w)
        self.latest = torch.full_like(w[:, :1], -1.0)
        self.size = w.shape[1]

    def losses(self) -> Tensor:
        """w_p² / [A⁻¹]_pp; the diagonal at a removed weight is zero up to rounding, and not read."""
        return self.w.square() / self.inverse.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(self.w.dtype).tiny)

    def step(self, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Remove one allowed weight of each row that has one: (its column among the k, whether it was removed), both (R, 1)."""
        losses = self.losses().where(self.left, torch.inf)
        if allowed is not None:
            losses = losses.where(allowed, torch.inf)
        losses = losses.masked_fill(~self.alive & self.left, -1.0)
        loss, p = losses.min(1, keepdim=True)
        going = loss.isfinite()
        self.latest = torch.where(going, torch.maximum(loss, _next(self.latest)), self.latest)
        column = self.inverse.gather(2, p.unsqueeze(1).expand(-1, self.w.shape[1], -1)).squeeze(2)
        scaled = torch.where(going, column / column.gather(1, p), 0.0)
        self.w -= scaled * self.w.gather(1, p)
        self.inverse.baddbmm_(scaled.unsqueeze(2), column.unsqueeze(1), alpha=-1.0)
        place = self.places.gather(1, p)
        self.scores.scatter_(1, place, torch.where(going, self.latest, self.scores.gather(1, place)))
        self.left.scatter_(1, p, self.left.gather(1, p) & ~going)
        self.size -= 1
        return p, going

    def shrink(self) -> None:
        """Leave out the columns of removed weights if they are a quarter; every row has the same number of them."""
        if self.size > 0.75 * self.w.shape[1] or not self.size:
            return
        kept = self.left.nonzero()[:, 1].view(len(self.w), -1)
        self.w, self.alive, self.left, self.places = (v.gather(1, kept) for v in (self.w, self.alive, self.left, self.places))
        rows = self.inverse.gather(1, kept.unsqueeze(2).expand(-1, -1, self.inverse.shape[2]))
        self.inverse = rows.gather(2, kept.unsqueeze(1).expand(-1, kept.shape[1], -1))

    def above(self) -> Tensor:
        """Scores of the weights that stay: above those of all others of their row."""
        return _next(self.latest) + self.losses()


def _next(v: Tensor) -> Tensor:
    """The next larger numbers."""
    return torch.nextafter(v, torch.full_like(v, torch.inf))
