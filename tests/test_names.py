"""Dotted names of this project in docstrings and comments name something that exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("bench", "methods", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
NAME = re.compile(r"`{1,2}((?:bench|methods)(?:\.[A-Za-z_]\w*)+)")


def exists(name: str) -> bool:
    """Whether the name is a module, or an attribute of one; fields of a dataclass without a default count as well."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            if part in getattr(found, "__annotations__", {}):
                return part == parts[-1]
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def named() -> list[tuple[str, str]]:
    """(file, name) of every dotted name in backticks."""
    return [(path.relative_to(ROOT).as_posix(), name) for path in FILES for name in NAME.findall(path.read_text(encoding="utf-8"))]


def test_dotted_names_exist() -> None:
    found = named()
    assert len(found) > 30
    assert sorted({(file, name) for file, name in found if not exists(name)}) == []


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("bench.run", True),
        ("bench.spec.row.Row.identity", True),
        ("bench.spec.row.Row.suite", True),
        ("bench.tracks", False),
        ("methods.core.interface.nothing", False),
    ],
)
def test_a_name_is_looked_up_as_python_does(name: str, there: bool) -> None:
    assert exists(name) is there
