"""Somebody else's rows: every refusal has its row and reason, and nothing is half-merged."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import methods
from bench.planning.cells import hyperparameters_of
from bench.publishing import board_folder, board_rules, merge, publish
from bench.publishing.board_folder import Board
from bench.publishing.plots import curves
from bench.spec.errors import UserError
from bench.spec.row import COLUMNS, DENSE, PROTOCOL_VERSION, Row
from bench.spec.suite import load_suite
from bench.storage import files, results_csv
from methods.registry import registry

Bench = Callable[..., tuple[int, str, str]]
SHAPE = {"prunable_weights": 1000, "parameters": 1010, "flops": 2000}


def row(method: str, sparsity: float, seed: int, accuracy: float = 0.9, **more: object) -> Row:
    """A row of the tiny suite as `run` would write it."""
    dense = method in ("dense", "dense@spam")
    m = methods.get({"dense": "magnitude", "dense@spam": "spam"}.get(method, method))
    said = {"training": hyperparameters_of(m.make_training())} | ({} if dense else {"criterion": hyperparameters_of(m.make_criterion())})
    kept = 1000 - round(sparsity * 1000)
    values = {
        "suite": "tiny", "dataset": "breast_cancer", "architecture": "mlp", "granularity": "weight", "match": "weights", "method": method,
        "criterion": "" if dense else m.criterion, "training": m.training, "stage": "" if dense else str(m.stage), "tuning": "default",
        "ablation": "none", "sparsity": sparsity, "seed": seed, "epochs": 3, "finetune_epochs": 0, "status": "ok", **SHAPE,
        "sparsity_reached": 1 - kept / 1000, "kept_weights": kept, "parameters_kept": kept + 10, "flops_kept": 2 * kept,
        "accuracy": accuracy - 0.01 * seed, "nll": 0.3 + 0.01 * seed, "brier": 0.1, "ece": 0.05, "dense_accuracy": 0.9 - 0.01 * seed,
        "dense_nll": 0.3 + 0.01 * seed,
        "layers_collapsed": 0, "score_seconds": 0.1, "train_seconds": 1.0, "hyperparameters": json.dumps(said, sort_keys=True),
        "version": "0.1.0", "torch": "2.15.0", "device": "cpu",
    }  # fmt: skip
    return Row(**(values | more))  # type: ignore[arg-type]


def cells(method: str, accuracy: float = 0.9, **more: object) -> list[Row]:
    return [
        row(method, s, seed, accuracy, **more) for s in ((0.0,) if method in ("dense", "dense@spam") else (0.5, 0.9)) for seed in (0, 1, 2)
    ]


@pytest.fixture
def board(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(curves, "draw", lambda rows, board: {})  # they take seconds, and have tests of their own
    suite = load_suite("tiny.toml").model_copy(update={"seeds": (0, 1, 2), "finetune_epochs": (0,)})
    controls = ("dense", "dense@spam", "random", "magnitude", "magnitude_layer")
    made = Board(suite, tuple(r for method in controls for r in cells(method)))
    files.write_files(Path("leaderboards/tiny"), board_folder.evidence(made))
    return made


def test_a_good_file_joins_and_a_repeated_row_changes_nothing(board: Board, bench: Bench) -> None:
    theirs = [replace(r, device="cuda: other", accuracy=(r.accuracy or 0) + 0.004, nll=(r.nll or 0) + 0.004) for r in cells("magnitude")]
    results_csv.write_rows([*cells("spam", 0.93), *cells("dense"), *theirs], Path("theirs.csv"))
    before = Path("leaderboards/tiny/results/magnitude.csv").read_bytes()
    code, out, _ = bench("publish", "--suite", "tiny", "--merge", "theirs.csv", "--dry-run")
    assert "contributed by 'not named'; --contributor NAME" in out
    assert code == 0
    assert "theirs.csv: 6 rows to merge (spam); 9 rows already published" in out
    assert not Path("leaderboards/tiny/results/spam.csv").exists()
    code, out, _ = bench("publish", "--suite", "tiny", "--merge", "theirs.csv", "--contributor", "Ada")
    assert code == 0
    assert results_csv.read_rows(Path("leaderboards/tiny/results/spam.csv")) == results_csv.ordered(cells("spam", 0.93))
    assert "spam" in Path("leaderboards/tiny/leaderboard.csv").read_text()
    assert Path("leaderboards/tiny/results/magnitude.csv").read_bytes() == before


def test_repeated_rows_are_judged_by_what_their_cells_show_over_seeds(board: Board) -> None:
    """As `verify` judges them: to the last bit where release and device are the same, elsewhere by the noise of the cell."""

    def refused(**changes: object) -> list[str]:
        theirs = [replace(cells("magnitude")[0], **changes)]  # type: ignore[arg-type]
        results_csv.write_rows(theirs, Path("theirs.csv"))
        return [reason for _, reason in merge.check(Path("theirs.csv"), board).refused]

    assert refused() == []
    assert refused(nll=0.300001) == ["differs from the published row: nll: expected 0.3, got 0.300001"]
    assert refused(nll=0.305, torch="2.14.1") == []
    assert refused(nll=0.305, torch="2.14.1", accuracy=0.885) == []
    (reason,) = refused(nll=0.305, torch="2.14.1", accuracy=0.8)
    assert reason.startswith("differs from the published row: accuracy: expected 0.9, got 0.8: differs by 10 points, this cell allows ")


class Written(str):
    """A text as it stands in the file, for a number."""


def changed(**values: object) -> Callable[[list[Row]], list[Row]]:
    """The third row, which the file has in its row 4, with other values."""
    return lambda rows: [replace(r, **values) if k == 2 else r for k, r in enumerate(rows)]  # type: ignore[arg-type]


FAULTS: list[tuple[Callable[[list[Row]], list[Row]], str]] = [
    (changed(suite="digits"), "suite 'digits', this leaderboard has suite 'tiny'"),
    (changed(seed=Written("1.0")), "seed: should be a plain number, got '1.0'"),
    (changed(seed=Written("1_0")), "seed: should be a plain number, got '1_0'"),
    (changed(nll=Written(" 1")), "nll: should be a plain number, got ' 1'"),
    (changed(protocol="0"), f"protocol: should be '{PROTOCOL_VERSION}', got '0'"),
    (changed(dataset="digits"), "the suite does not contain digits/mlp"),
    (changed(seed=7), "seed 7 is not one of 0, 1, 2"),
    (changed(sparsity=0.7), "sparsity 0.7 is not one of 0.5, 0.9"),
    (changed(epochs=30), "epochs 30, but 'spam' trains 3 in this suite, which has 3"),
    (changed(finetune_epochs=2), "finetune_epochs 2 is not one of 0"),
    (changed(granularity="channel"), "granularity 'channel', this leaderboard has 'weight'"),
    (changed(accuracy=1.5), "accuracy: should be less than or equal to 1, got '1.5'"),
    (changed(nll=float("nan")), "nll: should be a finite number, got 'nan'"),
    (changed(accuracy=None), "status is 'ok' but these columns are empty: accuracy"),
    (changed(status="good"), "status: should be 'ok', 'collapsed', 'failed' or 'unsupported', got 'good'"),
    (changed(status="failed", accuracy=None), "status is 'failed' but the column `error` is empty"),
    (changed(method=""), "method: is empty"),
    (changed(kept_weights=501), "kept_weights is 501, but sparsity 0.5 requires exactly 500 of 1000"),
    (changed(sparsity_reached=0.51), "sparsity_reached 0.51 is not 1 - kept_weights / prunable_weights"),
    (changed(flops=3000), "flops is 3000, but this network has 2000"),
    (changed(parameters_kept=2000), "parameters_kept 2000 is larger than parameters 1010"),
    (changed(method="spamm"), "unknown method 'spamm' (did you mean 'spam'?)"),
    (changed(training="map"), "training 'map', the method 'spam' has 'spam'"),
    (changed(criterion="magnitude"), "criterion 'magnitude', the method 'spam' has 'opd'"),
    (changed(method="dense@spam(lr=0.2)", criterion="", stage="", sparsity=0.0, kept_weights=1000, sparsity_reached=0.0,
             parameters_kept=1010, flops_kept=2000, hyperparameters=row("dense@spam", 0.0, 0).hyperparameters),
     "the dense network of this training must be called 'dense@spam'"),
    (changed(method="opd@spam", sparsity=0.5), "method 'opd@spam', the method 'opd@spam' has 'spam'"),
    (changed(stage="init"), "stage 'init', the method 'spam' has 'after'"),
    (changed(hyperparameters="{}"), "hyperparameters: not a JSON object with the values"),
    (changed(hyperparameters="[" * 100_000), "hyperparameters: JSON is nested too deeply"),
    (changed(hyperparameters="[1]"), "hyperparameters: not a JSON object"),
    (changed(tuning="tuned"), "tuned row without the entry `tuning`"),
    (lambda rows: [*rows[:2], rows[1], *rows[2:]], "has the same key (method, data set, sparsity, seed, ...) as row 3"),
    (lambda rows: [*rows[:2], replace(cells("random")[0], accuracy=0.2), *rows[2:]], "the published row: accuracy: expected 0.9, got 0.2"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), FAULTS, ids=[reason for _, reason in FAULTS])
def test_each_fault_is_refused_with_its_row_and_reason(board: Board, bench: Bench, spoil: Callable[..., list[Row]], reason: str) -> None:
    write_in_order(spoil(results_csv.ordered(cells("spam"))), Path("theirs.csv"))
    before = {path: path.read_bytes() for path in sorted(Path("leaderboards").rglob("*.*"))}
    code, out, err = bench("publish", "--suite", "tiny", "--merge", "theirs.csv", "--contributor", "Ada")
    assert code == 2
    assert any(line.startswith("row 4: ") and reason in line for line in out.splitlines()), out
    assert err == "error: 'theirs.csv': 1 row refused; nothing was merged\n"
    assert {path: path.read_bytes() for path in sorted(Path("leaderboards").rglob("*.*"))} == before


def write_in_order(rows: list[Row], path: Path) -> None:
    """As `results.write_rows`, in the order given."""
    parts = [results_csv.rows_text([r]).splitlines(keepends=True) for r in rows]
    path.write_text(parts[0][0] + "".join(part[1] for part in parts))


def test_all_faults_are_named_at_once(board: Board) -> None:
    rows = results_csv.ordered(cells("spam"))
    write_in_order([replace(rows[0], seed=9, accuracy=0.3, kept_weights=1), *rows[1:3], replace(rows[3], ece=2.0)], Path("theirs.csv"))
    refused = merge.check(Path("theirs.csv"), board).refused
    assert [number for number, _ in refused] == [2, 2, 2, 5]


def test_default_rows_have_default_hyperparameters(board: Board) -> None:
    rows = cells("spam")
    said = json.loads(rows[0].hyperparameters)
    said["training"]["lr"] = 0.05
    results_csv.write_rows([replace(r, hyperparameters=json.dumps(said)) for r in rows], Path("theirs.csv"))
    refused = merge.check(Path("theirs.csv"), board).refused
    assert len(refused) == 6
    assert refused[0][1] == "hyperparameters: lr of the training differ from the defaults of 'spam'"


def test_names_stand_for_hyperparameters_schedules_and_the_suites_fine_tuning(board: Board) -> None:
    board = Board(board.suite.model_copy(update={"finetune_epochs": (0, 2)}), board.rows)

    def said(method: str, *, finetune_epochs: int = 0, tuning: str = "default", **changes: dict[str, object]) -> list[str]:
        plain = row(method, 0.5, 0)
        told = json.loads(plain.hyperparameters)
        told = {k: {**told.get(k, {}), **changes.get(k, {})} for k in {**told, **changes}}
        more = {"finetune_epochs": finetune_epochs, "tuning": tuning, "accuracy_before_finetune": 0.5 if finetune_epochs else None}
        results_csv.write_rows([replace(plain, hyperparameters=json.dumps(told), **more)], Path("theirs.csv"))  # type: ignore[arg-type]
        found = [reason for _, reason in merge.check(Path("theirs.csv"), board).refused]
        return [reason for reason in found if "has no row for" not in reason and "dense network is missing" not in reason]

    schedule = methods.get("magnitude_gradual").schedule
    assert schedule is not None
    assert said("magnitude_gradual", schedule=schedule.as_dict()) == []
    assert said("magnitude_gradual", schedule=schedule.as_dict() | {"every": 2}) == [
        "hyperparameters: `schedule` is not that of 'magnitude_gradual'"
    ]
    assert said("magnitude_gradual") == ["hyperparameters: `schedule` is not that of 'magnitude_gradual'"]
    assert said("spam", finetune_epochs=2, finetuning={"lr_scale": 0.1}) == []
    assert said("spam", finetune_epochs=2, finetuning={"lr_scale": 0.5}) == [
        "hyperparameters: lr_scale 0.5 of fine-tuning, but the suite has 0.1"
    ]
    assert said("magnitude(weight_decay=0.003)") == []
    (reason,) = said("magnitude(weight_decay=0.003)", training={"weight_decay": 0.001})
    assert "fixes weight_decay=0.003" in reason
    assert "lr" in said("spam", training={"lr": -1.0})[0]


@pytest.mark.parametrize("without", [{"seed": 1}, {"sparsity": 0.9}])
def test_a_method_comes_for_all_cells_and_seeds(board: Board, without: dict[str, float]) -> None:
    rows = [r for r in cells("spam") if not all(getattr(r, k) == v for k, v in without.items())]
    results_csv.write_rows(rows, Path("theirs.csv"))
    ((number, reason),) = merge.check(Path("theirs.csv"), board).refused
    assert number == 2
    assert reason.startswith("'spam' has no row for breast_cancer/mlp at sparsity ")
    assert reason.endswith("seeds 1" if "seed" in without else "seeds 0, 1, 2")


DENSE_MINE = """
from dataclasses import dataclass
import methods

