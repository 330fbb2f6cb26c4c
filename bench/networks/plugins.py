"""Load plug-in files that register methods, networks of timm (`timm.models.register_model`), or both."""

import inspect
import sys
import warnings
from types import ModuleType
from typing import NamedTuple

import timm
from torch import nn

import methods
from methods.registry import plugins as registry


class Registered(NamedTuple):
    """What a plug-in has registered: names of methods and of their parts, and names of networks; and its module."""

    methods: list[str]
    networks: list[str]
    module: ModuleType


def load(path: str) -> Registered:
    """Import a plug-in file, again if it has changed.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Overwriting .* in registry")  # by the file itself, after an edit
            with methods.unaltered_process(f"plug-in {path}", draws=True):
                module, _ = registry.import_file(path)
    except methods.Altered as error:
        raise ValueError(str(error)) from None
    except FileNotFoundError:
        raise FileNotFoundError(f"no plug-in file {path}") from None
    except ValueError as error:
        raise ValueError(f"plug-in {error}") from error
    return Registered(registry.registered_by(module), _networks(module), module)


def _networks(module: ModuleType) -> list[str]:
    """The names that a module has registered with timm, which adds them to `__all__` of the module."""
    named = getattr(module, "__all__", ())
    return [name for name in named if timm.is_model(name) and timm.model_entrypoint(name).__module__ == module.__name__]


def functions(module: ModuleType) -> list[str]:
    """What `FILE.py:NAME` could name in a module: its own functions, and its own networks; not criteria or trainings."""
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return [name for name, value in own.items() if inspect.isfunction(value) or (isinstance(value, type) and issubclass(value, nn.Module))]


def module_of(name: str) -> ModuleType | None:
    """The module outside timm and this package that has registered a network with timm; None if there is none."""
    if not timm.is_model(name):
        return None
    entry = timm.model_entrypoint(name.partition(".")[0])
    top = entry.__module__.partition(".")[0]
    return None if top in ("timm", "bench") else sys.modules.get(entry.__module__)


def is_stale(name: str) -> bool:
    """Whether a plug-in registered this network before it was edited, and does not register it any more."""
    module = module_of(name)
    return module is not None and module.__name__.startswith(registry.PREFIX) and name.partition(".")[0] not in _networks(module)
