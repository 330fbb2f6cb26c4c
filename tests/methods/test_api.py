"""The three calls for anybody's own code, on plain modules, with lists and loaders, on many kinds of layers."""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import methods
from methods import Criterion, Problem, Scores, kept_weights, prunable
from methods.registry import registry
from tests.methods.entries import alone, fits

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Sequential]

OF_CHANNELS = [n for n in methods.names("criteria") if not fits(n)]
CRITERIA = alone()


def loader(batches: Data, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(torch.cat(part) for part in zip(*batches, strict=True))), 16, **options)


def loss_of(model: nn.Module, batches: Data) -> float:
    with torch.no_grad():
        return sum(float(F.cross_entropy(model(x), y)) for x, y in batches)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def suited(model: nn.Module, name: str, data: Data) -> nn.Module:
    """The network, with ReLU for Tanh where the criterion is not defined for it otherwise."""
    if methods.get(name).make_criterion().unsupported(Problem(model, data)) is not None:
        for module in model.modules():
            for key, child in module.named_children():
                if isinstance(child, nn.Tanh):
                    setattr(module, key, nn.ReLU())
    return model


# --- train


@pytest.mark.parametrize("training", methods.names("trainings"))
@pytest.mark.parametrize("source", [list, loader])
def test_training_lowers_the_loss_on_a_list_and_on_a_loader(batches: Data, mlp: Make, source: Callable[[Data], Any], training: str) -> None:
    model = mlp()
    before = loss_of(model, batches)
    posterior = methods.train(model, source(batches), training=training, epochs=10, lr=0.2)
    assert loss_of(model, batches) < 0.7 * before
    assert posterior.samples == 64
    assert set(posterior.prior) == (set() if training == "decoupled" else {n for n, _ in model.named_parameters()})


def test_a_list_and_a_loader_of_the_same_batches_train_the_same_network(batches: Data, mlp: Make) -> None:
    models = [mlp(), mlp()]
    for model, source in zip(models, (batches, loader(batches)), strict=True):
        methods.train(model, source, epochs=3)
    assert equal(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize("training", methods.names("trainings"))
def test_train_prune_and_fine_tune(batches: Data, mlp: Make, training: str) -> None:
    model = mlp()
    posterior = methods.train(model, batches, training, epochs=8)
    mask = methods.prune(model, batches, "opd", sparsity=0.6, posterior=posterior)
    cut = loss_of(model, batches)
    again = methods.train(model, batches, training, epochs=8, optimizer="adam", mask=mask, posterior=posterior)
    assert again is posterior
    assert methods.mask_holds(model, mask)
    assert loss_of(model, batches) < cut


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training": "spma"}, r"unknown training 'spma' \(did you mean 'spam'\?\)"),
        ({"momentum": 0.5}, r"'map' has no hyperparameter 'momentum'"),
        ({"lr": 0.0}, r"lr=0.0 is not a finite number > 0"),
        ({"lr": -1.0, "optimizer": "adam"}, r"lr=-1.0 is not a finite number > 0"),
        ({"lr": float("nan")}, r"lr=nan is not a finite number > 0"),
        ({"weight_decay": -1e-3}, r"weight_decay=-0.001 is not a finite number >= 0"),
        ({"training": "spam", "lr": 5.0, "weight_decay": 0.3}, r"weight_decay=0.3 is above 1/lr=0.2"),
        ({"optimizer": "lion"}, r"optimizer 'lion' is not one of sgd, adam"),
        ({"epochs": -1}, r"epochs must not be negative, got -1"),
    ],
)
def test_what_train_cannot_do_is_one_line(batches: Data, mlp: Make, arguments: dict[str, Any], message: str) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=message) as error:
        methods.train(model, batches, **arguments)
    assert "\n" not in str(error.value)
    assert equal(model.state_dict(), mlp().state_dict())


