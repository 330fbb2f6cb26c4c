"""Every method, training and granularity on a device that is not the CPU gives what it gives on the CPU."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import methods
from tests.methods.entries import fits
from tests.pretend_device import device

DEVICE = device.register()
SPARSITY = 0.5  # also that of 2:4


def network(where: torch.device | str = "cpu") -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 10))
    return nn.Sequential(*layers).to(where)


def batches(where: torch.device | str = "cpu") -> Iterable[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 1, 6, 6, generator=generator), torch.randint(10, (32,), generator=generator)
    return [(x[i : i + 16].to(where), y[i : i + 16].to(where)) for i in range(0, 32, 16)]


def pruned(name: str, granularity: str, where: torch.device | str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network that a method has trained and pruned, and its mask."""
    model, method = network(where), methods.get(name)
    after = method.schedule is None or method.stage is methods.Stage.AFTER
    state = methods.train(model, batches(where), training=method.training, epochs=2) if after else None
    if method.schedule is not None:
        mask, _ = methods.train_pruned(
            model, batches(where), method=name, sparsity=SPARSITY, granularity=granularity, epochs=4, posterior=state
        )  # fmt: skip
    else:
        mask = methods.prune(
            model, batches(where), method=method.criterion, sparsity=SPARSITY, granularity=granularity, posterior=state
        )  # fmt: skip
    return model, mask


CASES = [(n, g) for n in methods.names("methods") for g in methods.names("granularities") if fits(n, g)]


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_a_method_prunes_as_on_the_cpu(name: str, granularity: str) -> None:
    (there, expected), (here, found) = (pruned(name, granularity, where) for where in ("cpu", DEVICE))
    assert all(mask.device == DEVICE for mask in found.values())
    assert all(v.device == DEVICE for v in here.state_dict().values())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n].cpu(), mask) for n, mask in expected.items())
    for a, b in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", methods.names("trainings"))
def test_a_training_trains_as_on_the_cpu(training: str) -> None:
    networks = [network(where) for where in ("cpu", DEVICE)]
    states = [methods.train(n, batches(w), training=training, epochs=2) for n, w in zip(networks, ("cpu", DEVICE), strict=True)]
    for a, b in zip(networks[0].state_dict().values(), networks[1].state_dict().values(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-5, atol=1e-6)
    for name, precision in states[0].decay.items():
        torch.testing.assert_close(states[1].decay[name].cpu(), precision, rtol=1e-5, atol=1e-8)


def test_a_method_with_a_mistake_is_noticed() -> None:
    """The device is worth its name only if a criterion that forgets it fails."""

    class Forgets(methods.Criterion):
        def score(self, problem: methods.Problem) -> methods.Scores:
            return methods.Scores({n: torch.rand(w.shape) * w.abs() for n, w in problem.weights.items()})

    problem = methods.Problem(network(DEVICE), batches(DEVICE), seed=0)
    with pytest.raises(Exception, match="same device"):
        methods.score(problem, Forgets())
