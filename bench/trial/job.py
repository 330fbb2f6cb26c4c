"""A job as a value: which network to train, how to prune it and where to measure it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.spec.protocol import Protocol
from bench.spec.setting import Setting
from methods import Recipe, Schedule, Stage


@dataclass(frozen=True)
class Environment:
    """The resources of a job in the process that does it.

    Attributes:
        device: torch's name of the device.
        data_root: the folder of downloaded data sets; None for the default.
        cache: the folder for trained networks and prepared data.
        plugins: files and modules that register more methods.
        progress: the folder for heartbeat files; None for none.
        threads: the number of torch threads. It decides how sums are rounded, so it is the same in every process.
        log: the folder for TensorBoard event files; None for none.
        stack: the number of networks of a job to train at the same time as one, see `bench.trial.together`; it decides how sums are
            rounded.
    """

    device: str
    data_root: Path | None
    cache: Path
    plugins: tuple[str, ...] = ()
    progress: Path | None = None
    threads: int = 1
    log: Path | None = None
    stack: int = 1


class Point(NamedTuple):
    """Where one row is measured: its sparsity in [0, 1), its epochs of fine-tuning, and its key in the store."""

    sparsity: float
    finetune_epochs: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One method on one data set, architecture and seed, at the points that have no row yet.

    Attributes:
        method: the name of the method in its rows.
        dataset: the name of the data set.
        architecture: the name of the architecture.
        protocol: the settings of training that all methods share.
        seed: decides initial weights, the order of batches and everything else that is random.
        training: the name of the training.
        criterion: the name of the criterion; empty for a dense network.
        stage: when the criterion prunes; None for a dense network.
        setting: the hyperparameters of training, criterion, schedule and fine-tuning.
        granularity: the name of the granularity.
        network: the key of the dense network. A dense job saves it, a job that prunes after training loads it.
        points: where to measure.
        environment: the resources.
        match: the quantity that sparsities are fractions of, see `bench.trial.cost.cost`.
        ablation: "none", or the control network to use instead of the method's own, see `bench.spec.row.ABLATIONS`.
        split: the data to measure on: "test", or "validation" during tuning.
        sources: versions of the user's own code when the job was planned, see `bench.trial.architecture.sources`; None: not recorded.
        initial_weights: the column of this name in its rows.
        fingerprint: that of the data set when the job was planned, which decides the keys of its rows; None: not recorded.
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
    sources: str | None = None
    initial_weights: str = "random"
    fingerprint: str | None = None

    @property
    def label(self) -> str:
        """The job's description on the terminal."""
        at = f" {self.sparsities[0]:g}" if self.trains_each and len(self.sparsities) == 1 else ""
        control = "" if self.ablation == "none" else f" {self.ablation}"
        return f"{self.method}{control}{at} · {self.dataset}/{self.architecture} · seed {self.seed}"

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of a method that cuts several times; otherwise None."""
        return None if self.setting.schedule is None else schedule_of(self.setting.schedule)

    @property
    def finetune_lr_scale(self) -> float:
        """The learning rate of fine-tuning as a fraction of the training's; the protocol's, if the method has none of its own."""
        own = self.setting.finetune_lr_scale
        return self.protocol.finetune_lr_scale if own is None else own

    def recipe(self, epochs: int, *, finetunes: bool = False) -> Recipe:
        """The recipe of a training, or of fine-tuning, of this length."""
        protocol = self.protocol
        scale = protocol.lr_scale * (self.finetune_lr_scale if finetunes else 1.0)
        return Recipe(
            epochs=epochs, optimizer=protocol.optimizer, lr_scale=scale, precision=protocol.precision, schedule=protocol.lr_schedule
        )

    @property
    def trains_each(self) -> bool:
        """Whether each sparsity needs its own training, because the method prunes before the training ends."""
        return self.stage in (Stage.INIT, Stage.DURING)

    @property
    def sparsities(self) -> list[float]:
        """The different sparsities of the points, in increasing order."""
        return sorted({p.sparsity for p in self.points})

    @property
    def retrains(self) -> bool:
        """Whether the ablation trains another network, with the mask of the method's network."""
        return self.ablation == "reinit" or (self.ablation == "shuffle" and self.stage is not Stage.AFTER)

    def training_epochs(self, sparsity: float) -> int:
        """Training epochs for one network of this sparsity, without fine-tuning; with those of the network that gave its mask."""
        own, schedule = self.protocol.epochs, self.schedule
        if schedule is not None and self.stage is Stage.DURING:
            own = schedule.epochs(own, sparsity)
        return own + (self.protocol.epochs if self.retrains and self.stage is not Stage.INIT else 0)

    @property
    def trainings(self) -> int:
        """The number of networks that the job trains from initial weights."""
        if not self.criterion:
            return 1
        return len(self.sparsities) * (self.trains_each + (self.retrains and self.stage is not Stage.INIT))

    @property
    def epochs(self) -> int:
        """All epochs of training and fine-tuning in the job."""
        fine = sum(p.finetune_epochs for p in self.points)
        if not self.criterion:
            return self.protocol.epochs + fine
        shared = 0 if self.trains_each else self.protocol.epochs
        return fine + sum(self.training_epochs(s) - shared for s in self.sparsities)


def schedule_of(said: dict[str, Any]) -> Schedule:
    """The schedule for the result of `Schedule.as_dict`.

    Args:
        said: the kind and the fields of the schedule.

    Raises:
        KeyError: the kind is missing or unknown.
        TypeError: a field is missing or unknown.
    """
    fields = dict(said)
    made: Schedule = {cls.kind: cls for cls in Schedule.__subclasses__()}[fields.pop("kind")](**fields)
    return made
