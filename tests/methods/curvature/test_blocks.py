"""Blocks of curvature under every kind of prior, against dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.curvature import blocks
from methods.curvature.blocks import Block, Diagonal, Evidence, Kronecker, Separable

DOUBLE = torch.float64


def root(*shape: int, rank: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """A positive semi-definite matrix for each group, of the given rank."""
    groups, n = shape
    r = torch.randn(groups, n, min(rank, n), generator=generator, dtype=DOUBLE)
    return scale * r @ r.mT


def kronecker(seed: int, groups: int, out: int, inner: int, ranks: tuple[int, int] = (99, 99), scale: float = 1.0) -> Kronecker:
    generator = torch.Generator().manual_seed(seed)
    outer, a = (root(groups, n, rank=r, generator=generator, scale=scale) for n, r in ((out, ranks[0]), (inner, ranks[1])))
    return Kronecker(outer, a, torch.Size([groups * out, inner]))


def dense(block: Block) -> Tensor:
    """H over the flattened parameter."""
    if isinstance(block, Diagonal):
        return torch.diag(block.h.flatten())
    assert isinstance(block, Kronecker)
    return torch.block_diag(*(torch.kron(b, a) for b, a in zip(block.outer, block.inner, strict=True)))


def exact(block: Block, d: Tensor) -> Evidence:
    """γ and complexity by inverse and determinant; d of the parameter's shape."""
    h, v = dense(block), d.flatten()
    precision = h + torch.diag(v)
    determined = 1.0 - v * torch.linalg.inv(precision).diagonal()
    return Evidence(determined.reshape(d.shape), torch.linalg.slogdet(precision).logabsdet - v.log().sum())


def projected(block: Kronecker, d: Tensor) -> tuple[Evidence, Tensor]:
    """As `exact`, with Q diag(Qᵀ P Q) Qᵀ in place of P, and that matrix. Q by `kron` of the block's own eigenvectors.

    Its own since in a null space of several dimensions any basis is one, and the projection depends on which.
    """
    _, qb, qa = block.eigen
    q = torch.block_diag(*(torch.kron(b, a) for b, a in zip(qb, qa, strict=True)))
    h, v = dense(block), d.flatten()
    turned = q.T @ h @ q
    size = float(h.abs().max())
    assert torch.allclose(q.T @ q, torch.eye(len(h), dtype=DOUBLE), atol=1e-10)
    assert torch.allclose(turned, torch.diag(turned.diagonal()), atol=1e-9 * size + 1e-300)
    rotated = (q.T @ (h + torch.diag(v)) @ q).diagonal()
    precision = q @ torch.diag(rotated) @ q.T
    determined = 1.0 - v * torch.linalg.inv(precision).diagonal()
    return Evidence(determined.reshape(d.shape), rotated.log().sum() - v.log().sum()), precision


def agree(found: Evidence, wanted: Evidence, tolerance: float = 1e-9) -> None:
    assert found.determined.shape == wanted.determined.shape
    assert torch.allclose(found.determined, wanted.determined, rtol=tolerance, atol=tolerance)
    assert found.complexity.dim() == 0
    assert float(found.complexity) == pytest.approx(float(wanted.complexity), rel=tolerance, abs=tolerance)


def spread(seed: int, *shape: int, decades: float = 2.0) -> Tensor:
    return 10 ** (decades * (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) - 1))


def separable(seed: int, block: Kronecker, kernel: int = 1, decades: float = 2.0) -> Separable:
    (groups, out, _), inner = block.outer.shape, block.inner.shape[1]
    rows, columns = spread(seed, groups, out, 1, decades=decades).log(), spread(seed + 1, groups, 1, inner // kernel, decades=decades).log()
    return Separable(rows, columns.repeat_interleave(kernel, 2))


SIZES = st.tuples(st.integers(0, 2**20), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6))
RANKS = st.tuples(st.integers(0, 6), st.integers(0, 6))


