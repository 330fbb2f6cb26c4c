"""Write files completely or not at all. All other modules write files with these functions."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to `path`, for writing. It replaces `path` at the end, or is deleted if an exception is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write one file; an existing one is replaced.

    Args:
        path: path of the file.
        content: its content.
    """
    with replacing(path) as part:
        part.write_bytes(content)


def write_files(folder: Path, contents: Mapping[str, bytes | None]) -> None:
    """Write and remove several files. If one cannot be written, none is changed.

    All contents are written under temporary names before the first file is replaced.

    Args:
        folder: the folder.
        contents: path relative to the folder -> content, or None to remove the file.

    Raises:
        OSError: a file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for name, content in contents.items():
            if content is not None:
                stack.enter_context(replacing(folder / name)).write_bytes(content)
    for name, content in contents.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; it may be missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
