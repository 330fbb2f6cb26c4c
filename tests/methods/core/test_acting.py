"""Zeros in the prunable weights must be zeros of what multiplies: each transformation, pruned or refused with its remedy."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils as old
from torch import Tensor, nn
from torch.nn.utils import parametrizations as new
from torch.nn.utils import prune as torch_prune

import methods

Data = list[tuple[Tensor, Tensor]]

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


def network(wrap: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(wrap(nn.Linear(20, 100)), nn.ReLU(), wrap(nn.Linear(100, 100)), nn.ReLU(), nn.Linear(100, 3))


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 20, generator=generator), torch.randint(3, (8,), generator=generator))]


def acting(model: nn.Sequential) -> list[Tensor]:
    """The matrices that the layers multiply with, found from their outputs on the unit vectors."""
    model.eval()
    found = []
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            shift = layer(torch.zeros(1, layer.in_features))
            found.append((layer(torch.eye(layer.in_features)) - shift).T)
    return found


class Scaled(nn.Linear):
    """Equalised learning rates: the weight is multiplied by a constant in the forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * 0.3, self.bias)


class Standardised(nn.Linear):
    """Weight standardisation."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        return F.linear(input, (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5), self.bias)


class Turned(nn.Linear):
    """The weight is transposed twice and cast, and multiplies as itself."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.to(torch.float32).t().contiguous() + self.bias


def scaled(layer: nn.Linear) -> nn.Module:
    return Scaled(layer.in_features, layer.out_features)


def standardised(layer: nn.Linear) -> nn.Module:
    return Standardised(layer.in_features, layer.out_features)


def turned(layer: nn.Linear) -> nn.Module:
    return Turned(layer.in_features, layer.out_features)


@pytest.mark.parametrize("batches", [None, data()], ids=["no data", "data"])
@pytest.mark.parametrize("wrap", [new.spectral_norm, old.spectral_norm, new.weight_norm, old.weight_norm, scaled, turned])
def test_where_zeros_stay_zeros_exactly_these_act(wrap: Callable[[nn.Module], nn.Module], batches: Data | None) -> None:
    model = network(wrap)
    mask = methods.prune(model, batches, sparsity=0.3)
    for multiplies, kept in zip(acting(model), mask.values(), strict=True):
        assert torch.equal(multiplies.abs() > 1e-7, kept)
    assert sum(int((~m).sum()) for m in mask.values()) == round(0.3 * 12300)


def test_magnitude_ranks_what_multiplies_not_what_is_stored() -> None:
    model = network(new.weight_norm)
    with torch.no_grad():
        model[0].parametrizations.weight.original1.mul_(100.0)  # does not change the network
    wanted = methods.prune(network(new.weight_norm), sparsity=0.3)
    assert all(torch.equal(m, wanted[n]) for n, m in methods.prune(model, sparsity=0.3).items())


@pytest.mark.parametrize("method", ["obd", "snip", "woodfisher", "opd"])
def test_criteria_that_read_data_prune_under_spectral_norm(method: str) -> None:
    model = network(new.spectral_norm)
    mask = methods.prune(model, data(), method, sparsity=0.3)
    for multiplies, kept in zip(acting(model), mask.values(), strict=True):
        assert bool((multiplies[~kept].abs() < 1e-7).all())


def attached(layer: nn.Module) -> nn.Module:
    torch_prune.l1_unstructured(layer, "weight", 0.5)
    return layer


REFUSED = {
    new.orthogonal: 'call torch.nn.utils.parametrize.remove_parametrizations(layer, "weight") first',
    attached: 'call torch.nn.utils.prune.remove(layer, "weight") first',
    standardised: "leave it out by exclude=...",
}


