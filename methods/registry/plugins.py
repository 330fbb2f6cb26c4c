"""Plug-ins: files outside this package that register methods."""

import hashlib
import importlib.util
import sys
from pathlib import Path

from methods.registry.registry import restore, snapshot


def load_plugin(path: str | Path) -> list[str]:
    """Import a file that registers criteria, trainings, granularities or methods.

    Args:
        path: a Python file. Loading the same file again does nothing.

    Returns:
        The names that it registered; [] if it was loaded before.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be imported or registers nothing; the registry is then unchanged.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"no plug-in file {path}")
    module = f"razorbench_plugin_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if module in sys.modules:
        return []
    spec = importlib.util.spec_from_file_location(module, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"plug-in {path} is not a Python file")
    before = snapshot()
    sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[module]
        restore(before)
        raise ValueError(f"plug-in {path} cannot be imported: {type(error).__name__}: {error}") from error
    after = snapshot()
    added = [name for kind, table in after.tables.items() for name in table if name not in before.tables[kind]]
    added += [name for name in after.methods if name not in before.methods and name not in added]
    if not added:
        del sys.modules[module]
        raise ValueError(f"plug-in {path} registers nothing: use @methods.register('name') on a Criterion, Training or Granularity")
    return added
