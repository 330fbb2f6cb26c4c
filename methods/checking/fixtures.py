"""What the checks run on: three small networks, and data that count how often they are read."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from methods.core.configurations import Granularity
from methods.core.interface import Problem
from methods.core.recipe import Recipe
from methods.core.training_loop import fit
from methods.registry.registry import lookup, make


class Breach(Exception):
    """A failed check; the message says in one line what is wrong."""


class Skip(Exception):
    """Raised by a check that does not apply; the message says why."""


def require(holds: object, message: str) -> None:
    """Raise Breach with the message unless `holds` is true."""
    if not holds:
        raise Breach(message)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of named tensors are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


class ConvNet(nn.Module):
    """Conv, batch norm, in-place ReLU, strided conv, linear: 3 x 6 x 6 inputs, 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.head = nn.Linear(6 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn(self.conv1(x)))
        logits: Tensor = self.head(torch.relu(self.conv2(x)).flatten(1))
        return logits


def mlp() -> nn.Module:
    """108 inputs, two hidden layers of 12, 3 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def tied() -> nn.Module:
    """The MLP with all parameters equal, so that only the rule for ties decides."""
    model = mlp()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.01)
    return model


class Batches:
    """Four batches of 16 samples whose labels follow a fixed linear rule. `reads` counts the passes; `allowed` = False forbids them."""

    def __init__(self, allowed: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(64, 3, 6, 6, generator=generator)
        y = (x.flatten(1) @ torch.randn(108, 3, generator=generator)).argmax(1)
        self.data = list(zip(x.split(16), y.split(16), strict=True))
        self.allowed, self.reads, self.samples, self.input_shape = allowed, 0, 64, (3, 6, 6)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.allowed:
            raise Breach("declares data_free = True, but reads the batches")
        self.reads += 1
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def problem_of(make: Callable[[], nn.Module] = ConvNet, *, seed: int = 0, trained: bool = True) -> Problem:
    """A problem on one of the networks: the same initial weights each time, trained for two epochs if `trained` (not if they are tied)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    problem = Problem(model, Batches(), seed=seed)
    if trained and make is not tied:
        fit(problem, lookup("trainings", "map")(), Recipe(epochs=2))  # type: ignore[arg-type]
    return problem


def weight() -> Granularity:
    """Unstructured pruning."""
    made: Granularity = make("granularities", "weight", {})
    return made
