"""Two methods compared on made-up rows, against differences that are added up by hand."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from bench.ranking.comparison import ALL, COLUMNS, Comparison, Difference, compare, interval, table_of
from bench.ranking.statistics import Estimate
from bench.spec.row import Row
from tests.bench.boards import S, rows

# The area by hand, for the sparsities 0.5, 0.9, 0.95, 0.99: widths 0.4, 0.05, 0.04 of a range of 0.49.
WEIGHT = (0.2 / 0.49, 0.225 / 0.49, 0.045 / 0.49, 0.02 / 0.49)
GOOD, BAD = (0.9, 0.8, 0.7, 0.6), (0.8, 0.75, 0.6, 0.2)


def area(curve: tuple[float, ...]) -> float:
    return sum(w * a for w, a in zip(WEIGHT, curve, strict=True))


def two(**more: object) -> list[Row]:
    """Methods `a` and `b` with three seeds; the differences of the seeds are those of the curves + 0.01, -0.02 and 0.04."""
    good = rows("a", GOOD, seeds={0: 0.01, 1: 0.0, 2: 0.02}, **more)  # type: ignore[arg-type]
    return good + rows("b", BAD, seeds={0: 0.0, 1: 0.02, 2: -0.02}, **more)  # type: ignore[arg-type]


def by_hand(values: list[float]) -> tuple[float, float, float, float]:
    """Mean, interval and p-value of Student's test of one sample."""
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return mean, mean - half, mean + half, 2 * stats.t.sf(abs(mean) / error, len(values) - 1)


def numbers(found: Estimate) -> tuple[float, float, float, float]:
    return found.mean, found.low, found.high, found.p


def test_one_block_by_hand() -> None:
    (found,) = compare(two(), "a", "b")
    assert (found.track, found.tuning, found.first, found.second) == ("one-shot after training", "default", "a", "b")
    (block,) = found.differences
    assert (block.dataset, block.architecture, block.seeds) == ("d", "a", 3)
    assert (block.first, block.second) == pytest.approx((area(GOOD) + 0.01, area(BAD)))
    gain = area(GOOD) - area(BAD)
    assert numbers(block.area) == pytest.approx(by_hand([gain + 0.01, gain - 0.02, gain + 0.04]))
    assert list(block.at) == list(S)
    for k, s in enumerate(S):
        apart = GOOD[k] - BAD[k]
        assert numbers(block.at[s]) == pytest.approx(by_hand([apart + 0.01, apart - 0.02, apart + 0.04]))


def test_blocks_weigh_the_same_and_come_before_all() -> None:
    made = two(dataset="z") + [r for r in two(dataset="y") if r.seed != 2]
    (found,) = compare(made, "a", "b")
    assert [(d.dataset, d.architecture, d.seeds) for d in found.differences] == [("z", "a", 3), ("y", "a", 2), (ALL, "2 blocks", 3)]
    z, y, both = found.differences
    assert both.first == pytest.approx((z.first + y.first) / 2)
    assert both.second == pytest.approx((z.second + y.second) / 2)
    assert both.area.mean == pytest.approx((z.area.mean + y.area.mean) / 2)
    assert z.first == pytest.approx(area(GOOD) + 0.01)
    assert y.first == pytest.approx(area(GOOD) + 0.005)
    assert both.at[0.9].mean == pytest.approx((z.at[0.9].mean + y.at[0.9].mean) / 2)


def test_seeds_and_sparsities_of_one_method_only_are_left_out() -> None:
    gone = {("a", 2, s) for s in S} | {("b", seed, 0.99) for seed in range(3)} | {("b", 1, 0.5)}
    (found,) = compare([r for r in two() if (r.method, r.seed, r.sparsity) not in gone], "a", "b")
    (block,) = found.differences
    assert block.seeds == 2
    first = [(0.2 * GOOD[0] + 0.225 * GOOD[1] + 0.025 * GOOD[2]) / 0.45 + 0.01, (GOOD[1] + GOOD[2]) / 2]
    second = [(0.2 * BAD[0] + 0.225 * BAD[1] + 0.025 * BAD[2]) / 0.45, (BAD[1] + BAD[2]) / 2 + 0.02]
    assert (block.first, block.second) == pytest.approx((sum(first) / 2, sum(second) / 2))
    assert block.area.mean == pytest.approx((sum(first) - sum(second)) / 2)
    assert list(block.at) == [0.5, 0.9, 0.95]
    assert block.at[0.5].mean == pytest.approx(0.1 + 0.01)
    assert math.isnan(block.at[0.5].p)
    assert numbers(block.at[0.9]) == pytest.approx(by_hand([0.05 + 0.01, 0.05 - 0.02]))


def test_sparsities_are_in_order_where_the_first_seed_lacks_the_smallest_one() -> None:
    (found,) = compare([r for r in two() if (r.seed, r.sparsity) != (0, 0.5)], "a", "b")
    assert list(found.differences[0].at) == list(S)


