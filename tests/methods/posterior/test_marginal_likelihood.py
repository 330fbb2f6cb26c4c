"""Prior precisions of every structure, over every kind of block, against a slow optimiser of the dense objective."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.curvature import blocks as blocks_module
from methods.curvature.blocks import Block, Diagonal, Kronecker
from methods.posterior import marginal_likelihood
from methods.posterior.marginal_likelihood import PRIORS, Maximiser, closed_form, log_marginal_likelihood
from methods.posterior.units import Units

DOUBLE = torch.float64
WIDE = (1e-9, 1e9)
Blocks = dict[str, Block]
Values = dict[str, Tensor]


def gram(generator: torch.Generator, groups: int, n: int, rank: int, scale: float = 1.0) -> Tensor:
    r = torch.randn(groups, n, rank, generator=generator, dtype=DOUBLE) * torch.rand(groups, n, 1, generator=generator, dtype=DOUBLE)
    return scale * r @ r.mT


def problem(structure: str, seed: int = 0, scale: float = 1.0) -> tuple[Blocks, Values]:
    """Blocks of a grouped convolution, its bias, a norm and a linear layer whose factors lack rank; and θ²."""
    g = torch.Generator().manual_seed(seed)
    blocks: Blocks = {
        "conv": Kronecker(gram(g, 2, 2, 3, scale), gram(g, 2, 12, 20), torch.Size([4, 3, 2, 2])),
        "bias": Kronecker(gram(g, 1, 4, 6, scale), torch.ones(1, 1, 1, dtype=DOUBLE), torch.Size([4])),
        "norm": Diagonal(scale * torch.rand(4, generator=g, dtype=DOUBLE) + 0.01),
        "linear": Kronecker(gram(g, 1, 3, 2, scale), gram(g, 1, 4, 3), torch.Size([3, 4])),
    }
    if structure == "diagonal":
        blocks = {n: Diagonal(b.diagonal()) for n, b in blocks.items()}
    squares = {n: (0.1 + torch.randn(b.diagonal().shape, generator=g, dtype=DOUBLE)).square() * 0.3 + 1e-3 for n, b in blocks.items()}
    return blocks, squares


def dense(block: Block) -> Tensor:
    if isinstance(block, Diagonal):
        return torch.diag(block.h.flatten())
    assert isinstance(block, Kronecker)
    return torch.block_diag(*(torch.kron(b, a) for b, a in zip(block.outer, block.inner, strict=True)))


def basis(block: Block) -> Tensor:
    if isinstance(block, Diagonal):
        return torch.eye(block.h.numel(), dtype=DOUBLE)
    assert isinstance(block, Kronecker)
    pairs = zip(block.outer, block.inner, strict=True)
    return torch.block_diag(*(torch.kron(torch.linalg.eigh(b).eigenvectors, torch.linalg.eigh(a).eigenvectors) for b, a in pairs))


def gain(block: Block, log_d: Tensor, squares: Tensor, projected: bool = False) -> Tensor:
    """-½ [log det P - Σ log d + Σ d θ²] of one block by dense matrices; P with the off-diagonal of Qᵀ diag(d) Q left out, if projected."""
    u = log_d.flatten()
    precision = dense(block) + torch.diag(u.exp())
    if projected:
        q = basis(block)
        precision = torch.diag((q.T @ precision @ q).diagonal())
    return -0.5 * (torch.linalg.slogdet(precision).logabsdet - u.sum() + (u.exp() * squares.flatten()).sum())


def is_projected(prior: str, name: str, block: Block) -> bool:
    """Where `methods.blocks` has no exact solution: a free d over Kronecker factors."""
    return isinstance(block, Kronecker) and prior == "parameter"


def totals(prior: str, blocks: Blocks, log_d: Values, squares: Values) -> Tensor:
    return torch.stack([gain(b, log_d[n], squares[n], is_projected(prior, n, b)) for n, b in blocks.items()]).sum()


def parametrised(prior: str, blocks: Blocks) -> tuple[list[Tensor], Callable[[list[Tensor]], Values]]:
    """Free numbers at zero, and log d of every parameter from them; written out apart from `methods.evidence`."""
    shapes = {n: b.diagonal().shape for n, b in blocks.items()}
    if prior == "scalar":
        return [torch.zeros((), dtype=DOUBLE)], lambda z: {n: z[0].expand(s) for n, s in shapes.items()}
    if prior == "layer":
        return [torch.zeros((), dtype=DOUBLE) for _ in shapes], lambda z: {
            n: v.expand(s) for v, (n, s) in zip(z, shapes.items(), strict=True)
        }
    free: list[Tensor] = []
    places: dict[str, tuple[int, ...]] = {}
    for n, s in shapes.items():
        places[n] = (len(free),)
        if prior == "unit" and len(s) > 1:
            block = blocks[n]
            groups = len(block.outer) if isinstance(block, Kronecker) else 1
            free += [torch.zeros(s[0], dtype=DOUBLE), torch.zeros(groups, s[1], dtype=DOUBLE)]
        else:
            free.append(torch.zeros(s, dtype=DOUBLE))

    def expand(z: list[Tensor]) -> Values:
        out = {}
        for n, s in shapes.items():
            (k,) = places[n]
            if prior == "unit" and len(s) > 1:
                r, c = z[k], z[k + 1]
                per_row = c.repeat_interleave(s[0] // len(c), 0)
                out[n] = (r.view(-1, 1) + per_row).view(*s[:2], *[1] * (len(s) - 2)).expand(s)
            else:
                out[n] = z[k]
        return out

    return free, expand


def slow(prior: str, blocks: Blocks, squares: Values) -> tuple[Values, float]:
    """(log d, value) where L-BFGS ends."""
    free, expand = parametrised(prior, blocks)
    for z in free:
        z.requires_grad_(True)
    search = torch.optim.LBFGS(
        free, max_iter=600, tolerance_grad=1e-8, tolerance_change=1e-14, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        lost = -totals(prior, blocks, expand(free), squares)
        lost.backward()
        return lost

    search.step(closure)
    log_d = {n: v.detach() for n, v in expand(free).items()}
    return log_d, float(totals(prior, blocks, log_d, squares))


def at(prior: str, blocks: Blocks, d: Values, squares: Values) -> float:
    return float(totals(prior, blocks, {n: v.log().expand_as(squares[n]) for n, v in d.items()}, squares))


def started(blocks: Blocks, d: float) -> Values:
    return {n: torch.tensor(d, dtype=DOUBLE) for n in blocks}


# --- the maximum


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("prior", PRIORS)
def test_precisions_are_where_a_slow_optimiser_ends(prior: str, scale: float, structure: str) -> None:
    blocks, squares = problem(structure, scale=scale)
    wanted, best = slow(prior, blocks, squares)
    for start in (1e-3, 1e4):
        found = Maximiser(prior, WIDE)(blocks, squares, started(blocks, start))
        value = at(prior, blocks, found, squares)
        assert value == pytest.approx(best, rel=1e-4, abs=1e-5)
        assert value <= best + 1e-6 * abs(best) + 1e-9
        for n, u in wanted.items():
            off = (found[n].log().expand_as(u) - u)[u.abs() < 12]
            assert off.abs().max() < 0.15  # the maximum is flat: 1e-4 of its value is this much in log d
            assert off.square().mean() < 0.05**2
    shapes = {n: v.shape for n, v in found.items()}
    assert shapes == {n: torch.Size([]) if prior in ("scalar", "layer") else squares[n].shape for n in blocks}


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("prior", PRIORS)
def test_the_maximum_found_is_stationary(prior: str, structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With time enough, to many digits, by autograd through dense matrices."""
    monkeypatch.setattr(marginal_likelihood, "FACTORISATIONS", 200)
    monkeypatch.setattr(marginal_likelihood, "STILL", 1e-8)
    blocks, squares = problem(structure, seed=3)
    found = Maximiser(prior, WIDE)(blocks, squares, started(blocks, 0.1))
    free, expand = parametrised(prior, blocks)
    log_d = {n: v.log().expand_as(squares[n]) for n, v in found.items()}
    for z in free:
        z.requires_grad_(True)
    around = expand(free)
    slopes = torch.autograd.grad(totals(prior, blocks, {n: u + around[n] for n, u in log_d.items()}, squares), free)
    assert max(float(s.abs().max()) for s in slopes) < 1e-4


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(PRIORS),
    st.sampled_from(["diagonal", "kronecker"]),
    st.integers(0, 2**20),
    st.floats(-4, 4),
    st.floats(0, 1),
    st.floats(0.1, 4),
)
def test_the_evidence_never_falls_and_bounds_hold(
    prior: str, structure: str, seed: int, log_scale: float, place: float, width: float
) -> None:
    """Also between tight bounds, and from a start of the same structure anywhere between them."""
    blocks, squares = problem(structure, seed, 10**log_scale)
    bounds = (10.0**-width, 10.0**width)
    start = started(blocks, 10 ** (width * (2 * place - 1)))
    maximise = Maximiser(prior, bounds)
    before = at(prior, blocks, start, squares)
    for _ in range(2):
        found = maximise(blocks, squares, start)
        after = at(prior, blocks, found, squares)
        assert after >= before - 1e-5 * (1 + abs(before))
        assert all((v >= bounds[0]).all() and (v <= bounds[1] * (1 + 1e-12)).all() for v in found.values())
        start, before = found, after


