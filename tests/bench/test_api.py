"""`import bench`: the same results as the command line, as tables."""

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

import bench as package
from bench.publishing.plots import curves
from bench.ranking.comparison import COLUMNS as DIFFERENCES
from bench.spec.row import COLUMNS
from bench.storage import results_csv
from tests.bench.boards import dense, rows

Bench = Callable[..., tuple[int, str, str]]
OPTIONS = {"methods": ["magnitude", "random"], "workers": 1, "progress": False}


def test_importing_it_costs_nothing() -> None:
    heavy = "{'torch', 'pandas', 'pydantic', 'methods', 'timm', 'rich', 'sqlalchemy', 'matplotlib'}"
    code = f"import sys, bench; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_gives_the_rows_that_the_command_line_writes(tiny: Path, bench: Bench) -> None:
    made = package.run("tiny.toml", **OPTIONS)
    assert list(made.columns) == list(COLUMNS)
    code, _, _ = bench("run", "--suite", "tiny.toml", "--methods", "magnitude,random", "--output", "out", "--workers", "1")
    assert code == 0
    with (tiny / "out" / "results.csv").open(newline="") as file:
        written = {(r["method"], r["sparsity"], r["seed"], r["finetune_epochs"]): r["accuracy"] for r in csv.DictReader(file)}
    got = {(r.method, str(r.sparsity), str(r.seed), str(r.finetune_epochs)): repr(float(r.accuracy)) for r in made.itertuples()}
    assert got == written
    board = package.leaderboard(made)
    from_csv = pd.read_csv(tiny / "out" / "leaderboard.csv")
    assert board["method"].tolist() == from_csv["method"].tolist()
    assert board["relative_area"].astype(float).tolist() == from_csv["relative_area"].tolist()
    pd.testing.assert_frame_equal(package.leaderboard(pd.read_csv(tiny / "out" / "results.csv")), board)
    read = package.read(tiny / "out")
    pd.testing.assert_frame_equal(package.leaderboard(read), board)
    assert len(read) == len(made)


def test_compare_is_a_paired_t_test_over_seeds() -> None:
    """Areas of two methods in one block with four seeds, by hand: trapezoids over sparsity, then scipy's paired test."""
    seeds = {"a": {0: 0.0, 1: 0.02, 2: -0.01, 3: 0.01}, "b": {0: 0.01, 1: 0.0, 2: -0.03, 3: 0.0}}
    made = [*dense(), *rows("a", (0.9, 0.8, 0.6, 0.3), seeds=seeds["a"]), *rows("b", (0.85, 0.7, 0.6, 0.2), seeds=seeds["b"])]

    def area(curve: tuple[float, ...], gain: float) -> float:
        s, y = (0.5, 0.9, 0.95, 0.99), [v + gain for v in curve]
        return sum((s[k + 1] - s[k]) * (y[k] + y[k + 1]) / 2 for k in range(3)) / (s[-1] - s[0])

    first = [area((0.9, 0.8, 0.6, 0.3), gain) for gain in seeds["a"].values()]
    second = [area((0.85, 0.7, 0.6, 0.2), gain) for gain in seeds["b"].values()]
    found = package.compare(made, "a", "b")
    assert list(found.columns) == list(DIFFERENCES)
    (line,) = found.to_dict("records")
    assert (line["dataset"], line["architecture"], line["seeds"]) == ("d", "a", 4)
    test = stats.ttest_rel(first, second)
    interval = test.confidence_interval(0.95)
    assert line["first"] == pytest.approx(sum(first) / 4)
    assert line["second"] == pytest.approx(sum(second) / 4)
    assert line["difference"] == pytest.approx((sum(first) - sum(second)) / 4)
    assert (line["low"], line["high"], line["p"]) == pytest.approx((interval.low, interval.high, test.pvalue))


def test_plot_gives_the_figure_of_a_track() -> None:
    made = [*dense(), *rows("a", (0.9, 0.8, 0.6, 0.3)), *rows("b", (0.8, 0.7, 0.5, 0.2))]
    figure = package.plot(made, "accuracy")
    assert figure.axes
    assert figure._repr_png_().startswith(b"\x89PNG"), "as a notebook asks for it"
    with pytest.raises(package.UserError, match=r"no figure 'acuracy' .did you mean 'accuracy'"):
        package.plot(made, "acuracy")
    with pytest.raises(package.UserError, match="no track 'init' has a figure 'accuracy'"):
        package.plot(made, "accuracy", track="init")


