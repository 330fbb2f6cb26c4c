"""When a re-run agrees: limits against a plain second computation, honest calls against seeds, tampering against both."""

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest

from bench.publishing import board_folder, row_comparison
from bench.publishing.noise import MATCHED, MEASURES, WEIGHT, Measure, Noise
from bench.publishing.row_comparison import SHIFT_LEVEL, compare, judge, same_environment, shifts
from bench.spec.row import Row

ROOT = Path(__file__).resolve().parents[3]
BOARDS = sorted(path.parent for path in (ROOT / "leaderboards").glob("*/results"))
ACCURACY = MEASURES[0]
SAMPLES = 10_000  # of the test split: accuracies are multiples of 0.01 points
Values = dict[str, float]


def row(method: str, sparsity: float, seed: int, accuracy: float, nll: float = 0.3, **more: object) -> Row:
    values = {
        "suite": "s", "dataset": "d", "architecture": "a", "granularity": "weight", "match": "weights", "method": method,
        "criterion": "magnitude", "training": "map", "stage": "after", "tuning": "default", "ablation": "none", "sparsity": sparsity,
        "seed": seed, "epochs": 3, "finetune_epochs": 0, "status": "ok", "prunable_weights": 1000, "kept_weights": 500,
        "parameters": 1010, "flops": 2000, "accuracy": round(accuracy * SAMPLES) / SAMPLES, "nll": nll, "torch": "2.15.0",
        "device": "cpu: AVX512", "hyperparameters": json.dumps({"training": {"lr": 0.1}}),
    }  # fmt: skip
    return Row(**(values | more))  # type: ignore[arg-type]


def elsewhere(published: Row, accuracy: float | None, **more: object) -> Row:
    """A re-run of the row on another release; its likelihood is another one."""
    again = None if accuracy is None else round(accuracy * SAMPLES) / SAMPLES
    return replace(published, **({"torch": "2.14.1", "accuracy": again, "nll": (published.nll or 0.3) * 1.01} | more))  # type: ignore[arg-type]


class Lottery:
    """A board whose true deviations are known: noise grows with the distance from the top, and differs between cells beyond that."""

    def __init__(self, seed: int, *, methods: int = 12, seeds: int = 5, spread: float = 10.0, deviation: float | None = None,
                 quiet: float = 1.0) -> None:  # fmt: skip
        self.rng, self.quiet = np.random.default_rng(seed), quiet
        self.cells = {
            (f"m{m}", s): self._cell(height, spread, deviation)
            for m in range(methods)
            for s, height in ((0.5, 0.97), (0.8, 0.95), (0.9, 0.8))
        }
        self.seeds = seeds
        self.rows = [row(*cell, seed, *self.draw(cell)) for cell in self.cells for seed in range(seeds)]

    def _cell(self, height: float, spread: float, deviation: float | None) -> tuple[float, float]:
        """(mean, deviation). `spread`: degrees of freedom of the chi-squared by which variances of like cells differ."""
        like = deviation or 0.05 * self.quiet * (1 - height) ** 0.9
        return height - 0.01 * self.rng.random(), like * math.sqrt(self.rng.chisquare(spread) / spread)

    def draw(self, cell: tuple[str, float]) -> tuple[float, float]:
        """Accuracy and likelihood of a run, as of another seed."""
        mean, deviation = self.cells[cell]
        nll = (1 - mean) * math.exp(0.1 * self.rng.standard_normal())
        return min(mean + deviation * self.rng.standard_normal(), 1.0), nll

    def call(self, size: int) -> list[row_comparison.Pair]:
        """A sample of rows with honest re-runs."""
        chosen = [self.rows[k] for k in self.rng.choice(len(self.rows), size, replace=False)]
        again = [self.draw((r.method, r.sparsity)) for r in chosen]
        return [(r, elsewhere(r, accuracy, nll=nll)) for r, (accuracy, nll) in zip(chosen, again, strict=True)]


