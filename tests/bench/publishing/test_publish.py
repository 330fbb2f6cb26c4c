"""`publish` and `verify` as a user types them: from a run to a folder, its rebuilding, controls, tampering."""

import hashlib
import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd
import pytest

from bench.publishing import board_folder, history, publish, readme
from bench.publishing.board_folder import Board
from bench.publishing.datapackage import SCHEMAS
from bench.publishing.page import overview
from bench.publishing.plots import curves, diagrams
from bench.ranking import leaderboard, tracks
from bench.ranking.over_blocks import CriticalDifference
from bench.spec.errors import UserError
from bench.spec.row import COLUMNS, Row
from bench.spec.suite import load_suite, suites
from bench.storage import files, results_csv

Bench = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = sorted(path.parent for path in (ROOT / "leaderboards").glob("*/datapackage.json"))
LARGE = {"small"}  # boards whose plots take too long to draw in the fast tests
CONTROLS = "random,magnitude,magnitude_layer"
README = "# Title\n\n<!-- leaderboard -->\nold\n<!-- /leaderboard -->\n\nrest\n"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("folder", [f for f in PUBLISHED if f.name in LARGE], ids=lambda folder: folder.name)
def test_what_is_committed_follows_from_its_rows_but_for_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def committed(rows: pd.DataFrame, board: pd.DataFrame) -> dict[str, bytes]:
        names: list[str] = []

        def note(kind: str, slug: str) -> bool:
            names.extend(f"{kind}-{slug}.{suffix}" for suffix in ("svg", "png"))
            return False

        assert not list(curves.figures(rows, board, note))
        return {name: (folder / "plots" / name).read_bytes() for name in names}

    monkeypatch.setattr(curves, "draw", committed)  # drawing takes too long here; the slow test below does it
    assert board_folder.stale(folder, board_folder.read(folder)) == {}


@pytest.mark.parametrize("folder", [pytest.param(f, id=f.name, marks=[pytest.mark.slow] if f.name in LARGE else []) for f in PUBLISHED])
def test_what_is_committed_follows_from_its_rows(folder: Path) -> None:
    board = board_folder.read(folder)
    assert board_folder.stale(folder, board) == {}
    assert results_csv.rows_text(board.rows[:0]).strip() == ",".join(COLUMNS)
    if folder.name == "digits":
        text = (ROOT / "README.md").read_text()
        assert readme.rewritten(text, (folder / "leaderboard.csv").read_bytes()) == text


def test_the_committed_list_of_leaderboards_is_what_publish_writes() -> None:
    assert len(PUBLISHED) > 3
    assert (ROOT / "leaderboards/index.html").read_bytes() == overview.overview(ROOT / "leaderboards")
    for folder in PUBLISHED:
        board = board_folder.read(folder)
        assert history.is_current(board.history, board), f"{folder.name}: CHANGELOG.md"