def test_plot_draws_no_other_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large board has hundreds of them, which take minutes."""
    drawn, draw = [], curves._curves
    monkeypatch.setattr(curves, "_curves", lambda *args, **more: (drawn.append(args[2]), draw(*args, **more))[1])
    made = [*dense(), *rows("a", (0.9, 0.8, 0.6, 0.3))]
    package.plot(made, "ece")
    with pytest.raises(package.UserError, match="no figure 'acuracy'"):
        package.plot(made, "acuracy")
    assert drawn == ["ece"]


def test_what_cannot_be_is_said(tiny: Path) -> None:
    with pytest.raises(TypeError, match=r"no option 'metods' .did you mean 'methods'"):
        package.run("tiny.toml", metods=["magnitude"])
    with pytest.raises(package.UserError, match=r"unknown method 'magnitud' .did you mean 'magnitude'"):
        package.run("tiny.toml", methods="magnitud", progress=False)
    with pytest.raises(package.UserError, match="no rows of method 'c'; there are: dense, a"):
        package.compare([*dense(), *rows("a", (0.9,) * 4)], "a", "c")
    with pytest.raises(package.UserError, match=r"neither a results\.csv nor a folder"):
        package.read(tiny / "nowhere")
    with pytest.raises(package.UserError, match="no column 'suite'"):
        package.leaderboard(pd.DataFrame({"method": ["a"]}))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_a_single_name_is_a_list_of_one(tiny: Path) -> None:
    made = package.run("tiny.toml", methods="random", seeds=1, sparsities=0.5, finetune_epochs=0, workers=1, progress=False)
    assert sorted(made["method"]) == ["dense", "random"]
    assert made["seed"].tolist() == [1, 1]
    assert not math.isnan(made["worst_class_accuracy"].iloc[0])


def test_force_computes_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"methods": "random", "seeds": 0, "finetune_epochs": 0, "workers": 1, "progress": False}
    first = package.run("tiny.toml", **options)
    again = package.run("tiny.toml", **options)
    assert again["train_seconds"].tolist() == first["train_seconds"].tolist(), "from the store"
    forced = package.run("tiny.toml", force=True, **options)
    assert forced["train_seconds"].tolist() != first["train_seconds"].tolist()
    assert forced["accuracy"].tolist() == first["accuracy"].tolist()
    assert list(tiny.glob(".bench/networks/*.safetensors")), "the dense network is there again"


def test_an_ablation_is_compared_under_the_name_that_the_leaderboard_shows() -> None:
    made = [*dense(), *rows("a", (0.9, 0.8, 0.6, 0.3)), *rows("a", (0.8, 0.7, 0.5, 0.2), ablation="shuffle")]
    assert "a (shuffle)" in set(package.leaderboard(made)["method"])
    assert package.compare(made, "a", "a (shuffle)")["difference"].tolist() == pytest.approx([0.1])
    with pytest.raises(package.UserError, match="'a' and 'a' are the same method"):
        package.compare(made, "a", "a")


def test_a_track_is_named_as_in_the_column_track() -> None:
    made = [*dense(finetune=2), *rows("a", (0.9, 0.8, 0.6, 0.3), finetune=2)]
    for row in made:
        object.__setattr__(row, "granularity", "channel")
    (track,) = set(package.leaderboard(made)["track"])
    assert track == "fine-tuned 2 epochs, channel"
    assert package.plot(made, "accuracy", track=track).axes
    assert package.plot(made, "accuracy", track="fine-tuned").axes


def test_a_row_that_is_there_twice_is_refused(tiny: Path) -> None:
    made = [*dense(), *rows("a", (0.9, 0.8, 0.6, 0.3))]
    results_csv.write_rows(made, tiny / "results.csv")
    table = package.read(tiny)
    with pytest.raises(package.UserError, match=r"this table has a row twice: a on d/a at sparsity 0\.5, seed 0"):
        package.leaderboard(pd.concat([table, table]))
    (tiny / "results").mkdir()
    results_csv.write_rows(made[-1:], tiny / "results" / "a.csv")
    with pytest.raises(package.UserError, match=r"has a row twice: a on d/a at sparsity 0\.99, seed 1"):
        package.read(tiny)