def rejected(pairs: Sequence[row_comparison.Pair], noise: Noise) -> bool:
    verdicts = compare(pairs, noise)
    return any(v.differences for v in verdicts) or any(s.significant for s in shifts(pairs, noise))


# --- limits, computed a second time


def t_tail(x: float, df: float) -> float:
    """P(|T| > x) by Simpson's rule on the density, T = tan-transformed: no library of distributions."""
    constant = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    low, high, n = math.atan(x), math.pi / 2 - 1e-9, 4000

    def density(angle: float) -> float:
        t = math.tan(angle)
        return constant * (1 + t * t / df) ** (-(df + 1) / 2) / math.cos(angle) ** 2

    h = (high - low) / n
    return 2 * h / 3 * sum(density(low + k * h) * (1 if k in (0, n) else 4 if k % 2 else 2) for k in range(n + 1))


def plain_spread(rows: list[Row], mine: Row, again: float) -> tuple[float, float, float, int]:
    """(variance, degrees of freedom, mean, count) of the accuracy, cell by cell with lists."""
    cells: dict[tuple[str, float], list[Row]] = {}
    for r in rows:
        cells.setdefault((r.method, r.sparsity), []).append(r)
    distinct = sorted({r.accuracy for r in rows if r.accuracy is not None})
    step = min(b - a for a, b in itertools.pairwise(distinct))
    assert step == pytest.approx(1 / SAMPLES), "one test sample"

    def odds(values: list[float]) -> float:
        mean = fmean(values)
        return math.log(mean + 1e-4) - math.log(1 - mean + 1e-4)

    seeds = [r.accuracy or 0.0 for r in cells[mine.method, mine.sparsity] if r.seed != mine.seed]
    distances = []
    for key, members in cells.items():
        if key != (mine.method, mine.sparsity):
            values = [r.accuracy or 0.0 for r in members]
            distances.append((abs(odds(values) - odds([*seeds, again, mine.accuracy or 0.0])), stdev(values) ** 2 + step**2 / 12))
    near = sorted(distances)[:10]
    pooled = 4 * fmean(v for _, v in near) + (len(seeds) - 1) * (stdev(seeds) ** 2 + step**2 / 12)
    return pooled / (4 + len(seeds) - 1), 4 + len(seeds) - 1, fmean([*seeds, again]), len(seeds) + 1


def test_the_spread_of_a_cell_is_what_lists_give() -> None:
    board = Lottery(1)
    noise = Noise(board.rows)
    for mine in board.rows[::17]:
        again = elsewhere(mine, board.draw((mine.method, mine.sparsity))[0])
        spread = noise.spread(mine, again, ACCURACY)
        assert spread is not None
        found = (spread.variance, spread.df, spread.mean, spread.count)
        assert found == pytest.approx(plain_spread(board.rows, mine, again.accuracy or 0.0), rel=1e-9)


@pytest.mark.parametrize("samples", [114, 360, 10_000])
def test_the_step_is_a_test_sample_though_a_row_was_changed_by_hand(samples: int) -> None:
    rng = np.random.default_rng(0)
    rows = [row(f"m{m}", 0.5, s, 0) for m in range(12) for s in range(5)]
    rows = [replace(r, accuracy=int(rng.integers(int(0.9 * samples), int(0.93 * samples) + 1)) / samples) for r in rows]
    again = elsewhere(rows[0], 0.9)
    for told in (rows, [rows[0], replace(rows[1], accuracy=0.91237), *rows[2:]]):
        spread = Noise(told).spread(rows[0], again, ACCURACY)
        assert spread is not None
        assert spread.step == pytest.approx(1 / samples)
    constant = Noise(replace(r, accuracy=0.5) for r in rows).spread(rows[0], again, ACCURACY)
    assert constant is not None
    assert constant.step == 0


