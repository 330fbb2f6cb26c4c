"""The progress of running jobs: each worker writes its numbers of epochs and measurements to a heartbeat file; the run adds them up.

Each run has its own folder, so that runs with the same cache do not touch each other's files. A heartbeat file that cannot be
written is ignored, because it only shows progress.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.spec.errors import UserError

PAUSE = 0.25  # seconds between two writes of one worker
STALE = 86400.0  # seconds after which a folder of a killed run is removed
carried = (0, 0)  # epochs and points of earlier jobs in this worker that count as the same piece of work
announce: Callable[[], None] | None = None  # a worker tells its run that a job begins, which limits the seconds of each


class Heartbeat:
    """Counts the epochs and measurements of one job, and writes them to this worker's heartbeat file.

    Call it after each epoch, `measured` after each point, and `close` at the end of the job.

    Args:
        folder: the folder of the file; None writes no file.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / str(os.getpid()) if folder is not None else None
        self.epochs = self.points = 0
        self._written = 0.0

    def __call__(self, _record: object) -> None:
        """Count one epoch."""
        self.epochs += 1
        self._write()

    def measured(self) -> None:
        """Count one measured point."""
        self.points += 1
        self._write()

    def _write(self) -> None:
        now = time.monotonic()
        if self._file is not None and now - self._written > PAUSE:
            self._written = now
            with contextlib.suppress(OSError):
                self._file.write_text(f"{carried[0] + self.epochs} {carried[1] + self.points}", encoding="ascii")

    def close(self) -> None:
        """Remove the file: a finished job is counted by the run itself."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


@contextlib.contextmanager
def shown(cache: Path) -> Iterator[Path]:
    """A new folder for the heartbeat files of one run, removed at the end; folders of killed runs are removed after a day.

    Raises:
        UserError: it cannot be created.
    """
    parent = cache / "progress"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise UserError(f"cannot write to the cache folder '{cache}': {error.strerror}; run the command in another folder") from None
    for old in parent.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def running(folder: Path) -> tuple[int, int]:
    """(epochs trained, points measured) by the jobs that are running. A file that is being written counts as zero."""
    epochs = points = 0
    for file in folder.glob("*"):
        with contextlib.suppress(OSError, ValueError):
            trained, measured = map(int, file.read_text(encoding="ascii").split())
            epochs, points = epochs + trained, points + measured
    return epochs, points
