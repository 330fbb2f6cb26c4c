"""Show the progress of a run: a line that is updated in a terminal or notebook, or a new line every 15 seconds in a log.

It is not in `bench.cli`, because `bench.run` uses it in notebooks.
"""

import importlib
import sys
import time
from typing import Any

from bench.execution.meter import Progress

BAR = 24  # characters
QUIET_SECONDS = 15.0  # between two lines in a log


def duration(seconds: float) -> str:
    """A duration in words: "42 s", "3 min 05 s", "2 h 10 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def text(progress: Progress, elapsed: float) -> str:
    """The progress in one line: bar, jobs, elapsed and remaining time, failures.

    Args:
        progress: the progress.
        elapsed: seconds since the start.
    """
    share = progress.share
    bar = "█" * round(BAR * share) + "░" * (BAR - round(BAR * share))
    left = f"about {duration(elapsed * (1 - share) / share)} left" if share > 0.02 else "estimating"
    failed = f" · {progress.failed} rows failed" if progress.failed else ""
    return f"{bar} {share:4.0%} · {progress.done}/{progress.jobs} jobs · {duration(elapsed)} elapsed · {left}{failed}"


class Display:
    """Shows the progress: `with Display() as show: ... show(progress)`. `workers`: largest number of jobs to list."""

    def __init__(self, stderr: bool = False) -> None:
        self._stderr = stderr
        self._start = self._said = time.monotonic()
        self._live: Any = None
        self._handle: Any = None

    def __enter__(self) -> "Display":
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=self._stderr)
        if console.is_jupyter:
            display = importlib.import_module("IPython.display").display

            self._handle = display({"text/plain": "starting"}, raw=True, display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        elif console.is_terminal:
            self._live = Live(console=console, transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Update the display."""
        if progress.jobs == 0:
            return
        line = text(progress, time.monotonic() - self._start)
        running = [f"  {label}" for label in progress.running]
        if self._live:
            from rich.text import Text

            self._live.update(Text("\n").join([Text(line), *(Text(label, style="dim") for label in running)]))
        elif self._handle is not None:
            self._handle.update({"text/plain": "\n".join([line, *running])}, raw=True)
        elif time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            print(line, file=sys.stderr if self._stderr else sys.stdout, flush=True)
