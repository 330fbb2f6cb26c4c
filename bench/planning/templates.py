"""Templates of new files: `new NAME --kind KIND`. To add a kind, add a file to new_files/ and a line to `TEMPLATES`.

In the files, $name is replaced by the name of the user, and $title by the same name as that of a class.
"""

import keyword
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from importlib.machinery import PathFinder
from pathlib import Path
from string import Template

import methods
from bench.spec.errors import UserError, unknown
from bench.spec.row import COLUMNS
from bench.trial.metrics import METRICS
from methods.registry.registry import KINDS, RESERVED


def _methods() -> list[str]:
    return [*methods.names(), *(name for kind in KINDS for name in methods.names(kind))]


@dataclass(frozen=True)
class Kind:
    """A kind of new file.

    Attributes:
        check: what `check` takes, with {file} in place of the file.
        run: the options of `run` that use it, with {file} and {name}.
        taken: returns the names that are registered already.
    """

    check: str
    run: str
    taken: Callable[[], Iterable[str]] = tuple


TEMPLATES = {
    "criterion": Kind("{file}", "--plugin {file} --methods {name},magnitude,random", _methods),
    "training": Kind("{file}", "--plugin {file} --methods magnitude@{name},magnitude,random --trials 0", _methods),
    "granularity": Kind("{file}", "--plugin {file} --granularity {name} --methods magnitude,random --trials 0", _methods),
    "metric": Kind("{file}", "--plugin {file} --methods magnitude,random --trials 0", lambda: [*COLUMNS, *METRICS]),
    "architecture": Kind("{file}:build", "--architectures {file}:build --methods magnitude,random --trials 0"),
    "dataset": Kind("{file}:load", "--datasets {file}:load --architectures mlp --methods magnitude,random --trials 0"),
}


def _is_package(name: str) -> bool:
    """Whether something is imported by this name, from elsewhere than the working folder."""
    elsewhere = [path for path in sys.path if path not in ("", str(Path.cwd()))]
    return name in sys.stdlib_module_names or name in sys.modules or PathFinder.find_spec(name, elsewhere) is not None


def write_template(name: str, directory: Path, kind: str = "criterion") -> Path:
    """Write a new file that passes `check`.

    Args:
        name: name of the criterion, or of the file.
        directory: folder of the file; it is created if necessary.
        kind: one of `TEMPLATES`.

    Returns:
        The path of the file, `name`.py.

    Raises:
        UserError: the kind is unknown, the name is invalid or already registered, or the file exists or cannot be written.
    """
    if kind not in TEMPLATES:
        raise unknown("kind", kind, TEMPLATES)
    if not (name.isidentifier() and name.isascii()) or name != name.lower() or name.startswith("_") or keyword.iskeyword(name):
        what = "method" if kind == "criterion" else kind
        raise UserError(f"'{name}' is not a valid {what} name: use lower-case letters, digits and underscores, starting with a letter")
    taken = set(TEMPLATES[kind].taken())
    if taken and name in RESERVED:
        raise UserError(f"'{name}' is reserved for {RESERVED[name]}; choose another name")
    if name in taken:
        raise UserError(f"'{name}' is already registered; choose another name")
    if _is_package(name):
        raise UserError(f"'{name}' is a package or module of Python: next to {name}.py it could not be imported; choose another name")
    text = (resources.files("bench.planning") / "new_files" / f"{kind}.txt").read_text(encoding="utf-8")
    title = "".join(part.capitalize() for part in name.split("_"))
    path = directory / f"{name}.py"
    if directory.exists() and not directory.is_dir():
        raise UserError(f"'{directory}' is a file, not a folder")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(Template(text).substitute(name=name, title=title))
    except FileExistsError:
        raise UserError(f"'{path}' already exists; nothing was written") from None
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}") from None
    return path
