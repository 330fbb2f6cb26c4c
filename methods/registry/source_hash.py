"""What code a result is made of, so that an edited method is another method to every cache.

Code is its syntax tree: comments, docstrings and layout do not count. The files are found by following imports through the
packages of the project, names that a package's `__init__` passes on to the module that defines them, so that no list is kept by hand.
"""

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

OWN = __name__.partition(".")[0]


def source_hash(*roots: "type | ModuleType") -> str:
    """SHA-256 over the code behind the roots: their files, and every module of their packages and of this one that these import.

    It is that of the first call: a process runs the code that it has imported, whatever happens to the files later.

    Args:
        roots: classes or modules. A file that belongs to no package, a plug-in, is followed into this package only.
    """
    if roots not in _known:
        _known[roots] = _source_hash(roots)
    return _known[roots]


_known: dict[tuple["type | ModuleType", ...], str] = {}


def _source_hash(roots: tuple["type | ModuleType", ...]) -> str:
    packages = {OWN: Path(__file__).resolve().parents[1]}
    left: list[Path] = []
    for root in roots:
        module = sys.modules[root.__module__] if isinstance(root, type) else root
        file = inspect.getsourcefile(root)
        if file is not None:
            left.append(Path(file).resolve())
        top = module.__name__.partition(".")[0]
        for folder in getattr(sys.modules.get(top), "__path__", ()):
            packages[top] = Path(folder).resolve()
    project = _Project(tuple(sorted(packages.items())))
    found: dict[Path, str] = {}
    while left:
        path = left.pop()
        if path not in found:
            source = path.read_bytes()
            found[path] = _digest(source)
            left += _imported(source, path, project)
    return hashlib.sha256("".join(sorted(found.values())).encode()).hexdigest()


@functools.cache
def _digest(source: bytes) -> str:
    """SHA-256 of the syntax tree without the strings that stand alone: docstrings."""
    return hashlib.sha256(ast.dump(_Bare().visit(ast.parse(source))).encode()).hexdigest()


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """None for a string that nothing is done with."""
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


@dataclass(frozen=True)
class _Project:
    """The packages whose modules are followed: (name, folder)."""

    packages: tuple[tuple[str, Path], ...]

    def file(self, module: str) -> Path | None:
        """The file of a module by its dotted name, a package's `__init__`; None for what is not in the project."""
        top, _, rest = module.partition(".")
        folder = dict(self.packages).get(top)
        if folder is None:
            return None
        path = folder.joinpath(*rest.split(".")) if rest else folder
        return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)

    def name(self, path: Path) -> str:
        """The dotted name of a file's package, which relative imports start from; '' for a file outside."""
        for top, folder in self.packages:
            if path.is_relative_to(folder):
                return ".".join([top, *path.relative_to(folder).parent.parts])
        return ""


@functools.cache  # a plan asks for the same files many times
def _imported(source: bytes, path: Path, project: _Project) -> tuple[Path, ...]:
    """The files behind the names that a file imports from the project."""
    return tuple(dict.fromkeys(_paths(ast.parse(source), project.name(path), project)))


def _paths(tree: ast.AST, package: str, project: _Project) -> Iterator[Path]:
    whole: dict[str, str] = {}  # names under which a package itself is imported, as by `import methods` -> the package
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                yield from _resolved(base, alias.name, project)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                file = project.file(alias.name)
                if file is not None and file.name != "__init__.py":
                    yield file
                elif file is not None:
                    whole[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (package_name := whole.get(ast.unparse(node.value))) is not None:
            yield from _resolved(package_name, node.attr, project)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


def _resolved(module: str, name: str, project: _Project) -> Iterator[Path]:
    """The files that define a name of a module: through the imports of an `__init__`, to where it is made."""
    file = project.file(module)
    if file is None:
        return
    inner = project.file(f"{module}.{name}")
    if inner is not None and inner != file:
        yield inner
    elif file.name != "__init__.py":
        yield file
    else:
        yield from _passed_on(file, module, name, project)


def _passed_on(file: Path, module: str, name: str, project: _Project) -> Iterator[Path]:
    """Where an `__init__` has a name from; the `__init__` itself where it makes the name."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    yield from _resolved(_absolute(node, module), alias.name, project)
                    return
    yield file
