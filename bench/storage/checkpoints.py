"""Trained networks by key, as safetensors files: written whole or not at all, never pickles.

Keys are digests of all that decides a network (see `bench.planning`).
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
    """Trained networks by key, as safetensors files in one folder that all workers reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """The file of one network."""
        return self.folder / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the network is there."""
        return self.path(key).is_file()

    def facts(self, key: str) -> dict[str, Any] | None:
        """The facts about a network, read without its tensors; None where it is not there."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(key), framework="pt") as file:
                found: dict[str, Any] = json.loads(file.metadata()["facts"])
        except (OSError, SafetensorError):
            return None
        return found

    def size(self) -> tuple[int, int]:
        """The number of networks and their bytes."""
        sizes = [file.stat().st_size for file in self.folder.glob("*.safetensors")]
        return len(sizes), sum(sizes)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove networks by key, and what is remembered of their failures."""
        for key in keys:
            self.path(key).unlink(missing_ok=True)
            (self.folder / f"{key}.failed").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all networks."""
        self.remove({file.stem for pattern in ("*.safetensors", "*.failed") for file in self.folder.glob(pattern)})

    def fail(self, key: str, error: str) -> None:
        """Remember that a network cannot be trained, and why."""
        files.write(self.folder / f"{key}.failed", error.encode())

    def failed(self, key: str) -> str:
        """Why this network could not be trained; '' where it was not tried."""
        file = self.folder / f"{key}.failed"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def save(self, key: str, state: "dict[str, Tensor]", posterior: "Posterior", facts: dict[str, Any]) -> None:
        """Write the network's state, what its training left, and plain facts about it (JSON-able)."""
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
        """State, posterior and facts of one network, on the CPU. Raises FileNotFoundError where it is not there."""
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