@pytest.mark.parametrize(
    ("given", "lr"),
    [
        ({"optimizer": "adam", "lr": 1e-3}, 1e-3),
        ({"optimizer": "adam"}, 1e-3),
        ({"lr": 5.0}, 5.0),
        ({"weight_decay": 0}, 0.1),
    ],
)
def test_the_learning_rate_given_is_the_one_the_optimizer_takes(
    batches: Data, mlp: Make, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], lr: float
) -> None:
    """By torch's own optimisers: `lr` is that of whichever is used, and its default is 0.1 for SGD and 0.001 for Adam."""
    seen: list[float] = []

    def recorded(made: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
        def make(*args: Any, **options: Any) -> torch.optim.Optimizer:
            seen.append(options["lr"])
            return made(*args, **options)

        return make

    name = "Adam" if given.get("optimizer") == "adam" else "SGD"
    monkeypatch.setattr(torch.optim, name, recorded(getattr(torch.optim, name)))
    posterior = methods.train(mlp(), batches, training="map", epochs=1, **given)
    assert seen == pytest.approx([lr], rel=1e-15)
    assert all(float(d) == pytest.approx(given.get("weight_decay", 1e-3) * posterior.samples) for d in posterior.prior.values())
    seen.clear()
    methods.train_pruned(mlp(), batches, sparsity=0.5, epochs=2, **given)
    assert seen == pytest.approx([lr], rel=1e-15)


def test_the_former_name_of_mask_holds_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="methods.mask_holds"):
        assert methods.held is methods.mask_holds
    with pytest.raises(AttributeError, match="no attribute 'hold'"):
        methods.hold  # noqa: B018


def test_train_refuses_an_iterator_as_prune_does(batches: Data, mlp: Make) -> None:
    with pytest.raises(ValueError, match="re-iterable"):
        methods.train(mlp(), (batch for batch in batches), epochs=1)


# --- prune


AT_ONCE = [n for n in methods.names() if methods.get(n).training == "map" and methods.get(n).schedule is None and fits(n)]


@pytest.mark.parametrize("name", AT_ONCE)
@pytest.mark.parametrize("source", [list, loader])
def test_prune_is_exact_and_in_place(batches: Data, mlp: Make, name: str, source: Callable[[Data], Any]) -> None:
    model, dense = suited(mlp(), name, batches), mlp()
    mask = methods.prune(model, source(batches), name, sparsity=0.6)
    assert {n: m.shape for n, m in mask.items()} == {n: w.shape for n, w in prunable(dense).items()}
    assert kept_weights(mask) == (18, 45)
    adjusts = methods.lookup("criteria", methods.get(name).criterion).compensate is not methods.Criterion.compensate
    for n, p in dense.named_parameters():
        found = model.get_parameter(n)
        assert not found[~mask[n]].any() if adjusts and n in mask else torch.equal(found, p * mask[n] if n in mask else p)


@pytest.mark.parametrize("name", CRITERIA)
def test_batches_may_be_left_out_where_no_data_are_read(batches: Data, mlp: Make, name: str) -> None:
    if name == "synflow":  # data-free, but for the shape of the inputs
        with pytest.raises(ValueError, match="the shape of the inputs is unknown"):
            methods.prune(suited(mlp(), name, batches), method=name, sparsity=0.5)
    elif methods.lookup("criteria", name).data_free:
        assert equal(methods.scores(mlp(), method=name), methods.scores(mlp(), batches, name))
    else:
        with pytest.raises(ValueError, match=f"'{name}' reads training data: pass batches"):
            methods.prune(mlp(), method=name, sparsity=0.5)


@pytest.mark.parametrize("call", [methods.prune, methods.scores])
def test_a_method_with_a_training_of_its_own_is_refused_with_what_to_call(batches: Data, mlp: Make, call: Callable[..., Any]) -> None:
    wanted = (
        r"'spam' needs a network trained with 'spam': call posterior = methods\.train\(model, batches, training='spam'\) first, "
        r"then prune with method='opd', posterior=posterior"
    )
    options = {"sparsity": 0.5} if "sparsity" in inspect.signature(call).parameters else {}
    model = mlp()
    with pytest.raises(ValueError, match=wanted):
        call(model, batches, "spam", **options)
    with pytest.raises(ValueError, match="needs a network trained with 'spam'"):
        call(model, batches, "magnitude@spam", **options)
    assert equal(model.state_dict(), mlp().state_dict())


