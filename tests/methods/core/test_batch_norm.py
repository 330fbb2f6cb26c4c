"""Statistics of batch norm after pruning: those of one pass of all samples as a single batch."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import methods
from methods.core import batch_norm


class Shared(nn.Module):
    """A norm that is used twice, one without statistics, and a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.plain, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm1d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        y = self.plain(y + self.norm(self.again(y)))
        return self.head(self.drop(self.last(y.mean((2, 3)))))


def made(samples: int, sizes: list[int], side: int = 8) -> list[tuple[Tensor, Tensor]]:
    x = 3 + 2 * torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(sizes), torch.zeros(samples, dtype=torch.long).split(sizes), strict=True))


def one_batch(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """Independent: torch's own statistics of a pass in training mode of all samples as one batch, without dropout."""
    reference = copy.deepcopy(model)
    for m in reference.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.momentum = 1.0
        m.training = not isinstance(m, nn.Dropout)
    with torch.no_grad():
        reference(torch.cat([x for x, _ in batches]))
    return reference


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet10t"])
def test_moments_are_those_of_a_full_pass(name: str, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not at_once:
        monkeypatch.setattr(batch_norm, "AT_ONCE", 22 * 3 * 32 * 32 - 1)
    torch.manual_seed(0)
    model, batches = timm.create_model(name, num_classes=5), made(22, [7, 7, 7, 1], 32)
    methods.prune(model, batches, sparsity=0.5)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    others = {n: (m.momentum, m.num_batches_tracked) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    names = methods.recalibrate_batchnorm(model, batches)
    reference = dict(one_batch(model, batches).named_buffers())
    found = {n: b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}
    assert len(found) == 2 * len(names) > 4
    for n, b in found.items():
        torch.testing.assert_close(b, reference[n], rtol=1e-5, atol=1e-5, msg=n)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert all(m.training for m in model.modules())
    assert all((model.get_submodule(n).momentum, model.get_submodule(n).num_batches_tracked) == v for n, v in others.items())
    # The network in eval mode now computes what it computes in training mode on all samples at once.
    x = torch.cat([x for x, _ in batches])
    outputs = one_batch(model, batches).eval()(x)
    torch.testing.assert_close(model.eval()(x), outputs, rtol=1e-4, atol=1e-4)


def test_the_size_of_batches_does_not_matter() -> None:
    torch.manual_seed(0)
    model = Shared().eval()
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    assert methods.recalibrate_batchnorm(whole, made(10, [10])) == ["norm", "last"]
    methods.recalibrate_batchnorm(parts, made(10, [4, 4, 2]))
    assert torch.equal(whole.plain(torch.ones(2, 4, 3, 3)), parts.plain(torch.ones(2, 4, 3, 3)))  # it has no statistics
    torch.testing.assert_close(whole.norm.running_mean, parts.norm.running_mean)
    torch.testing.assert_close(whole.norm.running_var, parts.norm.running_var)
    assert not whole.training


def test_a_norm_that_is_used_twice_has_the_moments_of_both_uses() -> None:
    torch.manual_seed(0)
    model, batches = Shared(), made(6, [4, 2])
    seen: list[Tensor] = []
    methods.recalibrate_batchnorm(model, batches)
    before = (copy.deepcopy(model.norm.running_mean), copy.deepcopy(model.norm.running_var))
    # By hand: the first use sees the convolution; the second one what the first use makes of it with the statistics before the call.
    fresh = Shared()
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if "running" not in k}, strict=False)
    fresh.eval()
    x = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        first = fresh.conv(x)
        seen = [first, fresh.again(fresh.norm(first).relu())]
    values = torch.cat([s.transpose(0, 1).flatten(1) for s in seen], 1).double()
    torch.testing.assert_close(before[0].double(), values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(before[1].double(), values.var(1), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_estimated_is_said_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="'1' needs at least two values per channel"):
        methods.recalibrate_batchnorm(model, [(torch.ones(1, 3), torch.zeros(1))])
    with pytest.raises(ValueError, match="the batches are empty"):
        methods.recalibrate_batchnorm(model, [])
    with pytest.raises(ValueError, match="batch norm cannot be estimated again"):
        methods.recalibrate_batchnorm(model, [(torch.ones(2, 5), torch.zeros(2))])
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert methods.recalibrate_batchnorm(nn.Linear(3, 2), []) == []
