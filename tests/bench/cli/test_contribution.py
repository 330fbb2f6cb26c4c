"""A stranger's contribution, end to end: a fresh clone, a method of their own, `submit`, the maintainer's `review`, the merged board.

The repositories contain this working tree's code. What checks a branch runs in processes of its own, with the code of the branch.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.execution.local import Local
from bench.planning.templates import write_template
from bench.publishing import board_folder
from bench.publishing.contributions import Contribution
from bench.storage import results_csv
from tests.bench.own_files import run_here
from tests.bench.repositories import commit, git, state
from tests.faults import programs

Bench = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]
SUITE = """
name = "tiny"
description = "seconds, for tests"
blocks = [{ dataset = "breast_cancer", architectures = ["mlp"] }]
sparsities = [0.5, 0.9]
seeds = [0, 1, 2]
epochs = 2
batch_size = 64
"""
CONTROLS = "random,magnitude,magnitude_layer"
FORGE = """
from dataclasses import replace
from pathlib import Path
from bench.publishing import board_folder
from bench.publishing.page import overview
from bench.storage import files

folder = Path("leaderboards/tiny")
board = board_folder.read(folder)
rows = tuple(replace(row, accuracy=1.0) if row.method == "my_method" and row.seed == 1 else row for row in board.rows)
files.write_files(folder, board_folder.changes(folder, board_folder.files_of(replace(board, rows=rows))))
(folder.parent / "index.html").write_bytes(overview.overview(folder.parent))
"""
MINE = Contribution("my_method", "default", "none", "Ada Stranger")


@pytest.fixture
def project(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's repository: the code, and a small leaderboard that its maintainer has computed."""
    folder = tmp_path / "project"
    for name in ("bench", "methods"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("__pycache__/\n.bench/\n")
    (folder / "tiny.toml").write_text(SUITE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Local, "run", run_here)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    options = ("--suite", "tiny.toml", "--methods", CONTROLS)
    assert bench("run", *options, "--workers", "1")[0] == 0
    assert bench("publish", *options)[0] == 0
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder)
    return folder


@pytest.fixture
def stranger(project: Path, tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone in which somebody else has written a method and computed its rows, into out/results.csv."""
    folder = tmp_path / "stranger"
    git(tmp_path, "clone", "--quiet", str(project), str(folder))
    git(folder, "config", "user.name", "Ada Stranger")
    git(folder, "config", "user.email", "ada@example.org")
    monkeypatch.chdir(folder)
    assert bench("new", "my_method")[0] == 0
    options = ("--suite", "leaderboards/tiny/suite.toml", "--plugin", "my_method.py", "--methods", "my_method")
    assert bench("run", *options, "--workers", "1", "--output", "out")[0] == 0
    return folder


def python(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of Python in a process of its own, with the code of the folder."""
    here = os.environ | {"PYTHONPATH": str(folder), "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=here, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def review(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of `review main`, as continuous integration runs it."""
    return python(folder, "-m", "bench", "review", "main", "--workers", "1", *options)


def test_a_strangers_method_comes_into_the_leaderboard_and_a_forged_number_does_not(
    project: Path, stranger: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(stranger)[3:]
    code, out, err = bench("submit", "out", "--plugin", "my_method.py", "--branch", "mine", "--sample", "0")
    assert code == 0, out + err
    assert "Not checked: rows are not computed again (--sample 0)." in git(stranger, "log", "-1", "mine")
    assert state(stranger)[3:] == before
    honest = results_csv.read_rows(Path("out/results.csv"))

    monkeypatch.chdir(project)
    git(project, "fetch", "--quiet", str(stranger), "mine:mine")
    git(project, "checkout", "--quiet", "mine")
    code, said = review(project, "--sample", "6", "--seed", "7")
    assert code == 0, said
    assert "methods/criteria/my_method.py: the contract holds" in said
    assert "leaderboards/tiny: 6 new rows (my_method)\ncontributed: my_method (Ada Stranger)" in said
    assert said.count("\nequal    my_method") == 6
    assert said.endswith("nothing is wrong with what the branch adds\n")

    git(project, "checkout", "--quiet", "-b", "forged")
    assert python(project, "-c", FORGE) == (0, "")
    commit(project)
    code, said = review(project, "--sample", "6")
    assert code == 1
    assert said.count("\nDIFFERS  my_method") == 2
    assert "\nthe derived files follow from the rows\n" in said, "the forger has written everything that follows from the numbers"
    assert "the branch also changes" not in said
    assert said.endswith("the branch cannot be merged as it is\n")

    git(project, "checkout", "--quiet", "main")
    git(project, "merge", "--quiet", "mine")
    folder = Path("leaderboards/tiny")
    merged = board_folder.read(folder)
    mine = [row for row in honest if row.criterion]
    assert [row for row in results_csv.ordered(merged.rows) if row.method == "my_method"] == results_csv.ordered(mine)
    assert merged.contributions == (MINE,)
    assert "Contributed rows: my_method (Ada Stranger)" in (folder / "index.html").read_text()
    assert bench("table", str(folder))[1].endswith("contributed rows: my_method (Ada Stranger)\n")


def test_a_file_as_new_writes_it_keeps_the_layers_of_the_project(tmp_path: Path) -> None:
    """Else a pull request that `submit` has made would fail in `tox`, for a file that nobody had to change."""
    pytest.importorskip("importlinter")
    for name in ("bench", "methods"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for kind, folder in (("criterion", "criteria"), ("training", "training")):
        write_template(f"their_{kind}", tmp_path / "methods" / folder, kind)
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    here = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_a_maintainer_who_computes_the_rows_again_takes_the_mark_away(project: Path, bench: Bench) -> None:
    folder = Path("leaderboards/tiny")
    rows = results_csv.read_rows(folder / "results/magnitude.csv")
    assert bench("run", "--suite", "tiny.toml", "--methods", "obd", "--workers", "1", "--output", "out")[0] == 0
    code, out, err = bench("publish", "--suite", "tiny", "--merge", "out/results.csv", "--contributor", "Ada")
    assert code == 0, out + err
    assert [line.contributor for line in board_folder.read(folder).contributions] == ["Ada"]
    assert bench("publish", "--suite", "tiny.toml", "--methods", CONTROLS)[0] == 0
    assert [line.contributor for line in board_folder.read(folder).contributions] == ["Ada"], "other methods were written"
    assert bench("publish", "--suite", "tiny.toml", "--methods", f"{CONTROLS},obd")[0] == 0
    assert board_folder.read(folder).contributions == ()
    assert not (folder / "contributions.csv").exists()
    assert not (folder / "schemas/contributions.json").exists()
    assert results_csv.read_rows(folder / "results/magnitude.csv") == rows


def test_a_signal_ends_the_checks_and_leaves_nothing(stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = state(stranger)
    process = programs.start(stranger, "submit", "out", "--plugin", "my_method.py", "--workers", "1")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("checking the branch"):
            break
    time.sleep(1)
    process.terminate()
    code, _, _ = programs.finished(process)
    assert code == 128 + 15
    assert state(stranger) == before
    assert programs.members(process.pid) == {}
    assert [path.name for path in scratch.iterdir() if path.name.startswith("razorbench-")] == []