@pytest.mark.parametrize("used_up", [iter, lambda b: (batch for batch in b), lambda b: iter(loader(b)), lambda b: map(tuple, b)])
def test_iterators_that_are_used_up_are_refused(batches: Data, mlp: Make, used_up: Callable[[Data], Any]) -> None:
    with pytest.raises(ValueError, match="batches must be re-iterable"):
        methods.prune(mlp(), used_up(batches), "snip", sparsity=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "snap"}, r"unknown method 'snap' \(did you mean 'snip'\?\)"),
        ({"scop": "layer"}, r"'magnitude' has no hyperparameter 'scop' \(did you mean 'scope'\?\); it has: scope"),
        ({"granularity": "weights"}, r"unknown granularity 'weights' \(did you mean 'weight'\?\)"),
        ({"sparsity": 1.0}, r"sparsity 1.0 is not in \[0, 1\)"),
        ({"sparsity": 95}, r"sparsity 95 is not in \[0, 1\)"),
    ],
)
def test_what_prune_cannot_do_is_one_line(mlp: Make, arguments: dict[str, Any], message: str) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=message) as error:
        methods.prune(model, **{"sparsity": 0.5, **arguments})
    assert "\n" not in str(error.value)
    assert equal(model.state_dict(), mlp().state_dict())


def test_a_model_without_prunable_weights_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Flatten())
    with pytest.raises(ValueError, match=r"no prunable weights: '0.weight' looked up, not multiplied; include='0.weight' adds it"):
        methods.prune(model, sparsity=0.5)


def test_the_seed_decides_what_is_random(batches: Data, mlp: Make) -> None:
    for options in ({"method": "random"}, {"method": "opd", "curvature": "mc"}):
        one, again, other = (methods.scores(mlp(), batches, seed=seed, **options) for seed in (1, 1, 2))
        assert equal(one, again)
        assert not equal(one, other)
    one, again, other = (methods.prune(mlp(), method="random", sparsity=0.5, seed=seed) for seed in (1, 1, 2))
    assert equal(one, again)
    assert not equal(one, other)


def test_an_earlier_mask_is_cut_further(batches: Data, mlp: Make) -> None:
    model = mlp()
    half = methods.prune(model, sparsity=0.5)
    given = copy.deepcopy(half)
    later = methods.prune(model, batches, "snip", sparsity=0.8, mask=half)
    assert equal(half, given)
    assert kept_weights(later) == (9, 45)
    assert all(not (later[n] & ~half[n]).any() for n in half)


@dataclass(frozen=True, kw_only=True)
class Looks(Criterion):
    """s = |w|; remembers whether masked weights were at zero when it was asked."""

    data_free: ClassVar = True
    seen: ClassVar[list[bool]] = []

    def score(self, problem: Problem) -> Scores:
        self.seen.append(methods.mask_holds(problem.model, problem.mask) and not problem.model.training)
        return Scores({n: w.detach().abs() for n, w in problem.weights.items()})


@pytest.fixture
def looking() -> Iterator[list[bool]]:
    before = registry.snapshot()
    methods.register("looks")(Looks)
    Looks.seen.clear()
    yield Looks.seen
    registry.restore(before)


def test_scoring_meets_a_network_whose_masked_weights_are_zero(mlp: Make, looking: list[bool]) -> None:
    mask = methods.prune(mlp(), sparsity=0.5)
    methods.prune(mlp(), method="looks", sparsity=0.8, mask=mask)  # weights set back, as a rewind does
    assert looking == [True]


# --- scores


