"""One piece of work as a value: what is trained, pruned and measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.spec.setting import Setting
from bench.spec.suite import Protocol
from methods import Schedule, Stage


@dataclass(frozen=True)
class Environment:
    """What a job runs with: the device, the folder of data, the cache, the plug-ins to load, the folder for its progress.

    `threads`: the number of threads of a job, in any process: it decides how sums are rounded.
    """

    device: str
    data_root: Path | None
    cache: Path
    plugins: tuple[str, ...] = ()
    progress: Path | None = None
    threads: int = 1


class Point(NamedTuple):
    """Where one row is measured, and the key under which it is kept."""

    sparsity: float
    finetune_epochs: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One method (or the dense network, if `criterion` is empty) on one block and seed, at the points still to do.

    `network`: the key of the dense network; a dense job saves it, a job that prunes after training loads it.
    `match`: the quantity that sparsities are fractions of, see `bench.trial.cost.cost`. `ablation`: a control instead of the method's
    own network, see `bench.spec.row.ABLATIONS`. `split`: the data it is measured on, "test", or "validation" while tuning.
    """

    method: str
    dataset: str
    architecture: str
    protocol: Protocol
    seed: int
    training: str
    criterion: str
    stage: Stage | None
    setting: Setting
    granularity: str
    network: str
    points: tuple[Point, ...]
    environment: Environment
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
    def schedule(self) -> Schedule | None:
        """When to cut, if that is more than once."""
        return None if self.setting.schedule is None else schedule_of(self.setting.schedule)

    @property
    def finetune_lr_scale(self) -> float:
        """The learning rate of fine-tuning as a fraction of the training's: the method's own, or that of the protocol."""
        own = self.setting.finetune_lr_scale
        return self.protocol.finetune_lr_scale if own is None else own

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
        own, schedule = self.protocol.epochs, self.schedule
        if schedule is not None and self.stage is Stage.DURING:
            own = schedule.epochs(own, sparsity)
        return own + (self.protocol.epochs if self.retrains and self.stage is not Stage.INIT else 0)

    @property
    def trainings(self) -> int:
        """How many networks it trains from the start."""
        if not self.criterion:
            return 1
        return len(self.sparsities) * (self.trains_each + (self.retrains and self.stage is not Stage.INIT))

    @property
    def epochs(self) -> int:
        """Training epochs in it: its length, as far as that can be said beforehand."""
        fine = sum(p.finetune_epochs for p in self.points)
        if not self.criterion:
            return self.protocol.epochs + fine
        shared = 0 if self.trains_each else self.protocol.epochs
        return fine + sum(self.training_epochs(s) - shared for s in self.sparsities)


def schedule_of(said: dict[str, Any]) -> Schedule:
    """The schedule that `Schedule.as_dict` has written. Raises KeyError or TypeError where there is no such schedule."""
    fields = dict(said)
    made: Schedule = {cls.kind: cls for cls in Schedule.__subclasses__()}[fields.pop("kind")](**fields)
    return made
