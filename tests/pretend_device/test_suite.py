"""A small suite on a device that is not the CPU: planning, jobs, tuning, stored networks and measurement."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from bench.data.batches import Batches
from bench.data.split import Split
from bench.execution.executors import Inline
from bench.execution.run import run
from bench.planning.request import Request, make_request
from bench.planning.searches import searches
from bench.spec.choices import Narrowing
from bench.spec.row import Row
from bench.storage.rows import Store
from bench.trial.job import Environment
from bench.trial.trial import stream
from methods.core import population
from tests.bench.suites import FIELDS
from tests.pretend_device import device

DEVICE = device.register()
METHODS = ["spam", "magnitude", "snip", "woodfisher", "rigl", "magnitude_gradual", "magnitude@dwf"]
SUITE = """
name = "small"
description = "seconds"
blocks = [{ dataset = "digits", architectures = ["lenet5"] }]
sparsities = [0.5, 0.9]
seeds = [0]
epochs = 2
batch_size = 64
"""
SAME = ("key", "status", "error", "kept_weights", "parameters_kept", "flops", "flops_kept", "training_flops", "hyperparameters")
CLOSE = ("accuracy", "nll", "brier", "dense_accuracy", "dense_nll", "effective_sparsity", "accuracy_before_finetune")


def asked(where: str, folder: Path, more: str = "", *, stack: int = 1, **narrowing: object) -> Request:
    """The request of a small suite on a device."""
    assert narrowing.keys() <= FIELDS | {"methods"}
    folder.mkdir(exist_ok=True)
    (folder / "small.toml").write_text(SUITE + more + ("" if "train_limit" in more else "train_limit = 256\n"))
    environment = Environment(where, None, folder / "cache", stack=stack)
    return make_request(str(folder / "small.toml"), Narrowing(**{"methods": METHODS, **narrowing}), environment)


def rows(where: str, folder: Path, more: str = "", *, stack: int = 1, **narrowing: object) -> list[Row]:
    """The rows of a small suite on a device."""
    request = asked(where, folder, more, stack=stack, **narrowing)
    return run(request, Store(f"sqlite:///{folder / 'store.db'}"), Inline(), lambda: nullcontext(lambda _: None))


@pytest.mark.parametrize(
    ("more", "narrowing"),
    [
        ("finetune_epochs = [0, 1]\naugment = ['crop', 'flip']\n", {}),
        ("mixup = 0.2\nlabel_smoothing = 0.1\n", {"methods": ["spam", "magnitude"]}),
        ("match = 'flops'\n", {"methods": ["spam", "magnitude"], "granularity": "channel"}),
        ("", {"methods": ["spam", "woodfisher", "snip"], "trials": 2, "sparsities": [0.9]}),
        ("recalibrate_batchnorm = true\n", {"methods": ["magnitude"], "architectures": ["test_resnet"], "sparsities": [0.9]}),
        ("", {"methods": ["spam", "kfac_obs"], "architectures": ["test_vit"], "sparsities": [0.9]}),
    ],
)
def test_a_suite_gives_the_rows_of_the_cpu(more: str, narrowing: dict[str, object], tmp_path: Path) -> None:
    there, here = (rows(where, tmp_path / where, more, **narrowing) for where in ("cpu", device.NAME))
    assert len(here) == len(there)
    assert {row.status for row in there} <= {"ok", "collapsed"}
    for a, b in zip(there, here, strict=True):
        assert [getattr(b, n) for n in SAME if hasattr(b, n)] == [getattr(a, n) for n in SAME if hasattr(a, n)], a
        for name in CLOSE:
            assert getattr(b, name) == pytest.approx(getattr(a, name), abs=1e-4), (name, a)
        assert b.device.startswith("pretend: ")
        assert a.device.startswith("cpu: ")
        assert json.loads(b.environment)["deterministic"] is True
        assert "deterministic" not in json.loads(a.environment)


@pytest.mark.parametrize("stack", [2, 3])
def test_networks_trained_as_one_give_the_rows_of_one_by_one(stack: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stack of 2, three sparsities are a pair and a single one."""
    passes: list[int] = []
    original = population._Population.losses
    monkeypatch.setattr(population._Population, "losses", lambda self, steps: (passes.append(len(steps)), original(self, steps))[1])
    choice = {"methods": ["spam", "magnitude", "snip"], "sparsities": [0.5, 0.8, 0.9]}
    more = "finetune_epochs = [0, 1]\naugment = ['crop']\n"
    alone = rows(device.NAME, tmp_path / "alone", more, **choice)
    assert not passes
    together = rows(device.NAME, tmp_path / "together", more, stack=stack, **choice)
    batches, methods_after = 256 // 64, 2
    # Spam and magnitude are fine-tuned for one epoch; snip trains for two, and is fine-tuned for one.
    assert passes == [stack] * batches * (methods_after * 1 + 3)
    assert len(together) == len(alone)
    for a, b in zip(alone, together, strict=True):
        assert [getattr(b, n) for n in SAME if hasattr(b, n)] == [getattr(a, n) for n in SAME if hasattr(a, n)], a
        for name in CLOSE:
            assert getattr(b, name) == pytest.approx(getattr(a, name), abs=2e-3), (name, a)
        assert json.loads(b.environment)["stack"] == stack