def test_from_a_run_to_a_leaderboard_and_back(tiny: Path, bench: Bench) -> None:
    """One story, for each step needs the one before: refused, published, verified, tampered with, found out."""
    suite = (tiny / "tiny.toml").read_text().replace('"tiny"', '"digits"')
    suite = suite.replace("seeds = [0, 1]", "seeds = [0, 1, 2]").replace("finetune_epochs = [0, 1]", "finetune_epochs = [0]")
    (tiny / "tiny.toml").write_text(suite)
    (tiny / "README.md").write_text(README)
    options = ("--suite", "tiny.toml", "--methods", f"{CONTROLS},magnitude(weight_decay=0.003)")
    code, _, err = bench("publish", *options)
    assert code == 2
    command = "python -m bench run --suite tiny.toml --methods 'random,magnitude,magnitude_layer,magnitude(weight_decay=0.003)'"
    assert err == f"error: 30 of 30 rows are not in the store. Run this to compute them: {command}\n"
    assert bench("run", *options, "--workers", "1")[0] == 0

    before = snapshot(tiny)
    code, out, _ = bench("publish", *options, "--dry-run")
    assert code == 0
    assert "nothing was written" in out
    assert snapshot(tiny) == before
    code, out, _ = bench("publish", *options)
    assert code == 0, out
    assert "warning: 3 seeds; a published suite should have 5" in out
    folder = tiny / "leaderboards" / "digits"
    files = snapshot(folder)
    assert {name for name in files if name.startswith("results/")} == {
        "results/dense.csv", "results/dense@map%28weight_decay=0.003%29.csv", "results/magnitude.csv", "results/magnitude_layer.csv",
        "results/magnitude%28weight_decay=0.003%29.csv", "results/random.csv",
    }  # fmt: skip
    named = ("random", "magnitude", "magnitude_layer", "magnitude(weight_decay=0.003)")
    assert load_suite(str(folder / "suite.toml")) == load_suite("tiny.toml").model_copy(update={"methods": named})
    assert "| `magnitude_layer` |" in (tiny / "README.md").read_text()
    assert (tiny / "README.md").read_text().endswith("<!-- /leaderboard -->\n\nrest\n")
    check_package(folder)
    code, out, _ = bench("verify", str(folder), "--sample", "4", "--workers", "1", "--store", "x")
    assert code == 2, "it takes no store"
    code, out, err = bench("verify", str(folder), "--sample", "4", "--workers", "1")
    assert code == 0, out + err
    assert out.count("equal ") == 4
    assert "all 4 rows are as published\nthe derived files follow from the rows\n" in out

    path = folder / "results" / "magnitude.csv"
    tampered = [replace(row, accuracy=0.5) if row.sparsity == 0.5 else row for row in results_csv.read_rows(path)]
    results_csv.write_rows(tampered, path)
    code, out, _ = bench("verify", str(folder), "--methods", "magnitude", "--sample", "5", "--workers", "1", "--seed", "3")
    assert code == 1
    assert re.search(r"DIFFERS  magnitude · breast_cancer/mlp · sparsity 0\.5", out)
    assert re.search(r"accuracy: expected 0\.5, got 0\.9.*although nll is bit-identical", out)
    assert "equal    magnitude · breast_cancer/mlp · sparsity 0.9" in out
    assert "STALE" in out
    assert "leaderboard.csv does not follow from results/" in out


def check_package(folder: Path) -> None:
    """By hand what the package `frictionless` checks: every CSV is described, whole, and its columns are those of its schema."""
    package = json.loads((folder / "datapackage.json").read_text())
    described = {resource["path"]: resource for resource in package["resources"]}
    assert set(described) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.csv")}
    assert len({r["name"] for r in described.values()}) == len(described)
    for path, resource in described.items():
        assert re.fullmatch(r"[-a-z0-9._/]+", resource["name"])
        assert resource["bytes"] == (folder / path).stat().st_size
        schema = json.loads((folder / resource["schema"]).read_text())
        table = pd.read_csv(folder / path)
        assert list(table.columns) == [field["name"] for field in schema["fields"]]
        assert not table.duplicated(schema["primaryKey"]).any()
        for field in schema["fields"]:
            values, limits = table[field["name"]].dropna(), field.get("constraints", {})
            assert field["description"]
            assert not limits.get("required") or len(values) == len(table), field
            assert field["type"] == "string" or values.between(limits.get("minimum", -1e300), limits.get("maximum", 1e300)).all(), field