@pytest.mark.parametrize("prior", PRIORS)
def test_a_second_update_changes_little(prior: str) -> None:
    """What turns back and forth would not."""
    blocks, squares = problem("kronecker")
    once = Maximiser(prior, WIDE)(blocks, squares, started(blocks, 1e2))
    again = Maximiser(prior, WIDE)(blocks, squares, once)
    assert all((again[n].log() - d.log()).abs().max() < 0.05 for n, d in once.items())


def test_large_factors_have_the_projected_maximum_of_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "MAX_EXACT", 1)
    blocks, squares = problem("kronecker")
    del blocks["bias"], blocks["norm"]
    free, expand = parametrised("unit", blocks)
    for z in free:
        z.requires_grad_(True)
    search = torch.optim.LBFGS(free, max_iter=400, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def value(log_d: Values) -> Tensor:
        return torch.stack([gain(b, log_d[n], squares[n], projected=True) for n, b in blocks.items()]).sum()

    def closure() -> Tensor:
        search.zero_grad()
        lost = -value(expand(free))
        lost.backward()
        return lost

    search.step(closure)
    best = float(value(expand(free)).detach())
    for start in (1e-3, 1e4):
        found = Maximiser("unit", WIDE)(blocks, squares, started(blocks, start))
        assert float(value({n: d.log() for n, d in found.items()})) == pytest.approx(best, rel=1e-5)


# --- closed forms and special cases


@pytest.mark.parametrize("d", [1e-3, 1.0, 1e3])
def test_axis_aligned_factors_have_the_closed_form(d: float) -> None:
    """Where eigenvectors are axes the projection is no approximation: parameter-wise, as for a diagonal block."""
    g = torch.Generator().manual_seed(0)
    b, a = (torch.diag_embed(torch.rand(1, n, generator=g, dtype=DOUBLE) * 9) for n in (3, 4))
    block = Kronecker(b, a, torch.Size([3, 4]))
    squares = {"w": torch.rand(3, 4, generator=g, dtype=DOUBLE)}
    found = Maximiser("parameter", WIDE)({"w": block}, squares, {"w": torch.tensor(d, dtype=DOUBLE)})["w"]
    assert torch.allclose(found, closed_form(block.diagonal(), squares["w"]), rtol=2e-2)
    log_d = found.log()
    exact = closed_form(block.diagonal(), squares["w"]).log()
    assert float(gain(block, log_d, squares["w"])) == pytest.approx(float(gain(block, exact, squares["w"])), rel=1e-5)


@pytest.mark.parametrize("prior", ["unit", "layer", "scalar"])
def test_one_weight_has_the_closed_form_under_every_prior(prior: str) -> None:
    for h in (1e-4, 1.0, 1e4):
        for square in (1e-3, 1.0, 30.0):
            squares = {"w": torch.tensor([[square]], dtype=DOUBLE)}
            wanted = float(closed_form(torch.tensor(h, dtype=DOUBLE), squares["w"][0, 0]))
            for block in (
                Diagonal(torch.tensor([[h]], dtype=DOUBLE)),
                Kronecker(*torch.tensor([[[[h]]], [[[1.0]]]]).double(), torch.Size([1, 1])),
            ):
                found = Maximiser(prior, WIDE)({"w": block}, squares, {"w": torch.tensor(1.0, dtype=DOUBLE)})["w"]
                assert float(found.log()) == pytest.approx(math.log(wanted), abs=2e-3)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("prior", PRIORS)
def test_masked_weights_take_no_part(prior: str, structure: str) -> None:
    """A whole row is cut: the others' precisions are those of the layer without it (as its gradients are, here, apart from theirs)."""
    g = torch.Generator().manual_seed(0)
    outer = torch.block_diag(gram(g, 1, 1, 2)[0], gram(g, 1, 3, 5)[0]).unsqueeze(0)
    inner = gram(g, 1, 5, 9)
    squares = 0.2 * torch.rand(4, 5, generator=g, dtype=DOUBLE)
    squares[0] = 0.0
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0] = False
    whole: Block = Kronecker(outer, inner, torch.Size([4, 5]))
    rest: Block = Kronecker(outer[:, 1:, 1:], inner, torch.Size([3, 5]))
    if structure == "diagonal":
        whole, rest = Diagonal(whole.diagonal() * mask), Diagonal(rest.diagonal())
    start = {"w": torch.tensor(0.3, dtype=DOUBLE)}
    found = Maximiser(prior, WIDE, {"w": mask})({"w": whole}, {"w": squares}, start)["w"]
    alone = Maximiser(prior, WIDE)({"w": rest}, {"w": squares[1:]}, start)["w"]
    kept = found.expand(4, 5)[1:].log() - alone.expand(3, 5).log()
    assert kept.abs().max() < 2e-2
    unmasked = Maximiser(prior, WIDE)({"w": whole}, {"w": squares}, start)["w"]
    if prior in ("scalar", "layer") and structure == "kronecker":
        assert abs(float((unmasked / found).log())) > 2e-2


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
def test_dead_units_and_missing_curvature_leave_the_others_alone(prior: str, structure: str, single: bool) -> None:
    """A row and a column of zero weights, a row and a column without curvature: finite, bounded, and no poor solution for the rest."""
    g = torch.Generator().manual_seed(1)
    outer, inner = gram(g, 1, 6, 20), gram(g, 1, 8, 20)
    squares = 0.2 * torch.rand(6, 8, generator=g, dtype=DOUBLE) + 0.01
    squares[0], squares[:, 1] = 0.0, 0.0
    for m, k in ((outer, 2), (inner, 3)):
        m[:, k], m[:, :, k] = 0.0, 0.0
    block: Block = Kronecker(outer, inner, torch.Size([6, 8]))
    block = Diagonal(block.diagonal()) if structure == "diagonal" else block
    bounds = (1e-2, 1e3)
    start = {"w": torch.tensor(1e-2, dtype=DOUBLE)}
    before = at(prior, {"w": block}, start, {"w": squares})
    wanted = at(prior, {"w": block}, {"w": _best_within(prior, block, squares, bounds)}, {"w": squares})
    if single:
        block = Diagonal(block.h.float()) if isinstance(block, Diagonal) else Kronecker(outer.float(), inner.float(), block.shape)
        squares, start = squares.float(), {"w": start["w"].float()}
    found = Maximiser(prior, bounds)({"w": block}, {"w": squares}, start)["w"]
    assert found.isfinite().all()
    assert (found >= bounds[0] * (1 - 1e-6)).all()
    assert (found <= bounds[1] * (1 + 1e-6)).all()
    block = Diagonal(block.h.double()) if isinstance(block, Diagonal) else Kronecker(outer, inner, block.shape)
    value = at(prior, {"w": block}, {"w": found.double()}, {"w": squares.double()})
    # Unit-wise precisions stay separable between the bounds, which the reference, clamped entry by entry, need not.
    assert value >= wanted - (0.06 if prior == "unit" else 0.01) * abs(wanted)
    assert wanted - before > 0.3 * abs(wanted)