def test_what_cannot_be_trained_as_one_is_trained_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(runs: object, steps: object) -> None:
        raise population.NotAlike("no")

    choice = {"methods": ["magnitude", "snip"], "sparsities": [0.5, 0.9]}
    alone = rows(device.NAME, tmp_path / "alone", "finetune_epochs = [0, 1]\n", **choice)
    monkeypatch.setattr(population._Population, "losses", refuse)
    together = rows(device.NAME, tmp_path / "together", "finetune_epochs = [0, 1]\n", stack=2, **choice)
    measured = ("status", "accuracy", "nll", "kept_weights", "training_flops")
    assert [[getattr(r, n) for n in measured] for r in together] == [[getattr(r, n) for n in measured] for r in alone]


def test_networks_are_trained_as_one_only_when_the_first_of_them_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So tuning may stop early, and the rows of the first networks are stored before the others are trained."""
    passes: list[int] = []
    original = population._Population.losses
    monkeypatch.setattr(population._Population, "losses", lambda self, steps: (passes.append(len(steps)), original(self, steps))[1])
    request = asked(device.NAME, tmp_path, "", stack=2, methods=["snip"], sparsities=[0.5, 0.6, 0.8, 0.9], trials=1)
    (study,) = searches(request, f"sqlite:///{tmp_path / 'store.db'}")[1]
    points = stream(study.jobs[0])
    steps = 256 // 64 * 2  # of two epochs
    done = [(next(points)[0].sparsity, len(passes)) for _ in range(4)]
    assert done == [(0.5, steps), (0.6, steps), (0.8, 2 * steps), (0.9, 2 * steps)]


def test_searches_with_and_without_a_stack_are_not_mixed(tmp_path: Path) -> None:
    keys = set()
    for stack in (1, 2, 3):
        request = asked(device.NAME, tmp_path / str(stack), "", stack=stack, methods=["snip"], trials=1)
        keys |= {study.key for study in searches(request, f"sqlite:///{tmp_path / 'store.db'}")[1]}
    assert len(keys) == 3


def test_peak_memory_is_without_the_data(tmp_path: Path) -> None:
    """More examples in the data set need no more memory in its rows, up to the index of the examples."""
    few, many = (
        next(
            r for r in rows(device.NAME, tmp_path / str(n), f"train_limit = {n}\n", methods=["magnitude"]) if not r.sparsity
        ).peak_memory_mb
        for n in (256, 1024)
    )
    assert few is not None
    assert many is not None
    assert few > 0.1  # the network's parameters, gradients and momentum alone
    data = (1024 - 256) * 8 * 8 * 4 / 1e6  # megabytes of the further examples in float32
    assert many - few < data / 4


def test_batches_of_data_that_stay_on_the_host_are_those_on_the_device() -> None:
    generator = torch.Generator().manual_seed(0)
    raw, targets = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8, generator=generator), torch.arange(50) % 5
    split = Split(raw, torch.arange(50), targets, torch.tensor([100.0]).view(1, 1, 1), torch.tensor([50.0]).view(1, 1, 1))
    whole = (raw.float() - 100.0) / 50.0
    for placed in (split.placed(raw, DEVICE), split.placed(raw.to(DEVICE), DEVICE)):
        found = list(Batches(placed, 16, seed=3))
        assert all(x.device == DEVICE and y.device == DEVICE for x, y in found)
        order = torch.cat([y for _, y in Batches(split, 16, seed=3)])
        assert torch.equal(torch.cat([y for _, y in found]).cpu(), order)
        again = list(Batches(split.placed(raw, DEVICE), 16, shuffle=False))
        assert torch.equal(torch.cat([x for x, _ in again]).cpu(), whole)
