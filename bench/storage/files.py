"""The one way to write files: whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` to write to; it takes the place of `path` at the end, or goes if something is raised."""
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
    """Write one file."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_files(folder: Path, contents: Mapping[str, bytes | None]) -> None:
    """Write files by their path below a folder, or remove those that are None. If one cannot be written, none is changed.

    All contents are on the disk under temporary names before the first file is replaced.
    """
    with contextlib.ExitStack() as stack:
        for name, content in contents.items():
            if content is not None:
                stack.enter_context(replacing(folder / name)).write_bytes(content)
    for name, content in contents.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
