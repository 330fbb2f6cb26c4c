"""Masks as people keep them: other types, missing layers, wrong names."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods
from methods import Problem

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