def test_controls_and_seeds_are_asked_for(tiny: Path, bench: Bench) -> None:
    options = ("--suite", "tiny.toml", "--seeds", "0,1,2")
    code, out, err = bench("publish", *options, "--methods", "spam,random")
    run = "python -m bench run --suite tiny.toml --seeds 0,1,2 --methods"
    assert (code, out) == (2, "")
    assert err == (
        "error: the controls magnitude, magnitude_layer are missing (protocol, rule 8). Add them to --methods. Run this to compute them: "
        f"{run} magnitude,magnitude_layer\n"
    )
    code, _, err = bench("publish", *options, "--methods", f"{CONTROLS},snip")
    assert err.endswith(f"{run} random_init\n"), "beside a method at initialisation"
    (tiny / "adamw.toml").write_text((tiny / "tiny.toml").read_text() + 'optimizer = "adamw"')
    code, _, err = bench("publish", "--suite", "adamw.toml", "--seeds", "0,1,2", "--methods", "magnitude@decoupled,snip@decoupled")
    assert err.endswith("--methods random@decoupled,magnitude_layer@decoupled,random_init@decoupled\n")
    code, _, err = bench("publish", "--suite", "tiny.toml", "--methods", CONTROLS)
    assert code == 2
    assert "2 seeds; a published suite needs 3" in err
    assert err.endswith("--seeds 0,1,2\n")
    assert not (tiny / "leaderboards").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["publish", "--suite", "digit"], "did you mean 'digits'"),
        (["publish", "--methods", "magnitud"], "did you mean 'magnitude'"),
        (["publish", "--merge", "nowhere.csv", "--contributor", "Ada"], "the leaderboard folder 'leaderboards/digits' does not exist"),
        (["publish", "--merge", "x.csv", "--methods", "all"], "--methods cannot be given with it"),
        (["publish", "--merge", "x.csv", "--contributor", " "], "the leaderboard folder"),
        (["publish", "--contributor", "Ada"], "--contributor needs --merge"),
        (["publish", "--device", "gpu"], "unknown device 'gpu'"),
        (["verify", "nowhere"], "'nowhere' is not a leaderboard folder"),
        (["verify", "nowhere", "--sample", "0"], "--sample must be at least 1, got 0"),
        (["verify"], "Missing argument"),
        (["verify", str(ROOT / "leaderboards" / "spam"), "--methods", "spamm"], "did you mean 'spam'"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(tiny: Path, bench: Bench, arguments: list[str], said: str) -> None:
    code, out, err = bench(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tiny / "leaderboards").exists()


@pytest.mark.parametrize("name", ["magnitude@spam", "spam(weight_decay=1e-05)", "2:4", "a b/c", "%28", "..", "x|y*?<>\"'", "émile", "a~b"])
def test_file_names_are_safe_and_can_be_taken_back(name: str) -> None:
    file = board_folder.file_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_.@=,%-]+\.csv", file)
    assert unquote(file.removesuffix(".csv")) == name


LONG = [f"dense@dwf(lr={k / 7!r},lam={k / 11!r},weight_decay={k / 13!r})" for k in (1, 2, 3)]
LONG += [LONG[0].upper(), *("é" * k for k in range(12, 32)), *("a" * (60 + j) + "(é)" * 9 for j in range(12))]


def test_long_file_names_are_cut_readable_and_never_collide() -> None:
    files = {name: board_folder.file_name(name) for name in LONG}
    assert len({file.lower() for file in files.values()}) == len(LONG)
    for name, file in files.items():
        stem = file.removesuffix(".csv")
        assert len(stem) <= 80
        start, _, end = stem.partition("~")
        if len(quote(name, safe="@=,")) > 80:
            assert end == hashlib.sha256(name.encode()).hexdigest()[:12]
            assert unquote(start, errors="strict") if "é" not in name else re.fullmatch("([^%]|%[0-9A-F]{2})+", start)
            assert quote(name, safe="@=,").startswith(start)
            assert len(start) > 60, "the start stays readable"
        else:
            assert not end


def test_a_board_with_long_names_is_read_back(tmp_path: Path) -> None:
    rows = [replace(row, method=name) for row, name in zip(made_up(), LONG[:3], strict=False)]
    board = Board(load_suite("digits"), tuple(results_csv.ordered(rows)))
    files.write_files(tmp_path, dict(board_folder.evidence(board)))
    assert board_folder.read(tmp_path) == board
    found = sorted((tmp_path / "results").iterdir())
    assert sorted(path.name for path in found) == sorted(board_folder.file_name(row.method) for row in board.rows)
    found[0].write_bytes(found[1].read_bytes())
    with pytest.raises(UserError, match="a file may only contain rows of the method in its name"):
        board_folder.read(tmp_path)


def test_no_tracked_path_is_long() -> None:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [path for path in listed.stdout.decode().split("\0") if path]
    assert "pyproject.toml" in paths
    assert [path for path in paths if len(path) > 150] == []


@pytest.mark.parametrize("name", [*suites(), *(str(folder / "suite.toml") for folder in PUBLISHED)])
def test_a_suite_is_written_as_it_is_read(name: str, tmp_path: Path) -> None:
    suite = load_suite(name)
    text = board_folder.suite_toml(suite)
    (tmp_path / "suite.toml").write_text(text, encoding="utf-8")
    again = load_suite(str(tmp_path / "suite.toml"))
    assert again == suite
    assert board_folder.suite_toml(again.model_copy(update={"architecture": dict(reversed(again.architecture.items()))})) == text