@pytest.mark.parametrize("batches", [None, data()], ids=["no data", "data"])
@pytest.mark.parametrize("granularity", ["weight", "2:4", "channel"])
@pytest.mark.parametrize("wrap", REFUSED)
def test_other_transformations_are_refused_with_the_remedy(
    wrap: Callable[[nn.Module], nn.Module], batches: Data | None, granularity: str
) -> None:
    if batches is None and granularity == "channel":
        return
    model = network(wrap)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^the weight of layer '0' \([A-Z]\w+\) is transformed .*" + re.escape(REFUSED[wrap]) + "$"):
        methods.prune(model, batches, sparsity=0.5, granularity=granularity)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_refused_layers_can_be_left_out() -> None:
    model = network(new.orthogonal)
    mask = methods.prune(model, data(), "obd", sparsity=0.5, exclude=["0.*", "2.*"])
    assert list(mask) == ["4.weight"]


@pytest.mark.parametrize("wrap", [new.weight_norm, old.weight_norm, old.spectral_norm])
def test_a_norm_that_would_be_zero_is_refused_and_the_network_stays(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = network(wrap)
    outputs = model.eval()(data()[0][0])
    with pytest.raises(ValueError, match=r"^the weight of layer '0' \(Linear\) is divided by a norm, which would be zero"):
        methods.prune(model, sparsity=0.99)
    assert torch.equal(model(data()[0][0]), outputs)


class Shares(nn.Module):
    """Reads the weight of a layer without calling it; `standardise`: changed before."""

    def __init__(self, standardise: bool) -> None:
        super().__init__()
        self.layer, self.standardise = nn.Linear(20, 3), standardise

    def forward(self, x: Tensor) -> Tensor:
        w = self.layer.weight
        return F.linear(x, w - w.mean() if self.standardise else w)


def test_a_parent_that_changes_the_weight_of_its_child_is_seen_in_the_forward_pass() -> None:
    assert methods.prune(Shares(False), data(), "obd", sparsity=0.5)
    with pytest.raises(ValueError, match=r"^the weight of layer 'layer' \(Linear\) is transformed before it multiplies"):
        methods.prune(Shares(True), data(), "obd", sparsity=0.5)


class Distances(nn.Module):
    """The weight of a layer holds prototypes, whose distances another layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes, self.head = nn.Linear(20, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cdist(x, self.prototypes.weight))
        return logits


def test_activations_made_from_a_weight_are_not_taken_for_it() -> None:
    assert len(methods.prune(Distances(), data(), "snip", sparsity=0.5)) == 2


def test_compiled_layers_count_as_used() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(20, 5)), nn.ReLU(), nn.Linear(5, 3))
    assert "2.weight" in methods.prune(model, data(), "snip", sparsity=0.5)


class LowRankUpdate(nn.Module):
    """A layer whose matrix is changed by B A, with B zero at first (LoRA)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.a, self.b = nn.Parameter(torch.randn(2, layer.in_features)), nn.Parameter(torch.zeros(layer.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight + self.b @ self.a, self.layer.bias)


@pytest.mark.parametrize("method", ["magnitude", "obd", "random", "snip"])
def test_a_low_rank_update_is_refused_before_its_training_too(method: str) -> None:
    model = nn.Sequential(LowRankUpdate(nn.Linear(20, 20)), nn.ReLU(), nn.Linear(20, 3))
    with pytest.raises(ValueError, match=r"^the weight of layer '0.layer' \(Linear\) is transformed before it multiplies"):
        methods.prune(model, data(), method=method, sparsity=0.5)
    assert not model[0].b.any()
    assert set(methods.prune(model, data(), method=method, sparsity=0.5, exclude="0.*")) == {"2.weight"}


def test_a_hook_that_attention_does_not_run_is_named() -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
            old.weight_norm(self.attention.out_proj)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0].mean(1))

    with pytest.raises(
        ValueError, match=r"^the weight of layer 'attention.out_proj' \(\w+\) is computed in a hook that does not run"
    ) as error:
        methods.prune(Attentive(), [(torch.randn(4, 5, 8), torch.arange(4) % 3)], method="obd", sparsity=0.5)
    assert 'torch.nn.utils.remove_weight_norm(layer, "weight")' in str(error.value)