@pytest.mark.parametrize("rows", [1, 10])
def test_the_limits_are_quantiles_of_t(rows: int) -> None:
    """A re-run is moved away from its row until it is rejected: there the tail of t is the level of the test."""
    board = Lottery(2)
    noise, mine = Noise(board.rows), board.rows[40]
    y, moved = mine.accuracy or 0.0, 0
    while not judge(mine, again := elsewhere(mine, y - moved / SAMPLES), noise, rows).differences:
        moved += 1
    (said,) = judge(mine, again, noise, rows).differences

    def p(accuracy: float) -> tuple[float, float]:
        variance, df, mean, count = plain_spread(board.rows, mine, accuracy)
        return t_tail(abs(y - accuracy) / math.sqrt(2 * variance), df), t_tail(abs(y - mean) / math.sqrt(variance * (1 + 1 / count)), df)

    level = ACCURACY.level / rows / 2
    direct, mean = p(again.accuracy or 0.0)
    assert direct < level or (mean < level and direct < 0.05)
    assert ("from the mean" in said) == (direct >= level)
    direct, mean = p((again.accuracy or 0.0) + 1 / SAMPLES)
    assert direct >= level
    assert mean >= level or direct >= 0.05


def test_all_levels_together_are_five_percent() -> None:
    assert sum(m.level for m in MEASURES) + sum(SHIFT_LEVEL.values()) <= 0.05
    assert {m.column for m in MEASURES} <= set(row_comparison.MEASURED)


# --- honest calls pass


@pytest.mark.parametrize(("seeds", "spread"), [(5, 10.0), (3, 10.0), (3, 4.0)])
def test_honest_calls_pass(seeds: int, spread: float) -> None:
    """Re-runs that are no nearer to their rows than another seed: 95 % of calls of 10 rows pass at least."""
    calls = [(Noise(board.rows), board.call(10)) for k in range(25) for board in [Lottery(k, seeds=seeds, spread=spread)] for _ in range(8)]
    failed = sum(rejected(pairs, noise) for noise, pairs in calls)
    assert failed <= 0.05 * len(calls)


def swapped(rows: list[Row], draw: random.Random, size: int) -> tuple[list[row_comparison.Pair], Noise]:
    """A call of published rows, each with the row of another seed of its cell, gone from the board, in place of a re-run."""
    cells: dict[tuple[object, ...], list[Row]] = {}
    for r in rows:
        cells.setdefault((*r.identity[:8], *r.identity[9:]), []).append(r)
    pairs, gone = [], set()
    full = [key for key, members in cells.items() if len(members) > 2]
    for key in draw.sample(full, min(size, len(full))):
        mine, other = draw.sample(cells[key], 2)
        counts = {name: getattr(mine, name) for name in row_comparison.COUNTED}
        pairs.append((mine, replace(other, seed=mine.seed, torch="another", status=mine.status, **counts)))
        gone.add(id(other))
    return pairs, Noise(r for r in rows if id(r) not in gone)


