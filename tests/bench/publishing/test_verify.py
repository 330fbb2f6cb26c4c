"""`verify` as a user types it, on a board whose re-runs are made up: what is printed, what is allowed, the exit code."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import methods
from bench.publishing import board_check, board_folder, row_comparison, verify
from bench.publishing.board_check import Faults
from bench.publishing.board_folder import Board
from bench.publishing.row_comparison import Shift, Verdict
from bench.publishing.verify import Sample, Verification
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.spec.suite import load_suite
from bench.storage import files
from bench.trial import provenance
from bench.trial.job import Environment

Bench = Callable[..., tuple[int, str, str]]
Rerun = Callable[[Row], Row]
SAMPLES = 114  # of the test split of breast_cancer


def rows_of_a_board() -> list[Row]:
    """Six methods at two sparsities with five seeds; every accuracy is a number of test samples."""
    rng = np.random.default_rng(0)
    here = provenance.provenance("cpu", 1)
    return [
        Row(
            suite="tiny", dataset="breast_cancer", architecture="mlp", granularity="weight", match="weights", method=method,
            criterion="magnitude", training="map", stage="after", tuning="default", ablation="none", sparsity=sparsity, seed=seed, epochs=3,
            finetune_epochs=0, status="ok", prunable_weights=1000, kept_weights=500, parameters=1010, flops=2000,
            accuracy=(108 + int(rng.integers(-1, 2))) / SAMPLES, nll=0.2 * float(np.exp(0.1 * rng.standard_normal())),
            hyperparameters=json.dumps({"training": {"lr": 0.1}}), **{**here, "torch": "2.99"},
        )
        for method in ("magnitude", "random", "obd", "opd", "snip", "grasp")
        for sparsity in (0.5, 0.9)
        for seed in range(5)
    ]  # fmt: skip


@pytest.fixture
def check(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Verify a board whose rows are changed by `tamper`, computed anew by `rerun`: (exit code, what is printed)."""

    def run(tamper: Rerun = lambda row: row, rerun: Rerun = lambda row: row, *options: str, here: bool = False) -> tuple[int, str]:
        rows = rows_of_a_board()
        if here:
            rows = [replace(row, torch=str(provenance.provenance("cpu", 1)["torch"])) for row in rows]
        honest = {row.identity: row for row in rows}
        board = Board(load_suite("tiny.toml"), tuple(map(tamper, rows)))
        files.write_files(Path("board"), board_folder.evidence(board))

        def compute(chosen: Sequence[Row], board: Board, place: Environment, *rest: object) -> list[Row]:
            return [rerun(replace(honest[row.identity], torch=verify._blank(row, place).torch)) for row in chosen]

        monkeypatch.setattr(verify, "_compute", compute)
        monkeypatch.setattr(board_check, "faults", lambda *_: Faults((), frozenset()))  # tests/faults/test_forgeries.py tests it
        monkeypatch.setattr(board_folder, "stale", lambda *_: {})
        code, out, err = bench("verify", "board", "--sample", "60", "--workers", "1", *options)
        assert err == ""
        return code, out

    return run


def first(**changes: object) -> Rerun:
    """The first row of random, changed."""

    def change(row: Row) -> Row:
        one = (row.method, row.sparsity, row.seed) == ("random", 0.5, 0)
        return replace(row, **changes) if one else row  # type: ignore[arg-type]

    return change


def rounding(row: Row) -> Row:
    """What another release makes of a row: the likelihood differs in its last digits."""
    return replace(row, nll=(row.nll or 0) * (1 + 1e-8))


