"""Data sets of a user: a function that returns train and test, and perhaps validation."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils import data as torch_data

from bench.data.examples import PARTS, Part, checked, coloured, paired, stacked
from bench.spec import own_file
from bench.spec.errors import UserError, nearest
from bench.spec.own_file import one_line

KIND = "dataset"
RETURNS = "(train, test), (train, validation, test), or a dict with these names"


def is_own(name: str) -> bool:
    """Whether a data set is `FILE.py:NAME` or an entry point."""
    return own_file.is_own(KIND, name)


def version(name: str) -> str:
    """The hash of the code of a user's own data set; '' for others. A file that has changed is imported again."""
    return own_file.version(KIND, name) if is_own(name) else ""


def read(name: str, root: Path | None) -> dict[str, Part]:
    """The parts of a user's data set: "train", "test" and perhaps "validation".

    Args:
        name: `FILE.py:NAME`, or the name of an entry point.
        root: the folder of `--data-root`, for a function with the parameter `root`.

    Raises:
        UserError: the function raises an exception, or a part is not as it must be.
    """
    return checked(name, tensors(name, returned(own_file.function(KIND, name), name, root)))


def returned(function: Callable[..., Any], name: str, root: Path | None) -> dict[str, Any]:
    """What a user's function returns, by part; raises UserError if these are not parts."""
    title = f"dataset '{name}'"
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        optional = parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.name == "root" and (root is not None or not optional):
            if root is None:
                raise UserError(f"{title} needs a folder: pass --data-root DIR")
            arguments["root"] = root
        elif not optional:
            raise UserError(f"{title}: its parameter '{parameter.name}' has no default; only `root`, the --data-root, is offered")
    try:
        found = function(**arguments)
    except UserError:
        raise
    except Exception as error:  # the function of a user may raise anything
        raise UserError(f"{title}: the function raised {type(error).__name__}: {one_line(error)}") from error
    return _named(title, found)


def _named(title: str, found: Any) -> dict[str, Any]:
    """The parts by name."""
    if isinstance(found, Mapping):
        wrong = next((str(part) for part in found if part not in PARTS), None)
        if wrong is not None:
            raise UserError(f"{title}: unknown part '{wrong}'{nearest(wrong, PARTS)}; it must return {RETURNS}")
        missing = next((part for part in ("train", "test") if part not in found), None)
        if missing is not None:
            raise UserError(f"{title}: the part '{missing}' is missing; it must return {RETURNS}")
        return {part: found[part] for part in PARTS if part in found}
    if not isinstance(found, tuple | list) or len(found) not in (2, 3):
        what = f"{len(found)} values" if isinstance(found, tuple | list) else f"a {type(found).__name__}"
        raise UserError(f"{title} returned {what}; it must return {RETURNS}")
    return dict(zip(PARTS if len(found) == 3 else ("train", "test"), found, strict=True))


def tensors(name: str, parts: Mapping[str, Any]) -> dict[str, Part]:
    """The parts as tensors; raises UserError for a part that is neither a torch Dataset nor a pair (inputs, labels)."""
    found, pictures = {}, True
    for part, given in parts.items():
        title = f"dataset '{name}': {part}"
        found[part], are_pictures = _part(title, given)
        pictures &= are_pictures
    return coloured(found, pictures)


def _part(title: str, given: Any) -> tuple[Part, bool]:
    if isinstance(given, torch_data.TensorDataset):
        given = given.tensors
    if isinstance(given, torch_data.IterableDataset):
        raise UserError(f"{title} is an IterableDataset; a Dataset with a length and examples by index is needed")
    if isinstance(given, torch_data.Dataset):
        return stacked(title, _examples(title, given))
    if isinstance(given, tuple | list) and len(given) == 2:
        return paired(title, *given), False
    raise UserError(f"{title} is a {type(given).__name__}; it must be a torch Dataset, or a pair (inputs, labels)")


def _examples(title: str, given: Any) -> Iterator[tuple[Any, Any]]:
    """The examples of a torch Dataset, in order."""
    if not hasattr(given, "__len__"):
        raise UserError(f"{title} is a Dataset without a length (__len__)")
    for index in range(len(given)):
        try:
            example = given[index]
        except Exception as error:  # the data set of a user may raise anything
            raise UserError(f"{title}: example {index} raised {type(error).__name__}: {one_line(error)}") from error
        yield example