@pytest.mark.parametrize("name", [*CRITERIA, *OF_CHANNELS])
def test_scores_leave_the_model_as_it_was(batches: Data, name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    first = methods.scores(model, batches, name)
    wanted = {n: w.shape[:1] if name in OF_CHANNELS else w.shape for n, w in prunable(model).items()}
    assert {n: s.shape for n, s in first.items()} == {n: wanted[n] for n in first}
    assert first.keys() == wanted.keys() - ({"4.weight"} if name == "bn_scale" else set())
    assert equal(model.state_dict(), before)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert equal(first, methods.scores(model, batches, name))


@pytest.mark.parametrize("name", CRITERIA)
def test_cutting_the_scores_is_pruning(batches: Data, mlp: Make, name: str) -> None:
    if not methods.scored_once(criterion := methods.get(name).make_criterion()):
        assert not criterion.nested or len(criterion.rounds(0.0, 0.8)) > 1
        return
    scores = torch.cat([s.flatten() for s in methods.scores(mlp(), batches, name, seed=3).values()]).double()
    mask = methods.prune(mlp(), batches, name, sparsity=0.8, seed=3)
    kept = scores[torch.cat([m.flatten() for m in mask.values()])]
    assert torch.equal(kept.sort(descending=True).values, scores.sort(descending=True).values[:9])


# --- many kinds of layers


class Attention(nn.Module):
    """A very small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patches(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.token.expand(len(t), -1, -1), t], 1)
        q = self.norm(t)
        return self.head((t + self.attention(q, q, q, need_weights=False)[0])[:, 0])


class TiedWeights(nn.Module):
    """An embedding and an output layer that share one matrix, and two hidden layers that share another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(3, 4), nn.Linear(4, 4)
        self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)
        self.second.weight, self.head.weight = self.first.weight, self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        words = x.flatten(1)[:, :5].gt(0).long()
        return self.head(self.second(torch.tanh(self.first(self.embed(words).mean(1)))))


class SharedLayer(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x))))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Flatten(), nn.Linear(128, 3))


def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(1, 4, 5, stride=3), nn.ReLU(), nn.ConvTranspose1d(4, 2, 3), nn.Flatten(), nn.Linear(44, 3)
    )


def three_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 0), nn.Conv3d(1, 3, 3), nn.Flatten(), nn.Linear(108, 3)
    )


NETWORKS: dict[Callable[[], nn.Module], dict[str, int]] = {
    Attention: {"patches.weight": 128, "attention.in_proj_weight": 192, "attention.out_proj.weight": 64, "head.weight": 24},
    TiedWeights: {"embed.weight": 12, "first.weight": 16},
    grouped: {"0.weight": 36, "2.weight": 72, "4.weight": 384},
    one_dimensional: {"1.weight": 20, "3.weight": 24, "5.weight": 132},
    three_dimensional: {"2.weight": 81, "4.weight": 324},
}


@pytest.fixture(scope="module")
def images() -> Data:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(2)]


@pytest.mark.parametrize("make", NETWORKS)
def test_prunable_are_the_weights_that_multiply_activations_once_each(make: Callable[[], nn.Module]) -> None:
    assert {n: w.numel() for n, w in prunable(make()).items()} == NETWORKS[make]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_prunes_every_kind_of_layer(images: Data, name: str, make: Callable[[], nn.Module]) -> None:
    model = make()
    total = sum(NETWORKS[make].values())
    reads_inputs = name in ("wanda", "obc", "sparsegpt") and make is not grouped
    if (name == "synflow" and make in (Attention, TiedWeights)) or reads_inputs:
        with pytest.raises(ValueError, match=f"'{name}' does not support this network"):
            methods.prune(model, images, name, sparsity=0.5)
        return
    mask = methods.prune(model, images, name, sparsity=0.5)
    assert kept_weights(mask) == (total - round(total / 2), total)
    assert methods.mask_holds(model, mask)
    # Every kind of layer is truly scored: no tensor's scores are all the same.
    assert all(s.unique().numel() > 1 for s in methods.scores(make(), images, name).values())


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("name", OF_CHANNELS)
def test_criteria_of_channels_prune_every_network_that_can_lose_some(images: Data, name: str, make: Callable[[], nn.Module]) -> None:
    """As magnitude does, or a reason in one line."""
    try:
        methods.prune(make(), images, sparsity=0.4, granularity="channel")
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error)) if name != "bn_scale" else "no batch norm|no channel"):
            methods.prune(make(), images, name, sparsity=0.4, granularity="channel")
        return
    model = make()
    if name == "bn_scale":
        with pytest.raises(ValueError, match="'bn_scale' does not support this network: it has no batch norm with a scale"):
            methods.prune(model, images, name, sparsity=0.4, granularity="channel")
        return
    mask = methods.prune(model, images, name, sparsity=0.4, granularity="channel")
    assert methods.mask_holds(model, mask)
    assert kept_weights(mask)[0] < kept_weights(mask)[1]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("training", methods.names("trainings"))
