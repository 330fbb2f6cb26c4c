"""Channels: coupled by hand-drawn networks, cut to the nearest share, removed with nothing else changed."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Mask, Posterior, Problem, Scores, kept_weights, sparsity_of
from methods.checking import fixtures
from methods.core.cutting import Pruner
from methods.core.schedule import Gradual
from methods.granularity.channel import Channel, coupling_of
from methods.structure.channel_groups import Coupling

CHANNEL = Channel()
WEIGHT = methods.make("granularities", "weight", {})
Data = list[tuple[Tensor, Tensor]]


class Residual(nn.Module):
    """y = a(x), z = y + b(relu(bn(y))), depthwise c, flattened 3x3, head: 4 coupled channels on 3 x 3 inputs of 2 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y + self.b(torch.relu(self.bn(y)))
        logits: Tensor = self.head(torch.relu(self.c(z)).flatten(1))
        return logits


class AddsInput(nn.Module):
    """The channels of `a` are added to the inputs and must stay; those of `b` need not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.b(x + self.a(x))))
        return logits


class Transposes(nn.Module):
    """Six positions of six channels, mixed both ways: a trace takes the positions for the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.positions = nn.Linear(1, 6), nn.Linear(6, 6)
        self.wide, self.narrow, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.unsqueeze(2))
        x = x + self.positions(x.transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head((x + self.narrow(torch.relu(self.wide(x)))).mean(1))
        return logits


class Parts(nn.Module):
    """A gate: the first half of the channels of `a` scales the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.a(x).chunk(2, dim=1)
        logits: Tensor = self.head(torch.relu(self.b(value * torch.sigmoid(gate))))
        return logits


class FixedParts(Parts):
    """The same, but four channels are written into it."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.a(x).split(4, dim=1)
        logits: Tensor = self.head(torch.relu(self.b(value * torch.sigmoid(gate))))
        return logits


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def plain() -> nn.Module:
    """6 -> 5 -> 4 -> 3."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))


def grouped() -> nn.Module:
    """Six channels in two groups between two convolutions of one."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1),
        nn.Flatten(),
        nn.Linear(45, 3),
    )


def problem_of(make: Callable[[], nn.Module], shape: tuple[int, ...] = (6,), seed: int = 0) -> Problem:
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    return Problem(seeded(make).eval(), [(x, torch.arange(8) % 3)], seed=seed)


def residual() -> Problem:
    return problem_of(Residual, (2, 3, 3))


def coupled(problem: Problem) -> Coupling:
    return coupling_of(problem)


def ones(problem: Problem) -> Scores:
    return Scores({n: torch.ones_like(w) for n, w in problem.weights.items()})


def squares(problem: Problem) -> Scores:
    return Scores({n: w.detach().square() for n, w in problem.weights.items()})


def outputs(problem: Problem) -> Tensor:
    with torch.no_grad():
        out: Tensor = copy.deepcopy(problem.model).double()(next(iter(problem.batches))[0].double())
    return out


def masked(problem: Problem, mask: Mask) -> Problem:
    model = copy.deepcopy(problem.model)
    methods.apply_mask(model, mask)
    return replace(problem, model=model, mask=mask)


# --- coupling


def test_the_units_of_an_mlp_by_hand() -> None:
    problem = problem_of(plain)
    coupling = coupled(problem)
    assert coupling.sizes.tolist() == [6 + 4] * 5 + [5 + 3] * 4 + [4] * 3
    assert coupling.free.tolist() == [True] * 9 + [False] * 3
    assert coupling.pools.tolist() == [0] * 5 + [1] * 4 + [2] * 3
    w = {n: torch.arange(p.numel(), dtype=torch.float32).view(p.shape) for n, p in problem.weights.items()}
    first = w["0.weight"][1].sum() + w["2.weight"][:, 1].sum()
    assert coupling.sums(w)[1] == first == 6 + 7 + 8 + 9 + 10 + 11 + 1 + 6 + 11 + 16
    kept = torch.ones(12, dtype=torch.bool)
    kept[[1, 7]] = False
    mask = coupling.mask(kept)
    assert not mask["0.weight"][1].any()
    assert not mask["2.weight"][2].any()
    assert not mask["2.weight"][:, 1].any()
    assert not mask["4.weight"][:, 2].any()
    assert kept_weights(mask) == (4 * 6 + 3 * 4 + 3 * 3, 62)
    assert coupling.kept_weights(kept) == 45
    assert torch.equal(coupling.kept_units(mask), kept)