@methods.register("dense_mine")
@dataclass(frozen=True, kw_only=True)
class Mine(methods.Criterion):
    def score(self, problem):
        return methods.Scores({n: w.detach() for n, w in problem.weights.items()})
"""


def test_a_method_is_pruned_whatever_its_name_begins_with(board: Board, bench: Bench) -> None:
    """`dense_mine` is asked for all sparsities, counts as a method, and its dense reference is that of its training."""
    Path("mine.py").write_text(DENSE_MINE)
    methods.load_plugin("mine.py")
    results_csv.write_rows([r for r in cells("dense_mine") if r.sparsity == 0.5], Path("theirs.csv"))
    ((_, reason),) = merge.check(Path("theirs.csv"), board).refused
    assert reason == "'dense_mine' has no row for breast_cancer/mlp at sparsity 0.9 with 0 epochs of fine-tuning, seeds 0, 1, 2"
    results_csv.write_rows(cells("dense_mine"), Path("theirs.csv"))
    code, out, _ = bench("publish", "--suite", "tiny", "--merge", "theirs.csv", "--contributor", "Ada", "--plugin", "mine.py")
    assert code == 0
    assert "theirs.csv: 6 rows to merge (dense_mine)" in out
    assert "30 rows of 4 methods" in out
    assert DENSE in registry.RESERVED, "no method of that name, so that no dense row is taken for one"


def test_publishing_keeps_what_others_have_contributed_but_not_of_other_settings(board: Board) -> None:
    there = Board(board.suite, (*board.rows, *cells("spam")))
    again = [replace(r, accuracy=0.5) for r in cells("magnitude")]
    kept = publish._kept(there, board.suite, again)
    assert {r.method for r in kept} == {"dense", "dense@spam", "random", "magnitude_layer", "spam"}
    wider = board.suite.model_copy(update={"seeds": (0, 1, 2, 3)})
    assert len(publish._kept(there, wider, again)) == len(kept)
    (key, reason), *_ = board_rules.incomplete([*kept, *again], wider)
    assert key[0] == "dense"
    assert reason.endswith("seeds 3")
    with pytest.raises(
        UserError, match="`epochs` of the suite differs from the published rows of dense, dense@spam, random, magnitude_layer, spam"
    ):
        publish._kept(there, board.suite.model_copy(update={"epochs": 4}), again)
    assert publish._kept(there, board.suite.model_copy(update={"epochs": 4}), list(there.rows)) == []


def test_what_is_no_results_csv_is_one_line(board: Board) -> None:
    def said(text: str) -> str:
        Path("theirs.csv").write_text(text)
        with pytest.raises(UserError) as stop:
            merge.check(Path("theirs.csv"), board)
        return str(stop.value)

    header = ",".join(COLUMNS)
    assert "missing suite" in said("a,b\n1,2\n")
    assert "unknown 'extra'" in said(header + ",extra\n")
    assert "column 1 is 'dataset', expected 'suite'" in said(",".join((COLUMNS[1], COLUMNS[0], *COLUMNS[2:])) + "\n")
    assert "has no rows" in said(header + "\n")
    assert merge.check.__doc__
    Path("theirs.csv").write_text(header + "\n1,2\n")
    assert merge.check(Path("theirs.csv"), board).refused == [(2, f"2 cells, expected {len(COLUMNS)}")]
    with pytest.raises(UserError, match="cannot read"):
        merge.check(Path("nowhere.csv"), board)


def test_formulas_come_in_and_go_out_as_text(board: Board) -> None:
    rows = [replace(r, device='=HYPERLINK("x")') for r in cells("spam")]
    results_csv.write_rows(rows, Path("theirs.csv"))
    text = Path("theirs.csv").read_text().replace("'=HYPER", "=HYPER")  # as somebody else would write it
    Path("theirs.csv").write_text(text)
    checked = merge.check(Path("theirs.csv"), board)
    assert checked.refused == []
    files = board_folder.evidence(Board(board.suite, (*board.rows, *checked.new)))
    cell = next(csv.DictReader(files["results/spam.csv"].decode().splitlines()))["device"]
    assert cell == '\'=HYPERLINK("x")'