def test_every_training_trains_every_kind_of_layer_under_its_mask(images: Data, training: str, make: Callable[[], nn.Module]) -> None:
    model = make()
    mask = methods.prune(model, method="random", sparsity=0.5)
    before = copy.deepcopy(model.state_dict())
    posterior = methods.train(model, images, training, epochs=2, mask=mask)
    assert methods.mask_holds(model, mask)
    assert all(not torch.equal(w, before[n]) for n, w in prunable(model).items())
    assert set(posterior.prior) == (set() if training == "decoupled" else {n for n, _ in model.named_parameters()})


@pytest.mark.parametrize("name", CRITERIA)
def test_scoring_leaves_a_layer_of_two_names_as_it_was(batches: Data, name: str) -> None:
    model = SharedLayer()
    before = model.first.weight
    assert set(methods.scores(model, batches, name)) == {"first.weight", "head.weight"}
    assert model.first.weight is model.second.weight is before


class Spare(nn.Module):
    """A network with a layer that this forward pass does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("name", CRITERIA)
def test_frozen_layers_are_prunable(batches: Data, mlp: Make, name: str) -> None:
    model = suited(mlp(), name, batches)
    model[0].requires_grad_(False)
    assert kept_weights(methods.prune(model, batches, name, sparsity=0.6)) == (18, 45)
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("name", CRITERIA)
def test_layers_that_are_not_used_are_prunable(batches: Data, name: str) -> None:
    model = Spare()
    with pytest.warns(UserWarning, match=r"'spare.weight' \(12 weights\) are not used in a forward pass"):
        assert kept_weights(methods.prune(model, batches, name, sparsity=0.6)) == (12, 30)
    assert kept_weights(methods.prune(Spare(), batches, name, sparsity=0.5, exclude="spare.*")) == (9, 18)


def test_opd_scores_frozen_layers_after_spam(batches: Data, mlp: Make) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    posterior = methods.train(model, batches, "spam", epochs=2)
    learned = methods.scores(model, batches, "opd", posterior=posterior, curvature="ef", precision=30.0)
    stated = methods.scores(model, batches, "opd", curvature="ef", precision=30.0)
    assert torch.allclose(learned["0.weight"], stated["0.weight"])  # no prior was learned for it
    assert not torch.allclose(learned["2.weight"], stated["2.weight"])
    assert kept_weights(methods.prune(model, batches, "opd", sparsity=0.6, posterior=posterior)) == (18, 45)


# --- how many samples there are


def test_the_samples_are_counted_where_the_loader_does_not_know(batches: Data, mlp: Make) -> None:
    model = mlp()
    assert Problem(model, batches).samples == 64
    assert Problem(model, loader(batches)).samples == 64
    assert Problem(model, [(x[:5], y[:5]) for x, y in batches]).samples == 20
    assert Problem(model, DataLoader(loader(batches).dataset, 24, drop_last=True)).samples == 48


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 16, "sampler": SubsetRandomSampler(range(40))}, {"batch_sampler": [[3, 4, 5], list(range(20, 50)), [0] * 7]}],
    ids=["sampler", "batch_sampler"],
)
def test_the_samples_are_those_that_a_sampler_draws(batches: Data, mlp: Make, options: dict[str, Any]) -> None:
    assert Problem(mlp(), DataLoader(loader(batches).dataset, **options)).samples == 40