def test_what_is_added_up_is_one_unit_and_counts_each_weight_once() -> None:
    coupling = coupled(residual())
    # A row of a (18), of b (36), of c (9), a column of b (36, of which 9 lie in the row), nine columns of the head (27).
    assert coupling.sizes.tolist() == [18 + 36 + 9 + 36 - 9 + 27] * 4 + [36] * 3
    assert coupling.free.tolist() == [True] * 4 + [False] * 3
    assert coupling.lines["head.weight"][1].tolist() == [0] * 9 + [1] * 9 + [2] * 9 + [3] * 9
    assert coupling.lines["c.weight"][1].tolist() == [-1]


def test_parts_of_a_layer_are_coupled_as_they_meet() -> None:
    coupling = coupled(problem_of(Parts))
    assert coupling.lines["a.weight"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert coupling.lines["b.weight"][1].tolist() == [0, 1, 2, 3]
    assert coupling.free.tolist() == [True] * 9 + [False] * 3


@pytest.mark.parametrize(
    ("make", "shape", "stays", "goes"),
    [
        (AddsInput, (6,), "a.weight", "b.weight"),
        (Transposes, (6,), "stem.weight", "wide.weight"),
        (Transposes, (6,), "positions.weight", "wide.weight"),
        (FixedParts, (6,), "a.weight", "b.weight"),
        (grouped, (2, 3, 3), "0.weight", "4.weight"),
        (grouped, (2, 3, 3), "2.weight", "4.weight"),
    ],
)
def test_what_cannot_be_removed_stays(make: Callable[[], nn.Module], shape: tuple[int, ...], stays: str, goes: str) -> None:
    problem = problem_of(make, shape)
    coupling = coupled(problem)
    assert not coupling.free[coupling.lines[stays][0]].any()
    assert coupling.free[coupling.lines[goes][0]].all()
    mask = CHANNEL.cut(problem, squares(problem), 0.3)
    assert mask[stays].flatten(1).any(1).all()
    small = CHANNEL.compact(replace(problem, mask=mask))
    torch.testing.assert_close(outputs(small), outputs(masked(problem, mask)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(6, 3), "no channel of this network can be removed"),
        (lambda: nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)), r"cannot be traced with inputs of shape \(6,\)"),
    ],
)
def test_a_network_without_channels_to_remove_is_one_clear_line(make: Callable[[], nn.Module], message: str) -> None:
    problem = problem_of(make)
    with pytest.raises(ValueError, match=message) as error:
        CHANNEL.cut(problem, ones(problem), 0.5)
    assert "\n" not in str(error.value)