def test_keys_without_a_value_are_not_written() -> None:
    text = board_folder.suite_toml(load_suite("digits"))
    assert "train_limit" not in text, "no value"
    assert set(tomllib.loads(text)["architecture"]["lenet5"]) == {"batch_size", "lr_scale"}
    assert "architecture]" not in board_folder.suite_toml(load_suite("digits").model_copy(update={"architecture": {}}))


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "'=x", "''-x", "'plain", "plain", "", "a\nb", "-"])
def test_cells_that_a_spreadsheet_would_run_are_neutralised_and_come_back(text: str, tmp_path: Path) -> None:
    row = replace(made_up()[0], error=text, device=text, match_reached=-1.5e-7)
    results_csv.write_rows([row], tmp_path / "x.csv")
    assert results_csv.read_rows(tmp_path / "x.csv") == [row]
    line = pd.read_csv(tmp_path / "x.csv", dtype=str, keep_default_na=False).iloc[0]
    assert line["device"][:1] not in ("=", "+", "-", "@", "\t", "\r")
    assert line["match_reached"] == "-1.5e-07", "a number is no text"


def test_files_are_written_all_or_none(tmp_path: Path) -> None:
    files.write_files(tmp_path, {"a/x": b"1", "y": b"2"})
    (tmp_path / "b").write_text("a file where a folder is needed")
    with pytest.raises(OSError, match="b"):
        files.write_files(tmp_path, {"a/x": b"3", "b/z": b"4", "y": None})
    assert snapshot(tmp_path) == {"a/x": b"1", "b": b"a file where a folder is needed", "y": b"2"}


def made_up(blocks: int = 1) -> list[Row]:
    """Rows of three methods and the dense networks with three seeds, at two sparsities."""
    rows = []
    for block in range(blocks):
        for k, method in enumerate(("dense", "magnitude", "random", "spam(x=1)")):
            for seed in range(3):
                for sparsity in (0.5, 0.9) if k else (0.0,):
                    accuracy = 0.95 - 0.1 * k * sparsity - 0.01 * seed * (k == 2) + 0.001 * ((block * 7 + k * 3 + seed) % 5)
                    rows.append(
                        Row(
                            suite="s", dataset=f"d{block}", architecture="a", granularity="weight", match="weights", method=method,
                            criterion=method if k else "", training="map", stage="after" if k else "", tuning="default", ablation="none",
                            sparsity=sparsity, seed=seed, epochs=2, finetune_epochs=0, status="ok", accuracy=accuracy, nll=1 - accuracy,
                            ece=0.1, flops=100, flops_kept=round(100 * (1 - sparsity)), dense_accuracy=0.95, score_seconds=0.1 * k,
                            train_seconds=1.0, hyperparameters='{"training": {}}',
                        )
                    )  # fmt: skip
    return rows


def test_where_curves_would_need_too_many_panels_only_ranks_and_scoring_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made_up()
    board = leaderboard.leaderboard(rows)
    panels = len(board[["track", "tuning"]].drop_duplicates()) * len({(row.dataset, row.architecture) for row in rows})
    monkeypatch.setattr(curves, "MOST_PANELS", panels)
    every = curves.draw(tracks.frame(rows), board)
    monkeypatch.setattr(curves, "MOST_PANELS", panels - 1)
    few = curves.draw(tracks.frame(rows), board)
    assert {name.partition("-")[0] for name in few} == {"ranks", "scoring"} < {name.partition("-")[0] for name in every}
    assert few == {name: every[name] for name in few}


def test_only_a_board_with_tracks_is_said_to_have_too_many_panels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def said(rows: list[Row]) -> bool:
        notes: list[str] = []
        publish._publication(Board(load_suite("digits"), tuple(rows)), tmp_path / "digits", notes)
        return any("only ranks" in note for note in notes)

    assert not said([row for row in made_up() if not row.criterion])
    monkeypatch.setattr(curves, "MOST_PANELS", 0)
    assert said(made_up())


def test_pictures_are_the_same_every_time_whatever_the_order_and_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    suite = load_suite("digits")
    first = board_folder.files_of(Board(suite, tuple(made_up())))
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20.0)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert board_folder.files_of(Board(suite, tuple(reversed(made_up())))) == first
    names = {"accuracy", "ranks", "flops", "nll", "ece", "scoring"}
    assert {n for n in first if n.startswith("plots")} == {
        f"plots/{name}-one-shot-after-training.{suffix}" for name in names for suffix in ("svg", "png")
    }
    assert {curves.drawn_by(c) for n, c in first.items() if n.startswith("plots")} == {curves.RELEASE}
    assert matplotlib.rcParams["font.size"] == 20.0
    assert not any(b"<dc:date" in content for content in first.values())


