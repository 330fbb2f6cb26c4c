"""Data sets by their names in timm (`timm:NAME`) and in the package `datasets` of Hugging Face (`hf:NAME`).

No code of a data set is executed, no pickle of it is read, and images are opened by `bench.data.picture` only. Only CIFAR's own files
are pickles; torchvision compares their MD5 with that of the published files before. timm's readers of webdataset and TensorFlow
Datasets are not used: files of such a data set name shell commands to run, or classes to import.
"""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.data import picture
from bench.data.examples import Part, checked, coloured, stacked
from bench.data.images import UNREADABLE, shown
from bench.spec.errors import UserError, nearest
from bench.spec.own_file import one_line

SOURCES = ("torch", "hfds")  # those of `timm.data.create_dataset` that have splits and run nothing of the data set
IMAGE_FOLDERS = ("torch/image_folder", "torch/folder")
HELD_OUT = ("test", "validation", "valid", "val", "eval", "evaluation")  # the first one that exists is the test split


def read_timm(name: str, root: Path | None, cache: Path | None) -> dict[str, Part]:
    """Train and test of a data set of `timm.data.create_dataset`.

    Args:
        name: `timm:SOURCE/NAME`, e.g. timm:torch/cifar100.
        root: the folder of `--data-root`; missing data are downloaded there.
        cache: as in `read_hf`, for `timm:hfds/NAME`.

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
    if source.lower() == "hfds":
        return read_hf(name, root, cache)
    if root is None:
        raise _no_root(name)
    train, test = (_opened(name, which, root, splits) for splits in (("train",), ("test", "validation")))
    return _of_pictures(name, {"train": _examples(train), "test": _examples(test)})


def _opened(name: str, which: str, root: Path, splits: tuple[str, ...]) -> Any:
    """The first split that exists, as timm opens it; downloaded if it is missing."""
    from timm.data.dataset_factory import create_dataset

    failures = []
    for split in splits:
        for download in (False, True):
            try:
                opened = create_dataset(which, root=str(root), split=split, download=download)
            except ImportError as error:
                raise UserError(f"dataset '{name}' needs another package: {one_line(error)}") from None
            except Exception as error:  # torchvision raises all kinds of exceptions
                failures.append(f"{split}: {one_line(error)}")
                continue
            if hasattr(opened, "loader"):  # torchvision's own loader would open any format
                opened.loader = _image_file
            return opened
    raise UserError(f"dataset '{name}' cannot be opened: {failures[0]}" + f"; {failures[-1]}" * (len(splits) > 1))


def image_folders(name: str, root: Path | None) -> list[Path] | None:
    """The folders of train and test of `timm:torch/image_folder`, which are read as those of `folder:PATH`; None for another name.

    They may have any name that timm accepts for a split.

    Raises:
        UserError: a folder is missing.
    """
    if name.removeprefix("timm:").lower() not in IMAGE_FOLDERS:
        return None
    if root is None:
        raise _no_root(name)
    parts = []
    for folders, title in ((("train", "training"), "train"), (HELD_OUT, "test or validation")):
        found = next((root / folder for folder in folders if (root / folder).is_dir()), None)
        if found is None:
            raise UserError(f"dataset '{name}': '{root}' has no folder {title}")
        parts.append(found)
    return parts


def _no_root(name: str) -> UserError:
    return UserError(f"dataset '{name}' needs a directory: pass --data-root DIR")


def _examples(opened: Any) -> Iterator[tuple[Any, Any]]:
    """(image, label) of each example of a data set of torchvision."""
    yield from (opened[k] for k in range(len(opened)))


def read_hf(name: str, root: Path | None, cache: Path | None) -> dict[str, Part]:
    """The parts of a data set of the package `datasets`.

    Args:
        name: `hf:OWNER/NAME` on the Hugging Face Hub, or `hf:PATH` of a local folder, which may lie in `root`; `timm:hfds/` means the same.
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
    which = _hf_name(name, re.sub("^(hf:|timm:hfds/)", "", name, flags=re.IGNORECASE), root)
    if Path(which).is_dir():
        _refuse_repeated_folders(name, Path(which))
    try:
        datasets.disable_progress_bars()
        found = datasets.load_dataset(which, cache_dir=None if cache is None else str(cache / "hf"))
    except Exception as error:  # the package raises all kinds of exceptions
        raise UserError(f"dataset '{name}' cannot be loaded: {type(error).__name__}: {one_line(error.__cause__ or error)}") from error
    held_out = [split for split in HELD_OUT if split in found]
    if "train" not in found or not held_out:
        raise UserError(f"dataset '{name}' has the splits {', '.join(found)}; needed are train, and test or validation")
    splits = {"train": "train", "test": held_out[0]} | ({"validation": held_out[1]} if held_out[1:] and held_out[0] == "test" else {})
    image, label = _columns(name, found["train"].features)
    files: dict[tuple[int, int], str] = {}
    return _of_pictures(name, {part: _hf_examples(found[split], image, label, files) for part, split in splits.items()})