def test_each_track_with_both_methods_is_compared_in_the_order_of_the_rows() -> None:
    tuned, only = two(tuning="tuned"), [r for r in two(finetune=3) if r.method == "a"]
    dense = [replace(r, method="dense", criterion="", stage="", sparsity=0.0) for r in rows("a", GOOD)[:1]]
    found = compare([*tuned, *dense, *only, *two(stage="init"), *two()], "a", "b")
    assert [(c.track, c.tuning) for c in found] == [
        ("one-shot after training", "tuned"), ("one-shot at initialisation", "default"), ("one-shot after training", "default"),
    ]  # fmt: skip
    assert compare([*two(), *dense], "a", "dense") == []


def test_unsupported_rows_are_no_common_rows() -> None:
    (found,) = compare(rows("a", GOOD) + rows("b", BAD, status="unsupported", accuracy=None), "a", "b")
    assert found.differences == ()
    assert found.verdict == ""
    (found,) = compare(rows("a", GOOD) + rows("b", BAD, dataset="e"), "a", "b")
    assert found.differences == ()


def test_blocks_whose_dense_network_did_not_train_are_left_out() -> None:
    """As from areas and ranks: at chance accuracy every method is as good as the other."""
    dense = [replace(r, method="dense", criterion="", stage="", sparsity=0.0, dataset=d) for d in "zy" for r in rows("a", GOOD)[::4]]
    every = compare([*two(dataset="z"), *two(dataset="y"), *dense], "a", "b")
    assert [d.dataset for d in every[0].differences] == ["z", "y", ALL]
    bad = [replace(r, status="collapsed") if r.dataset == "y" else r for r in dense]
    (found,) = compare([*two(dataset="z"), *two(dataset="y"), *bad], "a", "b")
    assert found.differences == every[0].differences[:1]


def test_with_one_seed_there_is_no_interval() -> None:
    (found,) = compare([r for r in two() if r.seed == 0], "a", "b")
    assert all(math.isnan(end) for end in interval(found.differences[0].area))
    assert table_of([found])[["low", "high", "p"]].isna().all(axis=None)


def made(mean: float, p: float) -> Comparison:
    """A comparison whose last difference has this estimate, and the first one the opposite."""
    wrong = Difference("d", "a", 3, 0.5, 0.5, Estimate(-mean, -2, 2, 1 - p), {})
    return Comparison("t", "default", "a", "b", (wrong, replace(wrong, dataset=ALL, area=Estimate(mean, mean - 1, mean + 1, p))))


@pytest.mark.parametrize(
    ("mean", "p", "said"),
    [
        (0.1, 0.049, "a is better than b ("), (-0.1, 0.049, "b is better than a ("), (0.1, 0.05, "a and b do not differ significantly ("),
        (-0.1, 0.051, "a and b do not differ significantly ("), (0.1, math.nan, "With one seed nothing can be tested over seeds."),
    ],
)  # fmt: skip
def test_the_verdict_is_that_of_all_blocks(mean: float, p: float, said: str) -> None:
    assert made(mean, p).verdict.startswith(said)


def over(apart: list[float]) -> str:
    """What is said about blocks with these differences."""
    blocks = [Difference("d", str(k), 3, 0.5, 0.5, Estimate(d), {}) for k, d in enumerate(apart)]
    return Comparison("t", "default", "a", "b", (*blocks, Difference(ALL, "", 3, 0.5, 0.5, Estimate(sum(apart)), {}))).over_blocks


def test_from_ten_blocks_on_it_is_said_whether_the_difference_is_one_of_data_sets_of_this_kind() -> None:
    rising = [0.01 * k for k in range(1, 10)]
    assert over(rising) == ""
    said = "a has the larger area on {} of 10 blocks; Wilcoxon's signed-rank test over blocks has p = {}: {}."
    assert over([-0.001, *rising]) == said.format(9, "0.0039", "they differ on data sets and architectures of this kind")
    assert over([(-1) ** k * 0.01 * (k + 1) for k in range(10)]) == said.format(5, "0.85", "nothing is shown about other blocks")


def test_the_table_has_a_line_for_each_difference() -> None:
    table = table_of([made(0.5, 0.01), made(-0.25, 0.2)])
    assert tuple(table.columns) == COLUMNS
    assert COLUMNS == ("track", "tuning", "dataset", "architecture", "seeds", "first", "second", "difference", "low", "high", "p")
    assert table.iloc[1].tolist() == ["t", "default", "all", "a", 3, 0.5, 0.5, 0.5, -0.5, 1.0, 0.01]
    assert table["difference"].tolist() == [-0.5, 0.5, 0.25, -0.25]
    assert table["low"].tolist() == [-1.0, -0.5, -1.0, -1.0]
    assert table["high"].tolist() == [1.0, 1.0, 1.0, 0.75]


def test_the_interval_of_a_difference_ends_at_one() -> None:
    assert interval(Estimate(0.0, -1.5, 1.5)) == (-1.0, 1.0)
    assert interval(Estimate(0.0, -0.5, 0.25)) == (-0.5, 0.25)
