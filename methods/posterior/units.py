"""Output and input units of a weight, which a unit-wise prior is made of."""

import torch
from torch import Tensor

from methods.curvature.blocks import Block, Kronecker, Separable

STILL = 1e-4  # changes of log d below this are not significant: the iteration has converged


def has_units(parameter: Tensor) -> bool:
    """Whether a parameter is a weight with output and input units (Linear or 2d convolution)."""
    return parameter.dim() in (2, 4)


class Units:
    """Output and input units of a weight (out, in, *kernel) in G groups: r (G, o, 1), c (G, 1, in); a kernel shares its c.

    A bias (out,) has one input unit, with c = 0.
    """

    def __init__(self, shape: torch.Size, block: Block) -> None:
        self.groups = len(block.outer) if isinstance(block, Kronecker) else 1
        self.shape = shape
        self.view = (self.groups, shape[0] // self.groups, shape[1:2].numel(), shape[2:].numel())

    def split(self, log_d: Tensor) -> tuple[Tensor, Tensor]:
        """The (r, c) closest to log d in least squares."""
        v = log_d.reshape(self.view).mean(3)
        r = v.mean(2, keepdim=True)
        return r, (v - r).mean(1, keepdim=True)

    def sums(self, values: Tensor, along: int) -> Tensor:
        """Sums over the entries of an output unit (`along` = 0, in the shape of r) or an input unit (1, in the shape of c)."""
        v = values.reshape(self.view).sum(3)
        return v.sum(2, keepdim=True) if along == 0 else v.sum(1, keepdim=True)

    def given(self, d: Tensor) -> Tensor | Separable:
        """d as a separable prior; d itself if it is not separable or is one for all."""
        if d.dim() == 0:
            return d
        log_d = d.log()
        r, c = self.split(log_d)
        separable = Separable(r, self.over_kernel(c))
        return separable if float((separable.dense(self.shape).log() - log_d).abs().max()) < STILL else d

    def expand(self, z: Tensor) -> Tensor:
        """log d, in the shape of the parameter, from r and c in one vector."""
        groups, out, inner, _ = self.view
        r, c = z[: groups * out].view(groups, out, 1), z[groups * out :].view(groups, 1, inner)
        return (r + self.over_kernel(c)).reshape(self.shape)

    def gather(self, values: Tensor) -> Tensor:
        """The transpose of `expand`: sums over the entries of each unit."""
        return torch.cat([self.sums(values, along).flatten() for along in (0, 1)])

    def over_kernel(self, c: Tensor) -> Tensor:
        """c (G, 1, in) repeated over the kernel: (G, 1, i)."""
        return c.repeat_interleave(self.view[3], dim=2)
