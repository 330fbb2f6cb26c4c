"""How a job computes on a device that is not the CPU: deterministic, without TensorFloat-32 where numbers are compared."""

import os
from typing import Any

import pytest
import torch

import methods
from bench.trial import device as devices
from methods.core.tensorfloat import without_tf32
from tests.pretend_device import device
from tests.pretend_device.test_methods import batches, network

DEVICE = device.register()


def switches() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def flags() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), cudnn.deterministic,
        cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )  # fmt: skip


def test_a_job_is_deterministic_and_leaves_the_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    with devices.repeatable(DEVICE):
        assert flags() == (True, True, True, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert flags() == before


def test_on_the_cpu_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    with devices.repeatable(torch.device("cpu")):
        assert flags() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert devices.numerics(torch.device("cpu")) == {}


def test_a_workspace_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with devices.repeatable(DEVICE):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize("older", [True, False])
def test_products_are_exact_only_inside(older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", older)
    before = switches()
    with without_tf32():
        assert switches() == ("ieee", "ieee", "ieee")
        assert torch.backends.cudnn.allow_tf32 is False
    assert switches() == before
    assert torch.backends.cudnn.allow_tf32 is older


def test_products_are_exact_where_the_newer_switches_were_set() -> None:
    cudnn: Any = torch.backends.cudnn
    usual = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"  # torch refuses to read its older switch now
    try:
        before = switches()
        with without_tf32():
            assert switches() == ("ieee", "ieee", "ieee")
        assert switches() == before
    finally:
        cudnn.conv.fp32_precision = usual
    assert torch.backends.cudnn.allow_tf32 is True


@pytest.mark.parametrize("criterion", ["snip", "grasp", "obd", "opd", "woodfisher", "kfac_obs", "taylor", "wanda", "sparsegpt", "obc"])
def test_scores_from_data_are_computed_exactly(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each forward pass on data is without TensorFloat-32."""
    model, seen = network(), set[tuple[Any, ...]]()
    model[0].register_forward_hook(lambda module, inputs, output: seen.add(switches()))
    granularity = "channel" if criterion == "taylor" else "weight"
    methods.prune(model, batches(), method=criterion, sparsity=0.5, granularity=granularity)
    assert ("ieee", "ieee", "ieee") in seen
    assert switches() != ("ieee", "ieee", "ieee")


def test_training_may_use_tensorfloat() -> None:
    """Only what is compared or inverted pays for exact products."""
    model, seen = network(), set[tuple[Any, ...]]()
    model[0].register_forward_hook(lambda module, inputs, output: seen.add(switches()))
    methods.train(model, batches(), epochs=1)
    assert seen == {switches()}
