"""Functions of a user that stand for a network or a data set: `FILE.py:NAME`, or an entry point of an installed package.

Nothing is executed by the functions that only read a name: `parts`, `is_own`, `entry_names` and `file_of`.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bench.spec.errors import UserError, nearest

GROUPS = {"architecture": "razorbench.architectures", "dataset": "razorbench.datasets"}  # what it stands for -> group of entry points
FORM = "FILE.py:NAME"


def parts(name: str) -> tuple[Path, str] | None:
    """The file and the function of `FILE.py:NAME`; None for another name."""
    file, _, function = name.rpartition(":")
    return (Path(file).expanduser(), function) if file.endswith(".py") else None


@cache
def _entries(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUPS[kind])}


def entry_names(kind: str) -> list[str]:
    """The names of the entry points of a kind, "architecture" or "dataset"."""
    return list(_entries(kind))


def is_own(kind: str, name: str) -> bool:
    """Whether a name is `FILE.py:NAME` or an entry point of this kind."""
    return parts(name) is not None or name in _entries(kind)


def file_of(kind: str, name: str) -> Path | None:
    """The file whose code `function` would execute; None if it is not known without importing it."""
    found = parts(name)
    if found is not None:
        return found[0].resolve()
    top, *inner = _entries(kind)[name].module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None if spec is None or spec.origin is None else Path(spec.origin).resolve()
    path = Path(spec.submodule_search_locations[0], *inner)
    return next((p.resolve() for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def function(kind: str, name: str) -> Callable[..., Any]:
    """The function or class of a name, imported again if its code has changed.

    Args:
        kind: "architecture" or "dataset".
        name: `FILE.py:NAME`, or the name of an entry point.

    Raises:
        UserError: there is no such file or function, or it cannot be imported.
    """
    return _loaded(kind, name).function


def version(kind: str, name: str) -> str:
    """The hash of the code of a name: its file, and the modules of its folder or package that it imports."""
    import methods

    return methods.source_hash(_loaded(kind, name).module)


class _Loaded(NamedTuple):
    module: ModuleType
    function: Callable[..., Any]


def _loaded(kind: str, name: str) -> _Loaded:
    title = f"{kind} '{name}'"
    found = parts(name)
    if found is None:
        return _of_entry(title, _entries(kind)[name])
    file, attribute = found
    from methods.registry.plugins import import_file

    try:
        module = import_file(file)[0]
    except FileNotFoundError:
        there = sorted(str(p.relative_to(file.parent)) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"{title}: there is no file '{file}'{nearest(file.name, there)}") from None
    except ValueError as error:
        raise UserError(f"{title}: {error}") from None
    made = getattr(module, attribute, None)
    if not callable(made):
        own = [n for n, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
        raise UserError(f"{title}: '{file}' has no function '{attribute}'{nearest(attribute, own)}; it has: {', '.join(own) or 'none'}")
    return _Loaded(module, made)


class _Known(NamedTuple):
    module: ModuleType
    files: frozenset[Path]
    digest: str


_known: dict[str, _Known] = {}  # entry point -> its code when it was imported


def _of_entry(title: str, point: importlib.metadata.EntryPoint) -> _Loaded:
    """What an entry point refers to. Its package is imported again if code that it uses has changed."""
    from methods.registry.plugins import RUNNING
    from methods.registry.source_hash import code_hash, source_files

    known, top = _known.get(point.value), point.module.partition(".")[0]
    if known is not None and code_hash(f for f in known.files if f.is_file()) != known.digest and top not in RUNNING:
        for name in [name for name in sys.modules if name.partition(".")[0] == top]:
            del sys.modules[name]
        importlib.invalidate_caches()
        known = None
    try:
        made = point.load()
    except Exception as error:  # the package of a user may raise anything
        raise UserError(f"{title}: its entry point {point.value} cannot be loaded: {type(error).__name__}: {one_line(error)}") from error
    if not callable(made):
        raise UserError(f"{title}: its entry point {point.value} is not a function")
    module = sys.modules[point.module]
    if known is None or known.module is not module:
        files = frozenset(source_files(module))
        _known[point.value] = _Known(module, files, code_hash(files))
    return _Loaded(module, made)


def one_line(error: BaseException) -> str:
    """The message of an error in one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
