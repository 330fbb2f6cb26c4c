"""What a call of a method must leave as it was; each change is found, named and put right."""

import builtins
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import methods
from methods.core import unaltered
from methods.core.unaltered import unaltered_network


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@torch.no_grad()
def _write(model: nn.Module) -> None:
    model.get_parameter("0.weight")[0, 0] += 1e-6


def _swap(model: nn.Module) -> None:
    model.get_submodule("0").weight = nn.Parameter(torch.zeros(3, 4))


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a weight in place": (_write, "it changed '0.weight'"),
    "a weight through .data": (lambda model: model[2].bias.data.fill_(7), "it changed '2.bias'"),
    "a new parameter": (_swap, "it changed the modules of the network"),
    "a module": (lambda model: setattr(model, "0", nn.Linear(4, 3)), "it changed the modules of the network"),
    "a forward of its own": (lambda model: setattr(model[0], "forward", lambda x: x), "it changed the modules of the network"),
    "a hook": (lambda model: model[1].register_forward_hook(lambda *_: None), "it left 1 hooks on the network"),
    "a parametrisation": (
        lambda model: torch.nn.utils.parametrizations.weight_norm(model[0]), "it changed the modules of the network"
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_found(change: str) -> None:
    model = network()
    act, message = CHANGES[change]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(methods.Altered, match=message), unaltered_network(model, "it"):
        act(model)
    if message.startswith("it changed '"):
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), "the values are put back"


def test_a_network_that_is_put_back_by_the_call_is_not_a_change() -> None:
    model = network()
    model[0].weight.data[0, 0] = float("nan")
    with unaltered_network(model, "it"):
        old = model[2].weight.detach().clone()
        model[2].weight.data.zero_()
        handle = model[0].register_forward_hook(lambda *_: None)
        model.train(not model.training)
        model[2].weight.data.copy_(old)
        handle.remove()


def _patch(place: Any, name: str) -> None:
    setattr(place, name, lambda *_, **__: None)


STATE: dict[str, tuple[Callable[[], object], Callable[[], Any], str]] = {
    "torch's generator": (lambda: torch.manual_seed(1), lambda: torch.get_rng_state().tolist(), "torch's global random state"),
    "numpy's generator": (lambda: np.random.rand(), lambda: np.random.get_state()[2], "numpy's global random state"),
    "numpy's normal draws": (lambda: np.random.normal(), lambda: np.random.get_state()[3:], "numpy's global random state"),
    "python's generator": (random.random, random.getstate, "the random state of the module random"),
    "the default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype, "the default dtype"),
    "threads": (lambda: torch.set_num_threads(2), torch.get_num_threads, "the number of threads"),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled, "whether gradients are computed"),
    "determinism": (lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled, "deterministic"),
    "matmul": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision, "precision of matrix products"),
    "the default device": (lambda: torch.set_default_device("meta"), torch.get_default_device, "the default device"),
    "hooks of all modules": (
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
        lambda: len(unaltered.EVERY_HOOKS[0]), "hooks of all modules",
    ),
    "oneDNN": (lambda: setattr(torch.backends.mkldnn, "enabled", False), lambda: torch.backends.mkldnn.enabled, "the use of oneDNN"),
    "cuDNN": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark, "torch.backends.cudnn.benchmark"
    ),
    "a function of torch": (lambda: _patch(torch, "topk"), lambda: torch.topk, "the function 'topk'"),
    "a functional": (lambda: _patch(torch.nn.functional, "linear"), lambda: torch.nn.functional.linear, "the function 'linear'"),
    "a method of tensors": (lambda: _patch(Tensor, "abs"), lambda: Tensor.abs, "the function 'abs'"),
    "one function for another": (lambda: setattr(torch, "add", torch.sub), lambda: torch.add, "the function 'add'"),
    "a function of ours": (lambda: _patch(methods.core.cutting, "apply_mask"), lambda: methods.core.cutting.apply_mask, "'apply_mask'"),
    "a builtin": (lambda: _patch(builtins, "sum"), lambda: sum, "the function 'sum'"),
    "the clock": (lambda: _patch(time, "perf_counter"), lambda: time.perf_counter, "the function 'perf_counter'"),
    "the folder": (lambda: os.chdir("/"), os.getcwd, "the working folder"),
    "recursion": (lambda: sys.setrecursionlimit(500), sys.getrecursionlimit, "the recursion limit"),
    "autocast": (lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu"), "autocast"),
    "a deleted function": (lambda: delattr(torch, "addmm"), lambda: torch.addmm, "the function 'addmm'"),
    "a module's forward": (lambda: _patch(nn.Linear, "forward"), lambda: nn.Linear.forward, "the function 'forward'"),
}  # fmt: skip


@pytest.mark.parametrize("change", STATE)
@pytest.mark.parametrize("raising", [False, True])
def test_a_changed_state_of_the_process_is_found_and_put_back(change: str, raising: bool) -> None:
    act, read, message = STATE[change]
    before = read()

    def call() -> None:
        with methods.unaltered_process("it"):
            act()
            assert not raising, "the call's own error"

    with pytest.raises((methods.Altered, AssertionError), match="the call's own error" if raising else message):
        call()
    assert read() == before


def test_draws_are_put_back_and_said_only_where_they_are_not_allowed() -> None:
    before = torch.get_rng_state()
    with methods.unaltered_process("it", draws=True):
        torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_torch_may_wrap_its_own_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiler replaces `torch.manual_seed` when it is first used."""
    monkeypatch.setattr(torch, "manual_seed", torch.random.manual_seed)
    wrapped = torch._disable_dynamo(torch.random.manual_seed)
    with methods.unaltered_process("it"):
        monkeypatch.setattr(torch, "manual_seed", wrapped)
    assert torch.manual_seed is wrapped