@settings(max_examples=40, deadline=None)
@given(SIZES, RANKS, st.floats(-6, 6))
def test_one_precision_for_all_is_exact(sizes: tuple[int, int, int, int], ranks: tuple[int, int], log_d: float) -> None:
    block = kronecker(*sizes, ranks)
    d = torch.tensor(log_d, dtype=DOUBLE).exp()
    found = block.evidence(d)
    agree(found, exact(block, d.expand(block.shape)))
    agree(block.evidence(d.expand(block.shape)), found)  # where d is constant the projection is exact too
    assert (found.determined >= 0).all()
    assert (found.determined <= 1 + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(SIZES, RANKS, st.integers(1, 3))
def test_a_separable_prior_is_exact(sizes: tuple[int, int, int, int], ranks: tuple[int, int], kernel: int) -> None:
    seed, groups, out, inner = sizes
    block = kronecker(seed, groups, out, inner * kernel, ranks)
    d = separable(seed, block, kernel)
    found = block.evidence(d)
    agree(found, exact(block, d.dense(block.shape)), 1e-7)
    assert (found.determined >= 0).all()
    assert (found.determined <= 1 + 1e-12).all()


def test_a_separable_prior_repeats_its_columns_over_the_kernel() -> None:
    """log d of weight (out, in, kh, kw) at [o, i] is r_o + c_i, whatever the group."""
    shape = torch.Size([4, 3, 2, 2])
    generator = torch.Generator().manual_seed(0)
    block = Kronecker(root(2, 2, rank=2, generator=generator), root(2, 12, rank=12, generator=generator), shape)
    r, c = torch.arange(4.0).view(2, 2, 1), 10 * torch.arange(6.0).view(2, 1, 3)
    d = Separable(r, c.repeat_interleave(4, 2)).dense(shape).log()
    for o in range(4):
        for i in range(3):
            assert torch.allclose(d[o, i], r[o // 2, o % 2, 0] + c[o // 2, 0, i] + torch.zeros(2, 2))
    assert (
        block.diagonal().shape == block.evidence(Separable(r.double(), (c / 10).repeat_interleave(4, 2).double())).determined.shape == shape
    )


@settings(max_examples=60, deadline=None)
@given(SIZES, RANKS, st.floats(0, 4))
def test_any_other_prior_is_projected_and_never_below_the_exact_determinant(
    sizes: tuple[int, int, int, int], ranks: tuple[int, int], decades: float
) -> None:
    block = kronecker(*sizes, ranks)
    d = spread(sizes[0], *block.shape, decades=decades)
    found = block.evidence(d)
    wanted, precision = projected(block, d)
    agree(found, wanted, 1e-7)
    bound = exact(block, d).complexity
    assert found.complexity >= bound - 1e-9 * (1 + abs(bound))
    assert torch.allclose(block.eigenbasis_precision(d).flatten(), precision.diagonal(), rtol=1e-9)
    # The projection keeps the trace, and moves no precision beyond the largest and the smallest.
    assert float(block.eigenbasis_precision(d).sum()) == pytest.approx(float(dense(block).trace() + d.sum()))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_projection_is_exact_where_eigenvectors_are_axes(groups: int) -> None:
    b, a = spread(0, groups, 3), spread(1, groups, 4)
    block = Kronecker(torch.diag_embed(b), torch.diag_embed(a), torch.Size([3 * groups, 4]))
    d = spread(2, 3 * groups, 4)
    agree(block.evidence(d), exact(block, d), 1e-12)
    agree(block.evidence(d), Diagonal(block.diagonal()).evidence(d), 1e-12)
    assert torch.allclose(block.eigenbasis_precision(d), block.diagonal() + d, rtol=1e-12)


def test_the_projection_is_strictly_above_where_precisions_differ() -> None:
    block = kronecker(0, 1, 4, 5, scale=0.1)
    gaps = [
        float(block.evidence(d).complexity - exact(block, d).complexity)
        for d in (spread(1, 4, 5, decades=s) for s in (0.01, 0.5, 1.0, 2.0))
    ]
    assert 0 < gaps[0] < 0.01 < gaps[1] < gaps[2] < gaps[3]


@settings(max_examples=30, deadline=None)
@given(SIZES, RANKS)
def test_diagonals_and_scaling(sizes: tuple[int, int, int, int], ranks: tuple[int, int]) -> None:
    block = kronecker(*sizes, ranks)
    for b in (block, Diagonal(block.diagonal())):
        assert torch.allclose(b.diagonal().flatten(), dense(b).diagonal())
        assert b.diagonal().shape == block.shape
        assert torch.allclose(dense(b.scaled(0.3)), 0.3 * dense(b))
    d = torch.tensor(0.4, dtype=DOUBLE)
    assert torch.allclose(block.eigenbasis_precision(d), block.diagonal() + d)
    # Scaling is not lost on what was cached before.
    assert torch.allclose(block.scaled(2.0).evidence(d).determined, exact(block.scaled(2.0), d.expand(block.shape)).determined, atol=1e-9)


@pytest.mark.parametrize("kind", ["shared", "separable", "free"])
def test_a_diagonal_block_is_exact_under_every_prior(kind: str) -> None:
    h = spread(0, 4, 5)
    h[1, 2] = 0.0
    block = Diagonal(h)
    found = {"shared": torch.tensor(0.7, dtype=DOUBLE), "free": spread(1, 4, 5)}.get(kind)
    given = separable(3, kronecker(0, 1, 4, 5)) if found is None else found
    d = given.dense(h.shape) if isinstance(given, Separable) else given.expand(h.shape)
    evidence = block.evidence(given)
    agree(evidence, exact(block, d), 1e-12)
    assert evidence.determined[1, 2] == 0


def test_large_factors_are_projected_under_a_separable_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    block = kronecker(0, 2, 3, 6)
    d = separable(1, block)
    whole = block.evidence(d)
    for side, solved in ((6, True), (5, False)):
        monkeypatch.setattr(blocks, "MAX_EXACT", side)
        wanted = exact(block, d.dense(block.shape)) if solved else projected(block, d.dense(block.shape))[0]
        agree(block.evidence(d), wanted, 1e-8)
    assert float(whole.complexity) < float(block.evidence(d).complexity) - 0.1


def test_no_curvature_at_all() -> None:
    """γ = 0 and no complexity, exactly where the prior is shared or separable."""
    block = Kronecker(torch.zeros(1, 3, 3), torch.zeros(1, 4, 4), torch.Size([3, 4]))
    for d in (torch.tensor(2.0), Separable(torch.randn(1, 3, 1), torch.randn(1, 1, 4))):
        found = block.evidence(d)
        assert (found.determined == 0).all()
        assert float(found.complexity) == 0
    found = block.evidence(torch.rand(3, 4) + 0.1)
    assert found.determined.abs().max() < 1e-5
    assert abs(float(found.complexity)) < 1e-5


@pytest.mark.parametrize("ratio", [1e-2, 1e-5, 1e-8])
def test_what_single_precision_leaves_of_a_null_space_does_not_count(ratio: float) -> None:
    """Factors of rank 5 and 10: the data determine 50 of 1200 weights, however small the prior beside the curvature."""
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(200, r, generator=generator) @ torch.randn(r, n, generator=generator) for n, r in ((30, 5), (40, 10))]
    b, a = ((s.T @ s).unsqueeze(0) for s in samples)
    b64, a64 = ((s.double().T @ s.double()).unsqueeze(0) for s in samples)
    single, double = Kronecker(b, a, torch.Size([30, 40])), Kronecker(b64, a64, torch.Size([30, 40]))
    d = ratio * double.eigen[0].max()
    # The reference: 50 positive eigenvalues, the largest ones.
    lam = double.eigen[0].flatten().topk(50).values
    wanted = lam / (lam + d), torch.log1p(lam / d).sum()
    separable = Separable(d.log().float().expand(1, 30, 1), torch.zeros(1, 1, 40))
    for found in (single.evidence(d.float()), single.evidence(separable), single.evidence(d.float().expand(30, 40))):
        assert float(found.determined.sum()) == pytest.approx(float(wanted[0].sum()), rel=1e-3)
        assert float(found.complexity) == pytest.approx(float(wanted[1]), rel=1e-4)


def test_factors_of_dead_units_are_decomposed_in_single_precision_too() -> None:
    """Many zero rows: LAPACK's single-precision routine fails on about a third of these, and on others returns no numbers."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(1400, 120, generator=generator) * torch.rand(1400, 1, generator=generator) ** 20
        a[:, torch.randperm(120, generator=generator)[seed + 1 :]] = 0.0
        outer = (a.mT @ a)[None]
        lam, qb, _ = Kronecker(outer, torch.ones(1, 1, 1), torch.Size((120,))).eigen
        back = qb @ torch.diag_embed(lam.squeeze(2)) @ qb.mT
        assert torch.allclose(back, outer, atol=1e-4 * float(outer.max()))
