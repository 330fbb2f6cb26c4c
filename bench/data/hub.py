"""Data sets by their names in timm (`timm:NAME`) and in the package `datasets` of Hugging Face (`hf:NAME`).

No code of a data set is executed, and no pickle of it is read. Only CIFAR's own files are pickles; torchvision compares their MD5 with
that of the published files before.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from bench.data.examples import Part, checked, coloured, stacked
from bench.data.images import FORMATS, UNREADABLE, upright_rgb
from bench.spec.errors import UserError, nearest
from bench.spec.own_file import one_line

SOURCES = ("torch", "hfds", "wds", "tfds")  # those of `timm.data.create_dataset` that have splits
HELD_OUT = ("test", "validation", "valid", "val", "eval", "evaluation")  # the first one that exists is the test split


def read_timm(name: str, root: Path | None) -> dict[str, Part]:
    """Train and test of a data set of `timm.data.create_dataset`.

    Args:
        name: `timm:SOURCE/NAME`, e.g. timm:torch/cifar100.
        root: the folder of `--data-root`; missing data are downloaded there.

    Returns:
        "train" and "test". The test split is `test` where there is one, otherwise the validation split.

    Raises:
        UserError: the source is unknown, or the data are missing or unreadable.
    """
    which = name.partition(":")[2]
    source, slash, _ = which.partition("/")
    if not slash or source.lower() not in SOURCES:
        hint = nearest(source, SOURCES) + "; for images in folders write folder:PATH"
        raise UserError(f"dataset '{name}': write timm:SOURCE/NAME, with one of the sources {', '.join(SOURCES)}{hint}")
    if root is None and source.lower() != "hfds":
        raise UserError(f"dataset '{name}' needs a directory: pass --data-root DIR")
    if source.lower() == "hfds":
        which = f"hfds/{_hf_name(name, which[len('hfds/') :], root)}"
    train, test = (_opened(name, which, root, _splits(name, which, root, splits)) for splits in (("train",), ("test", "validation")))
    if _classes(train) != _classes(test):
        raise UserError(f"dataset '{name}': train and test do not have the same classes")
    return _of_pictures(name, {"train": _timm_examples(train), "test": _timm_examples(test)})


def _opened(name: str, which: str, root: Path | None, splits: tuple[str, ...]) -> Any:
    """The first split that exists, as timm opens it; downloaded if it is missing."""
    from timm.data.dataset_factory import create_dataset

    failures = []
    for split in splits:
        for download in (False, True) if which.lower().startswith("torch/") else (False,):
            try:
                return create_dataset(which, root=None if root is None else str(root), split=split, download=download)
            except ImportError as error:
                raise UserError(f"dataset '{name}' needs another package: {one_line(error)}") from None
            except Exception as error:  # readers raise all kinds of exceptions
                failures.append(f"{split}: {one_line(error)}")
    raise UserError(f"dataset '{name}' cannot be opened: {failures[0]}" + f"; {failures[-1]}" * (len(splits) > 1))


def _splits(name: str, which: str, root: Path | None, splits: tuple[str, ...]) -> tuple[str, ...]:
    """The splits to try. Those without a folder are left out: timm would read the folder of all splits in place of such a one."""
    if which.lower() not in ("torch/image_folder", "torch/folder") or root is None:
        return splits
    synonyms = {"train": ("train", "training"), "test": ("test",), "validation": HELD_OUT[1:]}
    found = tuple(split for split in splits if any((root / folder).is_dir() for folder in synonyms[split]))
    if not found:
        raise UserError(f"dataset '{name}': '{root}' has no folder {' or '.join(splits)}")
    return found


def _classes(opened: Any) -> Any:
    """The classes of an opened data set, name -> label; None if it does not know them."""
    return getattr(opened, "class_to_idx", None) or getattr(getattr(opened, "reader", None), "class_to_idx", None) or None


def _timm_examples(opened: Any) -> Iterator[tuple[Any, Any]]:
    """(image, label) of each example. timm leaves out images that it cannot read; here they are an error."""
    reader = getattr(opened, "reader", None)
    if reader is None:
        yield from (opened[k] for k in range(len(opened)))
    elif hasattr(reader, "__getitem__"):
        for k in range(len(reader)):
            stream, label = reader[k][:2]
            with stream:
                yield _image(stream), label
    else:
        count = -1
        for count, (image, label) in enumerate(opened):  # noqa: B007 (the number of examples)
            yield image, label
        if count + 1 != len(opened):
            raise ValueError(f"{count + 1} of {len(opened)} examples can be read")


def read_hf(name: str, root: Path | None, cache: Path | None) -> dict[str, Part]:
    """The parts of a data set of the package `datasets`.

    Args:
        name: `hf:OWNER/NAME` on the Hugging Face Hub, or `hf:PATH` of a local folder, which may lie in `root`.
        root: the folder of `--data-root`.
        cache: folder for what the package downloads and converts; None for the package's own.

    Returns:
        "train", "test" (the validation split where there is no other), and "validation" if there are both.

    Raises:
        UserError: the package is missing, the data cannot be loaded, or it is not clear which columns are image and label.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"dataset '{name}' needs the package datasets: pip install 'razorbench[hf]'") from None
    which = _hf_name(name, name.partition(":")[2], root)
    try:
        datasets.disable_progress_bars()
        found = datasets.load_dataset(which, cache_dir=None if cache is None else str(cache / "hf"))
    except Exception as error:  # the package raises all kinds of exceptions
        raise UserError(f"dataset '{name}' cannot be loaded: {type(error).__name__}: {one_line(error)}") from error
    held_out = [split for split in HELD_OUT if split in found]
    if "train" not in found or not held_out:
        raise UserError(f"dataset '{name}' has the splits {', '.join(found)}; needed are train, and test or validation")
    splits = {"train": "train", "test": held_out[0]} | ({"validation": held_out[1]} if held_out[1:] and held_out[0] == "test" else {})
    image, label = _columns(name, found["train"].features)
    return _of_pictures(name, {part: _hf_examples(found[split], image, label) for part, split in splits.items()})


