"""A network, a helper module and a data set of a user, and an executor that starts no processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.execution.local import Local
from bench.trial.job import Job

NET = """
from torch import nn
from own_block import block

def build(classes, input_shape):
    return nn.Sequential(nn.Flatten(), *block(input_shape), nn.Linear(12, classes))
"""
BLOCK = """
from torch import nn

class Activation(nn.Module):
    def forward(self, x):
        return x.relu()

def block(shape):
    return nn.Linear(shape[0] * shape[1] * shape[2], 12), Activation()
"""
DATA = """
import torch

def load():
    generator = torch.Generator().manual_seed(SEED)
    def part(n):
        labels = torch.arange(n) % 3
        return torch.randn(n, 1, 2, 4, generator=generator) + labels.view(-1, 1, 1, 1), labels
    return part(90), part(60)
""".replace("SEED", "0")


def write(folder: Path) -> None:
    """my_net.py with own_block.py next to it, and my_data.py."""
    for name, text in {"my_net.py": NET, "own_block.py": BLOCK, "my_data.py": DATA}.items():
        (folder / name).write_text(text)


def run_here(self: Local, function: Callable[[Job], Any], queue: Any, *, follow: Any, **_: Any) -> Iterator[tuple[Job, Any]]:
    """`Local.run` in this process."""
    while (job := queue.take()) is not None:
        result = function(job)
        queue.add(follow(job, result))
        yield job, result
