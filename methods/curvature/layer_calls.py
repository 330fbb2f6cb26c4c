"""The gradient of each sample with respect to a parameter, from one call of a layer.

A `Use` stores the input of the call and the gradients of its outputs. From the two it computes the gradient of each sample, or the
sum of their squares without storing all of them. `methods.curvature.capture` makes the uses.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HELD = 1 << 20  # numbers computed at once, of patches or of samples' gradients; chosen for the cache, not for memory


class Use:
    """One call with a parameter.

    Attributes:
        batch: number of samples.
        weight: name of the parameter that multiplies the operand; None if it is not needed.
        bias: name of the parameter that is added; None if it is not needed.
        gradients: gradients of the outputs, in their shape, one for each backward pass since the list was last emptied.
    """

    def __init__(self, operand: Tensor | None, batch: int, weight: str | None, bias: str | None = None) -> None:
        self._operand, self._version = operand, -1 if operand is None else operand._version
        self.batch, self.weight, self.bias = batch, weight, bias
        self.gradients: list[Tensor] = []

    @property
    def operand(self) -> Tensor:
        """The other operand.

        Raises:
            RuntimeError: if the network has overwritten it in place since the call.
        """
        assert self._operand is not None
        if self._operand._version != self._version:
            raise RuntimeError(f"the input that '{self.weight or self.bias}' acts on was overwritten in place after it was used")
        return self._operand.detach()

    def receive(self, gradient: Tensor) -> None:
        """Store a gradient of the outputs (a tensor hook)."""
        self.gradients.append(gradient)

    def samples(self, name: str, g: Tensor) -> Tensor:
        """The gradient of each sample with respect to the parameter `name`, (batch, *shape), from a gradient g of the outputs."""
        raise NotImplementedError

    def squares(self, name: str) -> Tensor:
        """Σ_n (gradient of sample n)² over all backward passes, in the shape of the parameter `name`."""
        return torch.stack([self.samples(name, g).square_().sum(0) for g in self.gradients]).sum(0)


class Product(Use):
    """y = W a + b at T positions and in G groups: Linear (tokens are positions) and Conv (pixels are).

    `inputs`: a (batch, G, T, i); `outputs(g)`: (batch, G, T, o). The gradient of a sample is Σ_t g_t a_tᵀ (G, o, i); `arranged`
    brings it to the shape of the weight. Columns of a convolution are ordered (kernel, channel), the order in memory when channels
    are last.
    """

    def __init__(self, x: Tensor, batch: int, shape: torch.Size, weight: str | None, bias: str | None, **conv: Any) -> None:
        super().__init__(x, batch, weight, bias)
        self.shape, self.conv = shape, conv
        self.groups: int = conv.get("groups", 1)

    def inputs(self, part: slice = slice(None), positions: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """a (n, G, T, i) of a part of the batch; T = 1 if nothing is shared. `positions`: (rows, columns) to use; None for all."""
        if not self.conv:
            x = self.operand.reshape(self.batch, 1, -1, self.shape[1])[part]
            return x if positions is None else x[:, :, positions[1]]
        patches, by_channel = self._patches(self.operand[part])
        if positions is not None:
            at = (5, 6) if by_channel else (2, 3)
            patches = patches.index_select(at[0], positions[0]).index_select(at[1], positions[1])
        n = len(patches)
        return patches.reshape(n, self.groups, self.columns.numel(), -1).mT if by_channel else patches.flatten(4).flatten(2, 3)

    def _patches(self, x: Tensor) -> tuple[Tensor, bool]:
        """A view of all patches: (n, G, kernel, kernel, channel, row, column) and True, or (n, G, row, column, kernel, kernel, channel)."""
        (h, w), (sh, sw), (ph, pw), (dh, dw) = (self.conv[k] for k in ("kernel", "stride", "padding", "dilation"))
        n, channels, height, width = x.shape[0], x.shape[1], x.shape[2] + 2 * ph, x.shape[3] + 2 * pw
        rows, columns = self.grid
        group = channels // self.groups
        if sw == 1 and w * group < columns:  # copy along the axis with more consecutive values: pixels of a row, or channels
            planes = F.pad(x, (pw, pw, ph, ph)).contiguous()
            area = height * width
            size = (n, self.groups, h, w, group, rows, columns)
            return planes.as_strided(size, (channels * area, group * area, dh * width, dw, area, sh * width, sw)), True
        pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph)).contiguous()
        line = width * channels
        size = (n, self.groups, rows, columns, h, w, group)
        return pixels.as_strided(size, (height * line, group, sh * line, sw * channels, dh * line, dw * channels, 1)), False

    @cached_property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of positions; for Linear one row of tokens."""
        x = self.operand
        if not self.conv:
            return 1, x.numel() // (self.batch * x.shape[-1])
        sizes = zip(*(self.conv[k] for k in ("kernel", "stride", "padding", "dilation")), x.shape[2:], strict=True)
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for k, s, p, d, n in sizes)
        return rows, columns

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """About `count` random positions, all equally likely: (rows, columns) of a grid; None for all positions."""
        rows, columns = self.grid
        if rows * columns <= count:
            return None
        some = max(1, min(rows, round((count * rows / columns) ** 0.5)))
        of = ((rows, some), (columns, max(1, count // some)))
        r, c = (torch.randperm(n, generator=generator)[:k].sort().values.to(self.operand.device) for n, k in of)
        return r, c

    def outputs(self, g: Tensor) -> Tensor:
        """g, (batch, G, T, o)."""
        if not self.conv:
            return g.reshape(self.batch, 1, -1, g.shape[-1])
        return g.permute(0, 2, 3, 1).reshape(self.batch, -1, self.groups, g.shape[1] // self.groups).transpose(1, 2)

    def arranged(self, matrix: Tensor) -> Tensor:
        """(..., G, o, i) in the shape of the weight (..., out, in, *kernel)."""
        if not self.conv:
            return matrix.reshape(*matrix.shape[:-3], *self.shape)
        out, channels, *kernel = self.shape
        return matrix.reshape(*matrix.shape[:-3], out, *kernel, channels).movedim(-1, -3)

    @property
    def columns(self) -> Tensor:
        """Index into the columns of `inputs` for each column of the flattened weight: (i,)."""
        order = torch.arange(self.shape[1:].numel())
        return order.view(*self.shape[2:], self.shape[1]).movedim(-1, 0).flatten() if self.conv else order

    def parts(self, entries: int) -> list[slice]:
        """Parts of the batch for which neither a nor `entries` numbers per sample exceed `HELD`."""
        rows, columns = self.grid
        size = max(1, HELD // max(entries, rows * columns * self.groups * self.shape[1:].numel()))
        return [slice(k, k + size) for k in range(0, self.batch, size)]

    def samples(self, name: str, g: Tensor) -> Tensor:
        """See `Use.samples`."""
        if name == self.bias:
            return self.outputs(g).sum(2).flatten(1)
        g = self.outputs(g)
        pieces = [g[part].mT @ self.inputs(part) for part in self.parts(0)]
        return self.arranged(torch.cat(pieces) if len(pieces) > 1 else pieces[0])

    def squares(self, name: str) -> Tensor:
        """Σ_n (Σ_t g_nt a_ntᵀ)²: from squares of both factors if T = 1, otherwise a few samples at a time."""
        if name == self.bias:
            return super().squares(name)
        g = [self.outputs(g) for g in self.gradients]
        if g[0].shape[2] == 1:
            g_squared = torch.stack([b.square() for b in g]).sum(0) if len(g) > 1 else g[0].square()
            return self.arranged(g_squared.squeeze(2).permute(1, 2, 0) @ self.inputs().squeeze(2).square().transpose(0, 1))
        rows = len(g) * g[0].shape[3]
        total = torch.zeros(self.groups, rows, self.shape[1:].numel(), dtype=g[0].dtype, device=g[0].device)
        for part in self.parts(total.numel()):
            b = torch.cat([b[part].mT for b in g], 2)  # one product for all passes
            total += (b @ self.inputs(part)).square_().sum(0)
        return self.arranged(total.view(self.groups, len(g), -1, total.shape[2]).sum(1))


class Elementwise(Use):
    """y = x̂ ⊙ w + b with broadcasting: normalisation layers (x̂ the normalised input), factors, addends, tokens.

    `shape`: shape of the parameter. `channels_first`: the parameter lies along dimension 1 of the output, not along the last ones.
    """

    def __init__(
        self, x: Tensor | None, batch: int, shape: torch.Size, weight: str | None, bias: str | None, channels_first: bool = False,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(x, batch, weight, bias)
        self.shape, self.channels_first, self.normalise = shape, channels_first, normalise

    @cached_property
    def factor(self) -> Tensor:
        """x̂, which has the shape of the output or broadcasts to it."""
        return self.normalise(self.operand) if self.normalise else self.operand

    def samples(self, name: str, g: Tensor) -> Tensor:
        """See `Use.samples`."""
        value = g if name == self.bias else g * self.factor
        if self.channels_first:
            summed = value.flatten(2).sum(2) if value.dim() > 2 else value
        else:
            own = self.shape[1:] if len(self.shape) == value.dim() else self.shape
            summed = value.flatten(1, value.dim() - len(own) - 1).sum(1) if value.dim() - len(own) > 1 else value
            shared = [d + 1 for d, n in enumerate(own) if n == 1]
            summed = summed.sum(shared, keepdim=True) if shared else summed
        return summed.reshape(self.batch, -1, *self.shape).sum(1)
