"""The importance for Torch-Pruning against sums written out by hand, and in Torch-Pruning's own pruner."""

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import methods

Data = list[tuple[Tensor, Tensor]]
pytestmark = pytest.mark.filterwarnings("ignore:.*the same score:UserWarning")  # of channels that are zero for all eight images


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    )


@pytest.fixture
def images() -> Data:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 4, 4, generator=generator), torch.randint(5, (8,), generator=generator))]


@pytest.mark.parametrize("method", ["magnitude", "obd", "snip"])
def test_a_channel_counts_for_all_weights_that_are_removed_with_it(images: Data, method: str) -> None:
    model = network()
    graph = tp.DependencyGraph().build_dependency(model, images[0][0][:1], verbose=False)
    (group,) = graph.get_all_groups(ignored_layers=[model[6]])
    s = methods.scores(model, images, method)
    # Channel c: its rows in both convolutions (the second is depthwise), and its 4 pixels among the columns of the last layer.
    wanted = [s["0.weight"][c].sum() + s["3.weight"][c].sum() + s["6.weight"][:, 4 * c : 4 * c + 4].sum() for c in range(4)]
    found = methods.Importance(model, images, method)(group)
    torch.testing.assert_close(found, torch.stack(wanted).double(), rtol=1e-5, atol=0)


def test_a_transposed_convolution_has_its_rows_second() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 1, 1))
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, 1, 2, 2), verbose=False)
    groups = {group[0].dep.target.module: group for group in graph.get_all_groups(ignored_layers=[model[2]])}
    s, importance = methods.scores(model), methods.Importance(model)
    first = [s["0.weight"][c].sum() + s["1.weight"][c].sum() for c in range(3)]
    second = [s["1.weight"][:, c].sum() + s["2.weight"][:, c].sum() for c in range(4)]
    torch.testing.assert_close(importance(groups[model[0]]), torch.stack(first).double())
    torch.testing.assert_close(importance(groups[model[1]]), torch.stack(second).double())


def test_its_pruner_removes_the_channels_of_lowest_importance_round_by_round(images: Data) -> None:
    model = network()
    kept = methods.Importance(model, images, "obd")
    graph = tp.DependencyGraph().build_dependency(model, images[0][0][:1], verbose=False)
    (group,) = graph.get_all_groups(ignored_layers=[model[6]])
    best = kept(group).topk(2).indices.sort().values
    rows = model[0].weight[best].clone()
    importance = methods.Importance(model, images, "obd")
    tp.pruner.BasePruner(model, images[0][0][:1], importance, pruning_ratio=0.5, ignored_layers=[model[6]]).step()
    assert torch.equal(model[0].weight, rows)
    tp.pruner.BasePruner(model, images[0][0][:1], importance, pruning_ratio=0.5, ignored_layers=[model[6]]).step()  # scored again
    assert model[0].out_channels == 1
    assert model(images[0][0]).shape == (8, 5)
