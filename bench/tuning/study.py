"""A search as a value: what it may choose from, and on which jobs it measures."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from bench.spec.row import DENSE
from bench.spec.setting import Setting
from bench.trial.job import Job
from bench.tuning import selection
from bench.tuning.pools import Member
from methods import Range


@dataclass(frozen=True, kw_only=True)
class Study:
    """The search of one method on one data set and architecture: plain values, so that any worker can do it.

    `jobs`: the method at its defaults, measured on validation data at all sparsities and fine-tuning lengths, on each tuning seed.
    `space`: the criterion's hyperparameters that may be chosen. `seed` decides the draws. `draws`: from how many training
    configurations the pool is taken, at most.
    """

    key: str
    storage: str
    trials: int
    seed: int
    pool: tuple[Member, ...]
    draws: int
    jobs: tuple[Job, ...]
    space: dict[str, Range]

    @property
    def job(self) -> Job:
        """The method at its defaults on the first tuning seed."""
        return self.jobs[0]

    @property
    def label(self) -> str:
        """What a person reads while it runs."""
        return f"tuning {self.job.method} · {self.job.dataset}/{self.job.architecture}"

    @property
    def name(self) -> str:
        """Under which Optuna keeps it."""
        return f"{self.job.method}-{self.job.dataset}-{self.job.architecture}-{self.key[:16]}"

    @property
    def cell(self) -> tuple[str, str, str]:
        """Its data set, architecture and method."""
        return self.job.dataset, self.job.architecture, self.job.method

    @property
    def rounds(self) -> selection.Rounds:
        """How its trials are spent."""
        return selection.rounds(self.trials, len(self.jobs))

    @property
    def epochs(self) -> int:
        """Training epochs in it at most."""
        return self.rounds.trials * self.job.epochs

    @property
    def finetunes(self) -> bool:
        """Whether there is a learning rate of fine-tuning to choose."""
        return any(point.finetune_epochs for point in self.job.points)

    def defaults(self) -> dict[str, Any]:
        """The first candidate."""
        own = {f"criterion.{name}": (self.job.setting.criterion or {})[name] for name in self.space}
        scale = {"finetune_lr_scale": self.job.finetune_lr_scale} if self.finetunes else {}
        return {"training": 0, **own, **scale}

    def candidate(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """The values of a candidate from those of a sampler, which knows nothing of who is in the pool."""
        return drawn | {"training": self.pool[drawn["training"] % len(self.pool)].draw}

    def member(self, values: dict[str, Any]) -> Member | None:
        """Whose training a candidate has; None where it is not in this pool: on another kind of machine other members may break down."""
        return next((member for member in self.pool if member.draw == values["training"]), None)

    def setting(self, values: dict[str, Any], training: dict[str, Any]) -> Setting:
        """The hyperparameters that a candidate's values mean; `training`: those of its training."""
        own = {name.removeprefix("criterion."): value for name, value in values.items() if name.startswith("criterion.")}
        job = self.job.setting
        return Setting(training, {**(job.criterion or {}), **own}, job.schedule, values.get("finetune_lr_scale"))

    def job_of(self, values: dict[str, Any], member: Member, seed: int) -> Job:
        """The job that measures a candidate on one tuning seed, by the seed's number from 0."""
        return dataclasses.replace(self.jobs[seed], network=member.networks[seed], setting=self.setting(values, member.training))

    def network_job(self, member: Member, seed: int) -> Job:
        """The job that trains a member's dense network on a tuning seed."""
        job = self.jobs[seed]
        return dataclasses.replace(
            job, method=f"{DENSE}@{job.training}", criterion="", stage=None, points=(), split="test",
            setting=Setting(member.training), network=member.networks[seed],
        )  # fmt: skip
