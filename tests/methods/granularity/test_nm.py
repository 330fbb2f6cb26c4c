"""n:m patterns against the groups written out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods
from methods import Problem, Scores, get_granularity
from methods.core.interface import Groups
from methods.granularity.nm import Pattern, semi_structured


def problem_of(*layers: nn.Module) -> Problem:
    torch.manual_seed(0)
    return Problem(nn.Sequential(*layers), [])


def magnitudes(problem: Problem) -> Scores:
    return Scores({n: w.detach().abs() for n, w in problem.weights.items()})


def test_the_two_best_of_four_inputs_stay() -> None:
    problem = problem_of(nn.Linear(8, 1, bias=False))
    scores = {"0.weight": torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0, 8.0, 7.0, 6.0]])}
    mask = Pattern().cut(problem, Scores(scores), 0.5)
    assert mask["0.weight"].tolist() == [[False, True, True, False, True, True, False, False]]


# A convolution sums over dimension 1 of (out, in, 2, 2), a transposed one over dimension 0 of (in, out/groups, 2, 2).
@pytest.mark.parametrize(("layer", "dim"), [(lambda: nn.Conv2d(8, 3, 2), 1), (lambda: nn.ConvTranspose2d(8, 6, 2, groups=2), 0)])
def test_a_convolution_has_groups_of_input_channels_at_each_place(layer: Callable[[], nn.Module], dim: int) -> None:
    problem = problem_of(layer())
    scores = magnitudes(problem)
    mask = Pattern().cut(problem, scores, 0.5)["0.weight"].movedim(dim, 1)
    values = scores.values["0.weight"].movedim(dim, 1)
    assert values.shape == (3, 8, 2, 2)
    for out in range(3):
        for row in range(2):
            for column in range(2):
                for group in (slice(0, 4), slice(4, 8)):
                    v, kept = values[out, group, row, column], mask[out, group, row, column]
                    assert kept.sum() == 2
                    assert v[kept].min() > v[~kept].max()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 4)])
def test_any_pattern_by_name(n: int, m: int) -> None:
    granularity = get_granularity(f"{n}:{m}")
    assert granularity.fixed_sparsity == 1 - n / m
    problem = problem_of(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    mask = granularity.cut(problem, magnitudes(problem), 1 - n / m)
    assert all((kept.reshape(-1, m).sum(1) == n).all() for kept in mask.values())
    problem.mask = mask
    granularity.check(problem, 1 - n / m)


@pytest.mark.parametrize("name", ["4:2", "2:2", "0:4", "4:1", "a:b", "2:4:8"])
def test_what_is_no_pattern_is_said(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        get_granularity(name)


def test_layers_that_do_not_fit_stay_dense_and_none_that_fits_is_unsupported() -> None:
    problem = problem_of(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    mask = Pattern().cut(problem, magnitudes(problem), 0.5)
    assert mask["0.weight"].all()
    assert mask["2.weight"].float().mean() == 0.5
    odd = problem_of(nn.Linear(6, 3))
    assert Pattern().unsupported(odd) == "no layer has a multiple of 4 inputs"
    with pytest.raises(ValueError, match="does not support this network"):
        methods.prune(odd.model, method="magnitude", granularity="2:4")


def test_rounds_lead_to_the_pattern_inside_each_other() -> None:
    """Down to a sparsity below its own, what the pattern will remove goes in the order of scores over all layers."""
    problem = problem_of(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    scores = magnitudes(problem)
    last = Pattern().cut(problem, scores, 0.5)
    previous = problem.mask
    for sparsity in (0.1, 0.25, 0.4, 0.5):
        problem.mask = previous
        mask = Pattern().cut(problem, scores, sparsity)
        removed = torch.cat([(~m).flatten() for m in mask.values()])
        assert removed.sum() == round(sparsity * removed.numel())
        assert all(not (mask[n] & ~previous[n]).any() for n in mask)
        assert all(not (~mask[n] & last[n]).any() for n in mask), "nothing goes that the pattern keeps"
        values = torch.cat([scores.values[n].flatten() for n in mask])
        doomed = torch.cat([(~last[n]).flatten() for n in mask])
        assert sparsity == 0.5 or values[removed].max() <= values[doomed & ~removed].min()
        previous = mask
        problem.mask = mask
        Pattern().check(problem, sparsity)


def test_ties_are_drawn_by_the_seed_and_nested() -> None:
    def cut(seed: int, sparsity: float) -> Tensor:
        problem = problem_of(nn.Linear(64, 16))
        problem.seed = seed
        return Pattern().cut(problem, Scores({"0.weight": torch.zeros(16, 64)}), sparsity)["0.weight"]

    assert torch.equal(cut(0, 0.5), cut(0, 0.5))
    assert not torch.equal(cut(0, 0.5), cut(1, 0.5))
    assert not (cut(0, 0.5) & ~cut(0, 0.25)).any()
    per_place = cut(0, 0.5).view(-1, 4).float().mean(0)
    assert ((per_place - 0.5).abs() < 0.2).all(), "no place is preferred"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: m["0.weight"].fill_(True), "but sparsity"),
        (lambda m: m["0.weight"][0, :4].fill_(False), "keeps 0 of 4"),
        (lambda m: m["2.weight"][0].fill_(False), "is not a multiple of 4"),
    ],
)
def test_a_mask_that_breaks_the_pattern_is_found(spoil: Any, said: str) -> None:
    problem = problem_of(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    problem.mask = Pattern().cut(problem, magnitudes(problem), 0.5)
    Pattern().check(problem, 0.5)
    spoil(problem.mask)
    with pytest.raises(RuntimeError, match=said):
        Pattern().check(problem, 0.5)


def test_a_sparsity_that_is_not_the_patterns_and_a_mask_beyond_it_are_refused() -> None:
    problem = problem_of(nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"2:4 has sparsity 0\.5: 0\.9 is not between 0 and this"):
        Pattern().cut(problem, magnitudes(problem), 0.9)
    problem.mask["0.weight"][0, :3] = False
    with pytest.raises(ValueError, match="removes more than 2:4"):
        Pattern().cut(problem, magnitudes(problem), 0.5)


def test_prune_needs_no_sparsity_for_a_pattern_and_one_otherwise() -> None:
    model = nn.Linear(8, 4)
    assert methods.prune(model, method="magnitude", granularity="2:4")["weight"].float().mean() == 0.5
    assert (model.weight == 0).sum() == 16
    with pytest.raises(ValueError, match="sparsity is required"):
        methods.prune(nn.Linear(8, 4), method="magnitude")


@pytest.mark.gpu
def test_semi_structured_weights_compute_the_same() -> None:
    from methods.granularity.nm import semi_structured

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).cuda()
    mask = methods.prune(model, method="magnitude", granularity="2:4")
    model = model.half().eval()
    inputs = torch.randn(128, 256, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        dense = model(inputs)
        assert semi_structured(model, mask) == ["0.weight"], "ten outputs are too few for the sparse form"
        torch.testing.assert_close(model(inputs), dense, rtol=1e-2, atol=1e-2)


def test_the_removed_inputs_of_a_transposed_convolution_have_no_effect_on_groups_of_outputs() -> None:
    """In the dense matrix of the layer, every output reads at most two of each four input channels at a place."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose1d(8, 3, 2, bias=False)
    problem = Problem(nn.Sequential(layer), [])
    problem.mask = Pattern().cut(problem, magnitudes(problem), 0.5)
    methods.apply_mask(problem.model, problem.mask)
    with torch.no_grad():
        matrix = layer(torch.eye(8).view(8, 8, 1)).flatten(1).T  # (output and place, input channel)
    assert all(int((row.view(2, 4)[k] != 0).sum()) == 2 for row in matrix for k in range(2))


