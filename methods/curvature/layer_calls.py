"""Where each parameter acts in a forward pass: its inputs, and the gradients of its outputs, sample by sample.

A `Capture` watches the calls that torch functions make with a parameter (linear, convolution, normalisation, addition,
multiplication, expansion), whatever module makes them, and keeps the other operand. Gradients of the outputs arrive by tensor
hooks, which see the value before any in-place activation. From the two, a `Use` computes the gradient of each sample with
respect to the parameter, or a sum of squares of them without forming all at once.

Parameters need no gradient of their own meanwhile, so that backward passes through the activations only.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

HELD = 1 << 20  # numbers formed at once, of patches or of samples' gradients: what stays in the cache, not what fits in memory
Names = Callable[[Any], str | None]


class Use:
    """One call with a parameter. `weight`, `bias`: the names of the parameters wanted, None where not wanted or not there.

    `gradients`: those of the outputs, of the outputs' shape, one for each backward pass since the list was last emptied.
    """

    def __init__(self, operand: Tensor | None, batch: int, weight: str | None, bias: str | None = None) -> None:
        self._operand, self._version = operand, -1 if operand is None else operand._version
        self.batch, self.weight, self.bias = batch, weight, bias
        self.gradients: list[Tensor] = []

    @property
    def operand(self) -> Tensor:
        """The other operand; RuntimeError where the network has overwritten it since."""
        assert self._operand is not None
        if self._operand._version != self._version:
            raise RuntimeError(f"the input that '{self.weight or self.bias}' acts on was overwritten in place after it was used")
        return self._operand.detach()

    def receive(self, gradient: Tensor) -> None:
        """The tensor hook."""
        self.gradients.append(gradient)

    def samples(self, name: str, g: Tensor) -> Tensor:
        """The gradient of each sample with respect to the parameter: (batch, *shape)."""
        raise NotImplementedError

    def squares(self, name: str) -> Tensor:
        """Σ_n (gradient of sample n)² over all backward passes, of the parameter's shape."""
        return torch.stack([self.samples(name, g).square_().sum(0) for g in self.gradients]).sum(0)


class Product(Use):
    """y = W a + b at T positions and in G groups: Linear (tokens are positions) and Conv (pixels are).

    `inputs`: a (batch, G, T, i); `outputs(g)`: (batch, G, T, o). The gradient of a sample is Σ_t g_t a_tᵀ (G, o, i); `arranged`
    brings it to the weight's shape. Columns of a convolution are ordered (kernel, channel), as pixels lie in memory where
    channels are last.
    """

    def __init__(self, x: Tensor, batch: int, shape: torch.Size, weight: str | None, bias: str | None, **conv: Any) -> None:
        super().__init__(x, batch, weight, bias)
        self.shape, self.conv = shape, conv
        self.groups: int = conv.get("groups", 1)

    def inputs(self, part: slice = slice(None), positions: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """a (batch, G, T, i) of a part of the batch, with T = 1 where nothing is shared; at some `positions` only, if given."""
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
        if sw == 1 and w * group < columns:  # copy along the axis where more lies together: pixels of a row, or channels
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
        """(rows, columns) of positions; one row of tokens for Linear."""
        x = self.operand
        if not self.conv:
            return 1, x.numel() // (self.batch * x.shape[-1])
        sizes = zip(*(self.conv[k] for k in ("kernel", "stride", "padding", "dilation")), x.shape[2:], strict=True)
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for k, s, p, d, n in sizes)
        return rows, columns

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """About `count` positions at random, each as likely as any other: (rows, columns) of a grid. None where that is all."""
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
        """Where each column of the flattened weight stands among those of `inputs`: (i,)."""
        order = torch.arange(self.shape[1:].numel())
        return order.view(*self.shape[2:], self.shape[1]).movedim(-1, 0).flatten() if self.conv else order

    def parts(self, entries: int) -> list[slice]:
        """The batch in parts, so that neither a nor `entries` numbers for each sample are more than `HELD` at once."""
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
        """Σ_n (Σ_t g_nt a_ntᵀ)²: squares of both factors where T = 1, a few samples at a time where not."""
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

    `shape`: that of the parameter; `channels_first`: it lies along dimension 1 of the output, not along the last ones.
    """

    def __init__(
        self, x: Tensor | None, batch: int, shape: torch.Size, weight: str | None, bias: str | None, channels_first: bool = False,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(x, batch, weight, bias)
        self.shape, self.channels_first, self.normalise = shape, channels_first, normalise

    @cached_property
    def factor(self) -> Tensor:
        """x̂, of the output's shape or broadcasting to it."""
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


