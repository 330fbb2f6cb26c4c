"""The description of a search: what it may choose from, and the jobs that measure a candidate."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from bench.spec.row import DENSE
from bench.spec.setting import Setting
from bench.trial.job import Job
from bench.tuning import selection
from bench.tuning.pools import Member
from methods import Range


@dataclass(frozen=True, kw_only=True)
class Study:
    """The search for hyperparameters of one method on one data set and architecture. Plain values, so that any worker can run it.

    `key`: digest of everything that determines the search. `storage`: URL of the Optuna database. `trials`: number of trials. `seed`:
    determines the candidates. `pool`: the training configurations to choose from. `draws`: largest number of configurations that were
    drawn for the pool. `jobs`: one per tuning seed, each measures the method with default hyperparameters on validation data, for all
    sparsities and fine-tuning epochs. `space`: hyperparameters of the criterion to choose, with their ranges.
    """

    key: str
    storage: str = field(repr=False)  # it may contain a password
    trials: int
    seed: int
    pool: tuple[Member, ...]
    draws: int
    jobs: tuple[Job, ...]
    space: dict[str, Range]

    @property
    def job(self) -> Job:
        """The job with default hyperparameters on the first tuning seed."""
        return self.jobs[0]

    @property
    def label(self) -> str:
        """Description for the progress display."""
        return f"tuning {self.job.method} · {self.job.dataset}/{self.job.architecture}"

    @property
    def name(self) -> str:
        """Name of the Optuna study."""
        return f"{self.job.method}-{self.job.dataset}-{self.job.architecture}-{self.key[:16]}"

    @property
    def cell(self) -> tuple[str, str, str]:
        """(data set, architecture, method)."""
        return self.job.dataset, self.job.architecture, self.job.method

    @property
    def rounds(self) -> selection.Rounds:
        """How its trials are divided."""
        return selection.rounds(self.trials, len(self.jobs))

    @property
    def epochs(self) -> int:
        """Largest possible number of training epochs."""
        return self.rounds.trials * self.job.epochs

    @property
    def finetunes(self) -> bool:
        """Whether the learning rate of fine-tuning is chosen, too."""
        return any(point.finetune_epochs for point in self.job.points)

    def defaults(self) -> dict[str, Any]:
        """The values of the first candidate: all defaults."""
        own = {f"criterion.{name}": (self.job.setting.criterion or {})[name] for name in self.space}
        scale = {"finetune_lr_scale": self.job.finetune_lr_scale} if self.finetunes else {}
        return {"training": 0, **own, **scale}

    def candidate(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """The values of a candidate. `drawn`: from the sampler, with any integer as `training`; it is mapped to a member of the pool."""
        return drawn | {"training": self.pool[drawn["training"] % len(self.pool)].draw}

    def member(self, values: dict[str, Any]) -> Member | None:
        """The member of the pool with a candidate's training; None if it is not in this pool (on another machine the pool may differ)."""
        return next((member for member in self.pool if member.draw == values["training"]), None)

    def setting(self, values: dict[str, Any], training: dict[str, Any]) -> Setting:
        """The hyperparameters of a candidate.

        Args:
            values: the values of the candidate.
            training: the hyperparameters of its training.
        """
        own = {name.removeprefix("criterion."): value for name, value in values.items() if name.startswith("criterion.")}
        job = self.job.setting
        return Setting(training, {**(job.criterion or {}), **own}, job.schedule, values.get("finetune_lr_scale"))

    def job_of(self, values: dict[str, Any], member: Member, seed: int) -> Job:
        """The job that measures a candidate.

        Args:
            values: the values of the candidate.
            member: its training configuration.
            seed: number of the tuning seed, from 0.
        """
        return dataclasses.replace(self.jobs[seed], network=member.networks[seed], setting=self.setting(values, member.training))

    def network_job(self, member: Member, seed: int) -> Job:
        """The job that trains the dense network of a member.

        Args:
            member: the training configuration.
            seed: number of the tuning seed, from 0.
        """
        job = self.jobs[seed]
        return dataclasses.replace(
            job, method=f"{DENSE}@{job.training}", criterion="", stage=None, points=(), split="test",
            setting=Setting(member.training), network=member.networks[seed],
        )  # fmt: skip
