"""The pretend device computes as the CPU, and mistakes with devices raise as they do on CUDA."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tests.pretend_device import device

DEVICE = device.register()


def test_it_computes_as_the_cpu() -> None:
    x = torch.arange(12.0).view(3, 4)
    here = x.to(DEVICE)
    view = here[1:]
    view *= 2  # in place, through a view
    assert here.device == DEVICE
    assert here.tolist() == [*x[:1].tolist(), *(2 * x[1:]).tolist()]
    assert torch.equal((here @ here.T).cpu(), here.cpu() @ here.cpu().T)


def test_it_trains_and_differentiates() -> None:
    torch.manual_seed(0)
    there = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    here = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).to(DEVICE)
    here.load_state_dict(there.state_dict())
    x, y = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    for model, inputs, targets in ((there, x, y), (here, x.to(DEVICE), y.to(DEVICE))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    for a, b in zip(there.state_dict().values(), here.state_dict().values(), strict=True):
        assert b.device == DEVICE
        assert torch.equal(a, b.cpu())


def test_it_differentiates_each_sample() -> None:
    model = nn.Linear(4, 2).to(DEVICE)
    x = torch.randn(3, 4, device=DEVICE)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x[None],)).square().sum()

    found = vmap(grad(loss), (None, 0))(dict(model.named_parameters()), x)["weight"]
    expected = [2 * torch.outer(model(row).detach().cpu(), row.cpu()) for row in x]  # d|Wx + b|^2 / dW = 2 (Wx + b) x^T
    torch.testing.assert_close(found.detach().cpu(), torch.stack(expected))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
        lambda x: x * torch.ones(3, dtype=torch.bool),
        lambda x: torch.cat([x, torch.zeros(1)]),
        lambda x: torch.ones(2, 3) @ x,
        lambda x: nn.functional.linear(x, torch.ones(2, 3)),
        lambda x: nn.Linear(3, 2)(x),
        lambda x: torch.ones(3).add_(x),
        lambda x: torch.ones(3)[x.long()],
        lambda x: torch.randn(3, device=DEVICE, generator=torch.Generator()),
        lambda x: torch.rand_like(x, generator=torch.Generator()),
        lambda x: torch.bernoulli(x, generator=torch.Generator()),
    ],
)
def test_mistakes_raise(mistake: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"same device|device type for generator"):
        mistake(torch.ones(3, device=DEVICE))


def test_its_memory_is_not_read_as_the_cpu_s() -> None:
    with pytest.raises((RuntimeError, TypeError)):
        torch.ones(3, device=DEVICE).numpy()
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        torch.ones(3, device=DEVICE).data = torch.zeros(3)


def test_what_cuda_allows_is_allowed() -> None:
    x = torch.arange(3.0, device=DEVICE)
    assert (x * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0]  # a number
    assert x[torch.tensor([2, 0])].tolist() == [2.0, 0.0]  # an index
    assert torch.zeros(3).copy_(x).tolist() == [0.0, 1.0, 2.0]  # a copy


def test_memory_is_counted() -> None:
    before = device.module.memory_allocated()
    device.module.reset_peak_memory_stats()
    x = torch.zeros(1000, device=DEVICE)
    view = x[:10]
    assert device.module.memory_allocated() - before == 4000
    y = x + 1
    del y, x
    assert device.module.memory_allocated() - before == 4000  # the view keeps the memory
    del view
    assert device.module.memory_allocated() == before
    assert device.module.max_memory_allocated() - before == 8000
