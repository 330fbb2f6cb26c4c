"""Forged leaderboards: `verify` ends with exit code 1 or 2 and a line that names the fault, also where all derived files are rebuilt."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.execution.local import Local
from bench.publishing import board_check, board_folder
from bench.publishing.board_folder import Board
from bench.publishing.plots import curves
from bench.publishing.plots.plain import is_plain
from bench.spec.protocol import Block
from bench.spec.row import Row
from bench.storage import files, results_csv
from bench.trial.job import Environment
from tests.bench.own_files import run_here

Bench = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]
PICTURE = sorted((ROOT / "leaderboards/spam-channel/plots").glob("*.svg"))[0]
SUITE = """
name = "tiny"
description = "seconds, for tests"
blocks = [{ dataset = "breast_cancer", architectures = ["mlp"] }]
sparsities = [0.5, 0.9]
seeds = [0, 1, 2]
epochs = 2
finetune_epochs = [0, 1]
methods = ["random", "magnitude", "magnitude_layer", "imp"]
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process, and one plot stands for all."""
    monkeypatch.setattr(Local, "run", run_here)
    monkeypatch.setattr(curves, "draw", lambda rows, board: {"accuracy-one-shot-after-training.svg": PICTURE.read_bytes()})


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published leaderboard, computed once."""
    from bench.cli import interruption, main

    folder = tmp_path_factory.mktemp("honest")
    (folder / "tiny.toml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Local, "run", run_here)
        patch.setattr(interruption, "watch", lambda _: None)
        patch.setattr(curves, "draw", lambda rows, board: {"accuracy-one-shot-after-training.svg": PICTURE.read_bytes()})
        for command in (["run", "--workers", "1"], ["publish"]):
            patch.setattr(sys, "argv", ["razorbench", *command, "--suite", "tiny.toml"])
            with pytest.raises(SystemExit) as stop:
                main.main()
            assert not stop.value.code
    return folder / "leaderboards" / "tiny"


@pytest.fixture
def board(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the leaderboard, to forge."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(honest, tmp_path / "leaderboards" / "tiny"))


@pytest.fixture
def verify(board: Path, bench: Bench) -> Callable[..., tuple[int, str]]:
    """Verify the copy: (exit code, what is printed)."""

    def run(*options: str) -> tuple[int, str]:
        code, out, err = bench("verify", str(board), "--workers", "1", *(options or ("--sample", "1")))
        return code, out + err

    return run


Change = Callable[[Row], Row | None]


def forge(folder: Path, change: Change = lambda row: row, **suite: object) -> None:
    """Change rows (None: removed) and keys of the suite, and write every derived file again."""
    there = board_folder.read(folder)
    rows = tuple(made for row in there.rows if (made := change(row)) is not None)
    made = Board(there.suite.model_copy(update=suite), tuple(results_csv.ordered(rows)))
    files.write_files(folder, board_folder.changes(folder, board_folder.files_of(made)))


def where(change: Callable[[Row], Row | None], **wanted: object) -> Change:
    return lambda row: change(row) if all(getattr(row, name) == value for name, value in wanted.items()) else row


def setting(row: Row, part: str, **values: object) -> Row:
    said = json.loads(row.hyperparameters)
    said[part] = {**said.get(part, {}), **values}
    return replace(row, hyperparameters=json.dumps(said, sort_keys=True))


def exchanged(row: Row) -> Row:
    """Random and magnitude under each other's name."""
    other = {"random": "magnitude", "magnitude": "random"}.get(row.method, row.method)
    return replace(row, method=other)


def test_an_honest_leaderboard_is_as_published(verify: Callable[..., tuple[int, str]]) -> None:
    code, out = verify("--sample", "6")
    assert code == 0, out
    assert "FAULT" not in out
    assert "all 6 rows are as published\nthe derived files follow from the rows\n" in out


ROWS: dict[str, tuple[Change, str]] = {
    "fewer epochs": (where(lambda r: replace(r, epochs=2), method="imp"), "'imp': epochs 2, but 'imp' trains 10 in this suite"),
    "more epochs": (where(lambda r: replace(r, epochs=9), method="random"), "'random': epochs 9, but 'random' trains 2 in this suite"),
    "names exchanged": (exchanged, "'random': criterion 'magnitude', the method 'random' has 'random'"),
    "stage": (where(lambda r: replace(r, stage="init"), method="random"), "stage 'init', the method 'random' has 'after'"),
    "rows deleted": (where(lambda r: None, method="random", seed=1), "'random' has no row for breast_cancer/mlp at sparsity 0.5"),
    "worst row deleted": (
        where(lambda r: None, method="random", seed=1, sparsity=0.9, finetune_epochs=1),
        "at sparsity 0.9 with 1 epochs of fine-tuning, seeds 1",
    ),
    "method deleted": (
        where(lambda r: None, method="imp"),
        "the suite contains the methods imp, but the leaderboard has no default rows of them",
    ),
    "control deleted": (where(lambda r: None, method="magnitude_layer"), "the controls magnitude_layer are missing (protocol, rule 8)"),
    "dense deleted": (where(lambda r: None, method="dense"), "the row of its dense network is missing (training 'map', seed 0)"),
    "accuracy emptied": (where(lambda r: replace(r, accuracy=None), method="random"), "these columns are empty: accuracy"),
    "ece emptied": (where(lambda r: replace(r, ece=None), method="random"), "these columns are empty: ece"),
    "top5 invented": (where(lambda r: replace(r, top5=0.1), method="random", seed=0), "top5 0.1"),
    "effective sparsity emptied": (
        where(lambda r: replace(r, effective_sparsity=None), method="random", seed=0), "effective_sparsity is empty, but other rows",
    ),
    "worst class emptied": (
        where(lambda r: replace(r, worst_class_accuracy=None), method="random", seed=0), "worst_class_accuracy is empty, but other rows",
    ),
    "before fine-tuning emptied": (
        where(lambda r: replace(r, accuracy_before_finetune=None), method="imp", finetune_epochs=1),
        "columns are empty: accuracy_before_finetune",
    ),
    "dense accuracy": (
        where(lambda r: replace(r, dense_accuracy=0.5), method="random", seed=2),
        "dense_accuracy: not the value of the row",
    ),
    "parameters": (where(lambda r: replace(r, parameters=9_999), method="random"), "parameters is 9999, but this network has "),
    "hyperparameters": (where(lambda r: setting(r, "training", lr=0.5), method="magnitude"), "lr of the training differ from the defaults"),
    "schedule": (where(lambda r: setting(r, "schedule", rate=0.5), method="imp"), "hyperparameters: `schedule` is not that of 'imp'"),
    "fine-tuning rate": (
        where(lambda r: setting(r, "finetuning", lr_scale=0.9), finetune_epochs=1, method="random"),
        "lr_scale 0.9 of fine-tuning, but the suite has 0.1",
    ),
    "recipe": (
        where(lambda r: replace(r, recipe=json.dumps(json.loads(r.recipe) | {"mixup": 0.4})), method="imp"),
        "recipe: mixup is 0.4, but the suite has 0.0",
    ),
    "tuned without search": (where(lambda r: replace(r, tuning="tuned"), method="imp"), "tuned row without the entry `tuning`"),
    "granularity": (
        where(lambda r: replace(r, granularity="channel"), method="imp"),
        "granularity 'channel', this leaderboard has 'weight'",
    ),
    "kept weights": (where(lambda r: replace(r, kept_weights=99), method="imp"), "kept_weights is 99, but sparsity 0.5 requires exactly"),
    "failed with a measurement": (
        where(lambda r: replace(r, status="failed", error="x", accuracy=None), method="random"),
        "status is 'failed' but these columns are not empty",
    ),
    "seed": (where(lambda r: replace(r, seed=7), method="random", seed=1), "seed 7 is not one of 0, 1, 2"),
    "unknown method": (where(lambda r: replace(r, method="marvel"), method="imp"), "unknown method 'marvel'"),
}  # fmt: skip


def lines(folder: Path, change: Change = lambda row: row, **suite: object) -> list[str]:
    """The faults of a forged leaderboard."""
    there = board_folder.read(folder)
    rows = tuple(made for row in there.rows if (made := change(row)) is not None)
    forged = Board(there.suite.model_copy(update=suite), rows)
    return list(board_check.faults(forged, Environment("cpu", None, folder.parent / "cache")).lines)


@pytest.mark.parametrize("name", ROWS)
def test_forged_rows_are_found_without_computing_any(name: str, honest: Path) -> None:
    change, said = ROWS[name]
    assert [line for line in lines(honest, change) if said in line], lines(honest, change)


@pytest.mark.parametrize("name", ["fewer epochs", "names exchanged", "method deleted", "rows deleted", "accuracy emptied"])
def test_verify_names_forged_rows(name: str, board: Path, verify: Callable[..., tuple[int, str]]) -> None:
    change, said = ROWS[name]
    forge(board, change)
    code, out = verify()
    assert code == 1
    assert any(line.startswith("FAULT    ") and said in line for line in out.splitlines()), out


@pytest.mark.parametrize("name", ["fewer epochs", "more epochs", "names exchanged", "ece emptied", "schedule", "recipe"])
def test_merge_refuses_the_same_rows(name: str, honest: Path, board: Path, bench: Bench) -> None:
    change, said = ROWS[name]
    method = "imp" if name in ("fewer epochs", "schedule", "recipe") else "random"
    theirs = [made for row in board_folder.read(honest).rows if (made := change(row)) is not None and made.method == method]
    forge(board, where(lambda r: None, method=method))
    results_csv.write_rows(theirs, Path("theirs.csv"))
    before = {path: path.read_bytes() for path in board.rglob("*") if path.is_file()}
    code, out, err = bench("publish", "--suite", "tiny", "--merge", "theirs.csv", "--contributor", "Ada")
    assert code == 2
    assert "refused; nothing was merged" in err
    assert any(line.startswith("row ") and said.removeprefix(f"'{method}': ") in line for line in out.splitlines()), out
    assert {path: path.read_bytes() for path in board.rglob("*") if path.is_file()} == before


def test_exchanged_rows_are_computed_under_their_own_name(board: Path, verify: Callable[..., tuple[int, str]]) -> None:
    """All that names the method is exchanged; what is left are the measurements."""
    names = {"random": "magnitude", "magnitude": "random"}
    honest = {row.identity: row for row in board_folder.read(board).rows}

    def change(row: Row) -> Row:
        if row.method not in names:
            return row
        other = next(r for r in honest.values() if r.identity == replace(row, method=names[row.method]).identity)
        said = {"method": row.method, "criterion": row.criterion, "hyperparameters": row.hyperparameters}
        return replace(other, **said)  # type: ignore[arg-type]

    forge(board, change)
    code, out = verify("--sample", "60", "--methods", "random")
    assert code == 1
    assert "DIFFERS  random · breast_cancer/mlp" in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": (0, 1, 2, 9)}, "seeds 9"),
        ({"sparsities": (0.5, 0.9, 0.99)}, "at sparsity 0.99"),
        ({"finetune_epochs": (0, 1, 3)}, "with 3 epochs of fine-tuning"),
        ({"methods": ("all",)}, "the suite contains the methods "),
        ({"methods": ("random", "wonder")}, "unknown method 'wonder'"),
        ({"trials": 5}, "but the leaderboard has no tuned rows of them"),
        ({"epochs": 3}, "epochs 2, but 'random' trains 3"),
        ({"seeds": (0, 1)}, "seed 2 is not one of 0, 1"),
        ({"batch_size": 64}, "recipe: batch_size is 128, but the suite has 64"),
        ({"name": "other"}, "suite 'tiny', this leaderboard has suite 'other'"),
        ({"blocks": (Block(dataset="breast_cancer", architectures=("mlp",)), Block(dataset="digits", architectures=("mlp",)))},
         "the suite contains digits/mlp, but the leaderboard has no rows of it"),
    ],
)  # fmt: skip
def test_a_suite_that_the_rows_do_not_have_is_found(changes: dict[str, object], said: str, honest: Path) -> None:
    assert lines(honest) == []
    found = lines(honest, **changes)
    assert [line for line in found if said in line], found