def test_a_board_that_repeats_elsewhere_is_as_published(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(rerun=rounding)
    assert code == 0, out
    assert "note: different environment: torch 2.99 (published) and " in out
    assert "Numbers may differ as much as between seeds." in out
    assert out.count("agrees   ") == 62, "rows, and accuracy and likelihood of all together"
    assert re.search(r"accuracy 94\.74% published, 94\.74% computed; 0\.877 points allowed, because nll is equal up to rounding", out)
    assert "agrees   all rows together: on average computed accuracy is as published (5 independent networks, p = 1)" in out
    assert out.endswith("all 60 rows are as published\nthe derived files follow from the rows\n")


def test_a_re_run_like_another_seed_agrees_and_says_what_its_cell_allows(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(rerun=first(accuracy=109 / SAMPLES, nll=0.21))
    assert code == 0, out
    said = re.search(r"random · .* seed 0 .*: accuracy (\S+)% published, 95\.61% computed; this cell allows (\S+) points \(5 seeds\)", out)
    assert said
    assert 0.8 < float(said[2]) < 6


def test_a_changed_row_differs_and_says_why(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(tamper=first(accuracy=0.99), rerun=lambda row: replace(row, nll=(row.nll or 0) * 1.01))
    assert code == 1
    assert "DIFFERS  random · breast_cancer/mlp · sparsity 0.5 · seed 0 · fine-tuned 0: accuracy 99.00% published" in out
    lines = [line.strip() for line in out.splitlines() if line.startswith(" ")]
    assert re.fullmatch(r"accuracy: expected 0\.99, got 0\.9\d*: .* points.* \(5 seeds\)", lines[0])
    assert lines[1] == "accuracy: 0.99 is not a multiple of 1/114 (114 test samples)"
    assert "1 of 60 rows differ" in out


def test_a_small_change_that_is_no_number_of_samples_differs(check: Callable[..., tuple[int, str]]) -> None:
    """Half a sample: within what the cell allows, but no network has such an accuracy."""
    code, out = check(tamper=first(accuracy=108.5 / SAMPLES), rerun=lambda row: replace(row, nll=(row.nll or 0) * 1.01))
    assert code == 1
    assert [line.strip() for line in out.splitlines() if line.startswith(" ")] == [
        f"accuracy: {108.5 / SAMPLES} is not a multiple of 1/114 (114 test samples)"
    ]


def test_here_everything_is_equal_to_the_last_bit(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(here=True)
    assert code == 0
    assert out.count("equal    ") == 60
    assert "all rows together" not in out
    code, out = check(rerun=rounding, here=True)
    assert code == 1
    assert out.count("DIFFERS") == 60
    assert "60 of them differ no more than another seed of the same cell does: perhaps the processor is another one of the same name" in out
    code, out = check(tamper=first(accuracy=0.5), rerun=rounding, here=True)
    assert "59 of them" in out


def test_all_rows_together_can_be_shifted_though_none_differs(
    check: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_comparison, "_network", lambda row: (row.method, row.seed))  # as if each were trained by itself
    code, out = check(rerun=lambda row: replace(row, nll=(row.nll or 0) * 1.06))
    assert code == 1
    assert re.search(
        r"DIFFERS  all rows together: on average computed nll lies 0\.\d\d deviations above the published "
        r"\(30 independent networks, p = 0\.0001\)",
        out,
    )
    assert out.endswith("all 60 rows are as published; all rows together are shifted\nthe derived files follow from the rows\n")


def test_a_method_may_be_spelled_otherwise_than_on_the_board(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(lambda row: row, rounding, "--methods", "random@map,opd(precision=1)")
    assert code == 0
    assert "computing 20 of 60 rows" in out
    assert set(re.findall(r"agrees   (\w+) · ", out)) == {"random", "opd"}


def test_a_tolerance_decides_alone(check: Callable[..., tuple[int, str]]) -> None:
    wrong: Rerun = lambda row: replace(row, accuracy=(round((row.accuracy or 0) * SAMPLES) - 11) / SAMPLES, nll=0.4)  # noqa: E731
    assert check(rerun=wrong)[0] == 1
    code, out = check(lambda row: row, wrong, "--tolerance", "0.1")
    assert code == 0, out
    assert "--tolerance allows 10 points" in out
    assert "all rows together" not in out
    assert check(lambda row: row, wrong, "--tolerance", "0.09")[0] == 1


def test_what_a_row_says_of_its_machine_is_not_taken_over(tmp_path: Path) -> None:
    place = Environment("cpu", None, tmp_path)
    blank = verify._blank(replace(rows_of_a_board()[0], device="cuda: other"), place)
    here = provenance.provenance("cpu", 1)
    assert {name: getattr(blank, name) for name in row_comparison.WHERE} == {name: here.get(name, "") for name in row_comparison.WHERE}
    assert blank.accuracy is None
    assert blank.status == "missing"


# --- the parts


def parts_board(tiny: Path, rows: list[Row]) -> Board:
    return Board(load_suite("tiny.toml"), tuple(rows))


@pytest.mark.parametrize(
    ("part", "agrees", "differing"),
    [
        ({}, True, 0),
        ({"verdicts": [Verdict(), Verdict(["x", "y"]), Verdict(["z"])]}, False, 2),
        ({"faults": ("x",)}, False, 0),
        ({"stale": {"a": "b"}}, False, 0),
        ({"shifts": [Shift("nll", 1.0, 5, 0.5), Shift("accuracy", 1.0, 5, 0.0039)]}, False, 0),
        ({"shifts": [Shift("nll", 1.0, 5, 0.5), Shift("accuracy", 1.0, 5, 0.004)]}, True, 0),
    ],
)
def test_a_board_agrees_if_every_part_does(part: dict[str, object], agrees: bool, differing: int) -> None:
    made = replace(Verification([], [Verdict()], [], 0, (), {}), **part)  # type: ignore[arg-type]
    assert (made.agrees, made.differing) == (agrees, differing)


def test_rows_are_drawn_once_each_in_their_order_by_the_seed(tiny: Path) -> None:
    rows = rows_of_a_board()
    board = parts_board(tiny, rows)
    drawn = [verify._drawn(board, None, 10, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for chosen in drawn:
        places = [rows.index(row) for row in chosen]
        assert places == sorted(set(places))
        assert len(places) == 10
    assert verify._drawn(board, None, 60, 0) == verify._drawn(board, None, 1000, 3) == rows
    often = [row.seed for seed in range(100) for row in verify._drawn(board, frozenset({"obd"}), 2, seed)]
    assert [abs(often.count(k) - 40) < 25 for k in range(5)] == [True] * 5, "200 draws of 10 rows, two of each seed"
    assert verify._drawn(board, frozenset({"obd", "snip"}), 99, 0) == [row for row in rows if row.method in ("obd", "snip")]
    with pytest.raises(UserError, match="there are no rows to verify"):
        verify._drawn(board, frozenset(), 3, 0)
    older = [replace(row, protocol={"obd": "8.0", "snip": "9.0"}.get(row.method, row.protocol)) for row in rows]
    with pytest.raises(
        UserError, match=r"^rows of protocol 8\.0, 9\.0, this release has protocol .*; use the release in column `version`$"
    ):
        verify._drawn(parts_board(tiny, older), None, 3, 0)
    assert len(verify._drawn(parts_board(tiny, older), frozenset({"random"}), 3, 0)) == 3


def test_methods_are_found_in_a_list_with_options_in_brackets(tiny: Path) -> None:
    board = parts_board(
        tiny, [*rows_of_a_board(), replace(rows_of_a_board()[0], method="opd(a=1,b=2)"), replace(rows_of_a_board()[0], method="own")]
    )
    assert verify._named(board, "random") == {"random"}
    assert verify._named(board, " random , opd(a=1,b=2),,own") == {"random", "opd(a=1,b=2)", "own"}
    for name in ("randm", "spam", "opd(a=1", "nothing"):
        with pytest.raises(UserError, match="unknown method of this leaderboard"):
            verify._named(board, f"random,{name}")


def test_a_caveat_names_what_differs_here(tmp_path: Path) -> None:
    place = Environment("cpu", None, tmp_path)
    here = provenance.provenance("cpu", 1)
    same = replace(rows_of_a_board()[0], **{name: here[name] for name in row_comparison.WHERE if name in here})
    assert verify._caveat(same, place) == ""
    others = "other packages or number of threads, or networks trained as one (`--stack`)"
    end = ". Numbers may differ as much as between seeds."
    assert verify._caveat(replace(same, torch="2.99"), place) == (
        f"different environment: torch 2.99 (published) and {here['torch']} (here){end}"
    )
    assert (
        verify._caveat(replace(same, device=""), place) == f"different environment: device ? (published) and {here['device']} (here){end}"
    )
    assert verify._caveat(replace(same, environment="{}"), place) == f"different environment: {others}{end}"
    assert verify._caveat(same, replace(place, threads=2)) == f"different environment: {others}{end}"
    both = verify._caveat(replace(same, torch="2.99", environment="{}"), place)
    assert both == f"different environment: torch 2.99 (published) and {here['torch']} (here); {others}{end}"


def test_a_label_says_tuning_and_ablation_only_where_there_is_one() -> None:
    row = replace(rows_of_a_board()[0], method="obd", sparsity=0.95, seed=3, finetune_epochs=2)
    assert verify.label(row) == "obd · breast_cancer/mlp · sparsity 0.95 · seed 3 · fine-tuned 2"
    assert verify.label(replace(row, tuning="tuned", ablation="shuffled")).startswith("obd tuned shuffled · breast_cancer/mlp")


def full(row: Row, method: str = "magnitude") -> Row:
    """The row with all hyperparameters of its method; `dense`: of its dense network."""
    from bench.planning.cells import hyperparameters_of

    made = methods.get("magnitude")
    said = {"training": hyperparameters_of(made.make_training())}
    if method != "dense":
        said["criterion"] = hyperparameters_of(made.make_criterion())
    more = {"criterion": "", "stage": "", "sparsity": 0.0} if method == "dense" else {}
    return replace(row, method=method, hyperparameters=json.dumps(said), **more)  # type: ignore[arg-type]


def test_a_row_and_its_dense_network_are_one_job_each(tiny: Path) -> None:
    rows = [full(row) for row in rows_of_a_board() if row.method == "magnitude"][:2]
    board, place = parts_board(tiny, rows), Environment("cpu", None, tiny)
    job = verify._job(replace(rows[0], finetune_epochs=2, ablation="shuffled"), board, place, "k")
    assert [tuple(point) for point in job.points] == [(0.5, 2, "k")]
    assert (job.method, job.criterion, job.ablation, job.seed) == ("magnitude", "magnitude", "shuffled", 0)
    reference = verify._reference(replace(rows[0], finetune_epochs=2), job, "k")
    assert [tuple(point) for point in reference.points] == [(0.0, 2, "dense of k")]
    assert (reference.method, reference.criterion, reference.stage, reference.ablation) == ("dense", "", None, "none")
    assert (reference.network, reference.seed, reference.training) == (job.network, job.seed, job.training)
    assert (reference.setting.training, reference.setting.criterion) == (job.setting.training, None)
    dense = verify._job(full(rows[0], "dense"), board, place, "d")
    assert verify._reference(full(rows[0], "dense"), dense, "d") is dense
    networks = {verify._job(row, board, place, "k").network for row in (*rows, replace(rows[0], method="obd"), full(rows[0], "dense"))}
    assert len(networks) == 2, "one for each seed"
    other = json.dumps({**json.loads(rows[0].hyperparameters), "training": {}})
    assert verify._job(replace(rows[0], hyperparameters=other), board, place, "k").network not in networks


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hyperparameters": "{}"}, "not a JSON object with the values"), ({"training": "none"}, "unknown training 'none'"),
        ({"criterion": "own"}, r"unknown criterion 'own'.*\(a method of your own: --plugin FILE\)$"),
        ({"granularity": "odd"}, "odd"), ({"stage": "never"}, "never"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_computed_is_one_line(tiny: Path, changes: dict[str, str], said: str) -> None:
    row = full(rows_of_a_board()[0])
    with pytest.raises(UserError, match=f"^magnitude · .* cannot be computed: .*{said}") as error:
        verify._job(replace(row, **changes), parts_board(tiny, [row]), Environment("cpu", None, tiny), "k")  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_rows_are_computed_with_the_accuracy_of_their_own_dense_network(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows, two of one seed: two dense jobs with the points of all, and each pruned job waits for its own."""
    rows = [
        full(row) for row in rows_of_a_board() if row.method == "magnitude" and (row.sparsity, row.seed) in ((0.5, 0), (0.9, 0), (0.5, 1))
    ]
    rows.append(replace(full(rows[0], "dense"), finetune_epochs=1))
    board, place, plans = parts_board(tiny, rows), Environment("cpu", None, tiny), []

    def run(plan: verify.Plan, store: verify.Store, *rest: object) -> None:
        plans.append(plan)
        for k, (key, row) in enumerate(plan.expected.items()):
            store.put({key: replace(row, status="ok", accuracy=k / 100, nll=k / 10)})

    monkeypatch.setattr(verify.pipeline, "run", run)
    found = verify._compute(rows, board, place, None, None)  # type: ignore[arg-type]
    (plan,) = plans
    keys = list(plan.expected)
    assert keys == ["row 0", "dense of row 0", "row 1", "dense of row 1", "row 2", "dense of row 2", "row 3"]
    value = {key: k / 100 for k, key in enumerate(keys)}
    for k, row in enumerate(found):
        dense = value[f"dense of row {k}" if k < 3 else "row 3"]
        assert (row.accuracy, row.dense_accuracy, row.dense_nll) == pytest.approx((value[f"row {k}"], dense, 10 * dense))
        assert row.identity == rows[k].identity
    assert [sorted(point.key for point in job.points) for job in plan.ready] == [
        ["dense of row 0", "dense of row 2", "row 3"],
        ["dense of row 1"],
    ]
    waiting = {network: [job.points[0].key for job in jobs] for network, jobs in plan.blocked.items()}
    assert waiting == {plan.ready[0].network: ["row 0", "row 2"], plan.ready[1].network: ["row 1"]}
    assert plan.timeout == board.suite.timeout


@pytest.mark.parametrize("faults", [(), ("a rule",)])
def test_derived_files_that_cannot_be_made_are_stale_where_rows_break_rules(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, faults: tuple[str, ...]
) -> None:
    sample = Sample(tiny, parts_board(tiny, []), (), faults, (), Environment("cpu", None, tiny))

    def fail(*_: object) -> dict[str, str]:
        raise KeyError("no\n  dense")

    monkeypatch.setattr(board_folder, "stale", fail)
    if faults:
        assert verify._stale(sample) == {"index.html": "cannot be derived from these rows: 'no\\n dense'"}
    else:
        with pytest.raises(KeyError):
            verify._stale(sample)


def test_suspect_values_are_whole_numbers_of_test_samples(tiny: Path) -> None:
    row = replace(rows_of_a_board()[0], accuracy=100 / SAMPLES, dense_accuracy=100.5 / SAMPLES, top5=0.999, recipe="{}")
    board, place = parts_board(tiny, [row]), Environment("cuda", None, tiny)
    equal = verify._with_more(row, row, Verdict(["x"], "y"), board, place)
    assert equal == Verdict(["x"], "y"), "values that are computed again are not suspect"
    other = replace(row, accuracy=0.5, dense_accuracy=0.5, top5=0.5)
    found = verify._with_more(row, other, Verdict(["x"], "y"), board, place)
    assert found.allowed == "y"
    assert found.differences == [
        "x",
        *(f"{n}: {getattr(row, n)!r} is not a multiple of 1/114 (114 test samples)" for n in ("dense_accuracy", "top5")),
    ]
    recipe = verify._with_more(replace(row, recipe=json.dumps({"mixup": 1})), row, Verdict(["x"]), board, place)
    assert recipe.differences[:1] == ["x"]
    assert "recipe: mixup is 1, but the suite has 0.0" in recipe.differences


def test_fractions_that_are_rounded_down_are_whole_numbers_of_samples(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / 49 * 49 is smaller than 1 in floating point."""
    assert 1 / 49 * 49 < 1
    monkeypatch.setattr(verify.loading, "load_card", lambda *_: SimpleNamespace(test=49))
    board, place = parts_board(tiny, []), Environment("cpu", None, tiny)
    for k in range(50):
        row = replace(rows_of_a_board()[0], accuracy=k / 49, recipe="{}")
        assert verify._with_more(row, replace(row, accuracy=0.123), Verdict(), board, place).differences == []
        odd = replace(row, accuracy=k / 49 + 1e-4)
        assert len(verify._with_more(odd, row, Verdict(), board, place).differences) == 1
