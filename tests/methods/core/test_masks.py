"""Masks as people keep them: other types, missing layers, wrong names."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import methods
from methods import Problem
from methods.core.masks import full_mask, settled, shuffled, stored
from methods.core.prunable import prunable

Make = Callable[..., nn.Sequential]
Data = list[tuple[Tensor, Tensor]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
def test_masks_of_zeros_and_ones_of_any_type(mlp: Make, batches: Data, dtype: torch.dtype) -> None:
    half = methods.prune(mlp(), sparsity=0.5)
    given = {n: m.to(dtype) for n, m in half.items()}
    wanted = methods.prune(mlp(), sparsity=0.8, mask=half)
    found = methods.prune(mlp(), sparsity=0.8, mask=given)
    assert all(torch.equal(found[n], m) and found[n].dtype == torch.bool for n, m in wanted.items())
    model = mlp()
    methods.train(model, batches, epochs=1, mask=given)
    assert methods.mask_holds(model, half)


def test_layers_that_a_mask_does_not_name_are_kept_until_cut(mlp: Make, batches: Data) -> None:
    part = {"0.weight": methods.prune(mlp(), sparsity=0.5)["0.weight"]}
    mask = methods.prune(mlp(), sparsity=0.8, mask=part)
    assert list(mask) == ["0.weight", "2.weight"]
    assert sum(int((~m).sum()) for m in mask.values()) == round(0.8 * 45)
    assert not bool((mask["0.weight"] & ~part["0.weight"]).any())
    model = mlp()
    methods.train(model, batches, epochs=1, mask=part)
    assert methods.mask_holds(model, part)


WRONG: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    (lambda m: {"conv9.weight": m["0.weight"]}, "the mask names 'conv9.weight', but the network has no such weight"),
    (
        lambda m: {"module." + n: v for n, v in m.items()},
        "the mask names 'module.0.weight', but the network has no such weight; did you mean '0.weight'?",
    ),
    (lambda m: {"0.bias": torch.ones(5)}, "the mask names '0.bias', which is not among the weights to prune"),
    (lambda m: {**m, "0.weight": m["0.weight"][:3]}, "the mask of '0.weight' must have the shape of the weight, (5, 6), not (3, 6)"),
    (lambda m: {**m, "0.weight": m["0.weight"] * 0.5}, "the mask of '0.weight' must be bool, or hold only 0 (removed) and 1 (kept)"),
    (lambda m: {**m, "0.weight": m["0.weight"].tolist()}, "the mask of '0.weight' must be a tensor, not a list"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_no_mask_of_the_network_is_named(mlp: Make, batches: Data, change: Callable[..., Any], message: str) -> None:
    mask = change(methods.prune(mlp(), sparsity=0.5))
    calls: list[Callable[[], Any]] = [
        lambda: methods.prune(mlp(), sparsity=0.8, mask=mask),
        lambda: methods.train(mlp(), batches, epochs=1, mask=mask),
        lambda: methods.train_pruned(mlp(), batches, sparsity=0.8, epochs=2, mask=mask),
        lambda: methods.scores(mlp(), mask=mask),
        lambda: methods.compact(mlp(), mask, input_shape=(6,)),
        lambda: Problem(mlp(), batches, mask=mask),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)


def two_layers() -> tuple[nn.Sequential, dict[str, Tensor]]:
    """Two layers of ones, and a mask that removes one weight of each."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    mask = full_mask(model)
    for name, m in mask.items():
        model.get_parameter(name).data.fill_(1.0)
        m[1, 0] = False
    return model, mask


def test_a_mask_holds_only_if_it_holds_in_every_layer() -> None:
    model, mask = two_layers()
    assert not methods.mask_holds(model, mask)
    for layer in (0, 1):
        model, mask = two_layers()
        model[layer].weight.data[1, 0] = 0.0
        assert not methods.mask_holds(model, mask)
    methods.apply_mask(model, mask)
    assert methods.mask_holds(model, mask)
    assert [p.tolist() for n, p in model.named_parameters() if n in mask] == [[[1.0] * 3, [0.0, 1.0, 1.0]], [[1.0] * 2, [0.0, 1.0]]]


def test_counts_are_sums_over_layers() -> None:
    _, mask = two_layers()
    assert methods.kept_weights(mask) == (8, 10)
    assert methods.sparsity_of(mask) == pytest.approx(0.2)


def test_shuffled_moves_weights_within_their_layer_by_the_generator() -> None:
    mask = {"a": torch.arange(600).view(20, 30) < 150, "b": torch.arange(400).view(4, 10, 10) < 300}
    first, again, other = (shuffled(mask, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for name, m in mask.items():
        assert (first[name].shape, first[name].dtype, int(first[name].sum())) == (m.shape, torch.bool, int(m.sum()))
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    # Of the 300 places that were kept before, or not, a share of 1/4 and 3/4 is expected: 37.5 and 75 of 150 and 100.
    assert abs(int((first["a"] & mask["a"]).sum()) - 37.5) < 5 * 4.6
    assert abs(int((first["b"] & ~mask["b"]).sum()) - 75) < 5 * 3.8


def test_a_weight_that_is_computed_is_stored_in_the_parameters_of_its_shape() -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    length, direction = layer.parametrizations["weight"].original0, layer.parametrizations["weight"].original1
    assert (length.shape, direction.shape) == ((2, 1), (2, 3))
    (found,) = stored(layer, "weight", layer.weight.shape)
    assert found is direction
    plain = nn.Sequential(nn.Linear(3, 2))
    (found,) = stored(plain, "0.weight", plain[0].weight.shape)
    assert found is plain[0].weight


def test_a_mask_may_name_a_weight_that_is_computed_now() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    mask = {n: m.float() for n, m in two_layers()[1].items()}
    parametrizations.weight_norm(model[0])
    weights = {"1.weight": model[1].weight}
    found = settled(mask, weights, model)
    assert list(found) == ["1.weight", "0.weight"]
    assert found["0.weight"] is mask["0.weight"]
    assert (found["1.weight"].dtype, found["1.weight"].tolist()) == (torch.bool, [[True, True], [False, True]])


def said(mask: Any, model: nn.Module) -> str:
    with pytest.raises((ValueError, TypeError)) as error:
        settled(mask, prunable(model), model)
    return str(error.value)


def test_wrong_names_are_explained() -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    ones = torch.ones(3, 3)
    assert said({"1.weight": ones}, tied) == "the mask names '1.weight', another name of '0.weight': use '0.weight'"
    unknown = "the mask names '{}', but the network has no such weight"
    assert said({"qqq": ones}, tied) == unknown.format("qqq")
    near = nn.ModuleDict({"lin": nn.Linear(3, 3), "modulelin": nn.Linear(3, 3), "_orig_mod_lin": nn.Linear(3, 3)})
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        name = f"{prefix}lin.weight"
        assert said({name: ones}, near) == unknown.format(name) + "; did you mean 'lin.weight'?"
    assert said({"modulelinn.weight": ones}, near) == unknown.format("modulelinn.weight") + "; did you mean 'modulelin.weight'?"


def test_masks_of_other_types_and_weights_without_values_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    assert "mask must be a dict: weight name -> bool tensor" in said([("0.weight", torch.ones(2, 3))], model)
    assert "the name of a weight" in said({0: torch.ones(2, 3)}, model)
    assert said({}, model.to("meta")) == "'0.weight' has no values, because it is on the meta device"
