"""Small networks and data that every test of `methods` may use."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Four batches of 16 samples, 6 features, 3 classes that follow a linear rule."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    return list(zip(x.split(16), y.split(16), strict=True))


@pytest.fixture
def mlp() -> Callable[..., nn.Sequential]:
    """6 -> 5 -> 3 with a smooth non-linearity, the same weights for the same seed."""

    def make(seed: int = 0) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    return make