def _hf_name(name: str, which: str, root: Path | None) -> str:
    """OWNER/NAME, or the absolute path of a local folder.

    Another name may be a reader of the package `datasets`, which would take files of the working folder, and some read pickles.
    """
    local = next((path for path in (Path(which).expanduser(), *([] if root is None else [root / which])) if path.is_dir()), None)
    if local is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", which):
        raise UserError(f"dataset '{name}': '{which}' is neither OWNER/NAME on the Hugging Face Hub nor a folder")
    return which if local is None else str(local.resolve())


def _columns(name: str, features: Any) -> list[str]:
    """The columns with the image and the label, found by their types."""
    import datasets

    chosen = []
    for what, kind in (("images", datasets.Image), ("labels", datasets.ClassLabel)):
        columns = [column for column, feature in features.items() if isinstance(feature, kind)]
        if len(columns) != 1:
            found = f"several columns with {what}: {', '.join(columns)}" if columns else f"no column with {what}"
            raise UserError(f"dataset '{name}' has {found} (type {kind.__name__}); load it by a function of your own: FILE.py:NAME")
        chosen += columns
    return chosen


def _hf_examples(split: Any, image: str, label: str) -> Iterator[tuple[Any, Any]]:
    import datasets

    for row in split.cast_column(image, datasets.Image(decode=False)):
        given = row[image]
        if given is None:
            raise ValueError("an image is missing")
        if given["bytes"] is not None:
            import io

            yield _image(io.BytesIO(given["bytes"])), row[label]
        else:
            with open(os.fspath(given["path"]), "rb") as stream:
                yield _image(stream), row[label]


def _image(stream: Any) -> Any:
    """An image of one of the formats that are read, in RGB."""
    with Image.open(stream, formats=FORMATS) as image:
        return upright_rgb(image)


def _of_pictures(name: str, parts: dict[str, Iterator[tuple[Any, Any]]]) -> dict[str, Part]:
    """The parts as tensors; all images have the size of the first one of train."""
    found: dict[str, Part] = {}
    size: tuple[int, int] | None = None
    for part, examples in parts.items():
        title = f"dataset '{name}': {part}"
        try:
            found[part], _ = stacked(title, examples, size, fit=True)
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            raise UserError(f"{title} cannot be read: {one_line(error)}") from error
        height, width = found[part].inputs.shape[2:]
        size = (width, height)
    return checked(name, coloured(found, True))