def _best_within(prior: str, block: Block, squares: Tensor, bounds: tuple[float, float]) -> Tensor:
    """By Adam on the exact or projected dense objective, d clamped."""
    free, expand = parametrised(prior, {"w": block})
    for z in free:
        z.requires_grad_(True)
    search = torch.optim.Adam(free, lr=0.1)
    low, high = (math.log(b) for b in bounds)

    def clamped() -> Tensor:
        return expand(free)["w"].clamp(low, high)

    for _ in range(250):
        search.zero_grad()
        (-totals(prior, {"w": block}, {"w": clamped()}, {"w": squares})).backward()
        search.step()
    return clamped().detach().exp()


# --- the marginal likelihood


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("prior", PRIORS)
def test_the_marginal_likelihood_is_that_of_dense_matrices(prior: str, structure: str) -> None:
    """Exact for shared and for unit-wise precisions, however they are handed over; projected for free ones."""
    blocks, squares = problem(structure, seed=5)
    free, expand = parametrised(prior, blocks)
    g = torch.Generator().manual_seed(9)
    log_d = expand([torch.randn(z.shape, generator=g, dtype=DOUBLE) for z in free])
    shared = prior in ("scalar", "layer")
    handed = {n: (u.flatten()[0] if shared else u).exp() for n, u in log_d.items()}
    found = log_marginal_likelihood(blocks, handed, squares, 7.5)
    assert found == pytest.approx(-7.5 + float(totals(prior, blocks, log_d, squares)), rel=1e-9)
    if structure == "kronecker" and not shared:
        other = {"unit": "parameter", "parameter": "layer"}[prior]
        assert abs(found + 7.5 - float(totals(other, blocks, log_d, squares))) > 1e-2


