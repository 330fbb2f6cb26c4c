"""Metrics against formulas written out, sizes against counts done by hand."""

import pytest
import torch
from torch import nn

from bench.data import Split
from bench.spec.row import DECLARED
from bench.trial import cost as costs
from bench.trial.cost import cost, dense, latency, peak_memory, size
from bench.trial.flops import layer_flops
from bench.trial.metrics import METRICS, at_chance, logits_of, quality
from methods import full_mask


def test_quality_against_the_formulas() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(300, 10) * 2, torch.randint(10, (300,))
    p = torch.softmax(logits.double(), 1)
    q = quality(logits, y)
    assert q["accuracy"] == pytest.approx(float((p.argmax(1) == y).double().mean()), abs=1e-7)
    assert q["nll"] == pytest.approx(float(-p[torch.arange(300), y].log().mean()), abs=1e-9)
    onehot = torch.eye(10, dtype=torch.float64)[y]
    assert q["brier"] == pytest.approx(float(((p - onehot) ** 2).sum(1).mean()), abs=1e-9)
    assert q["top5"] == pytest.approx(sum(int(y[i]) in p[i].topk(5).indices.tolist() for i in range(300)) / 300, abs=1e-7)
    confidence, hit, ece = p.max(1).values, p.argmax(1) == y, 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            ece += float(inside.double().mean() * (hit[inside].double().mean() - confidence[inside].mean()).abs())
    assert q["ece"] == pytest.approx(ece, abs=1e-6)


def test_the_worst_class_is_the_one_a_loop_finds_and_classes_without_samples_do_not_count() -> None:
    """Labels of 4 of 5 classes; predictions drawn at random, right more often for class 0 than for the others."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(4, (200,), generator=generator)
    logits = torch.randn(200, 5, generator=generator) + 2.0 * torch.nn.functional.one_hot(targets, 5) * (targets == 0)[:, None]
    shares = []
    for c in range(4):
        own = [k for k in range(200) if int(targets[k]) == c]
        shares.append(sum(max(range(5), key=lambda j: float(logits[k, j])) == c for k in own) / len(own))
    assert quality(logits, targets)["worst_class_accuracy"] == pytest.approx(min(shares), abs=1e-15)
    assert min(shares) < max(shares)


def test_every_metric_is_a_declared_column() -> None:
    assert set(METRICS) <= set(DECLARED)


def test_a_collapsed_network_has_finite_metrics() -> None:
    q = quality(torch.zeros(40, 3), torch.arange(40) % 3)
    assert q["nll"] == pytest.approx(torch.tensor(3.0).log().item())
    assert q["top5"] is None, "fewer than six classes"
    sure_and_wrong = quality(torch.tensor([[1e4, 0.0]]), torch.tensor([1]))
    assert sure_and_wrong["nll"] == pytest.approx(1e4)
    assert sure_and_wrong["brier"] == pytest.approx(2.0)


def test_outputs_that_are_not_finite_raise() -> None:
    with pytest.raises(FloatingPointError):
        quality(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))


def test_at_chance_is_no_better_than_naming_the_most_frequent_class() -> None:
    """Of 100 labels 60 are of class 0: two standard errors are 2 * sqrt(0.6 * 0.4 / 100) = 0.098, so 69 hits are chance, 70 are not."""
    targets = torch.tensor([0] * 60 + [1] * 40)

    def logits(hits: int) -> torch.Tensor:
        named = torch.where(torch.arange(100) < hits, targets, 1 - targets)
        return torch.nn.functional.one_hot(named, 2).float()

    assert at_chance(torch.tensor([[1.0, 0.0]]).expand(100, 2), targets)
    assert at_chance(logits(69), targets)
    assert not at_chance(logits(70), targets)


def test_logits_are_those_of_eval_mode_in_order() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9)).train()
    x = torch.randn(1201, 2)
    assert torch.allclose(logits_of(model, Split.of(x, torch.zeros(1201))), model[0](x), atol=1e-6)


def test_flops_and_sizes_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 4, 5))
    total, layers = flops = layer_flops(model, (1, 4, 4))
    conv, linear = 2 * (4 * 4) * 2 * 9, 2 * 32 * 5  # a multiply and an add for each weight and position
    assert layers == {"0.weight": conv, "3.weight": linear}
    assert total == conv + linear
    mask = full_mask(model)
    mask["3.weight"][:4] = False
    mask["0.weight"][0] = False
    s = size(model, mask, flops)
    whole = dense(model, (1, 4, 4))
    assert (whole.prunable, whole.parameters, whole.flops) == (18 + 160, 18 + 2 + 160 + 5, total)
    assert s.parameters_kept == 9 + 2 + 32 + 5
    assert s.flops_kept == conv // 2 + linear // 5
    assert s.layers_collapsed == 0
    mask["0.weight"][:] = False
    assert size(model, mask, flops).layers_collapsed == 1


def test_costs_to_match_are_those_of_the_network() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    named = {match: cost(match, model, (1, 4, 4)) for match in ("parameters", "flops", "latency")}
    found = {match: measure(model) for match, measure in named.items()}
    assert (found["parameters"], found["flops"]) == (16 * 5 + 5, 2 * 16 * 5)
    assert found["latency"] > 0


def test_latency_is_the_median_of_many_in_turns_and_leaves_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def stopwatch(model: nn.Module, inputs: torch.Tensor) -> float:
        assert not model.training
        seen.append(model[0].out_features)  # type: ignore[index, arg-type]
        return 1e6 if len(seen) <= 6 + 2 * 4 else float(seen[-1])  # the first passes are warm-up, and four of ten are disturbed

    monkeypatch.setattr(costs, "_milliseconds", stopwatch)
    models = [nn.Sequential(nn.Linear(8, width)).train() for width in (3, 7)]
    assert latency(models, torch.randn(4, 8), seconds=0.0) == [3.0, 7.0]
    assert seen == [3, 7] * 13, "three passes to warm up, ten that count, the models in turns"
    assert all(model.training for model in models)


def test_peak_memory_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1000, 2000), nn.ReLU(), nn.Linear(2000, 10))
    weights, inputs = 4 * (1000 * 2000 + 2000 + 2000 * 10 + 10), 4 * 100 * 1000
    between = 2 * 4 * 100 * 2000  # while ReLU runs its input and its output are alive
    assert peak_memory(model, torch.randn(100, 1000)) == pytest.approx((weights + inputs + between) / 1e6)
    in_place = nn.Sequential(model[0], nn.ReLU(inplace=True), model[2])
    final = 4 * 100 * 10
    assert peak_memory(in_place, torch.randn(100, 1000)) == pytest.approx((weights + inputs + between / 2 + final) / 1e6)
