"""What a training reports after every epoch, and the line that shows it."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO, TypeAlias

from methods.core.arguments import require


class Work(NamedTuple):
    """Samples that steps of training have read, each in one forward and one backward pass.

    Attributes:
        samples: number of samples.
        masked: name of a weight -> (number of its entries that were not masked, all); weights that were whole are left out.
        dense: whether the gradient of removed weights was used too.
    """

    samples: int
    masked: dict[str, tuple[int, int]]
    dense: bool


@dataclass(frozen=True)
class EpochRecord:
    """What callbacks receive after every epoch.

    Attributes:
        epoch: number of finished epochs, from 1. A schedule that trains several times, e.g. `imp`, counts on.
        epochs: number of all epochs.
        loss: training loss: the mean over the batches of this epoch of what the steps minimised, with `Training.penalty`, without
            the Gaussian prior.
        lr: learning rate of the last step of the epoch.
        evidence: log marginal likelihood log q(D | d) of the Laplace approximation, in nats for all training samples (not per
            sample), at the weights and prior precisions after this epoch. It is what the training computed to update its prior:
            with `spam(share=1, memory=0)` this value exactly; otherwise an estimate from a part of the data and a running average
            of the curvature. None in epochs without an update, and for trainings that do not compute it.
        sparsity: fraction of the prunable weights that the mask removes.
        work: what the steps of this epoch have read, from which their floating-point operations follow.
    """

    epoch: int
    epochs: int
    loss: float
    lr: float
    evidence: float | None
    sparsity: float
    work: tuple[Work, ...] = ()


Callback: TypeAlias = Callable[[EpochRecord], object]


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise ValueError if an argument is not a list of functions."""
    require(callbacks, (list, tuple), "callbacks", "a list of functions of one EpochRecord, e.g. [print]")
    for callback in callbacks:
        if isinstance(callback, type) or not callable(callback):
            kind = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            raise ValueError(f"callbacks must be a list of functions of one EpochRecord, but it contains {kind}")


def with_progress(callbacks: Sequence[Callback], progress: bool) -> Sequence[Callback]:
    """The callbacks, and one that shows the progress on stderr if it is wanted."""
    check_callbacks(callbacks)
    require(progress, bool, "progress", "True or False")
    return [*callbacks, Progress()] if progress else callbacks


class Progress:
    """A callback that shows the epochs on stderr: one line that is rewritten, or a line per epoch if stderr is a file or a pipe.

    Args:
        stream: where to write; None: stderr at the time of the first epoch.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream, self._start, self._width = stream, time.monotonic(), 0

    def __call__(self, record: EpochRecord) -> None:
        """Show one epoch."""
        stream = self._stream or sys.stderr
        seconds = (time.monotonic() - self._start) * (record.epochs - record.epoch) / record.epoch
        parts = [f"epoch {record.epoch}/{record.epochs}", f"loss {record.loss:.4f}", f"lr {record.lr:.2g}"]
        parts += [f"evidence {record.evidence:.1f}"] if record.evidence is not None else []
        parts += [f"sparsity {100 * record.sparsity:.1f} %"] if record.sparsity else []
        line = "  ".join([*parts, f"{seconds:.0f} s left"])
        # Notebooks replace stderr by a stream that is not a terminal, and understand a carriage return.
        if stream.isatty() or type(stream).__module__.startswith("ipykernel"):
            last = record.epoch == record.epochs
            stream.write(f"\r{line.ljust(self._width)}" + "\n" * last)
            self._width = len(line)
        else:
            stream.write(line + "\n")
        stream.flush()