def test_the_full_block_of_a_bias_is_exact_under_a_unit_wise_prior() -> None:
    """Against a dense matrix of 16 outputs with correlated curvature, where the projection is far off."""
    g = torch.Generator().manual_seed(0)
    block = Kronecker(gram(g, 1, 16, 20, 25.0), torch.ones(1, 1, 1, dtype=DOUBLE), torch.Size([16]))
    squares = torch.randn(16, generator=g, dtype=DOUBLE).square()
    shared = {"b": torch.ones((), dtype=DOUBLE)}
    d = Maximiser("unit", (1e-3, 1e4))({"b": block}, {"b": squares}, shared)["b"]
    precision = block.outer[0] + torch.diag(d)
    determined = 1.0 - d * torch.linalg.inv(precision).diagonal()
    assert torch.allclose(determined, d * squares, atol=2e-2)  # the condition of a maximum, and γ is in [0, 1]
    complexity = float(torch.linalg.slogdet(precision).logabsdet - d.log().sum())
    assert float(block.evidence(d).complexity) > complexity + 0.1
    weight = Kronecker(gram(g, 1, 16, 20), gram(g, 1, 3, 5), torch.Size([16, 3]))
    prior = {"w": torch.full((16, 3), 2.0, dtype=DOUBLE), "b": d}
    both = log_marginal_likelihood({"w": weight, "b": block}, prior, {"w": torch.zeros(16, 3), "b": squares}, 0.0)
    alone = log_marginal_likelihood({"w": weight}, {"w": prior["w"]}, {"w": torch.zeros(16, 3)}, 0.0)
    assert both - alone == pytest.approx(-0.5 * (complexity + float((d * squares).sum())))


def test_units_of_a_prior() -> None:
    """Sums, expansion and split of a grouped convolution, by hand."""
    block = problem("kronecker")[0]["conv"]
    units = Units(torch.Size([4, 3, 2, 2]), block)
    values = torch.arange(48.0).view(4, 3, 2, 2)
    assert units.sums(values, 0).flatten().tolist() == values.sum((1, 2, 3)).tolist()
    assert units.sums(values, 1).view(2, 3).tolist() == [[values[g * 2 : g * 2 + 2, i].sum() for i in range(3)] for g in range(2)]
    r, c = torch.randn(2, 2, 1), torch.randn(2, 1, 3)
    log_d = units.expand(torch.cat([r.flatten(), c.flatten()]))
    assert float(log_d[3, 1, 0, 1]) == pytest.approx(float(r[1, 1, 0] + c[1, 0, 1]))
    again = units.split(log_d)
    assert torch.allclose(again[0] + again[1], r + c, atol=1e-6)
    inner = torch.randn(48)
    vector = torch.randn(10)
    assert float((units.expand(vector).flatten() * inner).sum()) == pytest.approx(
        float((vector * units.gather(inner.view(4, 3, 2, 2))).sum()), rel=1e-4
    )