def test_another_seed_of_a_published_board_passes_for_a_re_run() -> None:
    """No simulation: real cells, collapsed and broken ones too, whose noise is neither normal nor alike. 10 rows of a block a call."""
    failed = calls = 0
    for folder in BOARDS:
        blocks: dict[tuple[str, str], list[Row]] = {}
        for r in board_folder.read(folder).rows:
            if r.accuracy is not None:
                blocks.setdefault((r.dataset, r.architecture), []).append(r)
        draw = random.Random(0)
        for _ in range(160 // len(BOARDS)):
            pairs, noise = swapped(draw.choice(list(blocks.values())), draw, 10)
            failed, calls = failed + rejected(pairs, noise), calls + 1
    assert calls >= 150
    assert failed <= 0.06 * calls


# --- tampering is caught


def power(deviation: float, *, rows: int, like_published: float, runs: int = 200) -> float:
    """How often a row is caught whose accuracy was raised by one point, in a board whose cells have this deviation.

    `like_published`: correlation of honest re-runs with what was published; 0 is another seed.
    """
    caught = 0
    for k in range(runs // 20):
        board = Lottery(k, deviation=deviation, spread=40)
        noise = Noise(board.rows)
        for mine in (board.rows[i] for i in board.rng.choice(len(board.rows), 20, replace=False)):
            mean, own = board.cells[mine.method, mine.sparsity]
            other = board.rng.standard_normal() * own * math.sqrt(1 - like_published**2)
            again = elsewhere(mine, mean + like_published * ((mine.accuracy or 0.0) - mean) + other)
            caught += bool(judge(replace(mine, accuracy=(mine.accuracy or 0.0) + 0.01), again, noise, rows).differences)
    return caught / runs


def test_one_point_is_caught_in_a_quiet_cell() -> None:
    """The power that the documentation states, in a sample of ten rows and in the default one of three."""
    assert power(0.001, rows=10, like_published=0) >= 0.99
    assert power(0.0015, rows=10, like_published=0) >= 0.7
    assert power(0.0015, rows=3, like_published=0) >= 0.85
    assert power(0.002, rows=3, like_published=0.9) >= 0.55


@pytest.mark.parametrize("by", [0.01, 0.02, 0.05, 0.2, 0.5, -0.05, -0.5, -0.9])
def test_a_row_cannot_widen_its_own_limits(by: float) -> None:
    """However far it is changed, and though it draws the matched cells with it to noisier ones."""
    board = Lottery(3, seeds=3, spread=40, quiet=0.5)
    top = [r for r in board.rows if r.sparsity == 0.5]
    for mine in top[::5]:
        true = mine.accuracy or 0.0
        changed = replace(mine, accuracy=min(true + by, 1.0))
        noise = Noise(changed if r is mine else r for r in board.rows)
        assert judge(changed, elsewhere(mine, true), noise, 10).differences


def test_where_all_seeds_of_a_cell_were_changed_the_re_run_shows_it() -> None:
    board = Lottery(4, deviation=0.0008, spread=40)
    changed = [
        replace(r, accuracy=min((r.accuracy or 0.0) + 0.01, 1.0)) if (r.method, r.sparsity) == ("m3", 0.5) else r for r in board.rows
    ]
    noise = Noise(changed)
    caught = [
        bool(judge(now, elsewhere(was, board.draw(("m3", 0.5))[0]), noise, 10).differences)
        for was, now in zip(board.rows, changed, strict=True)
        if was is not now
    ]
    assert sum(caught) >= 4, "five seeds, each by itself"


def test_a_shift_of_all_rows_is_caught_together() -> None:
    """By half a deviation: hardly ever in a row, in 80 % of samples of 150 networks, of 12 where re-runs are close to what is published."""
    together = alone = close = 0
    for k in range(30):
        board = Lottery(k, deviation=0.002, spread=40, methods=11)
        noise = Noise(board.rows)
        pairs = [
            (replace(r, accuracy=(r.accuracy or 0.0) + 0.5 * board.cells[r.method, r.sparsity][1], stage="init"), again)
            for r, again in board.call(150)
        ]
        together += any(s.significant for s in shifts(pairs, noise) if s.column == "accuracy")
        alone += sum(bool(v.differences) for v in compare(pairs[:10], noise))
        pairs = [(mine, elsewhere(mine, (mine.accuracy or 0.0) - board.rng.uniform(0.0005, 0.0015))) for mine, _ in pairs[:12]]
        close += any(s.significant for s in shifts(pairs, noise) if s.column == "accuracy")
    assert together >= 24
    assert alone <= 0.03 * 300
    assert close >= 29


@pytest.mark.parametrize("shared", [False, True])
def test_honest_rows_are_rarely_shifted_together(shared: bool) -> None:
    """Also where many prune one network, whose re-run they all share: the whole sample then moves as one."""
    false = 0
    for k in range(200):
        rng = np.random.default_rng(k)
        pairs = []
        board = [row("m0", 0.5, seed, 0.95 + 0.001 * rng.standard_normal()) for seed in range(30)]
        for r in board:
            moved, factor = rng.standard_normal() * 0.0014, math.exp(0.1 * rng.standard_normal())
            again = elsewhere(r, (r.accuracy or 0) + moved, nll=(r.nll or 0) * factor)
            pairs += [(replace(r, method=f"m{m}"), again) for m in range(5 if shared else 1)]
        false += any(s.significant for s in shifts(pairs, Noise(board)))
    assert false <= 5, "the levels of accuracy and likelihood together are 0.8 %"


def test_signs_are_counted_exactly_where_they_are_few() -> None:
    """Ten re-runs all below their rows: two of 1,024 sign patterns are as extreme. Shared networks count once."""
    board = Lottery(5)
    noise = Noise(board.rows)
    by_seed = [[r for r in board.rows if r.seed == seed][:2] for seed in range(5)]
    ten = [replace(r, stage="init") for pair in by_seed for r in pair]
    found = shifts([(r, elsewhere(r, (r.accuracy or 0) - 0.002)) for r in ten], noise)[0]
    assert (found.column, found.networks) == ("accuracy", 10)
    assert found.mean < 0
    assert found.p == pytest.approx(2 / 1024, abs=0.002)
    shared = [replace(r, stage="after") for r in ten]
    found = shifts([(r, elsewhere(r, (r.accuracy or 0) - 0.002)) for r in shared], noise)[0]
    assert found.networks == 5
    assert found.p == pytest.approx(2 / 32, abs=0.02)
    assert not found.significant


# --- what must be equal


@pytest.fixture
def quiet() -> tuple[Row, Noise]:
    board = Lottery(6)
    return board.rows[0], Noise(board.rows)


def test_in_the_same_environment_rows_are_equal_to_the_last_bit(quiet: tuple[Row, Noise]) -> None:
    mine, noise = quiet
    assert compare([(mine, mine)], noise)[0].differences == []
    for name, value in {"nll": math.nextafter(mine.nll or 0, 1), "kept_weights": 501, "status": "collapsed"}.items():
        (verdict,) = compare([(mine, replace(mine, **{name: value}))], noise)  # type: ignore[arg-type]
        assert verdict.differences == [f"{name}: expected {getattr(mine, name)}, got {value}"]
    assert compare([(mine, replace(mine, score_seconds=9.0, commit="x"))], noise)[0].differences == [], "costs and provenance"
    for name in row_comparison.WHERE:
        assert not same_environment(mine, replace(mine, **{name: "another"}))  # type: ignore[arg-type]
    assert {"torch", "device"} <= set(row_comparison.WHERE)


def test_rows_of_networks_trained_as_one_are_equal_up_to_rounding(quiet: tuple[Row, Noise]) -> None:
    """The networks that were trained as one decide how sums are rounded, and a row does not say which they were."""
    mine, noise = quiet
    mine = replace(mine, environment='{"stack": 4, "threads": 1}')
    assert compare([(mine, replace(mine, nll=math.nextafter(mine.nll or 0, 1)))], noise)[0].differences == []
    assert compare([(mine, replace(mine, kept_weights=501))], noise)[0].differences


@pytest.mark.parametrize("name", row_comparison.COUNTED)
def test_counts_are_equal_everywhere(quiet: tuple[Row, Noise], name: str) -> None:
    mine, noise = replace(quiet[0], **{name: 500}), quiet[1]  # type: ignore[arg-type]
    assert judge(mine, elsewhere(mine, mine.accuracy or 0), noise).differences == []
    assert judge(mine, elsewhere(mine, mine.accuracy or 0, **{name: 501}), noise).differences == [f"{name}: expected 500, got 501"]


def test_a_last_weight_may_hang_on_rounding_but_a_failure_may_not(quiet: tuple[Row, Noise]) -> None:
    mine, noise = quiet
    assert judge(mine, elsewhere(mine, mine.accuracy or 0, status="collapsed"), noise).differences == []
    failed = elsewhere(mine, None, status="failed", nll=None)
    assert judge(mine, failed, noise).differences == [
        "status: expected ok, got failed", f"accuracy: expected {mine.accuracy}, got nothing", f"nll: expected {mine.nll}, got nothing",
    ]  # fmt: skip
    assert judge(failed, mine, noise).differences == ["status: expected failed, got ok"], "what was not published is not asked for"


def test_where_the_likelihood_repeats_itself_so_does_the_accuracy(quiet: tuple[Row, Noise]) -> None:
    mine, noise = quiet
    y, nll = mine.accuracy or 0.0, mine.nll or 0.0
    (said,) = judge(mine, elsewhere(mine, y - 0.0001, nll=nll), noise).differences
    assert said.endswith("although nll is bit-identical")
    assert judge(mine, elsewhere(mine, y - 0.0001, nll=nll * (1 + 3e-6)), noise).differences == [], "one sample, by rounding"
    (said,) = judge(mine, elsewhere(mine, y - 0.0002, nll=nll * (1 + 3e-6)), noise).differences
    assert said.endswith("differs by 0.02 points, 0.01 points allowed, because nll is equal up to rounding")
    assert judge(mine, elsewhere(mine, y - 0.0002, nll=nll * (1 + 3e-4)), noise).differences == []


@pytest.mark.parametrize(("changed", "witness"), [("nll", "brier"), ("brier", "nll"), ("ece", "nll")])
def test_scores_of_one_network_repeat_themselves_together(changed: str, witness: str) -> None:
    """A likelihood changed by hand is found in a cell that would allow far more, for the score beside it repeats itself."""
    rng = np.random.default_rng(0)

    def scores() -> Values:
        return {name: math.exp(-1 + 0.5 * rng.standard_normal()) for name in ("nll", "brier", "ece")}

    rows = [replace(row(f"m{m}", 0.5, seed, 0.9 + 0.03 * rng.standard_normal()), **scores()) for m in range(12) for seed in range(5)]
    noise, mine = Noise(rows), rows[3]
    rounded = {name: getattr(mine, name) * (1 + 2e-6) for name in ("nll", "brier", "ece")}
    again = elsewhere(mine, mine.accuracy, **rounded)
    assert judge(mine, again, noise, 10).differences == []
    told = replace(mine, **{changed: getattr(mine, changed) * 0.9})
    (said,) = judge(told, again, noise, 10).differences
    assert said.startswith(f"{changed}: expected ")
    assert said.endswith(f"differs by a factor of 1.11, a factor of 1.01 allowed, because {witness} is equal up to rounding")
    other = {name: value * 1.02 for name, value in rounded.items()}
    assert judge(told, elsewhere(mine, mine.accuracy, **other), noise, 10).differences == [], "as another seed would"


def test_at_chance_an_equal_likelihood_says_nothing() -> None:
    """Networks that answer by chance have the same likelihood to six digits without being the same network."""
    rng = np.random.default_rng(0)
    rows = [
        row(f"m{m}", 0.99, seed, 0.1 + 0.01 * rng.standard_normal(), nll=math.log(10) * (1 + 1e-6 * rng.standard_normal()))
        for m in range(12)
        for seed in range(5)
    ]
    verdict = judge(rows[0], elsewhere(rows[0], 0.115, nll=rows[0].nll * (1 + 1e-6) if rows[0].nll else None), Noise(rows))
    assert verdict.differences == []
    rows = [replace(r, nll=math.log(10)) for r in rows]
    assert judge(rows[0], elsewhere(rows[0], rows[0].accuracy, nll=math.log(10)), Noise(rows)).differences == []
    assert "bit-identical" in judge(rows[0], elsewhere(rows[0], 0.115, nll=math.log(10)), Noise(rows)).differences[0]


# --- the rest of what is judged, and words


@pytest.mark.parametrize("measure", MEASURES[1:], ids=lambda m: m.column)
def test_every_measure_is_judged_by_its_own_cell(measure: Measure) -> None:
    """A re-run within the cell agrees, one far outside does not."""
    rng = np.random.default_rng(0)
    scale = (lambda z: math.exp(-1 + 0.02 * z)) if measure.positive else (lambda z: 0.9 + 0.002 * z)
    rows = [
        replace(row(f"m{m}", 0.5, seed, scale(rng.standard_normal()), scale(rng.standard_normal())), **{measure.column: scale(z)})
        for m in range(12)
        for seed, z in enumerate(rng.standard_normal(5))
    ]
    noise, mine = Noise(rows), rows[7]
    near, far = (elsewhere(mine, mine.accuracy or 0, **{measure.column: scale(z)}) for z in (0.5, -15.0))
    assert judge(mine, near, noise, 10).differences == []
    (said,) = judge(mine, far, noise, 10).differences
    assert said.startswith(f"{measure.column}: expected ")
    assert ("a factor of" if measure.positive else "points") in said


def test_a_cell_without_seeds_or_neighbours_allows_nothing() -> None:
    alone = row("m", 0.5, 0, 0.9)
    verdict = judge(alone, elsewhere(alone, 0.91, nll=None), Noise([]))
    assert (
        verdict.differences[0] == "accuracy: expected 0.9, got 0.91: no other seed or cell shows how much noise to allow (use --tolerance)"
    )
    assert judge(alone, elsewhere(alone, 0.9, nll=alone.nll), Noise([])).differences == []


def test_one_seed_is_judged_by_the_cells_around_it() -> None:
    board = Lottery(7, deviation=0.001, spread=40)
    lone = row("new", 0.5, 0, 0.97)
    noise = Noise([*board.rows, lone])
    assert judge(lone, elsewhere(lone, 0.9705), noise).differences == []
    assert "(1 seed)" in judge(lone, elsewhere(lone, 0.96), noise).differences[0]
    assert (MATCHED, WEIGHT) == (10, 0.4)


def test_a_tolerance_replaces_every_rule_but_that_of_repetition(quiet: tuple[Row, Noise]) -> None:
    mine, noise = quiet
    y = mine.accuracy or 0.0
    assert compare([(mine, elsewhere(mine, y - 0.05))], noise, 0.06)[0].differences == []
    assert compare([(mine, replace(elsewhere(mine, y - 0.05), torch=mine.torch))], noise, 0.06)[0].differences == []
    (said,) = compare([(mine, elsewhere(mine, y - 0.05))], noise, 0.04)[0].differences
    assert said.startswith("accuracy: expected")
    assert compare([(mine, elsewhere(mine, y, kept_weights=1))], noise, 1.0)[0].differences == ["kept_weights: expected 500, got 1"]
    assert "bit-identical" in compare([(mine, elsewhere(mine, y - 0.0001, nll=mine.nll))], noise, 1.0)[0].differences[0]


def test_what_is_said_of_a_row_can_be_read_without_a_manual() -> None:
    def said(accuracy: float) -> Iterator[str]:
        verdict = judge(mine, elsewhere(mine, accuracy), noise, 10)
        yield from (*verdict.differences, verdict.allowed)

    rows = [row(f"m{m}", 0.5, seed, 0.95 + 0.001 * (seed - 2), nll=0.3 + 0.01 * seed) for m in range(12) for seed in range(5)]
    noise, mine = Noise(rows), rows[2]
    difference, allowed = said(0.93)
    assert difference.startswith("accuracy: expected 0.95, got 0.93: differs by 2 points, this cell allows 1.")
    assert difference.endswith(" points (5 seeds)")
    assert allowed in difference
    (alone,) = said(0.949)
    assert alone.startswith("this cell allows 1.")
