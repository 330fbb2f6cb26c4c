"""A piece of work as a value: what is trained, what is cut, where it is measured. Made by the pipeline, done by `bench.trial`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.spec.suite import Protocol
from methods import Schedule, Stage


@dataclass(frozen=True)
class Place:
    """Where a job finds things: the device, the data, the folder of networks, the plug-ins to load, where it says how far it is.

    `threads`: with how many a job computes, in whatever process: their number decides how sums are rounded.
    """

    device: str
    data_root: Path | None
    cache: Path
    plugins: tuple[str, ...] = ()
    progress: Path | None = None
    threads: int = 1


@dataclass(frozen=True)
class Configured:
    """A registered name with its hyperparameters."""

    name: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)


class Point(NamedTuple):
    """Where one row is measured, and the key under which it is kept."""

    sparsity: float
    finetune_epochs: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One method (or the dense network, where `criterion` is None) on one block and seed, at the points still to do.

    `network`: the key of the dense network, saved by a dense job and loaded by one that prunes after training. `schedule`: when
    to cut, where that is more than once. `match`: what sparsities are shares of, see `bench.evaluate.cost`. `ablation`: a control
    in place of the method's own network, see `bench.spec.ABLATIONS`. `split`: which data it is measured on, "test", or
    "validation" while tuning.
    """

    method: str
    dataset: str
    architecture: str
    protocol: Protocol
    seed: int
    training: Configured
    criterion: Configured | None
    stage: Stage | None
    granularity: str
    network: str
    points: tuple[Point, ...]
    place: Place
    schedule: Schedule | None = None
    match: str = "weights"
    ablation: str = "none"
    split: str = "test"

    @property
    def label(self) -> str:
        """What a person reads while it runs."""
        at = f" {self.sparsities[0]:g}" if self.trains_each and len(self.sparsities) == 1 else ""
        control = "" if self.ablation == "none" else f" {self.ablation}"
        return f"{self.method}{control}{at} · {self.dataset}/{self.architecture} · seed {self.seed}"

    @property
    def trains_each(self) -> bool:
        """Whether it trains a network of its own for every sparsity, in place of pruning the dense one."""
        return self.stage in (Stage.INIT, Stage.DURING)

    @property
    def sparsities(self) -> list[float]:
        """The sparsities it cuts at, rising."""
        return sorted({p.sparsity for p in self.points})

    @property
    def retrains(self) -> bool:
        """Whether the mask of the ablation is put on a new network, to be trained beside the one that it comes from."""
        return self.ablation == "reinit" or (self.ablation == "shuffle" and self.stage is not Stage.AFTER)

    def training_epochs(self, sparsity: float) -> int:
        """The epochs, without fine-tuning, behind one network of this sparsity: its own, and those of the network its mask is from."""
        own = self.protocol.epochs
        if self.schedule is not None and self.stage is Stage.DURING:
            own = self.schedule.epochs(own, sparsity)
        return own + (self.protocol.epochs if self.retrains and self.stage is not Stage.INIT else 0)

    @property
    def trainings(self) -> int:
        """How many networks it trains from the start."""
        if self.criterion is None:
            return 1
        return len(self.sparsities) * (self.trains_each + (self.retrains and self.stage is not Stage.INIT))

    @property
    def epochs(self) -> int:
        """Training epochs in it: its length, as far as that can be said beforehand."""
        fine = sum(p.finetune_epochs for p in self.points)
        if self.criterion is None:
            return self.protocol.epochs + fine
        shared = 0 if self.trains_each else self.protocol.epochs
        return fine + sum(self.training_epochs(s) - shared for s in self.sparsities)
