"""A plug-in for tests: one criterion for each way to misbehave."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mistakes import MISTAKES, PRINTED

from methods import Criterion, Problem, Scores, register


def magnitudes(problem: Problem) -> dict[str, Any]:
    """|w| of each weight."""
    return {name: weight.detach().abs() for name, weight in problem.weights.items()}


def _exhaust() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
    try:
        bytearray(2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _train(problem: Problem) -> None:
    with torch.no_grad():
        for p in problem.model.parameters():
            p.mul_(1.01)


def _patch(name: str) -> None:
    setattr(torch, name, lambda *_: None)


def _patch_harness() -> None:
    from bench.trial import metrics

    metrics.logits_of = lambda _, split: torch.nn.functional.one_hot(split.targets).float()  # type: ignore[assignment]


ACTS: dict[str, Any] = {
    "exits": lambda _: sys.exit(3),
    "dies": lambda _: os._exit(5),
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "exhausts": lambda _: _exhaust(),
    "hangs": lambda _: time.sleep(10_000),
    "prints": lambda _: print(PRINTED),
    "trains": _train,
    "leaves_hook": lambda problem: problem.model.register_forward_hook(lambda *_: None),
    "replaces_forward": lambda problem: setattr(problem.model, "forward", lambda x: x.sum(1, keepdim=True)),
    "draws_torch": lambda _: torch.rand(1),
    "draws_numpy": lambda _: np.random.rand(),
    "draws_python": lambda _: __import__("random").random(),
    "dtype": lambda _: torch.set_default_dtype(torch.float64),
    "threads": lambda _: torch.set_num_threads(3),
    "patches_the_harness": lambda _: _patch_harness(),
    "patches": lambda _: _patch("topk"),
}


class Misbehaving(Criterion):
    """|w|, and one mistake."""

    mistake = ""

    def score(self, problem: Problem) -> Scores:
        """|w|."""
        values = magnitudes(problem)
        first = next(iter(values))
        if self.mistake == "raises":
            raise ValueError("[/tmp/x] [red]not markup")
        if self.mistake == "interrupts":
            raise KeyboardInterrupt
        if self.mistake == "not_finite":
            values[first][0] = float("nan")
        if self.mistake == "wrong_shape":
            values[first] = values[first][:-1]
        if self.mistake == "wrong_names":
            del values[first]
        if self.mistake == "not_scores":
            return values  # type: ignore[return-value]
        if self.mistake in ACTS:
            ACTS[self.mistake](problem)
        return Scores(values)


for _name in (*MISTAKES, "hangs", "prints"):
    register(_name)(dataclass(frozen=True, kw_only=True)(type(_name, (Misbehaving,), {"mistake": _name, "__doc__": "A mistake."})))
