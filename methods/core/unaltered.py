"""What a call of a method must leave as it was: the network while it is scored, and the state of the process.

A method that trains inside `score`, draws from a global generator or replaces a function of torch changes its own result, or that of the
next method, without any sign in its scores. So each call is compared with before, put right, and reported.
"""

import builtins
import importlib
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.core.modes import LAZY

OWN = ("bench", "methods")  # the packages of this project
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLACES: tuple[Any, ...] = (
    torch, nn, F, torch.optim, torch.autograd, torch.linalg, torch.random, Tensor, nn.Module, nn.Linear, nn.Conv2d, torch.optim.SGD,
    builtins, math, time,
)  # fmt: skip


class Altered(RuntimeError):
    """A call changed what it must leave as it was."""


@contextmanager
def unaltered_network(model: nn.Module, call: str) -> Iterator[None]:
    """Context of a call that may not change parameters, modules and hooks of a network. Changed parameters get their values back.

    Args:
        model: the network.
        call: what is called, for the message.

    Raises:
        Altered: if something was changed; it names what.
    """
    parameters = {n: p for n, p in model.named_parameters() if not isinstance(p, LAZY)}
    values = {n: p.detach().clone() for n, p in parameters.items()}
    structure = _structure(model)
    yield
    changed = [n for n, p in parameters.items() if not _equal(p.detach(), values[n])]
    if changed:
        with torch.no_grad():
            for name in changed:
                parameters[name].copy_(values[name])
        raise Altered(f"{call} changed '{changed[0]}': it must not train or change the network; work on a copy")
    if (now := _structure(model)) != structure:
        added = _with_hooks(now) - _with_hooks(structure)
        raise Altered(f"{call} left {added} hooks on the network" if added > 0 else f"{call} changed the modules of the network")