def test_from_ten_blocks_on_ranks_are_a_critical_difference_diagram() -> None:
    rows = [row for row in made_up(blocks=10) if row.criterion]
    figure = diagrams.ranks("a track", leaderboard.leaderboard(rows), tracks.frame(rows))
    texts = [text.get_text() for text in figure.axes[0].texts]
    distance = 2.3437 * (3 * 4 / (6 * 10)) ** 0.5  # Demšar 2006, table 5(a): q = 2.343 for three methods at 5 %
    assert f"critical difference {distance:.2f}" in texts
    assert "magnitude  1.00" in texts
    assert {"1", "2", "3"} < set(texts)


def test_a_long_axis_of_ranks_has_every_second_number() -> None:
    ranks = pd.Series([float(k) for k in range(1, 18)], [f"m{k}" for k in range(17)])
    texts = [text.get_text() for text in diagrams._critical("a track", CriticalDifference(ranks, 9.0, 0.01)).axes[0].texts]
    assert [text for text in texts if text.isdigit()] == [str(k) for k in range(1, 18, 2)]


def test_groups_join_what_is_closer_than_the_critical_difference() -> None:
    assert diagrams._groups(np.array([1.0, 1.5, 2.4, 4.0]), 1.0) == [(1.0, 1.5), (1.5, 2.4)]
    assert diagrams._groups(np.array([1.0, 1.2, 1.4]), 0.5) == [(1.0, 1.4)]


def test_without_ten_blocks_areas_are_drawn_with_ranges_of_ranks_and_blocks() -> None:
    rows = [row for row in made_up(blocks=2) if (row.method, row.dataset) != ("random", "d1")]
    board = leaderboard.leaderboard(rows)
    axes = diagrams.ranks("a track", board, tracks.frame(rows)).axes[0]
    ranges = [f"{low}–{high}" if low < high else str(low) for low, high in zip(board["rank_low"], board["rank_high"], strict=True)]
    lacking = [" (1 of 2 blocks)" * (method == "random") for method in board["method"]]
    wanted = [f"{m}{b}   {r}" for m, b, r in zip(board["method"], lacking, ranges, strict=True)]
    assert [label.get_text() for label in axes.get_yticklabels()] == wanted
    one = leaderboard.leaderboard([row for row in rows if row.seed == 0])
    axes = diagrams.ranks("a track", one, tracks.frame(row for row in rows if row.seed == 0)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [m + " (1 of 2 blocks)" * (m == "random") for m in one["method"]]


def test_the_readme_shows_ranges_of_ranks_and_who_lacks_blocks() -> None:
    rows = [row for row in made_up(blocks=2) if (row.method, row.dataset) != ("random", "d1")]
    board = leaderboard.leaderboard(rows)
    lines = readme.tables(results_csv.table_text(board).encode()).splitlines()[4:]
    assert len(lines) == len(board) == 3
    for shown, line in zip(lines, board.itertuples(), strict=True):
        cells = [cell.strip() for cell in shown.strip("|").split("|")]
        assert cells[0] == (f"{line.rank_low}–{line.rank_high}" if line.rank_low < line.rank_high else f"{line.rank_low}")
        assert cells[1] == f"`{line.method}`" + " (1 of 2 blocks)" * (line.method == "random")
        assert cells[2] == f"{line.relative_area:.3f} ±{line.relative_area_high - line.relative_area:.3f}"


def test_a_readme_without_markers_stays() -> None:
    assert readme.rewritten("no markers", b"") is None


def test_every_column_is_described() -> None:
    assert [f["name"] for f in SCHEMAS["results"]["fields"]] == list(COLUMNS)


def test_a_file_named_after_another_method_is_refused(tmp_path: Path) -> None:
    results_csv.write_rows(made_up()[:3], tmp_path / "results" / "magnitude.csv")
    with pytest.raises(UserError, match="contains a row of 'dense'"):
        board_folder.read(tmp_path)
