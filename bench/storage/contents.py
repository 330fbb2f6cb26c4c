"""The contents of many files, of which a large board has more than fits into memory."""

import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

IN_MEMORY = 50_000_000  # bytes; more are kept in a temporary file


class _File(tempfile.SpooledTemporaryFile[bytes]):
    def __del__(self) -> None:
        self.close()  # with its last user; left open, Python warns


class Contents(Mapping[str, Any]):
    """Path of a file -> its content, bytes or None. Each content is read when it is asked for.

    Args:
        files: (path, content) of each file.
    """

    def __init__(self, files: Iterable[tuple[str, bytes | None]] = ()) -> None:
        self._file = _File(max_size=IN_MEMORY)
        self._places: dict[str, tuple[int, int] | None] = {}
        self._add(files)

    def _add(self, files: Iterable[tuple[str, bytes | None]]) -> None:
        for name, content in files:
            if content is None:
                self._places[name] = None
            else:
                self._places[name] = (self._file.seek(0, 2), len(content))
                self._file.write(content)

    def __getitem__(self, name: str) -> Any:
        place = self._places[name]
        if place is None:
            return None
        self._file.seek(place[0])
        return self._file.read(place[1])

    def __iter__(self) -> Any:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __or__(self, other: Mapping[str, bytes | None]) -> "Contents":
        """These files and others; the others replace those with the same path."""
        made = self.only(self)
        made._add(other.items())
        return made

    def removes(self, name: str) -> bool:
        """Whether the content of a file is None."""
        return self._places[name] is None

    def only(self, names: Iterable[str]) -> "Contents":
        """Some of the files."""
        made = Contents.__new__(Contents)
        made._file, made._places = self._file, {name: self._places[name] for name in names}
        return made
