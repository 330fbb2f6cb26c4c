"""Trained networks as safetensors files (not pickles), written completely or not at all.

The key of a network is the digest of everything that determines it (see `bench.planning.cells`).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.storage import files

if TYPE_CHECKING:
    from torch import Tensor

    from methods import Posterior


class Networks:
    """Trained networks by key, as safetensors files in one folder that all workers can access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """The file of one network."""
        return self.folder / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the network is stored."""
        return self.path(key).is_file()

    def facts(self, key: str) -> dict[str, Any] | None:
        """The facts about a network, read without its tensors; None if it is not stored."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(key), framework="pt") as file:
                found: dict[str, Any] = json.loads(file.metadata()["facts"])
        except (OSError, SafetensorError):
            return None
        return found

    def size(self) -> tuple[int, int]:
        """(number of networks, their total size in bytes)."""
        sizes = [file.stat().st_size for file in self.folder.glob("*.safetensors")]
        return len(sizes), sum(sizes)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove networks by key, and the records of failed ones."""
        for key in keys:
            self.path(key).unlink(missing_ok=True)
            (self.folder / f"{key}.failed").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all networks and the records of failed ones."""
        self.remove({file.stem for pattern in ("*.safetensors", "*.failed") for file in self.folder.glob(pattern)})

    def fail(self, key: str, error: str) -> None:
        """Record that a network cannot be trained.

        Args:
            key: its key.
            error: the error message.
        """
        files.write(self.folder / f"{key}.failed", error.encode())

    def failed(self, key: str) -> str:
        """The error message of a network that could not be trained; '' if there is none."""
        file = self.folder / f"{key}.failed"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def save(self, key: str, state: "dict[str, Tensor]", posterior: "Posterior", facts: dict[str, Any]) -> None:
        """Store a network.

        Args:
            key: its key.
            state: its state dict.
            posterior: the posterior that its training computed.
            facts: further JSON-serialisable values.
        """
        from safetensors.torch import save_file

        tensors = {f"model.{n}": t.contiguous().clone() for n, t in state.items()}
        tensors |= {f"prior.{n}": t.contiguous().clone() for n, t in posterior.prior.items()}
        tensors |= {f"curvature.{n}": t.contiguous().clone() for n, t in posterior.curvature.items()}
        for k, part in enumerate(("outer", "inner")):
            tensors |= {f"{part}.{n}": factors[k].contiguous().clone() for n, factors in posterior.factors.items()}
        scalars = {
            "samples": posterior.samples,
            "temperature": posterior.temperature,
            "marginal_likelihood": posterior.marginal_likelihood,
        }
        metadata = {"posterior": json.dumps(scalars), "facts": json.dumps(facts)}
        with files.replacing(self.path(key)) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def load(self, key: str) -> "tuple[dict[str, Tensor], Posterior, dict[str, Any]]":
        """State dict, posterior and facts of a network, on the CPU.

        Raises:
            FileNotFoundError: it is not stored.
        """
        from safetensors import safe_open

        from methods import Posterior

        parts: dict[str, dict[str, Tensor]] = {"model": {}, "prior": {}, "curvature": {}, "outer": {}, "inner": {}}
        with safe_open(self.path(key), framework="pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part, _, rest = name.partition(".")
                parts[part][rest] = file.get_tensor(name)
        scalars = json.loads(metadata["posterior"])
        scalars["marginal_likelihood"] = tuple(scalars["marginal_likelihood"])
        factors = {n: (b, parts["inner"][n]) for n, b in parts["outer"].items()}
        posterior = Posterior(parts["prior"], curvature=parts["curvature"], factors=factors, **scalars)
        return parts["model"], posterior, json.loads(metadata["facts"])
