"""Checks that zeros in the prunable weights are zeros of what the network multiplies with, and that every weight is used.

One forward pass is watched. A weight that reaches its product as itself, or through views and casts, is accepted. If something else is
computed from it first (weight norm, a standardised convolution, an attached mask), half of its entries are set to zero for a second
pass: it is accepted if exactly these are zero in what multiplies, and refused otherwise. In this pass parameters that are all zero,
such as a factor of a low-rank update before its training, are random numbers.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from methods.core.modes import own_modes
from methods.core.prunable import Place, Prunable, places, remedy, roles

# Names of the functions that multiply activations with weights.
PRODUCTS = frozenset((
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "bilinear",
    "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "einsum", "tensordot", "embedding",
    "embedding_bag", "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    "multi_head_attention_forward", "_native_multi_head_attention", "_transformer_encoder_layer_fwd",
))  # fmt: skip
# Names of the functions whose results have the entries of their argument.
ALIASES = frozenset((
    "view", "view_as", "reshape", "flatten", "unflatten", "transpose", "t", "permute", "movedim", "swapaxes", "squeeze",
    "unsqueeze", "expand", "contiguous", "clone", "detach", "to", "type", "type_as", "float", "double", "half", "bfloat16", "chunk",
    "split", "tensor_split", "unbind", "select", "narrow", "__getitem__", "__get__", "requires_grad_", "alias",
))  # fmt: skip
_known: WeakKeyDictionary[nn.Module, set[Any]] = WeakKeyDictionary()


class _Watch(TorchFunctionMode):
    """Records what reaches products.

    Attributes:
        operands: name of a weight -> the operands of products that were computed from it.
        seen: names of the weights that any function was called with.
        changed: id -> name of the weight it comes from, for tensors that are not views or casts of weights.
    """

    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.origin: dict[int, tuple[str, Tensor]] = {id(p): (n, p) for n, p in weights.items()}
        self.operands: dict[str, list[Tensor]] = {}
        self.seen: set[str] = set()
        self.changed: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        found = [t for t in _tensors((args, kwargs)) if id(t) in self.origin]
        if found:
            self._record(getattr(func, "__name__", ""), found, out)
        return out

    def _record(self, called: str, found: list[Tensor], out: Any) -> None:
        names = {self.origin[id(t)][0] for t in found}
        self.seen |= names
        if called in PRODUCTS:
            for t in found:
                self.operands.setdefault(self.origin[id(t)][0], []).append(t)
        elif len(names) == 1:
            entrywise = called in ALIASES and not any(id(t) in self.changed for t in found)
            size = self.origin[id(found[0])][1].numel()
            for made in _tensors(out):
                # What has another size is an activation, e.g. a distance to the rows of a weight.
                if id(made) not in self.origin and (entrywise or made.numel() == size):
                    self.origin[id(made)] = next(iter(names)), made
                    if not entrywise:
                        self.changed.add(id(made))

    def transformed(self) -> dict[str, list[Tensor]]:
        """Name of each weight that something else is computed from before it multiplies -> those operands."""
        found = {n: [t for t in operands if id(t) in self.changed] for n, operands in self.operands.items()}
        return {n: operands for n, operands in found.items() if operands}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def check_acting(model: nn.Module, weights: Prunable, forward: Callable[[], Any] | None) -> None:
    """Check that a weight that is set to zero is zero where the network multiplies with it. The result is remembered for the model.

    Args:
        model: the network, in eval mode.
        weights: the weights to prune, by name.
        forward: runs the network and returns its outputs; None if there are no inputs, then only single layers are watched.

    Raises:
        ValueError: if a weight is transformed before it multiplies and zeros do not stay zero, or a layer has no weight of its own.
    """
    if known_to_act(model, weights, watched=forward is not None):
        return
    for place in roles(model):
        if place.stored is None and place.name not in weights.excluded:
            raise ValueError(_message(place, "is computed from several parameters"))
    by_name = {name: place for name, place in places(model) if name in weights}
    for name, place in by_name.items():
        alone = _alone(place) if forward is None else None
        if alone is not None:
            _refuse_transformed(model, {name: weights[name]}, {name: place}, alone)
    if forward is not None:
        watch = _refuse_transformed(model, weights, by_name, forward)
        unseen = {n: p for n, p in weights.items() if n not in watch.seen}
        try:
            _warn_of_unused(unseen, forward)
        except RuntimeError as error:
            stale = next((by_name[n] for n in unseen if n in by_name and by_name[n].hooks), None)
            if stale is None:
                raise
            raise ValueError(_message(stale, "is computed in a hook that does not run, because another layer reads it")) from error
    _known.setdefault(model, set()).add(_key(weights, forward is not None))


def known_to_act(model: nn.Module, weights: Prunable, *, watched: bool) -> bool:
    """Whether these weights were checked before; `watched`: in a forward pass of the network."""
    return _key(weights, watched) in _known.get(model, ())


def _key(weights: Prunable, watched: bool) -> Any:
    return tuple(weights), tuple(map(id, weights.values())), watched


def _refuse_transformed(
    model: nn.Module, weights: dict[str, nn.Parameter], places_: dict[str, Place], forward: Callable[[], Any]
) -> _Watch:
    watch = _Watch(weights)
    with watch:
        forward()
    suspects = watch.transformed()
    if suspects:
        second = _Watch({n: weights[n] for n in suspects})
        with _half_zero(model, [weights[n] for n in suspects]), second:
            forward()
            operands = second.transformed()
            wrong = [n for n in suspects if not all(_same_zeros(weights[n], t) for t in operands.get(n, ()))]
        if wrong:
            place = places_.get(wrong[0])
            said = "is transformed before it multiplies the inputs, so weights that are set to zero would not stay zero"
            raise ValueError(_message(place, said) if place is not None else f"'{wrong[0]}' {said}: leave it out by exclude=...")
    return watch


def _message(place: Place, said: str) -> str:
    return f"the {place.attribute} of {place.label} {said}: {remedy(place)}"


def _same_zeros(p: Tensor, operand: Tensor) -> bool:
    """Whether exactly the zeros of the parameter are zeros of what multiplies."""
    if p.shape == operand.shape:
        return bool(((p == 0) == (operand == 0)).all())
    return p.numel() == operand.numel() and int((p == 0).sum()) == int((operand == 0).sum())


@contextmanager
def _half_zero(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context in which a random half of the entries of each parameter is zero and the others are not; no other one is all zero."""
    generator = torch.Generator().manual_seed(0)
    before = [(p, p.detach().clone()) for p in parameters]
    chosen = {id(p) for p, _ in before}
    empty = [p for p in model.parameters() if id(p) not in chosen and p.is_floating_point() and p.numel() and not bool(p.any())]
    try:
        with torch.no_grad():
            for p in empty:
                p.copy_(torch.randn(p.shape, generator=generator))
            for p, value in before:
                kept = (torch.rand(p.shape, generator=generator) < 0.5).to(p.device)
                p.copy_(torch.where(value == 0, torch.ones_like(value), value) * kept)
        yield
    finally:
        with torch.no_grad():
            for p in empty:
                p.zero_()
            for p, value in before:
                p.copy_(value)