def test_bilinear_layers_and_included_embeddings_stay_dense() -> None:
    model = nn.ModuleDict({"pair": nn.Bilinear(4, 8, 2), "table": nn.Embedding(4, 8), "head": nn.Linear(8, 4)})
    problem = Problem(model, [], include="table.*")
    mask = Pattern().cut(problem, magnitudes(problem), 0.5)
    assert {n: bool(m.all()) for n, m in mask.items()} == {"pair.weight": True, "table.weight": True, "head.weight": False}


def test_recurrent_and_attention_matrices_have_groups_along_their_inputs() -> None:
    problem = Problem(nn.ModuleDict({"rnn": nn.GRU(8, 4), "attention": nn.MultiheadAttention(8, 2)}), [])
    mask = Pattern().cut(problem, magnitudes(problem), 0.5)
    assert set(mask) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj.weight"}
    assert all((m.view(len(m), -1, 4).sum(2) == 2).all() for m in mask.values())


def test_the_number_of_removed_weights_is_rounded() -> None:
    """Four of eight weights go at 0.5: at 0.2 it is 1.6 of them, so 2, and at 0.05 it is 0.4, so none."""
    problem = problem_of(nn.Linear(8, 1, bias=False))
    scores = Scores({"0.weight": torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0, 8.0, 7.0, 6.0]])})
    for sparsity, removed in ((0.0, []), (0.05, []), (0.1, [0]), (0.2, [0, 3]), (0.4, [0, 3, 7]), (0.5, [0, 3, 6, 7])):
        mask = Pattern().cut(problem, scores, sparsity)
        assert (~mask["0.weight"][0]).nonzero().flatten().tolist() == removed
        Pattern().check(Problem(problem.model, [], mask=mask), sparsity)
    for sparsity in (-0.1, 0.51):
        with pytest.raises(ValueError, match="is not between 0 and this"):
            Pattern().cut(problem, scores, sparsity)


def test_a_cut_is_refused_for_costs_and_where_no_layer_fits() -> None:
    odd, problem = problem_of(nn.Linear(6, 3)), problem_of(nn.Linear(8, 3))
    with pytest.raises(ValueError, match="no layer has a multiple of 4 inputs"):
        Pattern().cut(odd, magnitudes(odd), 0.5)
    with pytest.raises(ValueError, match=r"."):
        Pattern().cut(problem, magnitudes(problem), 0.5, lambda model: 1.0)


def test_groups_lie_along_the_inputs() -> None:
    problem = problem_of(nn.Conv2d(4, 3, 2), nn.ConvTranspose2d(8, 6, 2), nn.Linear(6, 8), nn.Linear(8, 1))
    assert Pattern(n=1, m=4).groups(problem) == {"0.weight": Groups(1, 4, 1), "1.weight": Groups(1, 4, 0), "3.weight": Groups(1, 4, 1)}


def test_masked_linear_weights_of_the_shapes_of_the_format_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion itself needs a GPU: here it multiplies by three."""
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: 3 * weight)
    shapes = [(32, 64), (64, 128), (32, 96), (48, 64), (33, 64), (32, 65), (32, 64), (32, 64)]
    model = nn.Sequential(*(nn.Linear(i, o) for o, i in shapes), nn.Conv1d(64, 32, 1))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    mask = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if n.endswith("weight") and n != "7.weight"}
    for name, m in mask.items():
        m.view(-1)[0] = name == "6.weight"  # a full mask: this layer stays dense
    assert semi_structured(model, mask) == ["0.weight", "1.weight"]
    for name, p in model.named_parameters():
        converted = name in ("0.weight", "1.weight")
        assert torch.equal(p, before[name] * (3 if converted else 1))
        assert p.requires_grad != converted
