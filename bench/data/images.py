"""Read a user's own images from folders or tar archives, one folder per class.

The class is the first folder below `train/` or `test/`; deeper folders only order the images. How a file becomes an image is in
`bench.data.picture`. Every file that is neither read nor hidden nor a note is named and refused: what is left out without a word
changes a result.

A link counts as the file or folder that it points to. A file or folder that is reached twice in one class is read once, so that no
image is in two splits; a file in two classes, or in train and test, is refused.
"""

import io
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO, NamedTuple

import torch
from torch import Tensor

from bench.data import picture
from bench.spec.errors import UserError
from bench.spec.own_file import one_line

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
# Left out without a word: hidden files, what systems leave in folders, and notes. No image has such a name.
LITTER = ("thumbs.db", "desktop.ini", "__macosx")
NOTES = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf")
LARGEST = 2**30  # bytes of a file in an archive: its header may claim any number
# Raised by tarfile and the system for files that are missing, truncated or of another type.
UNREADABLE = (OSError, RuntimeError, ValueError, IndexError, EOFError, AssertionError, tarfile.TarError)


class File(NamedTuple):
    """A file of a part.

    Attributes:
        path: its path below `train/` or `test/`.
        label: its name in messages.
        open: opens its content.
        identity: equal for two names of one file.
    """

    path: PurePosixPath
    label: str
    open: Callable[[], IO[bytes]]
    identity: Hashable


class Listing(NamedTuple):
    """The files of a part that are not hidden, in the order of their names, and the folders directly below the part."""

    files: list[File]
    folders: list[str]


class Labelled(NamedTuple):
    """The images of train and test, each file once, and their labels, int64 (n,).

    Classes are numbered in the order of their names, in which numbers count as numbers.
    """

    train: list[File]
    train_targets: Tensor
    test: list[File]
    test_targets: Tensor


def labelled(name: str, parts: Sequence[Path], expected: str, archives: ExitStack) -> Labelled:
    """The images of train and test; none is decoded.

    Args:
        name: name of the data set, for messages.
        parts: the two folders or tar archives.
        expected: the layout that is expected, for messages.
        archives: holds the archives open.

    Raises:
        UserError: a file is not an image by its name, or the folders are not classes.
    """
    found = [listed(name, part, archives) for part in parts]
    for part, (files, folders) in zip(parts, found, strict=True):
        if not files:
            raise UserError(f"dataset {name!r}: no images can be read: {shown(part)} has none")
        _refuse_others(name, files, expected)
        empty = sorted(set(folders) - {file.path.parts[0] for file in files})
        if empty:
            raise UserError(f"dataset {name!r}: the class folder {shown(part / empty[0])} has no images: remove it, or add images")
    train, test = _each_once(name, [listing.files for listing in found])
    classes = [{file.path.parts[0] for file in files} for files in (train, test)]
    if classes[0] != classes[1]:
        odd = ", ".join(shown(c) for c in sorted(classes[0] ^ classes[1])[:5])
        raise UserError(f"dataset {name!r}: train and test must have the same classes; only one of them has {odd}")
    numbers = {c: k for k, c in enumerate(sorted(classes[0], key=_natural))}
    labels = [torch.tensor([numbers[file.path.parts[0]] for file in files]) for files in (train, test)]
    return Labelled(train, labels[0], test, labels[1])


def listed(name: str, part: Path, archives: ExitStack) -> Listing:
    """The files of a folder or of a tar archive, which stays open until `archives` is closed.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _in_folders(part) if part.is_dir() else _archived(archives.enter_context(tarfile.open(part)), part)
    except UNREADABLE as error:
        raise _unreadable(name, part, error) from error


def _unreadable(name: str, part: Path, error: Exception) -> UserError:
    return UserError(f"dataset {name!r}: no images can be read from {shown(part)}: {one_line(error)}")


def shown(path: object) -> str:
    """A path for messages: bytes that are not UTF-8 are escaped, so that the message can be printed and stored."""
    return os.fsencode(str(path)).decode(errors="backslashreplace")


def _each_once(name: str, parts: list[list[File]]) -> list[list[File]]:
    """The files of train and test, each file of the disk or archive once."""
    first: dict[Hashable, tuple[int, File]] = {}
    for part, files in enumerate(parts):
        for file in files:
            place, other = first.setdefault(file.identity, (part, file))
            if place != part:
                raise UserError(f"dataset {name!r}: {file.label} of test and {other.label} of train are the same file")
            if other.path.parts[0] != file.path.parts[0]:
                raise UserError(f"dataset {name!r}: {file.label} and {other.label} are the same file, but in two classes")
    return [[file for k, file in first.values() if k == part] for part in range(len(parts))]


def _natural(text: str) -> tuple[list[tuple[int, int | str]], str]:
    """A key for sorting: numbers inside names count as numbers, so that 2 comes before 10."""
    return [(0, int(t)) if t.isdecimal() else (1, t) for t in re.split(r"(\d+)", text.lower()) if t], text


def _listing(files: list[File], folders: list[str]) -> Listing:
    """The listing without hidden files and notes."""
    kept = [f for f in files if not _is_litter(f.path)]
    return Listing(
        sorted(kept, key=lambda f: [_natural(p) for p in f.path.parts]), [f for f in folders if not _is_hidden(PurePosixPath(f))]
    )


def file_stats(name: str, part: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(absolute path, size and time) of the files of a folder that `listed` lists, in any order. Much faster, for a million files.

    Raises:
        UserError: it cannot be read.
    """
    try:
        for entry in _walked(part.absolute(), []):
            if os.path.splitext(entry.name)[1].lower() not in NOTES:
                with suppress(OSError):  # a broken link
                    yield entry.path, entry.stat()
    except UNREADABLE as error:
        raise _unreadable(name, part, error) from error