def local_folder(which: str, root: Path | None) -> Path | None:
    """The local folder of a name, which may lie in `root`; None if there is none."""
    return next((path for path in (Path(which).expanduser(), *([] if root is None else [root / which])) if path.is_dir()), None)


def _hf_name(name: str, which: str, root: Path | None) -> str:
    """OWNER/NAME, or the absolute path of a local folder.

    Another name may be a reader of the package `datasets`, which would take files of the working folder, and some read pickles.
    """
    local = local_folder(which, root)
    if local is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", which):
        raise UserError(f"dataset '{name}': '{which}' is neither OWNER/NAME on the Hugging Face Hub nor a folder")
    return which if local is None else str(local.resolve())


def _refuse_repeated_folders(name: str, folder: Path) -> None:
    """Refuse a local folder with a link to a folder that it contains anyway: the package would read its images again."""
    visited: dict[tuple[int, int], Path] = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        stat = place.stat()
        before = visited.setdefault((stat.st_dev, stat.st_ino), place)
        if before is not place:
            raise UserError(f"dataset '{name}': {shown(place)} and {shown(before)} are the same folder: remove the link")
        waiting += [path for path in place.iterdir() if os.path.isdir(path)]


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


def _hf_examples(split: Any, image: str, label: str, files: dict[tuple[int, int], str]) -> Iterator[tuple[Any, Any]]:
    """(image, label) of each example. Other columns are left out, because the package would decode them, with any format of image.

    `files`: the files that were read so far, by device and inode; no file is read twice.
    """
    import datasets

    for row in split.select_columns([image, label]).cast_column(image, datasets.Image(decode=False)):
        given = row[image]
        if given is None:
            raise ValueError("an image is missing")
        if given["bytes"] is not None:
            yield picture.read_rgb(io.BytesIO(given["bytes"])), row[label]
        else:
            stat = os.stat(given["path"])
            before = files.setdefault((stat.st_dev, stat.st_ino), given["path"])
            if before is not given["path"]:
                raise ValueError(f"{shown(given['path'])} and {shown(before)} are the same file")
            yield _image_file(given["path"]), row[label]


def _image_file(path: str | os.PathLike[str]) -> Any:
    """The image in a file, in RGB; errors name the file."""
    try:
        with picture.open_file(Path(path)) as stream:
            return picture.read_rgb(stream)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error}") from error


def _of_pictures(name: str, parts: dict[str, Iterator[tuple[Any, Any]]]) -> dict[str, Part]:
    """The parts as tensors; all images have the size of the first one of train."""
    found: dict[str, Part] = {}
    size: tuple[int, int] | None = None
    for part, examples in parts.items():
        title = f"dataset '{name}': {part}"
        try:
            found[part], _ = stacked(title, examples, size, fit=True)
        except UNREADABLE as error:
            raise UserError(f"{title} cannot be read: {one_line(error)}") from error
        height, width = found[part].inputs.shape[2:]
        size = (width, height)
    return checked(name, coloured(found, True))
