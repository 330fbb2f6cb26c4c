"""Tables in the terminal, as Markdown and as LaTeX."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bench.cli import tables
from bench.cli.tables import Shown
from bench.publishing import text_tables
from bench.ranking import tracks
from bench.ranking.leaderboard import leaderboard
from bench.storage import results_csv
from tests.bench.boards import dense, rows

Bench = Callable[..., tuple[int, str, str]]
LONG = "magnitude@spam(prior=scalar,structure=kronecker,lr=0.0123456789,weight_decay=0.000123)"


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
@pytest.mark.parametrize("name", ["short", LONG])
def test_numbers_are_whole_whatever_the_length_of_a_name(width: int, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    board = leaderboard([*dense(), *rows(name, (0.9, 0.8, 0.7, 0.3)), *rows("b", (0.5, 0.4, 0.3, 0.2))])
    tables.print_board(Console(width=width), "a track", board, "")
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(len(line) <= width for line in out.splitlines())
    for method, curve in ((name, ("80.5%", "70.5%", "30.5%")), ("b", ("40.5%", "30.5%", "20.5%"))):
        assert all(number in out for number in curve), "mean over two seeds, the second a point better"
        if len(method) < 12:
            assert re.search(rf"\b{method}\b", out)
    assert "".join(out.split()).count("".join(LONG[:12].split())) == (name == LONG)


def test_columns_with_the_largest_rank_go_first(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [
        Shown("method", ["a"], name=True),
        Shown("kept", ["1.000"]),
        Shown("second", ["2.000"], rank=1),
        Shown("first", ["3.000"], 2),
    ]
    shown = []
    for width in (60, 34, 25):
        tables.print_table(Console(width=width), "", columns)
        shown.append(re.findall(r"\d\.000", capsys.readouterr().out))
    assert shown == [["1.000", "2.000", "3.000"], ["1.000", "2.000"], ["1.000"]]


def test_latex_is_escaped_and_has_a_line_for_each_method() -> None:
    board = leaderboard([*dense(), *rows("a_b%", (0.9, 0.8, 0.7, 0.3)), *rows("c", (0.5, 0.4, 0.3, 0.2))])
    text = text_tables.latex(board)
    assert r"a\_b\%" in text
    assert "%" not in re.sub(r"\\%", "", text)
    assert text.count(r"\\") == 3, "a heading and two methods"
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert all(line.count(" & ") == len(columns) - 1 for line in text.splitlines() if line.endswith(r"\\"))
    assert r"$\pm$" in text


def test_markdown_has_as_many_cells_in_every_line() -> None:
    board = leaderboard([*dense(), *rows("a|b", (0.9, 0.8, 0.7, 0.3))])
    lines = [line for line in text_tables.markdown(board).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "80.5%" in lines[-1]


@pytest.mark.parametrize(("style", "said"), [("text", "one-shot after training"), ("markdown", "| rank | method"), ("latex", "toprule")])
def test_table_prints_results_that_are_there(bench: Bench, style: str, said: str) -> None:
    code, out, _ = bench("table", str(Path(__file__).parents[3] / "leaderboards" / "spam"), "--format", style)
    assert code == 0
    assert said in out
    assert "spam" in out


def test_table_of_nothing_and_unknown_formats_are_one_line(tiny: Path, bench: Bench) -> None:
    assert bench("table", "nowhere")[::2] == (2, "error: 'nowhere' is neither a results.csv nor a folder with results\n")
    code, _, err = bench("table", ".", "--format", "latx")
    assert (code, err) == (2, "error: unknown format 'latx' (did you mean 'latex'?); available: text, markdown, latex\n")


@pytest.mark.parametrize("style", ["markdown", "latex"])
def test_a_run_writes_nothing_but_the_table_to_standard_output(tiny: Path, bench: Bench, style: str) -> None:
    options = ("--suite", "tiny.toml", "--methods", "random", "--seeds", "0", "--architectures", "mlp,lenet5", "--output", "out")
    code, out, err = bench("run", *options, "--format", style)
    assert code == 0
    assert "note: lenet5 does not support breast_cancer" in err
    assert "wrote " in err
    assert out.startswith("**" if style == "markdown" else "\\begin{table}")
    assert "note:" not in out
    assert "wrote " not in out


def test_with_one_seed_a_dense_network_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (tracks.frame([replace(r, criterion="") for r in dense()[:n]]) for n in (1, 2))
    for rows_, said in ((one, "90.00%  "), (two, "90.50% ±6.35%")):  # t(0.975, 1) = 12.706 times 0.005
        tables.print_dense(Console(width=80), rows_)
        assert said in capsys.readouterr().out


def test_a_part_of_results_that_cannot_be_ranked_is_one_line(tiny: Path, bench: Bench) -> None:
    alone = rows("a", (0.9, 0.8, 0.7, 0.3), dense_accuracy=None)
    results_csv.write_rows(alone, Path("alone.csv"))
    code, _, err = bench("table", "alone.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: 'a' has rows on d/a but no dense accuracy to divide its area by")
    results_csv.write_rows([*alone, alone[0]], Path("twice.csv"))
    assert bench("table", "twice.csv")[::2] == (2, "error: 'twice.csv' has a row twice: a on d/a at sparsity 0.5, seed 0\n")
    results_csv.write_rows([], Path("none.csv"))
    assert bench("table", "none.csv")[::2] == (2, "error: 'none.csv' has no rows\n")


def test_choose_names_what_a_lone_file_was_computed_with(tiny: Path, bench: Bench) -> None:
    """No suite.toml is there that could say it."""
    given = {
        "parameters": 100, "parameters_kept": 50, "granularity": "channel", "match": "flops", "epochs": 0, "calibration_samples": 64,
        "recalibration": "batchnorm", "initial_weights": "sha256:" + "0" * 64,
    }  # fmt: skip
    chosen = [replace(r, **given, sparsity=0.9999999) for r in rows("a", (0.9, 0.8, 0.7, 0.3), tuning="tuned") if r.sparsity == 0.5]
    results_csv.write_rows(chosen, Path("lone.csv"))
    code, out, err = bench("choose", "lone.csv", "--at-most", "drop=0.9")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if "export it" in line]
    words = line.split()
    found = {
        name: words[words.index(f"--{name}") + 1]
        for name in ("suite", "sparsity", "granularity", "match", "epochs", "tuned", "calibration", "weights")
    }
    assert found == {
        "suite": "s", "sparsity": "0.9999999", "granularity": "channel", "match": "flops", "epochs": "0", "tuned": "lone.csv",
        "calibration": "64", "weights": "FILE",
    }  # fmt: skip
    assert "--recalibrate-batchnorm" in words
    assert "--pretrained" not in words
