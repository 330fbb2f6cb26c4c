"""A hash of the code that a result depends on, so that no cache returns results of an edited method.

The hash covers the syntax trees of files: comments, docstrings and layout do not count. The files are found by following imports
through the packages of the project. A name imported from a package's `__init__` leads to the module that defines it. From a file
that belongs to no package, imports are also followed into the files of its own folder and below.
"""

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

OWN = __name__.partition(".")[0]
INSTALLED = ("site-packages", "dist-packages")  # folders of installed packages: a single module there has no files of its own around it


def source_hash(*roots: "type | ModuleType") -> str:
    """The hash of the code behind classes or modules: `code_hash` of their `source_files`.

    Later calls return the value of the first one: a process runs the code that it has imported, even if the files change.
    """
    if roots not in _known:
        _known[roots] = code_hash(source_files(*roots))
    return _known[roots]


_known: dict[tuple["type | ModuleType", ...], str] = {}


def code_hash(files: Iterable[Path]) -> str:
    """SHA-256 (hex) of the syntax trees of files, in any order, without docstrings."""
    return hashlib.sha256("".join(sorted(_digest(path.read_bytes()) for path in files)).encode()).hexdigest()


def source_files(*roots: "type | ModuleType") -> set[Path]:
    """The files whose code is behind classes or modules.

    Args:
        roots: classes or modules. From a file that belongs to no package (a plug-in), imports are followed into this package, and
            into modules and packages in the folder of the file.

    Returns:
        The files of the roots, and all modules of their packages, of their folders and of this package that these import, directly
        or not.
    """
    packages = {OWN: Path(__file__).resolve().parents[1]}
    left: list[tuple[Path, Path | None]] = []  # a file, and the folder around it that belongs to its root
    for root in roots:
        module = sys.modules[root.__module__] if isinstance(root, type) else root
        file = inspect.getsourcefile(root)
        top = module.__name__.partition(".")[0]
        inside = list(getattr(sys.modules.get(top), "__path__", ()))
        if inside:
            packages[top] = Path(inside[-1]).resolve()
        if file is not None:
            path = Path(file).resolve()
            left.append((path, None if inside or path.parent.name in INSTALLED else path.parent))
    project = _Project(tuple(sorted(packages.items())))
    found: set[tuple[Path, Path | None]] = set()
    while left:
        path, home = here = left.pop()
        if here not in found:
            found.add(here)
            left += [(imported, home) for imported in _imported(path.read_bytes(), path, replace(project, home=home))]
    return {path for path, _ in found}


@functools.cache
def _digest(source: bytes) -> str:
    """SHA-256 of the syntax tree without docstrings."""
    return hashlib.sha256(ast.dump(_Bare().visit(ast.parse(source))).encode()).hexdigest()


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop expressions that are only a string."""
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


@dataclass(frozen=True)
class _Project:
    """The code whose imports are followed: packages (name, folder), and the folder of a file that belongs to no package."""

    packages: tuple[tuple[str, Path], ...]
    home: Path | None = None

    def file(self, module: str) -> Path | None:
        """The file of a module or package by its dotted name; None if it is not in the project."""
        top, _, rest = module.partition(".")
        folder = dict(self.packages).get(top, self.home / top if self.home is not None and top else None)
        if folder is None:
            return None
        path = folder.joinpath(*rest.split(".")) if rest else folder
        return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)

    def name(self, path: Path) -> str:
        """The dotted name of a file's package, for relative imports; '' for a file without one."""
        for top, folder in self.packages:
            if path.is_relative_to(folder):
                return ".".join([top, *path.relative_to(folder).parent.parts])
        inside = self.home is not None and path.is_relative_to(self.home)
        return ".".join(path.relative_to(self.home).parent.parts) if self.home is not None and inside else ""

    def around(self, path: Path) -> list[Path]:
        """The `__init__` files of the packages in `home` that a file of it is in: importing the file executes them."""
        if self.home is None or not path.is_relative_to(self.home) or any(path.is_relative_to(f) for _, f in self.packages):
            return []
        folders = [folder for folder in path.parents if folder != self.home and folder.is_relative_to(self.home)]
        return [folder / "__init__.py" for folder in folders if (folder / "__init__.py").is_file()]


@functools.cache  # a plan asks for the same files many times
def _imported(source: bytes, path: Path, project: _Project) -> tuple[Path, ...]:
    """The files that define the names that a file imports from the project."""
    return tuple(dict.fromkeys([*_paths(ast.parse(source), project.name(path), project), *project.around(path)]))


def _paths(tree: ast.AST, package: str, project: _Project) -> Iterator[Path]:
    whole: dict[str, str] = {}  # name of an imported package, as in `import methods` -> the package
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
    """The file that defines a name of a module; imports of an `__init__` are followed."""
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
    """The file that an `__init__` imports a name from; the `__init__` itself if it defines the name."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    yield from _resolved(_absolute(node, module), alias.name, project)
                    return
    yield file