class Capture(TorchFunctionMode):
    """Inside it, the calls with the named parameters are recorded in `uses`. `names`: id of a parameter -> its name.

    `leaves`: where the graph of gradients begins, the outputs of the first calls.
    """

    def __init__(self, names: dict[int, str], batch: int) -> None:
        super().__init__()
        self.names, self.batch = names, batch
        self.uses: list[Use] = []
        self.leaves: list[Tensor] = []

    def backward(self, outputs: Tensor, columns: list[Tensor], keep: bool) -> None:
        """One pass for each cotangent of the outputs; every use receives its gradient. `keep`: more passes will follow."""
        for k, v in enumerate(columns if self.leaves else ()):
            keeps = keep or k < len(columns) - 1
            torch.autograd.grad(outputs, self.leaves, v, retain_graph=keeps, allow_unused=True)

    def name(self, tensor: Any) -> str | None:
        """The name of a parameter that is wanted, else None."""
        return self.names.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = READERS.get(func)
        use = read(self, *args, **kwargs) if read and torch.is_grad_enabled() else None
        if use is None or out.shape[0] % self.batch:
            return out
        if not out.requires_grad:
            leaf = out.detach().requires_grad_()
            self.leaves.append(leaf)
            out = leaf.clone()  # an in-place activation may follow, which no leaf allows
        out.register_hook(use.receive)
        self.uses.append(use)
        return out


# Readers take the arguments as torch names them, since a network may pass any of them by keyword.


def _linear(c: Capture, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use | None:
    names = c.name(weight), c.name(bias)
    fits = any(names) and input.dim() > 1 and weight.dim() == 2 and input.shape[0] % c.batch == 0
    return Product(input, c.batch, weight.shape, *names) if fits else None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]  # type: ignore[return-value]


def _conv2d(
    c: Capture, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Use | None:  # fmt: skip
    names = c.name(weight), c.name(bias)
    if not any(names) or input.dim() != 4 or input.shape[0] != c.batch:
        return None
    kernel, dilation = tuple(weight.shape[2:]), _pair(dilation)
    if isinstance(padding, str):
        spread = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding == "same" and any(s % 2 for s in spread):
            return None
        padding = [s // 2 for s in spread] if padding == "same" else 0
    return Product(
        input, c.batch, weight.shape, *names,
        kernel=kernel, stride=_pair(stride), padding=_pair(padding), dilation=dilation, groups=groups,
    )  # fmt: skip


def _batch_norm(
    c: Capture, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Use | None:  # fmt: skip
    names = c.name(weight), c.name(bias)
    if not any(names) or training or running_mean is None or running_var is None:
        return None
    shape = (1, -1, *[1] * (input.dim() - 2))
    mean, rate = running_mean.view(shape), torch.rsqrt(running_var + eps).view(shape)
    return Elementwise(input, c.batch, running_mean.shape, *names, channels_first=True, normalise=lambda v: (v - mean) * rate)


def _layer_norm(
    c: Capture, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Use | None:
    names = c.name(weight), c.name(bias)
    size = torch.Size(normalized_shape)
    return Elementwise(input, c.batch, size, *names, normalise=lambda v: F.layer_norm(v, size, eps=eps)) if any(names) else None


def _group_norm(
    c: Capture, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Use | None:
    names = c.name(weight), c.name(bias)
    if not any(names):
        return None
    size = torch.Size([input.shape[1]])
    return Elementwise(input, c.batch, size, *names, channels_first=True, normalise=lambda v: F.group_norm(v, num_groups, eps=eps))


def _operands(c: Capture, a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """(parameter, the other) where one of the two is a parameter that is wanted and broadcasts over the samples."""
    for p, other in ((a, b), (b, a)):
        if c.name(p) and isinstance(other, Tensor) and not c.name(other) and p.dim() <= other.dim():
            return (p, other) if p.dim() < other.dim() or p.shape[0] == 1 else None
    return None


def _add(c: Capture, input: Any, other: Any, **options: Any) -> Use | None:
    found = _operands(c, input, other)
    return Elementwise(None, c.batch, found[0].shape, None, c.name(found[0])) if found and not options else None


def _mul(c: Capture, input: Any, other: Any, **options: Any) -> Use | None:
    found = _operands(c, input, other)
    return Elementwise(found[1], c.batch, found[0].shape, c.name(found[0]), None) if found and not options else None


def _expand(c: Capture, p: Tensor, *sizes: Any, **options: Any) -> Use | None:
    size = sizes[0] if sizes and not isinstance(sizes[0], int) else sizes
    fits = c.name(p) and len(size) == p.dim() and p.dim() > 1 and p.shape[0] == 1 and size[0] == c.batch and not options
    return Elementwise(None, c.batch, p.shape, None, c.name(p)) if fits else None


READERS: dict[Any, Callable[..., Use | None]] = {
    F.linear: _linear,
    torch.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.add: _add,
    Tensor.add: _add,
    torch.mul: _mul,
    Tensor.mul: _mul,
    Tensor.expand: _expand,
}
