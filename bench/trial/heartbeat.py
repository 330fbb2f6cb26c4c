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
carried = 0  # epochs of what this worker has done before, as a part of the same job


class Beat:
    """Epochs of one job: call it after each, `close` it when the job ends. `folder`: where it is shown, nowhere where None."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / str(os.getpid()) if folder is not None else None
        self.epochs = 0
        self._written = 0.0

    def __call__(self, _epoch: int) -> None:
        """One more epoch is done."""
        self.epochs += 1
        now = time.monotonic()
        if self._file is not None and now - self._written > PAUSE:
            self._written = now
            with contextlib.suppress(OSError):
                self._file.write_text(str(carried + self.epochs))

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


def epochs_running(folder: Path) -> int:
    """Epochs trained by the jobs that run now; a file that is just being written counts as none."""
    total = 0
    for file in folder.glob("*"):
        with contextlib.suppress(OSError, ValueError):
            total += int(file.read_text())
    return total
