"""Labels of channels: sets of labels that stand for the same channel, and the rules by which operations carry labels.

During one forward pass every element of every tensor has a label. `NONE`: a constant whose size follows the other operand, e.g. a
padding of zeros. `FIXED`: an element that cannot be removed, e.g. of the network's inputs. Any larger number: a channel. Label tensors
have the shape of the tensor that they describe, and are float64, so that every operation that moves data can be applied to them.
"""

import torch
from torch import Tensor

NONE, FIXED = 0, 1


class Labels:
    """Disjoint sets of labels. The name of a set, its root, is its smallest label.

    Attributes:
        locked: root -> whether its channel must stay.
    """

    def __init__(self, device: torch.device) -> None:
        self.parent = torch.arange(2, device=device)
        self.locked = torch.tensor([False, True], device=device)

    def fresh(self, count: int) -> Tensor:
        """New labels, each in a set of its own."""
        new = torch.arange(len(self.parent), len(self.parent) + count, device=self.parent.device)
        self.parent = torch.cat([self.parent, new])
        self.locked = torch.cat([self.locked, torch.zeros_like(new, dtype=torch.bool)])
        return new.double()

    def root(self, labels: Tensor) -> Tensor:
        """The root of each label, float64."""
        (small,) = _narrowed(labels)
        return self.parent[small.long()].double().expand(labels.shape)

    def lock(self, labels: Tensor) -> None:
        """The channels with these labels must stay."""
        self.locked[self.parent[_narrowed(labels)[0].long().flatten()]] = True

    def join(self, a: Tensor, b: Tensor) -> None:
        """Make the sets of a[i] and b[i] one, for each i. If one of them is FIXED or locked, the other is locked instead."""
        a, b = _narrowed(*torch.broadcast_tensors(self.root(a), self.root(b)))
        differs = (a != b) & (a != NONE) & (b != NONE)
        if not bool(differs.any()):
            return
        pairs = torch.stack([a[differs], b[differs]]).long().sort(0).values.unique(dim=1)
        while pairs.numel():
            stays = self.locked[pairs].any(0)
            self.lock(pairs[:, stays])
            if not bool(stays.any()):
                self.parent.scatter_reduce_(0, pairs[1], pairs[0], "amin")
                self._compress()
            pairs = self.parent[pairs[:, ~stays]]
            pairs = pairs[:, pairs[0] != pairs[1]].sort(0).values

    def _compress(self) -> None:
        while not torch.equal(self.parent, shorter := self.parent[self.parent]):
            self.parent = shorter

    def common(self, labels: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The one label along some dimensions, which stay as dimensions of size 1.

        Returns:
            (label, whether there are several). Where there are several, the label is FIXED. NONE does not count.
        """
        roots = self.root(labels)
        if not dims:
            return roots, torch.zeros_like(roots, dtype=torch.bool)
        shape = [1 if d in {i % roots.dim() for i in dims} else n for d, n in enumerate(roots.shape)]
        if roots.numel() == 0:
            return roots.new_zeros(shape), torch.zeros(shape, dtype=torch.bool, device=roots.device)
        (small,) = _narrowed(roots)
        high = small.amax(dims, keepdim=True)
        low = torch.where(small == NONE, high, small).amin(dims, keepdim=True)
        several = low != high
        return torch.where(several, float(FIXED), high).expand(shape), several.expand(shape)

    def joined(self, labels: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Join all labels along some dimensions; returns the common label, FIXED if there is nothing but FIXED."""
        roots = self.root(labels)
        if not dims or roots.numel() == 0:
            return self.common(roots, dims)[0]
        (small,) = _narrowed(roots)
        high = small.amax(dims, keepdim=True)
        self.join(small, high)
        return self.root(high).expand([1 if d in {i % roots.dim() for i in dims} else n for d, n in enumerate(roots.shape)])

    def elementwise(self, operands: list[Tensor], shape: torch.Size) -> Tensor:
        """The labels of a result of which each element belongs to one element of every operand, after broadcasting."""
        operands = [o for o in operands if o.numel() > 1] or operands[:1]  # numbers have no dimension that a channel could lie along
        if len(operands) == 1:
            return self.root(operands[0]).expand(shape)
        wide = _narrowed(*(o.expand(shape) for o in operands))
        # Dimensions along which nothing changes are left out, and come back at the end.
        full, shape = shape, wide[0].shape
        operands = [_like(o, shape) for o in operands]
        found = torch.zeros(shape, dtype=torch.float64, device=self.parent.device)
        for i, operand in enumerate(operands):
            others = [o for j, o in enumerate(wide) if j != i]
            label = self._broadcast(operand, others, shape)
            self.join(found, label)
            found, label = self.root(found), self.root(label)
            real = torch.minimum(torch.where(found > FIXED, found, torch.inf), torch.where(label > FIXED, label, torch.inf))
            found = torch.where(real.isinf(), torch.maximum(found, label), real)
        return found.expand(full)

    def _broadcast(self, operand: Tensor, others: list[Tensor], shape: torch.Size) -> Tensor:
        """The labels of an operand after broadcasting: NONE where it is repeated over different channels of the others."""
        padded = operand.view(*[1] * (len(shape) - operand.dim()), *operand.shape)
        repeated = tuple(d for d, n in enumerate(padded.shape) if n == 1 and shape[d] > 1)
        if not repeated:
            return operand.expand(shape)
        for other in others:
            _, several = self.common(other, repeated)
            if bool(several.any()) and not self.apart(other, repeated):
                padded = torch.where(several, float(NONE), padded)
        return padded.expand(shape)

    def apart(self, labels: Tensor, dims: tuple[int, ...]) -> bool:
        """Whether no channel lies at two places of the other dimensions: along `dims` are then parts of one channel, not channels."""
        roots = self.root(labels)
        for d in {d % roots.dim() for d in dims}:
            roots = roots.narrow(d, 0, 1) if roots.stride(d) == 0 else roots
        highest = roots.amax(dims, keepdim=True)
        real = highest[highest > FIXED]
        if highest.numel() < 2 or len(real.unique()) < len(real):
            return False
        places = torch.arange(highest.numel(), device=roots.device, dtype=torch.float64).view(highest.shape).expand(roots.shape)
        pairs = torch.stack([roots[roots > FIXED], places[roots > FIXED]]).unique(dim=1)
        return len(pairs[0].unique()) == int(pairs.shape[1])

    def contracted(self, a: Tensor, b: Tensor) -> Tensor:
        """The labels of the matrix product of (..., m, k) and (..., k, n): channels that are summed over are coupled in pairs."""
        (_, of_a), (_, of_b) = self.common(a, (-1,)), self.common(b, (-2,))
        if bool(of_a.any()) and bool(of_b.any()):
            self.join(self.joined(a, (-2,)).squeeze(-2), self.joined(b, (-1,)).squeeze(-1))
        else:  # a sum over channels of one factor and over a fixed number of elements of the other
            for factor, several in ((a, of_a), (b, of_b)):
                self.lock(factor.masked_select(several))
        (left, _), (right, _) = self.common(a, (-1,)), self.common(b, (-2,))
        shape = torch.broadcast_shapes(left.shape, right.shape)
        left, right = torch.broadcast_tensors(_constant(left), _constant(right))
        clash = (left != right) & (left > FIXED) & (right > FIXED)
        for side in (left, right):  # an outer product: its elements belong to two channels each
            self.lock(side[clash])
        return torch.where(clash, float(FIXED), torch.maximum(left, right).clamp(min=FIXED)).expand(shape)


def _narrowed(*tensors: Tensor) -> list[Tensor]:
    """One index of each dimension along which all of the tensors, which have one shape, repeat the same elements."""
    found = list(tensors)
    for d in range(tensors[0].dim()):
        if tensors[0].shape[d] > 1 and all(t.stride(d) == 0 for t in tensors):
            found = [t.narrow(d, 0, 1) for t in found]
    return found


def _constant(labels: Tensor) -> Tensor:
    """One index of each dimension along which the labels do not change."""
    for d in range(labels.dim()):
        first = labels.narrow(d, 0, 1) if labels.shape[d] > 1 else labels
        labels = first if bool((labels == first).all()) else labels
    return labels


def _like(operand: Tensor, shape: torch.Size) -> Tensor:
    """An operand of a broadcast result, with one index of the dimensions of which the result has only one."""
    for d in range(operand.dim()):
        if shape[len(shape) - operand.dim() + d] == 1 and operand.shape[d] > 1:
            operand = operand.narrow(d, 0, 1)
    return operand