def _in_folders(part: Path) -> Listing:
    """The files below a folder."""
    folders: list[str] = []
    files = [_file(part, Path(entry.path)) for entry in _walked(part, folders)]
    return _listing(files, folders)


def _walked(part: Path, folders: list[str]) -> Iterator[os.DirEntry[str]]:
    """The files below a folder that are not hidden. Each folder of the disk is visited once, under its own path if it is below `part`.

    The names of the folders directly below `part` are added to `folders`.
    """
    visited: dict[tuple[int, int], Path] = {}
    own, links = [part], list[Path]()  # folders to visit: first those of `part` itself, then those that links point to
    while own or links:
        folder = own.pop() if own else links.pop(0)
        stat = folder.stat()
        before = visited.setdefault((stat.st_dev, stat.st_ino), folder)
        if before is not folder:
            _refuse_two_classes(part, folder, before)
            continue
        if folder.parent == part:
            folders.append(folder.name)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if _is_hidden_name(entry.name):
                    continue
                if not (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()):  # a link may be broken, or a loop
                    yield entry
                    continue
                (links if entry.is_symlink() else own).append(Path(entry.path))


def _refuse_two_classes(part: Path, folder: Path, before: Path) -> None:
    """Refuse a folder that was visited before, in another class. A link to a folder above itself is only skipped."""
    classes = [path.relative_to(part).parts[:1] for path in (folder, before)]
    if classes[1] and classes[0] != classes[1]:
        raise ValueError(f"{shown(folder)} and {shown(before)} are the same folder, but in two classes")


def _file(part: Path, path: Path) -> File:
    try:
        stat = path.stat()
        identity: Hashable = (stat.st_dev, stat.st_ino)
    except OSError:  # a broken link, which is refused when it is opened
        identity = path
    return File(PurePosixPath(path.relative_to(part).as_posix()), shown(path), partial(picture.open_file, path), identity)


def _archived(archive: tarfile.TarFile, part: Path) -> Listing:
    """The files of a tar archive; a folder that holds all the others is left out of their paths.

    If a path occurs twice, as after `tar --update`, the last file counts.
    """
    members = list({m.name: m for m in archive if m.isfile() or m.islnk() or m.issym() or m.isdir()}.values())
    outside = next((m.name for m in members if ".." in PurePosixPath(m.name).parts), None)
    if outside is not None:
        raise ValueError(f"the path {shown(outside)} contains '..': make the archive inside the folder of the classes")
    paths = [PurePosixPath(*(p for p in PurePosixPath(m.name).parts if p not in (".", "/"))) for m in members]
    stat = part.stat()
    prefix = _common_folder([p for p, m in zip(paths, members, strict=True) if not m.isdir() and not _is_litter(p)])
    lock = Lock()
    files, folders, by_path = [], [], dict(zip((str(p) for p in paths), members, strict=True))
    for member, path in zip(members, paths, strict=True):
        inside = path.relative_to(prefix) if path.is_relative_to(prefix) else path
        if not member.isdir():
            label = shown(f"{part}: {member.name}")
            files.append(
                File(inside, label, partial(_member, archive, lock, member), (stat.st_dev, stat.st_ino, _target(member, path, by_path)))
            )
        elif len(inside.parts) == 1 and path.is_relative_to(prefix):
            folders.append(str(inside))
    return _listing(files, folders)


def _common_folder(files: list[PurePosixPath]) -> PurePosixPath:
    """The folder that contains the class folders of all files."""
    shortest = min((len(path.parts) for path in files), default=0)
    length = 0
    while length < shortest - 2 and len({path.parts[length] for path in files}) == 1:
        length += 1
    return PurePosixPath(*files[0].parts[:length]) if length else PurePosixPath()


def _target(member: tarfile.TarInfo, path: PurePosixPath, by_path: dict[str, tarfile.TarInfo]) -> Hashable:
    """The name of the file that a member is, after its links."""
    passed: set[str] = set()
    while (member.issym() or member.islnk()) and str(path) not in passed:
        passed.add(str(path))
        start = str(path.parent) if member.issym() else ""
        path = PurePosixPath(posixpath.normpath(posixpath.join(start, member.linkname)))
        if str(path) not in by_path:
            break
        member = by_path[str(path)]
    return str(path)


def _member(archive: tarfile.TarFile, lock: Lock, member: tarfile.TarInfo) -> IO[bytes]:
    """The content of a file in an archive, which several threads may read."""
    if member.size > LARGEST:
        raise OSError(f"it has {member.size / 1e9:,.1f} GB")
    with lock:
        return io.BytesIO(_stream(archive, member).read())


def _stream(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    try:
        stream = archive.extractfile(member)
    except (KeyError, RecursionError):
        stream = None
    if stream is None:
        raise OSError(f"it is a link to {shown(member.linkname)}, which is not a file in the archive")
    return stream


def _is_hidden(path: PurePosixPath) -> bool:
    return any(map(_is_hidden_name, path.parts))


def _is_hidden_name(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _is_litter(path: PurePosixPath) -> bool:
    return _is_hidden(path) or path.suffix.lower() in NOTES


def _refuse_others(name: str, files: list[File], expected: str) -> None:
    """Refuse files that are outside the class folders or whose names are not those of images."""
    for file in files:
        if file.path.suffix.lower() not in ENDINGS:
            kinds = ", ".join(e.removeprefix(".") for e in ENDINGS)
            raise UserError(f"dataset {name!r}: {file.label} is not one of the images that are read ({kinds}): convert or remove it")
        if len(file.path.parts) < 2:
            raise UserError(f"dataset {name!r} has images outside the class folders, e.g. {file.label}; expected {expected}")
