"""Trained networks as safetensors files (not pickles), written completely or not at all.

The key of a network is the digest of everything that determines it (see `bench.planning.cells`). A file also contains its key and a
SHA-256 of its content. A file that cannot be read, or is not as it was written, is said, renamed to `.damaged`, and counts as missing:
the network is trained again.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.storage import files

if TYPE_CHECKING:
    from torch import Tensor

    from methods import Posterior


PARTS = ("model", "prior", "curvature", "outer", "inner")  # the first part of the name of a tensor
Version = tuple[Path, int, int, int]  # of a file: path, inode, size, time of its last change
_intact: dict[Version, dict[str, Any]] = {}  # the files that this process has checked, with their facts
_told: set[Hashable] = set()  # what was said already: damaged files, and folders that cannot be written


class Networks:
    """Trained networks by key, as safetensors files in one folder that all workers can access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """The file of one network."""
        return self.folder / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the network is stored and as it was written. The content of a file is checked once in each process."""
        return self.facts(key) is not None

    def facts(self, key: str) -> dict[str, Any] | None:
        """The facts about a network; None if it is not stored."""
        version = self._version(key)
        if version is not None and version not in _intact:
            self._read(key, version)
        return None if version is None else _intact.get(version)

    def size(self) -> tuple[int, int]:
        """(number of networks, their total size in bytes)."""
        sizes = [file.stat().st_size for file in self.folder.glob("*.safetensors") if file.is_file()]
        return len(sizes), sum(sizes)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove networks by key, the records of failed ones, and damaged files."""
        for key in keys:
            for file in (self.path(key), self.folder / f"{key}.failed", self._damaged(key)):
                files.remove(file)

    def clear(self) -> None:
        """Remove all networks, the records of failed ones, and damaged files."""
        self.remove(
            {file.name.partition(".")[0] for kind in ("safetensors", "failed", "damaged") for file in self.folder.glob(f"*.{kind}")}
        )

    def fail(self, key: str, error: str) -> None:
        """Record that a network cannot be trained.

        Args:
            key: its key.
            error: the error message.
        """
        try:
            files.write(self.folder / f"{key}.failed", error.encode(errors="backslashreplace"))
        except OSError as reason:
            self._not_written(reason)

    def failed(self, key: str) -> str:
        """The error message of a network that could not be trained; '' if there is none."""
        file = self.folder / f"{key}.failed"
        try:
            return file.read_text(encoding="utf-8", errors="backslashreplace")
        except OSError:
            return ""

    def save(self, key: str, state: "dict[str, Tensor]", posterior: "Posterior", facts: dict[str, Any]) -> None:
        """Store a network. If it cannot be written, this is said once; jobs that need it train it again.

        Args:
            key: its key.
            state: its state dict.
            posterior: the posterior that its training computed.
            facts: further JSON-serialisable values.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        factors = ({n: both[k] for n, both in posterior.factors.items()} for k in range(2))
        parts = dict(zip(PARTS, (state, posterior.prior, posterior.curvature, *factors), strict=True))
        tensors = {f"{part}.{n}": t.detach().cpu().contiguous().clone() for part, named in parts.items() for n, t in named.items()}
        scalars = {
            "samples": posterior.samples,
            "temperature": posterior.temperature,
            "marginal_likelihood": posterior.marginal_likelihood,
        }
        metadata = {"key": key, "posterior": json.dumps(scalars), "facts": json.dumps(facts)}
        metadata["sha256"] = _digest(metadata, tensors)
        try:
            with files.replacing(self.path(key)) as temporary:
                save_file(tensors, temporary, metadata=metadata)
        except (OSError, SafetensorError) as error:
            self._not_written(error)

    def load(self, key: str) -> "tuple[dict[str, Tensor], Posterior, dict[str, Any]]":
        """State dict, posterior and facts of a network, on the CPU.

        Raises:
            FileNotFoundError: it is not stored, or was damaged.
        """
        version = self._version(key)
        found = None if version is None else self._read(key, version)
        if found is None:
            raise FileNotFoundError(f"the dense network {self.path(key)} is missing; the next run trains it again")
        return found

    def _read(self, key: str, version: Version) -> "tuple[dict[str, Tensor], Posterior, dict[str, Any]] | None":
        """What is stored under a key; None if the file is damaged, and was set aside, or is gone."""
        from safetensors.torch import load

        try:
            content = self.path(key).read_bytes()  # opened once: another process may replace the file meanwhile
            tensors = load(content)
            metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            if metadata.pop("sha256", "") != _digest(metadata, tensors):
                raise ValueError("it has no digest, or not that of its content")
            if metadata["key"] != key:
                raise ValueError("it is another network")
            found = _unpacked(metadata, tensors)
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file may raise exceptions of any type
            self._set_aside(key, version, error)
            return None
        _intact[version] = found[2]
        return found

    def _version(self, key: str) -> Version | None:
        """What identifies the content of a file without reading it; None if there is nothing under the key."""
        try:
            stat = self.path(key).stat()
        except OSError:
            return None
        return self.path(key).absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _not_written(self, error: Exception) -> None:
        _warn(self.folder, f"trained networks cannot be stored in '{self.folder}' ({_line(error)}): each job trains those that it needs")

    def _damaged(self, key: str) -> Path:
        return self.folder / f"{key}.damaged"

    def _set_aside(self, key: str, version: Version, error: Exception) -> None:
        """Rename a damaged file, so that the network is trained again."""
        _warn(version, f"the trained network '{self.path(key)}' is damaged ({_line(error)}): renamed to .damaged, and trained again")
        if self._version(key) == version:  # otherwise another process has renamed it, and may have written a new one
            with contextlib.suppress(OSError):  # the folder cannot be written
                files.remove(self._damaged(key))
                self.path(key).replace(self._damaged(key))


def _unpacked(metadata: Mapping[str, str], tensors: "Mapping[str, Tensor]") -> "tuple[dict[str, Tensor], Posterior, dict[str, Any]]":
    from methods import Posterior

    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    scalars = json.loads(metadata["posterior"])
    scalars["marginal_likelihood"] = tuple(scalars["marginal_likelihood"])
    factors = {n: (b, parts["inner"][n]) for n, b in parts["outer"].items()}
    posterior = Posterior(parts["prior"], curvature=parts["curvature"], factors=factors, **scalars)
    return parts["model"], posterior, json.loads(metadata["facts"])


def _digest(metadata: Mapping[str, str], tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 (hex) of the metadata, and of the names, dtypes, shapes and bytes of all tensors."""
    import torch

    digest = hashlib.sha256(json.dumps(dict(sorted(metadata.items()))).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _warn(about: Hashable, message: str) -> None:
    """Print a warning in one line, once in this process."""
    if about not in _told:
        _told.add(about)
        print(f"warning: {message}", file=sys.stderr, flush=True)