def _equal(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    return bool(a.shape == b.shape and a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _structure(model: nn.Module) -> list[tuple[Any, ...]]:
    """The identity of every module, of its parameters and hooks, and of a `forward` of its own."""
    return [
        (name, type(m), id(m), id(vars(m).get("forward")), tuple(map(id, m._parameters.values())), *(tuple(getattr(m, h)) for h in HOOKS))
        for name, m in model.named_modules()
    ]


def _with_hooks(structure: list[tuple[Any, ...]]) -> int:
    return sum(len(hooks) for module in structure for hooks in module[-len(HOOKS) :])


class _Setting(NamedTuple):
    """One part of the state of the process: what it is, how it is read, compared and set."""

    what: str
    get: Callable[[], Any]
    set: Callable[[Any], object]


def _torch_state() -> tuple[bytes, Tensor]:
    state = torch.get_rng_state()
    return state.numpy().tobytes(), state


def _python_state() -> tuple[Any, Any]:
    state = random.getstate()
    return state, state


def _numpy_state() -> tuple[Any, Any]:
    state: Any = np.random.get_state()
    return (np.asarray(state[1]).tobytes(), *state[2:]), state  # a draw changes the position, and the numbers only once in 624


GENERATORS = (  # what is compared, and what is set
    _Setting("torch's global random state", _torch_state, lambda state: torch.set_rng_state(state[1])),
    _Setting("the random state of the module random", _python_state, lambda state: random.setstate(state[1])),
    _Setting("numpy's global random state", _numpy_state, lambda state: np.random.set_state(state[1])),
)
_EVERY: Any = importlib.import_module("torch.nn.modules.module")
EVERY_HOOKS = [
    vars(_EVERY)[name]
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
]


def _backend(name: str) -> _Setting:
    """A switch of cuDNN."""
    cudnn = torch.backends.cudnn
    return _Setting(f"torch.backends.cudnn.{name}", lambda: getattr(cudnn, name), lambda value: setattr(cudnn, name, value))


def _deterministic() -> list[bool]:
    return [torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()]


def _folder() -> str:
    """The working folder; "." if it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return "."


def _keep_hooks(before: list[tuple[int, ...]]) -> None:
    """Remove the hooks of all modules that are not among those of before."""
    for hooks, keys in zip(EVERY_HOOKS, before, strict=True):
        for key in set(hooks) - set(keys):
            del hooks[key]


SETTINGS = (
    _Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("whether gradients are computed", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting("the use of deterministic algorithms", _deterministic, lambda on: torch.use_deterministic_algorithms(on[0], warn_only=on[1])),
    _Setting("the precision of matrix products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _Setting("the default device", torch.get_default_device, lambda _: torch.set_default_device(None)),
    _Setting("hooks of all modules", lambda: [tuple(hooks) for hooks in EVERY_HOOKS], _keep_hooks),
    _Setting("the use of oneDNN", lambda: torch.backends.mkldnn.enabled, lambda on: setattr(torch.backends.mkldnn, "enabled", on)),
    *(
        _Setting("autocast", partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind))
        for kind in ("cpu", "cuda")
    ),
    _Setting("the working folder", _folder, os.chdir),
    _Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    *(_backend(name) for name in ("enabled", "benchmark", "deterministic")),
)


class _Functions:
    """The functions and classes of a module, or the methods of a class."""

    def __init__(self, place: Any) -> None:
        self._place = place
        self._names = tuple(name for name, value in vars(place).items() if callable(value))
        self._values = self._now()
        self._size = len(vars(place))

    def _now(self) -> list[Any]:
        return list(map(vars(self._place).get, self._names))

    def remember(self) -> None:
        """Take the present ones as those of before a call."""
        self._values, self._size = self._now(), len(vars(self._place))

    def replaced(self) -> list[str]:
        """The names of those that were replaced since then, which get their values back."""
        found = self._shadowing() if len(vars(self._place)) != self._size else []
        now = self._now()
        if all(map(is_, now, self._values)):
            return found
        for name, new, old in zip(self._names, now, self._values, strict=True):
            if new is not old and not _by_torch(new, old):
                setattr(self._place, name, old)
                found.append(name)
        return found

    def _shadowing(self) -> list[str]:
        """The names of new functions of a class that replace those of its base classes; they are removed."""
        bases = self._place.__mro__[1:] if isinstance(self._place, type) else ()
        new = [n for n, v in vars(self._place).items() if n not in self._names and callable(v) and any(n in vars(b) for b in bases)]
        for name in new:
            delattr(self._place, name)
        return new


def _by_torch(new: Any, old: Any) -> bool:
    """Whether torch itself has wrapped a function, as its compiler does with `torch.manual_seed` when it is first used."""
    code = getattr(new, "__code__", None)
    own = code is not None and Path(code.co_filename).is_relative_to(Path(torch.__file__).parent)
    return own and getattr(new, "__name__", "") == getattr(old, "__name__", None)


_places = [_Functions(place) for place in PLACES]
_known: set[str] = set()  # names of modules of this project that are in `_places`
_loaded = 0


def _watched() -> list[_Functions]:
    """The functions of torch, of Python and of this project, as far as it is imported."""
    global _loaded
    if len(sys.modules) != _loaded:
        _loaded = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in OWN and name not in _known:
                _known.add(name)
                _places.append(_Functions(module))
    return _places


@contextmanager
def unaltered_process(call: str, *, draws: bool = False) -> Iterator[None]:
    """Context of a call that may not change the state of the process. If it did, the state is as before afterwards.

    Args:
        call: what is called, for the message.
        draws: whether it may draw from global random generators. Their states are restored in any case.

    Raises:
        Altered: if the call, which ended without an exception, changed a global random state, the default dtype, the number of threads,
            other settings, or a function of torch, of Python or of this project.
    """
    generators, settings = ([(s, s.get()) for s in group] for group in (GENERATORS, SETTINGS))
    watched = list(_watched())
    for place in watched:
        place.remember()
    try:
        yield
    finally:
        drawn = [_put_back(setting, value) for setting, value in generators]
        changed = [_put_back(setting, value) for setting, value in settings]
        changed += [f"the function '{name}'" for place in watched for name in place.replaced()]
    found = next((what for what in [*changed, *([] if draws else drawn)] if what), None)
    if found is not None:
        raise Altered(f"{call} changed {found}, which all methods of the process share")


def _put_back(setting: _Setting, value: Any) -> str:
    """Give a setting its earlier value; what it is if that was another one, otherwise ''."""
    now = setting.get()
    if (now[0] == value[0]) if isinstance(value, tuple) else (now == value):
        return ""
    setting.set(value)
    return setting.what