def test_all_means_the_methods_of_the_release_that_computed_the_rows(board: Path) -> None:
    """Otherwise every new method would break the leaderboards of before."""
    said = "the suite contains the methods "
    forge(board, methods=("all",))
    assert [line for line in lines(board) if line.startswith(said)]
    forge(board, lambda row: replace(row, version="0.0.9"))
    assert not [line for line in lines(board) if line.startswith(said)]


def script(svg: bytes) -> bytes:
    return svg.replace(b"</svg>", b"<script>alert(1)</script></svg>")


def remove_derived(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "suite.toml" and path.parent.name != "results":
            path.unlink()


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "script in a plot": (lambda f: change_plot(f, script), "does not follow from results/"),
    "script in a plot of another release": (
        lambda f: change_plot(f, lambda svg: script(svg).replace(curves.RELEASE.encode(), b"Matplotlib v3.9.0")),
        "does not follow from results/",
    ),
    "no datapackage.json": (lambda f: (f / "datapackage.json").unlink(), "datapackage.json is missing"),
    "no derived files at all": (remove_derived, "index.html is missing"),
    "no suite": (lambda f: (f / "suite.toml").unlink(), "unknown suite 'tiny'"),
    "another page": (lambda f: (f / "index.html").write_text("<script>alert(1)</script>"), "index.html does not follow from results/"),
    "script in the page": (
        lambda f: (f / "index.html").write_bytes((f / "index.html").read_bytes() + b"<script>alert(1)</script>"),
        "index.html does not follow",
    ),
    "foreign page": (lambda f: (f / "more.html").write_text("x"), "more.html does not belong here"),
    "hidden file": (lambda f: (f / ".htaccess").write_text("x"), ".htaccess does not belong here"),
    "foreign folder": (lambda f: files.write(f / "more" / "x.js", b"x"), "more/x.js does not belong here"),
    "empty folder": (lambda f: (f / "more").mkdir(), "more does not belong here"),
    "plug-in": (lambda f: (f / "results" / "x.py").write_text("x"), "results/x.py does not belong here"),
    "link": (lambda f: (f / "link").symlink_to("/"), "link does not belong here"),
    "results as a link": (lambda f: linked(f / "results" / "random.csv"), "random.csv is not a plain file"),
    "table": (lambda f: (f / "leaderboard.csv").write_text("a,b\n"), "leaderboard.csv does not follow from results/"),
    "comment in the suite": (
        lambda f: (f / "suite.toml").write_text((f / "suite.toml").read_text() + "# more\n"), "suite.toml is not as `publish` writes it",
    ),
    "other order of rows": (lambda f: reverse(f / "results" / "random.csv"), "random.csv is not as `publish` writes it"),
}  # fmt: skip


