"""`compare` as a user types it, on the tiny suite."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from bench.cli import differences
from bench.ranking.tracks import area
from bench.storage import results_csv
from tests.bench import boards

Bench = Callable[..., tuple[int, str, str]]


def test_it_names_the_missing_run_and_then_prints_the_paired_test(tiny: Path, bench: Bench) -> None:
    options = ("--suite", "tiny.toml", "--finetune-epochs", "0,1")
    code, _, err = bench("compare", "magnitude", "random", *options)
    command = "python -m bench run --suite tiny.toml --methods magnitude,random --finetune-epochs 0,1"
    assert (code, err) == (2, f"error: 16 of 16 rows are not in the store. Run this to compute them: {command}\n")
    bench(*command.split()[3:], "--workers", "1", "--output", "out")
    code, out, _ = bench("compare", "magnitude", "random", *options)
    assert code == 0

    rows = pd.read_csv("out/results.csv").query("criterion == criterion and finetune_epochs == 0")
    areas = {key: area(part["sparsity"].tolist(), part["accuracy"].tolist()) for key, part in rows.groupby(["method", "seed"])}
    differences = [areas["magnitude", seed] - areas["random", seed] for seed in (0, 1)]
    test = stats.ttest_1samp(differences, 0)
    first = next(line for line in out.splitlines() if "breast_cancer" in line).split()
    assert first[2:5] == [
        "2",
        f"{(areas['magnitude', 0] + areas['magnitude', 1]) / 2:.3f}",
        f"{(areas['random', 0] + areas['random', 1]) / 2:.3f}",
    ]
    assert float(first[5]) == pytest.approx(sum(differences) / 2, abs=1e-3)
    assert float(first[6]) == pytest.approx(test.confidence_interval().low, abs=1e-3)
    assert first[9] == ("<0.001" if test.pvalue < 0.001 else f"{test.pvalue:.3f}")
    at_90 = rows[rows["sparsity"] == 0.9].groupby("method")["accuracy"].mean()
    line = [line for line in out.splitlines() if "breast_cancer" in line][1]
    assert re.findall(r"[+-]\d+\.\d", line)[1] == f"{100 * (at_90['magnitude'] - at_90['random']):+.1f}"
    assert "one-shot after training: area, magnitude - random (positive: magnitude is better)" in out
    assert "fine-tuned 1 epochs: area, magnitude - random (positive: magnitude is better)" in out

    for path in ("out", "out/results.csv"):
        assert bench("compare", "magnitude", "random", path) == (0, out, ""), "the same from the folder as from the store"

    code, out, _ = bench("compare", "random", "magnitude", *options, "--seeds", "1")
    assert code == 0
    assert "With one seed nothing can be tested over seeds." in out


def test_tuned_rows_are_compared_apart_once_they_are_there(tiny: Path, bench: Bench) -> None:
    options = ("--suite", "tiny.toml", "--finetune-epochs", "0")
    bench("run", *options, "--methods", "magnitude,random", "--workers", "1")
    code, out, _ = bench("compare", "magnitude", "random", *options, "--trials", "2")
    command = "python -m bench run --suite tiny.toml --methods magnitude,random --trials 2 --finetune-epochs 0"
    assert code == 0
    assert f"note: not tuned by 2 trials. Run this to do it: {command}" in " ".join(out.split())
    assert "tuned: area" not in out
    bench(*command.split()[3:], "--workers", "1", "--output", "out")
    code, out, _ = bench("compare", "magnitude", "random", *options, "--trials", "2")
    assert code == 0
    assert "note:" not in out
    rows = pd.read_csv("out/results.csv").query("criterion == criterion")
    for tuning, title in (("default", "one-shot after training: area"), ("tuned", "one-shot after training, tuned: area")):
        mine = rows[rows["tuning"] == tuning]
        areas = [
            area(part["sparsity"].tolist(), part["accuracy"].tolist()) for _, part in mine[mine["method"] == "magnitude"].groupby("seed")
        ]
        line = next(line for line in out.partition(title)[2].splitlines() if "breast_cancer" in line).split()
        assert line[3] == f"{sum(areas) / len(areas):.3f}"


def test_methods_at_different_stages_meet_when_fine_tuned(tiny: Path, bench: Bench) -> None:
    code, _, err = bench("compare", "magnitude", "snip", "--suite", "tiny.toml", "--finetune-epochs", "0")
    assert code == 2
    assert "'magnitude' is applied after training and 'snip' is applied at initialisation" in err
    assert "--finetune-epochs" in err
    bench("run", "--suite", "tiny.toml", "--methods", "magnitude,snip", "--workers", "1", "--datasets", "breast_cancer,digits")
    code, out, _ = bench("compare", "magnitude", "snip", "--suite", "tiny.toml", "--datasets", "breast_cancer,digits")
    assert code == 0
    assert "only the fine-tuned tracks compare them" in out
    assert "one-shot" not in out
    blocks = [line.split() for line in out.splitlines() if line.split()[:1] in (["breast_cancer"], ["digits"], ["all"])][:3]
    assert [b[0] for b in blocks] == ["breast_cancer", "digits", "all"]
    assert float(blocks[2][6]) == pytest.approx((float(blocks[0][5]) + float(blocks[1][5])) / 2, abs=1.5e-3), "blocks weigh the same"


PLUGIN = '''
import methods
from methods import Criterion, Scores

@methods.register("refusing")
class Refusing(Criterion):
    """Takes no network."""

    def unsupported(self, problem):
        return "never"

    def score(self, problem):
        return Scores({name: w.detach() for name, w in problem.weights.items()})

@methods.register("breaking")
class Breaking(Criterion):
    """Takes every network, and breaks."""

    def score(self, problem):
        raise RuntimeError("broken")
'''


def test_failures_count_as_nothing_kept_and_unsupported_is_said(tiny: Path, bench: Bench) -> None:
    (tiny / "plugin.py").write_text(PLUGIN)
    options = ("--suite", "tiny.toml", "--finetune-epochs", "0", "--plugin", "plugin.py")
    bench("run", *options, "--methods", "magnitude,refusing,breaking", "--workers", "1")
    code, out, _ = bench("compare", "magnitude", "refusing", *options)
    assert (code, out) == (0, "one-shot after training: the two have no supported row in common\n\n")
    code, out, _ = bench("compare", "breaking", "magnitude", *options)
    assert code == 0
    assert "breaking: 4 failed rows count as accuracy 0" in out
    assert next(line for line in out.splitlines() if "breast_cancer" in line).split()[3] == "0.000"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["magnitud", "random"], "unknown method 'magnitud' (did you mean 'magnitude'?)"),
        (["magnitude", "all"], "unknown method 'all'"),
        (["magnitude", "magnitude@map"], "are the same method"),
        (["magnitude"], "Missing argument"),
        (["magnitude", "random", "--suite", "digit"], "did you mean 'digits'"),
        (["magnitude", "random", "--seeds", "x"], "'x' is not a whole number"),
        (["magnitude", "random", "--device", "gpu"], "unknown device 'gpu'"),
        (["magnitude", "random", "--store", "nowhere://"], "cannot open the store"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(tiny: Path, bench: Bench, arguments: list[str], said: str) -> None:
    code, out, err = bench("compare", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tiny / ".bench" / "networks").exists()


BOARD = str(Path(__file__).parents[3] / "leaderboards" / "small")


def test_a_folder_is_compared_without_a_store(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [*boards.rows("magnitude", (0.9, 0.8, 0.7, 0.6)), *boards.rows("magnitude", (0.8, 0.7, 0.6, 0.5), ablation="shuffle")]
    results_csv.write_rows(made, Path("own.csv"))
    code, out, _ = bench("compare", "magnitude (shuffle)", "magnitude", "own.csv")
    assert code == 0
    assert [word for word in out.split() if word.startswith(("+0.1", "-0.1"))][:1] == ["-0.100"]
    curve = (0.9, 0.8, 0.7, 0.6)
    made = [*boards.rows("early", curve, stage="init", finetune=1), *boards.rows("late", curve, finetune=1)]
    results_csv.write_rows([*made, *boards.rows("early", curve, stage="init", status="failed")], Path("two.csv"))
    code, out, _ = bench("compare", "early", "late", "two.csv")
    assert (code, out.count("area, early - late"), "failed" in out) == (0, 1, False), "failures of a track that is not compared"
    code, out, _ = bench("compare", "kfac_obs@spam", "magnitude(weight_decay=0.003)", BOARD)
    assert code == 0
    assert out.count("area, kfac_obs@spam - magnitude(weight_decay=0.003)") == 4, "one-shot and fine-tuned, default and tuned"
    assert "".join(out.split()).count("11blocks;Wilcoxon") == 2, "of the tuned tracks there are six blocks only"
    assert not Path(".bench").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("spam", "magnitud", BOARD), "unknown method 'magnitud' (did you mean 'magnitude'?); available: dwf, "),
        (("spam", "dense", BOARD), "unknown method 'dense'"),
        (("spam", "spam", BOARD), "'spam' and 'spam' are the same method: name two"),
        (("spam", "set", BOARD), f"'{BOARD}' has 'spam' and 'set' in different tracks only, and they cannot be compared"),
        (("spam", "magnitude", "nowhere"), "'nowhere' is neither a results.csv nor a folder with results"),
        (("spam", "magnitude", BOARD, "--seeds", "1"), f"the rows of '{BOARD}' are compared as they are: give either a path or options"),
        (("spam", "magnitude", BOARD, "--suite", "small"), "are compared as they are"),
    ],
)
def test_a_wrong_folder_or_name_is_one_line(arguments: tuple[str, ...], error: str, bench: Bench) -> None:
    code, out, err = bench("compare", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert error in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("width", [60, 80, 140])
def test_numbers_are_whole_in_any_width(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    differences.compare_folder(Path(BOARD), ("magnitude_lamp", "magnitude(weight_decay=0.003)"))
    wide = re.findall(r"[+-]\d+\.\d (?:±\d+\.\d|\([^)]+\))", capsys.readouterr().out)
    assert len(wide) == 2 * (12 + 7) * 6, "two tracks, default and tuned, with eleven and with six blocks, and all; six sparsities"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(differences, "make_console", lambda: Console(width=width))
        differences.compare_folder(Path(BOARD), ("magnitude_lamp", "magnitude(weight_decay=0.003)"))
    out = capsys.readouterr().out
    assert sorted(re.findall(r"[+-]\d+\.\d (?:±\d+\.\d|\([^)]+\))", out)) == sorted(wide)
    assert out.count("test_efficientnet") + out.count("test_effi") >= 4
    assert "…" not in out
    if width > 60:
        assert max(map(len, (line for line in out.splitlines() if "│" not in line and " ±" in line and "%" not in line))) <= width


def test_budgets_differ_only_if_their_means_do(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curve = (0.9, 0.8, 0.7, 0.6)
    results_csv.write_rows([*boards.rows("a", curve), *boards.rows("b", curve, seeds={0: 0.0})], Path("lacks.csv"))
    assert "budgets" not in bench("compare", "a", "b", "lacks.csv")[1]
    results_csv.write_rows([*boards.rows("a", curve), *boards.rows("b", curve, epochs=15)], Path("longer.csv"))
    assert "note: the budgets differ: mean epochs of training a 10, b 15" in bench("compare", "a", "b", "longer.csv")[1]


def test_a_block_that_did_not_train_is_named_and_left_out(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [r for d in "xy" for name in "ab" for r in boards.rows(name, (0.9, 0.8, 0.7, 0.6), dataset=d)]
    bad = [replace(r, dataset="y", criterion="", sparsity=0.0, status="collapsed") for r in boards.dense(0.1)]
    results_csv.write_rows([*rows, *bad], Path("r.csv"))
    code, out, _ = bench("compare", "a", "b", "r.csv")
    assert code == 0
    assert "warning: y/a: the dense network did not train (chance accuracy, or an error) on 2 of 2 seeds" in out
    assert [line.split()[0] for line in out.splitlines() if line.strip()[:2] in ("x ", "y ")] == ["x", "x"]
    results_csv.write_rows(bad, Path("dense.csv"))
    assert bench("compare", "a", "b", "dense.csv")[::2] == (2, "error: 'dense.csv' has no rows of pruned networks\n")
