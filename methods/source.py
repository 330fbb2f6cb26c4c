"""What source code a method is made of, so that an edited one is another method to every cache."""

import ast
import functools
import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent


def source_hash(cls: type) -> str:
    """SHA-256 over the file that defines a class and every file of this package that it imports, directly or not."""
    file = inspect.getsourcefile(cls)
    if file is None:
        return ""
    found: dict[str, bytes] = {}
    left = [Path(file).resolve()]
    while left:
        path = left.pop()
        if str(path) not in found:
            found[str(path)] = path.read_bytes()
            left += _imported(found[str(path)], HERE)
    digest = hashlib.sha256()
    for content in sorted(found.values()):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


@functools.cache  # a plan asks for the same files a thousand times
def _imported(source: bytes, here: Path) -> tuple[Path, ...]:
    """The files of the package's modules that are imported by name; the package itself, which imports all, is not followed."""
    return tuple(_paths(source, here))


def _paths(source: bytes, here: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(source)):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            package, _, module = name.partition(".")
            path = here.joinpath(*module.split(".")).with_suffix(".py")
            if package == here.name and module and path.is_file():
                yield path