class Twice(nn.Module):
    """A layer that is called twice, and a layer with its weight: 6 channels that are all coupled, then 5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.wide, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        out: Tensor = self.head(torch.relu(self.wide(self.b(torch.relu(self.a(torch.relu(self.a(x))))))))
        return out


def test_a_weight_that_is_used_more_than_once_has_one_set_of_channels() -> None:
    problem = problem_of(Twice)
    coupling = coupled(problem)
    # A row of the stem, a row and a column of the shared weight, a column of `wide`.
    assert coupling.sizes.tolist() == [6 + 6 + 6 - 1 + 5] * 6 + [6 + 3] * 5 + [5] * 3
    assert coupling.free.tolist() == [True] * 11 + [False] * 3
    mask = CHANNEL.cut(problem, squares(problem), 0.5)
    small = CHANNEL.compact(replace(problem, mask=mask))
    assert small.model.b.weight is small.model.a.weight  # type: ignore[union-attr]
    assert kept_weights(small.mask)[1] == kept_weights(mask)[0]
    torch.testing.assert_close(outputs(small), outputs(masked(problem, mask)), rtol=0, atol=1e-12)


def test_coupling_leaves_the_model_and_the_random_state_as_they_are() -> None:
    problem = residual()
    problem.model.train()
    before, state = copy.deepcopy(problem.model.state_dict()), torch.get_rng_state()
    coupled(problem)
    assert all(m.training for m in problem.model.modules())
    assert all(torch.equal(v, before[n]) for n, v in problem.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in problem.model.parameters())


# --- cutting


def test_the_least_units_go_first_by_hand() -> None:
    problem = problem_of(plain)
    scores = ones(problem)
    for name, line in (("0.weight", 2), ("2.weight", 3)):
        scores.values[name][line] = 0.1
    # Unit 2 of the first layer has 6 · 0.1 + 3 + 0.1 = 3.7 (others 9.1) and unit 3 of the second 5 · 0.1 + 3 = 3.5 (others 8):
    # over the means of their layers, 3.7 / 8.02 = 0.46 and 3.5 / 6.875 = 0.51. Without normalisation the order is the other one.
    assert CHANNEL.cut(problem, scores, 10 / 62)["0.weight"].all(1).tolist() == [True, True, False, True, True]
    assert CHANNEL.cut(problem, scores, 10 / 62)["2.weight"].any(1).all()
    other = Channel(normalisation="none").cut(problem, scores, 8 / 62)
    assert other["0.weight"].all()
    assert other["2.weight"].all(1).tolist() == [True, True, True, False]
    # By weight: 3.7 / 10 and 3.5 / 8.
    assert not Channel(normalisation="size").cut(problem, scores, 10 / 62)["0.weight"][2].any()


@pytest.mark.parametrize("ranking", ["global", "layer"])
@pytest.mark.parametrize("normalisation", ["mean", "size", "none"])
def test_the_reached_share_is_the_nearest_along_the_order(normalisation: str, ranking: str) -> None:
    problem = problem_of(lambda: nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 13), nn.ReLU(), nn.Linear(13, 3)))
    granularity = Channel(normalisation=normalisation, ranking=ranking)
    grid = [i / 200 for i in range(190)]
    reached = {s: sparsity_of(granularity.cut(problem, squares(problem), s)) for s in grid}
    for asked, found in reached.items():
        assert abs(found - asked) <= min(abs(other - asked) for other in reached.values()) + 1e-12
    assert len(set(reached.values())) > 25  # of 20 + 13 - 2 units that may go; some steps are smaller than those of the grid


def test_layer_ranking_takes_the_same_share_of_every_layer() -> None:
    problem = problem_of(lambda: nn.Sequential(nn.Linear(6, 21), nn.ReLU(), nn.Linear(21, 11), nn.ReLU(), nn.Linear(11, 3)))
    scores = squares(problem)
    scores.values["0.weight"] *= 1000
    mask = Channel(ranking="layer", normalisation="none").cut(problem, scores, 0.7)
    shares = [float(mask[n].any(1).double().mean()) for n in ("0.weight", "2.weight")]
    assert abs(shares[0] - shares[1]) < 0.1


def test_masks_are_nested_and_ties_are_seeded() -> None:
    problem = residual_wide()
    inner, outer = (CHANNEL.cut(problem, ones(problem), s) for s in (0.7, 0.4))
    assert all(not (inner[n] & ~outer[n]).any() for n in outer)
    again, other = (CHANNEL.cut(replace(residual_wide(), seed=seed), ones(problem), 0.4) for seed in (0, 1))
    assert all(torch.equal(again[n], outer[n]) for n in outer)
    assert any(not torch.equal(other[n], outer[n]) for n in outer)


def residual_wide() -> Problem:
    return problem_of(lambda: nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)))


def test_a_later_cut_goes_on_from_the_present_mask() -> None:
    problem = residual_wide()
    half = CHANNEL.cut(problem, squares(problem), 0.5)
    later = CHANNEL.cut(replace(problem, mask=half), ones(problem), 0.8)
    assert all(not (later[n] & ~half[n]).any() for n in half)
    CHANNEL.check(replace(problem, mask=later), 0.8)
    with pytest.raises(ValueError, match=r"sparsity 0.2 is lower than the sparsity of the current mask, 0\.49"):
        CHANNEL.cut(replace(problem, mask=half), ones(problem), 0.2)


def test_no_layer_is_emptied_and_the_largest_share_is_named() -> None:
    problem = problem_of(plain)
    # One unit of each layer left: 6 + 1 + 3 of 62 weights.
    most = CHANNEL.cut(problem, squares(problem), 52 / 62)
    assert kept_weights(most) == (10, 62)
    assert all(m.any() for m in most.values())
    with pytest.raises(ValueError, match=r"sparsity 0.95 cannot be reached without emptying a layer; the largest possible is 0.8387"):
        CHANNEL.cut(problem, squares(problem), 0.95)
    with pytest.raises(ValueError, match=r"sparsity 1.0 is not in \[0, 1\)"):
        CHANNEL.cut(problem, squares(problem), 1.0)


def test_masks_that_are_not_of_channels_are_refused() -> None:
    problem = problem_of(plain)
    single = replace(problem, mask=WEIGHT.cut(problem, squares(problem), 0.5))
    for call in (lambda: CHANNEL.cut(single, ones(problem), 0.8), lambda: CHANNEL.compact(single)):
        with pytest.raises(ValueError, match="does not consist of whole channels"):
            call()
    with pytest.raises(RuntimeError, match="does not consist of whole channels"):
        CHANNEL.check(single, 0.5)


@pytest.mark.parametrize(
    ("gone", "sparsity", "message"),
    [
        ([0, 1], 0.5, "the mask has sparsity 0.32"),
        ([0, 1, 2, 3, 4], 0.8, "the mask removes all of '0.weight'"),
        ([9], 0.06, "the mask removes channels that cannot be removed"),
    ],
)
def test_check_says_what_is_wrong_with_a_mask(gone: list[int], sparsity: float, message: str) -> None:
    problem = problem_of(plain)
    kept = torch.ones(12, dtype=torch.bool)
    kept[gone] = False
    with pytest.raises(RuntimeError, match=message):
        CHANNEL.check(replace(problem, mask=coupled(problem).mask(kept)), sparsity)


# --- cutting to a cost


def parameters(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters())


def test_a_share_of_a_cost_is_reached_to_the_nearest_unit() -> None:
    problem = residual_wide()
    for asked in (0.25, 0.6, 0.9):
        mask = CHANNEL.cut(problem, squares(problem), asked, parameters)
        small = CHANNEL.compact(replace(problem, mask=mask)).model
        # The largest unit has 24 + 24 weights and a bias of 951.
        assert abs(1 - parameters(small) / parameters(problem.model) - asked) <= 49 / 951 / 2
        CHANNEL.check(replace(problem, mask=mask), asked, parameters)
    with pytest.raises(RuntimeError, match="the mask has sparsity"):
        CHANNEL.check(replace(problem, mask=mask), 0.5, parameters)
    with pytest.raises(ValueError, match="granularity 'weight' does not make networks smaller"):
        WEIGHT.cut(problem, squares(problem), 0.5, parameters)


def test_a_measured_cost_may_be_noisy() -> None:
    problem, noise = residual_wide(), torch.Generator().manual_seed(0)

    def milliseconds(model: nn.Module) -> float:
        return parameters(model) * (1 + 0.1 * float(torch.rand((), generator=noise)))

    mask = CHANNEL.cut(problem, squares(problem), 0.6, milliseconds)
    assert 0.4 < sparsity_of(mask) < 0.8


@pytest.mark.parametrize("name", methods.names("criteria"))
def test_every_criterion_cuts_channels_that_can_be_removed(name: str) -> None:
    problem = fixtures.problem_of()
    criterion = methods.make("criteria", name, {})
    if criterion.refusal(CHANNEL) is not None:
        assert name in ("wanda", "obc", "sparsegpt", "rigl", "set", "granet")
        return
    problem.mask = methods.cut(problem, criterion, CHANNEL, 0.5)
    CHANNEL.check(problem, 0.5)
    assert methods.mask_holds(problem.model, problem.mask)
    problem.model.eval()
    torch.testing.assert_close(outputs(CHANNEL.compact(problem)), outputs(problem), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["obd", "synflow"])
def test_criteria_cut_to_a_cost_in_all_their_rounds(name: str) -> None:
    problem = problem_of(lambda: nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)))
    criterion = methods.make("criteria", name, {})
    half = methods.cut(problem, criterion, CHANNEL, 0.5, cost=parameters)
    CHANNEL.check(replace(problem, mask=half), 0.5, parameters)
    most = methods.cut(replace(problem, mask=half), criterion, CHANNEL, 0.8, cost=parameters)
    CHANNEL.check(replace(problem, mask=most), 0.8, parameters)
    assert methods.mask_holds(problem.model, most)


# --- removing


@pytest.mark.parametrize("make", [residual, lambda: problem_of(plain), lambda: problem_of(Parts)])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.7])
def test_the_smaller_network_computes_the_same(make: Callable[[], Problem], sparsity: float) -> None:
    problem = make()
    for name, b in problem.model.named_buffers():
        if name.endswith(("mean", "var")):
            b.copy_(torch.rand(b.shape, generator=torch.Generator().manual_seed(2)) + 0.5)
    dense = outputs(problem)
    mask = CHANNEL.cut(problem, squares(problem), sparsity)
    small = CHANNEL.compact(replace(problem, mask=mask))
    assert {n: p.numel() for n, p in small.weights.items()} == {n: int(m.sum()) for n, m in mask.items()}
    torch.testing.assert_close(outputs(small), outputs(masked(problem, mask)), rtol=0, atol=1e-12)
    assert torch.equal(dense, outputs(problem))
    assert sparsity == 0 or not torch.allclose(dense, outputs(small), atol=1e-3)


def test_what_is_left_keeps_its_order() -> None:
    problem = problem_of(lambda: nn.Sequential(nn.Linear(6, 300), nn.LayerNorm(300), nn.PReLU(300), nn.Linear(300, 3)))
    for p in problem.model.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    mask = CHANNEL.cut(problem, squares(problem), 0.97)
    rows = mask["0.weight"].any(1)
    assert 3 < int(rows.sum()) < 15
    small, dense = CHANNEL.compact(replace(problem, mask=mask)).model.state_dict(), problem.model.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight"):
        assert torch.equal(small[name], dense[name][rows])
    assert torch.equal(small["3.weight"], dense["3.weight"][:, rows])


def test_the_smaller_network_is_a_plain_module_of_its_own() -> None:
    problem = residual()
    problem.model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    problem.model.a.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    mask = CHANNEL.cut(problem, squares(problem), 0.5)
    small = methods.compact(problem.model, mask, problem.batches)
    assert type(small) is Residual
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["a.weight"]
    assert small.training
    assert small.b.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, operator]
    assert small.c.groups == small.bn.num_features == small.a.out_channels == 2  # type: ignore[union-attr]
    again = methods.compact(problem.model, mask, input_shape=(2, 3, 3))
    again.load_state_dict(small.state_dict())
    x, y = next(iter(problem.batches))
    before = float(F.cross_entropy(small(x), y).detach())
    methods.train(small, problem.batches, epochs=20)
    assert float(F.cross_entropy(small(x), y).detach()) < before
    assert kept_weights(problem.mask)[0] == kept_weights(problem.mask)[1]


def test_prune_and_compact_as_in_anybodys_code() -> None:
    model = seeded(plain)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 6, generator=generator), torch.arange(16) % 3) for _ in range(3)]
    mask = methods.prune(model, batches, method="obd", sparsity=0.5, granularity="channel")
    small = methods.compact(model, mask, batches)
    assert parameters(small) < 0.6 * parameters(model)
    torch.testing.assert_close(small(batches[0][0]), model(batches[0][0]))
    with pytest.raises(ValueError, match="the shape of the inputs is unknown"):
        methods.compact(model, mask)
    with pytest.raises(ValueError, match="granularity 'weight' does not make networks smaller"):
        methods.compact(model, mask, batches, granularity="weight")


def test_scores_of_the_dense_network_serve_all_sparsities() -> None:
    problem = residual_wide()
    criterion = methods.make("criteria", "magnitude", {})
    scores = methods.score(problem, criterion)
    for sparsity in (0.3, 0.6, 0.9):
        mask = methods.cut(replace(problem, model=copy.deepcopy(problem.model)), criterion, CHANNEL, sparsity, scores)
        fresh = methods.cut(replace(problem, model=copy.deepcopy(problem.model)), criterion, CHANNEL, sparsity)
        assert all(torch.equal(mask[n], fresh[n]) for n in mask)
        CHANNEL.check(replace(problem, mask=mask), sparsity)


def test_channels_are_cut_while_training() -> None:
    problem = residual_wide()
    problem.batches = [(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(2)]
    pruner = Pruner(methods.make("criteria", "magnitude", {}), CHANNEL, Gradual(begin=0.0, end=0.8), 0.7)
    methods.fit(problem, methods.make("trainings", "map", {}), methods.Recipe(epochs=5), pruner=pruner)
    CHANNEL.check(problem, 0.7)
    assert methods.mask_holds(problem.model, problem.mask)
    torch.testing.assert_close(outputs(CHANNEL.compact(problem)), outputs(problem), rtol=0, atol=1e-12)


# --- posteriors


def test_a_posterior_is_sliced_to_what_is_left() -> None:
    problem = residual()
    draw = torch.Generator().manual_seed(3)

    def values() -> dict[str, Tensor]:
        return {n: torch.rand(p.shape, generator=draw) for n, p in problem.model.named_parameters()}

    def square(groups: int, n: int) -> Tensor:
        return torch.rand(groups, n, n, generator=draw, dtype=torch.float64)

    factors = {"b.weight": (square(1, 4), square(1, 36)), "c.weight": (square(4, 1), square(4, 9)), "b.bias": (square(1, 4), square(1, 1))}
    prior: dict[str, Tensor] = {**values(), "a.bias": torch.tensor(2.0)}
    problem.posterior = Posterior(prior, 8, 0.5, values(), factors, (1.0,))
    kept = torch.tensor([True, False, True, False, True, True, True])
    small = CHANNEL.compact(replace(problem, mask=coupled(problem).mask(kept)))
    found = small.posterior
    assert found is not None
    assert (found.samples, found.temperature, found.marginal_likelihood) == (8, 0.5, (1.0,))
    assert found.prior["a.bias"] == 2.0
    left = [0, 2]
    for name, p in small.model.named_parameters():
        assert found.curvature[name].shape == p.shape
    assert torch.equal(found.prior["b.weight"], prior["b.weight"][left][:, left])
    assert torch.equal(found.prior["bn.weight"], prior["bn.weight"][left])
    assert torch.equal(found.curvature["head.weight"], problem.posterior.curvature["head.weight"].view(3, 4, 9)[:, left].reshape(3, 18))
    # Of B ⊗ A over the whole weight, the rows and columns of what is left.
    flat = torch.arange(144).view(4, 4, 9)[left][:, left].flatten()
    whole, part = torch.kron(factors["b.weight"][0][0], factors["b.weight"][1][0]), found.factors["b.weight"]
    torch.testing.assert_close(torch.kron(part[0][0], part[1][0]), whole[flat][:, flat])
    assert torch.equal(found.factors["c.weight"][1], factors["c.weight"][1][left])
    assert torch.equal(found.factors["b.bias"][0], factors["b.bias"][0][:, left][:, :, left])


@pytest.mark.parametrize("options", [{}, {"structure": "kron"}])
def test_a_learned_posterior_fine_tunes_the_smaller_network(options: dict[str, Any]) -> None:
    problem = residual_wide()
    name = "spam_kfac" if options else "spam"
    training = methods.get(name).make_training()
    problem.posterior = methods.fit(problem, training, methods.Recipe(epochs=4))
    problem.mask = methods.cut(problem, methods.make("criteria", "opd", {}), CHANNEL, 0.5)
    small = CHANNEL.compact(problem)
    assert small.posterior is not None
    methods.fit(small, training, methods.Recipe(epochs=2), previous=small.posterior)
    assert methods.score(small, methods.make("criteria", "opd", {})).values.keys() == small.weights.keys()


def test_wrapped_networks_lose_the_same_channels() -> None:
    """DataParallel, compiled, or plain: the same mask, and a smaller network with the outputs of the masked one."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    data = [(torch.randn(8, 1, 6, 6), torch.arange(8) % 3)]
    wanted = list(methods.prune(copy.deepcopy(plain), data, sparsity=0.4, granularity="channel").values())
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        model = wrap(copy.deepcopy(plain)).eval()
        mask = methods.prune(model, data, sparsity=0.4, granularity="channel")
        assert all(torch.equal(a, b) for a, b in zip(mask.values(), wanted, strict=True))
        small = methods.compact(model, mask, data)
        with torch.no_grad():
            torch.testing.assert_close(small(data[0][0]), model(data[0][0]))