def _alone(place: Place) -> Callable[[], Any] | None:
    """Runs a layer by itself on zeros, if it does not compute what torch's layer does; None if there is nothing to see."""
    module = place.module
    plain = type(module).__module__.startswith("torch.nn.modules") and place.stored == place.attribute
    if plain or not isinstance(module, (nn.Linear, _ConvNd)):
        return None
    like = next(module.parameters())
    if isinstance(module, nn.Linear):
        shape: tuple[int, ...] = (1, module.in_features)
    else:
        shape = (1, module.in_channels, *(d * (k - 1) + 3 for d, k in zip(module.dilation, module.kernel_size, strict=True)))

    def run() -> None:
        with suppress(Exception), torch.no_grad():  # a layer of someone's own may need more than one input
            module(torch.zeros(shape, dtype=like.dtype, device=like.device))

    return run


def _warn_of_unused(unseen: dict[str, nn.Parameter], forward: Callable[[], Any]) -> None:
    """Warn of weights that the outputs do not depend on. Compiled and scripted calls cannot be watched, but have gradients."""
    if not unseen:
        return
    with torch.enable_grad():
        outputs = [t for t in _tensors(forward()) if t.requires_grad]
        total = torch.stack([t.float().sum() for t in outputs]).sum() if outputs else None
        reached = torch.autograd.grad(total, list(unseen.values()), allow_unused=True) if total is not None else [None] * len(unseen)
    unused = [n for n, g in zip(unseen, reached, strict=True) if g is None]
    if unused:
        numbers = sum(unseen[n].numel() for n in unused)
        others = f" and {len(unused) - 1} others" if len(unused) > 1 else ""
        warnings.warn(
            f"'{unused[0]}'{others} ({numbers} weights) are not used in a forward pass in eval mode, but count as prunable; "
            "exclude=... leaves them out",
            stacklevel=2,
        )


def acting_weights(model: nn.Module, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Name -> what multiplies for each weight: the weight itself, or what its layer computes from it."""
    found: dict[str, Tensor] = {n: p.detach() for n, p in weights.items()}
    for name, place in computed(model, weights):
        with own_modes(place.module):
            place.module.eval()  # spectral norm changes its vectors in training mode
            for hook in place.hooks:
                hook(place.module, ())
            found[name] = getattr(place.module, place.attribute).detach()
    return found


def computed(model: nn.Module, weights: dict[str, nn.Parameter]) -> list[tuple[str, Place]]:
    """The weights that a layer computes from a parameter: (name of the parameter, place)."""
    return [(name, place) for name, place in places(model) if name in weights and place.stored != place.attribute]


@contextmanager
def acting_afterwards(model: nn.Module, weights: dict[str, nn.Parameter]) -> Iterator[None]:
    """Context that sets weights to zero; at its end, computed weights must be finite. If not, all get their values back.

    Weight norm divides by the norm of a row, and spectral norm by that of the matrix, so removing all of it gives NaN.

    Raises:
        ValueError: if a computed weight is not finite.
    """
    made = computed(model, weights)
    before = [(p, p.detach().clone()) for p in weights.values()] if made else []
    yield
    acting = acting_weights(model, weights) if made else {}
    for name, place in made:
        if not bool(acting[name].isfinite().all()):
            with torch.no_grad():
                for p, value in before:
                    p.copy_(value)
            raise ValueError(_message(place, "is divided by a norm, which would be zero at this sparsity"))
