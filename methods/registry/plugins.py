"""Files outside this package: plug-ins that register methods, and any file that is imported by its path."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from methods.registry.registry import State, restore, snapshot
from methods.registry.source_hash import OWN, code_hash, source_files

PREFIX = "razorbench_plugin_"
RUNNING = (OWN, "bench")  # packages of this project: their modules are never imported again


@dataclass(frozen=True)
class _Imported:
    """A file as it was imported.

    Attributes:
        module: the module.
        home: the folder of the file, which is in `sys.path`.
        files: the file and the modules of its folder that it imports.
        digest: hash of the code in `files`.
        added: what it registered: (kind, name), with the kind "methods" for named methods.
    """

    module: ModuleType
    home: Path
    files: frozenset[Path]
    digest: str
    added: tuple[tuple[str, str], ...]


_known: dict[str, _Imported] = {}  # name of the module -> how it was imported


def load_plugin(path: str | Path) -> list[str]:
    """Import a file that registers criteria, trainings, granularities or methods.

    Args:
        path: a Python file. Loading the same file again does nothing, unless it has changed: then it is imported again, and what it
            registers replaces what it registered before.

    Returns:
        The names that it registered; [] if it was loaded before and has not changed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be imported or registers nothing; the registry is then unchanged.
    """
    try:
        module, added = import_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no plug-in file {path}") from None
    except ValueError as error:
        raise ValueError(f"plug-in {error}") from error
    if not registered_by(module):
        del sys.modules[module.__name__]
        raise ValueError(f"plug-in {path} registers nothing: use @methods.register('name') on a Criterion, Training or Granularity")
    return added


def import_file(path: str | Path) -> tuple[ModuleType, list[str]]:
    """Import a Python file by its path, again if it or a module of its folder that it imports has changed.

    The folder of the file is appended to `sys.path`, so that the file can import the modules next to it.

    Args:
        path: the file.

    Returns:
        The module, and the names that this call registered.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be imported, in one line; the registry and `sys.modules` are then unchanged.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = PREFIX + hashlib.sha256(str(file).encode()).hexdigest()[:12]
    known = _known.get(name)
    if known is not None and sys.modules.get(name) is known.module and _digest(known.files) == known.digest:
        return known.module, []
    before, old = snapshot(), known if name in sys.modules else None
    if old is not None:
        restore(_without(before, old.added))
    clean = snapshot()
    try:
        module = _unexecuted(file, name)
        files = _local(module, file.parent)
        with _own_modules(file, files | (old.files if old is not None else set())):
            _execute(module, file, files)
    except KeyboardInterrupt:
        restore(before)
        raise
    except BaseException as error:  # the file may raise anything
        restore(before)
        raise ValueError(f"{path} {_reason(error)}") from error
    added = _added(clean, snapshot())
    _known[name] = _Imported(module, file.parent, files, _digest(files), added)
    return module, list(dict.fromkeys(registered for _, registered in added))


def registered_by(module: ModuleType) -> list[str]:
    """The names that the import of a file has registered."""
    known = _known.get(module.__name__)
    return [] if known is None else list(dict.fromkeys(name for _, name in known.added))


class _Unusable(Exception):
    """A file that is not imported, for the reason in the message."""


def _reason(error: BaseException) -> str:
    """Why a file is not imported, in one line."""
    if isinstance(error, _Unusable):
        return str(error)
    try:
        text = " ".join(str(error).split())
    except Exception:  # of the file's own class
        text = "its message cannot be shown"
    return f"cannot be imported: {type(error).__name__}: {text}"


def _unexecuted(file: Path, name: str) -> ModuleType:
    """The empty module of a file."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise _Unusable("is not a Python file")
    return importlib.util.module_from_spec(spec)


def _execute(module: ModuleType, file: Path, files: Iterable[Path]) -> None:
    """Execute the present source of a file: a compiled file of the same second may be an older one. `files`: see `_Imported`."""
    sys.modules[module.__name__] = module
    exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    for local in set(files) - {file}:
        _refuse_hidden(local, file.parent)


@contextmanager
def _own_modules(file: Path, files: Iterable[Path]) -> Iterator[None]:
    """Inside, `files` are not imported yet, and modules next to `file` can be imported. After an error, `sys.modules` is as before."""
    there = dict(sys.modules)
    for name in _names_of(files):
        del sys.modules[name]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    except BaseException:
        for name in set(sys.modules) - set(there):
            if name.startswith(PREFIX):
                del sys.modules[name]
        sys.modules.update(there)
        raise
    finally:
        sys.dont_write_bytecode = writes


def _names_of(files: Iterable[Path]) -> list[str]:
    """The names of the imported modules of these files."""
    wanted = {str(file) for file in files}
    found = [(name, getattr(module, "__file__", None)) for name, module in list(sys.modules.items())]
    return [
        name
        for name, file in found
        if file and name.partition(".")[0] not in (*RUNNING, "__main__") and str(Path(file).resolve()) in wanted
    ]


def _local(module: ModuleType, home: Path) -> frozenset[Path]:
    """The file of a module and the modules of its folder that it imports, directly or not."""
    running = [Path(next(iter(sys.modules[name].__path__))).resolve() for name in RUNNING if name in sys.modules]
    return frozenset(f for f in source_files(module) if f.is_relative_to(home) and not any(f.is_relative_to(r) for r in running))


def _refuse_hidden(local: Path, home: Path) -> None:
    """Refuse a file whose import gave a module of the same name next to another file."""
    parts = local.relative_to(home).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    found = getattr(sys.modules.get(name), "__file__", None)
    others = {known.home for known in _known.values()} - {home}
    if found and Path(found).resolve() != local and any(Path(found).resolve().is_relative_to(other) for other in others):
        raise _Unusable(f"imports '{name}', but a module of this name is already imported from {found}; rename one of the two")


def _digest(files: Iterable[Path]) -> str:
    """The hash of the code in files; '' if one is missing or cannot be read."""
    try:
        return code_hash(files)
    except (OSError, SyntaxError, ValueError):
        return ""


def _added(before: State, after: State) -> tuple[tuple[str, str], ...]:
    tables = [(kind, name) for kind, table in after.tables.items() for name in table if name not in before.tables[kind]]
    return (*tables, *(("methods", name) for name in after.methods if name not in before.methods))


def _without(state: State, added: Iterable[tuple[str, str]]) -> State:
    """The content of the registry without some of its names."""
    gone = set(added)
    tables = {kind: {n: cls for n, cls in table.items() if (kind, n) not in gone} for kind, table in state.tables.items()}
    return State(tables, {n: m for n, m in state.methods.items() if ("methods", n) not in gone}, state.loaded)
