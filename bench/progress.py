"""How far the running jobs are: each worker leaves the number of epochs it has trained in a small file, the caller adds them up."""

import contextlib
import os
import shutil
import time
from pathlib import Path

PAUSE = 0.25  # seconds between two writes of one worker
carried = 0  # epochs of what this worker has done before, as a part of the same job


class Beat:
    """One job's mark in the folder: call it after each epoch, `close` it when the job ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / str(os.getpid())
        self._epochs, self._written = 0, 0.0

    def __call__(self, _epoch: int) -> None:
        """One more epoch is done."""
        self._epochs += 1
        now = time.monotonic()
        if now - self._written > PAUSE:
            self._written = now
            self._file.write_text(str(carried + self._epochs))

    def close(self) -> None:
        """The job is over, and counted as a whole from now on."""
        self._file.unlink(missing_ok=True)


def epochs_running(folder: Path) -> int:
    """Epochs trained by the jobs that run now; a file that is just being written counts as none."""
    total = 0
    for file in folder.glob("*"):
        with contextlib.suppress(OSError, ValueError):
            total += int(file.read_text())
    return total


def forget(folder: Path) -> None:
    """Remove the marks that a killed run left."""
    shutil.rmtree(folder, ignore_errors=True)