def change_plot(folder: Path, change: Callable[[bytes], bytes]) -> None:
    (path,) = (folder / "plots").glob("*.svg")
    path.write_bytes(change(path.read_bytes()))


def linked(path: Path) -> None:
    path.rename("elsewhere.csv")
    path.symlink_to(Path("elsewhere.csv").resolve())


def reverse(path: Path) -> None:
    first, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(first + "".join(reversed(lines)))


@pytest.mark.parametrize("name", FILES)
def test_files_that_publish_does_not_write_are_found(name: str, board: Path, verify: Callable[..., tuple[int, str]]) -> None:
    change, said = FILES[name]
    change(board)
    if name in ("script in a plot", "no datapackage.json", "no suite"):
        code, out = verify()
        assert code in (1, 2)
        assert any(line.startswith(("STALE    ", "error: ")) and said in line for line in out.splitlines()), out
    else:
        found = board_folder.stale(board, board_folder.read(board))
        assert [path for path, reason in found.items() if said in f"{path} {reason}"], found


def test_plots_of_another_release_are_not_compared_but_must_be_plots(board: Path, verify: Callable[..., tuple[int, str]]) -> None:
    change_plot(board, lambda svg: svg.replace(curves.RELEASE.encode(), b"Matplotlib v3.9.0"))
    code, out = verify()
    assert code == 0, out
    assert f"note: plots were drawn by Matplotlib v3.9.0, here is {curves.RELEASE}: they are not compared" in out


HARMFUL = [
    b"<script>x</script>", b'<a href="javascript:x"/>', b"<foreignObject/>", b'<use xlink:href="http://x/y#z"/>', b'<g onload="x"/>',
    b'<image xlink:href="x.png"/>', b'<path style="fill: url(http://x/y)"/>', b"<style>@import 'x'</style>", b"<?xml-stylesheet href='x'?>",
    b'<set attributeName="href"/>', b"<style>*{fill: url(x)}</style>", b"<unclosed>",
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_plot_with_more_than_a_plot_is_not_plain(harm: bytes) -> None:
    svg = PICTURE.read_bytes()
    assert is_plain(svg)
    assert not is_plain(svg.replace(b"</svg>", harm + b"</svg>"))


def test_a_plot_with_entities_or_data_after_a_picture_is_not_plain() -> None:
    doctype = b'<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    assert not is_plain(doctype + b'<svg xmlns="x"><text>&b;</text></svg>')
    png = PICTURE.with_suffix(".png").read_bytes()
    assert is_plain(png)
    assert not is_plain(png + b"<script>")
    assert not is_plain(png[:-5])
    assert not is_plain(png.replace(b"IDAT", b"eVAL", 1))
