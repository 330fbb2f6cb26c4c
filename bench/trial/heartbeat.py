"""How far the running jobs are: each worker leaves the number of epochs it has trained in a small file, the caller adds them up.

Each run has a folder of its own, so that runs that share a cache never touch each other's files. A file that cannot be written is
no reason to fail: it only shows progress.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PAUSE = 0.25  # seconds between two writes of one worker
STALE = 86400.0  # seconds after which a folder of a killed run is removed
carried = (0, 0)  # epochs and points of what this worker has done before, as a part of the same piece of work


class Heartbeat:
    """Epochs and measurements of one job: call it after each epoch, `measured` after each point, `close` it when the job ends.

    `folder`: where it writes its file; None for nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / str(os.getpid()) if folder is not None else None
        self.epochs = self.points = 0
        self._written = 0.0

    def __call__(self, _epoch: int) -> None:
        """One more epoch is done."""
        self.epochs += 1
        self._write()

    def measured(self) -> None:
        """One more point is measured."""
        self.points += 1
        self._write()

    def _write(self) -> None:
        now = time.monotonic()
        if self._file is not None and now - self._written > PAUSE:
            self._written = now
            with contextlib.suppress(OSError):
                self._file.write_text(f"{carried[0] + self.epochs} {carried[1] + self.points}", encoding="ascii")

    def close(self) -> None:
        """The job is over, and counted as a whole from now on."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


@contextlib.contextmanager
def shown(cache: Path) -> Iterator[Path]:
    """A new folder for the workers of one run, gone at the end. Folders that killed runs left go, too, when they are a day old."""
    parent = cache / "progress"
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def running(folder: Path) -> tuple[int, int]:
    """Epochs trained and points measured by the jobs that run now; a file that is just being written counts as none."""
    epochs = points = 0
    for file in folder.glob("*"):
        with contextlib.suppress(OSError, ValueError):
            trained, measured = map(int, file.read_text(encoding="ascii").split())
            epochs, points = epochs + trained, points + measured
    return epochs, points
