"""`--dry-run`: the estimate says how far it is, because a large suite takes minutes to time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import dry_run
from bench.execution.display import Display
from bench.execution.meter import Progress

Bench = Callable[..., tuple[int, str, str]]


def test_each_timed_kind_of_job_is_shown(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Progress] = []

    class Watched(Display):
        def __call__(self, progress: Progress) -> None:
            shown.append(progress)

    monkeypatch.setattr(dry_run, "Display", Watched)
    code, out, _ = bench("run", "--suite", "tiny.toml", "--methods", "magnitude,random", "--trials", "0", "--dry-run", "--workers", "1")
    assert (code, "to compute" in out) == (0, True)
    assert [(p.done, p.jobs, p.share) for p in shown] == [(1, 3, 1 / 3), (2, 3, 2 / 3), (3, 3, 1.0)], "the dense network and two methods"
