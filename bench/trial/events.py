"""The TensorBoard event files of a job (`--log`): a run for each network that it trains, and one for its measurements.

    DIR/data set/architecture/method/seed-0/training                    loss, learning rate, evidence, sparsity after each epoch
    DIR/data set/architecture/method/seed-0/sparsity-0.9-finetuning-5   the same for a pruned network
    DIR/data set/architecture/method/seed-0/measurements                test accuracy, NLL and ECE against the sparsity in per mille

Networks of tuning lie below DIR/tuning. Writing events changes neither results nor their keys.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import methods
from bench.trial.job import Job, Point
from bench.trial.network import Measurement
from methods import EpochRecord, Problem
from methods.core.callbacks import Callback

MEASURED = ("accuracy", "nll", "ece")
PER_MILLE = 1000  # TensorBoard's steps are integers


class Events:
    """Writes the event files of one job; without a folder it does nothing.

    Args:
        job: the job; its environment has the folder.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._folder = job, _folder(job) if job.environment.log is not None else None
        self._names: list[str] = []
        self._measurements: dict[int, Any] = {}

    @contextmanager
    def training(self, problem: Problem, finetune_epochs: int = 0) -> Iterator[list[Callback]]:
        """Context of one training.

        Args:
            problem: the network that is trained.
            finetune_epochs: the length of fine-tuning; 0 for a training from initial weights.

        Yields:
            Callbacks for the training.
        """
        if self._folder is None:
            yield []
            return
        at = f"sparsity-{problem.target:g}-" if problem.target else ""
        name = f"{at}finetuning-{finetune_epochs}" if finetune_epochs else f"{at}training"
        self._names.append(name)  # an ablation trains a second network of the same name
        again = self._names.count(name)
        # The events of an earlier run in this folder are dropped.
        writer = _writer(self._folder / (name if again == 1 else f"{name}-{again}"), purge_step=0)

        def write(record: EpochRecord) -> None:
            values = {"loss": record.loss, "learning rate": record.lr, "evidence": record.evidence, "sparsity": record.sparsity}
            for tag, value in values.items():
                if value is not None:
                    writer.add_scalar(f"training/{tag}", value, record.epoch)
            writer.flush()

        try:
            yield [write]
        finally:
            writer.close()

    def measured(self, point: Point, measurement: Measurement) -> None:
        """Write the measurement of one point."""
        if self._folder is None:
            return
        epochs = point.finetune_epochs
        if epochs not in self._measurements:
            name = f"measurements-finetuning-{epochs}" if epochs else "measurements"
            self._measurements[epochs] = _writer(self._folder / name)
        for column in MEASURED:
            if measurement.get(column) is not None:
                step = round(PER_MILLE * point.sparsity)
                self._measurements[epochs].add_scalar(f"{self._job.split}/{column}", measurement[column], step)
        self._measurements[epochs].flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._measurements.values():
            writer.close()
        self._measurements.clear()


def _writer(folder: Path, **options: Any) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow, and an extra: imported where events are written

    return SummaryWriter(str(folder), **options)


def _folder(job: Job) -> Path:
    """The folder of a job: readable names, different for different hyperparameters."""
    assert job.environment.log is not None
    root = job.environment.log / "tuning" if job.split == "validation" else job.environment.log
    control = "" if job.ablation == "none" else f" {job.ablation}"
    parts = (job.dataset, job.architecture, _name(job) + control, f"seed-{job.seed}")
    return root.joinpath(*(re.sub(r"[^\w.,=@()+-]+", "_", part) for part in parts))


def _name(job: Job) -> str:
    """The method, with the hyperparameters that differ from its defaults, e.g. those that tuning chose."""
    setting, name = job.setting, job.method
    parts: list[tuple[dict[str, Any], methods.Configuration]]
    if job.criterion:
        method = methods.get(name)
        parts = [(setting.training, method.make_training()), (setting.criterion or {}, method.make_criterion())]
    else:
        name = name.partition("(")[0]
        parts = [(setting.training, methods.make("trainings", job.training, {}))]
    changed = [f"{k}={_text(v)}" for given, default in parts for k, v in given.items() if v != getattr(default, k)]
    if setting.finetune_lr_scale not in (None, job.protocol.finetune_lr_scale):
        changed.append(f"finetune_lr_scale={_text(setting.finetune_lr_scale)}")
    return f"{name}({','.join(changed)})" if changed else name


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
