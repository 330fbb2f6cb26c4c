"""The program itself: help, version, hidden packages, the store, hyperparameters."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import methods

ROOT = Path(__file__).resolve().parents[3]
Bench = Callable[..., tuple[int, str, str]]
RUN = ("run", "--suite", "tiny.toml", "--methods", "magnitude,random", "--seeds", "0", "--finetune-epochs", "0", "--workers", "1")


def test_alone_it_prints_its_help(bench: Bench) -> None:
    code, out, err = bench()
    assert (code, err) == (0, "")
    assert "Usage" in out
    assert all(command in out for command in ("run", "list", "check", "new", "status", "compare", "table", "publish", "verify", "export"))


def test_a_group_of_commands_alone_prints_its_help(bench: Bench) -> None:
    assert bench("store") == bench("store", "--help")
    assert bench("store")[0] == 0


def test_it_says_its_version(bench: Bench) -> None:
    assert bench("--version") == (0, f"razorbench {importlib.metadata.version('razorbench')}\n", "")


def test_a_folder_called_methods_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); from bench.cli.main import main; main()", "list"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "hides razorbench's package 'methods'" in line


def test_hyperparameters_of_a_method_with_default_and_range(bench: Bench) -> None:
    code, out, _ = bench("list", "hyperparameters", "magnitude")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == {option.name for option in methods.describe("magnitude")}
    assert "default 0.1" in lines["lr"]
    assert "0.03, 0.3" in lines["lr"]
    assert bench("list", "hyperparameters")[0] == 2
    assert bench("list", "methods", "magnitude")[0] == 2


def test_the_store_is_listed_and_cleaned(tiny: Path, bench: Bench) -> None:
    assert bench(*RUN)[0] == 0
    code, out, _ = bench("store", "list")
    assert code == 0
    counts = {line.split()[1]: line.split()[3:] for line in out.splitlines() if line.split()[:1] == ["tiny"]}
    assert {name: sum(map(int, numbers)) for name, numbers in counts.items()} == {"dense": 1, "magnitude": 2, "random": 2}
    assert "1 trained networks" in out
    assert bench("store", "clean", "all", "--dry-run")[1] == "5 rows, 1 networks and 0 searches would be removed\n"
    assert bench("store", "clean", "failed")[1] == "0 rows, 0 networks and 0 searches removed\n"
    assert bench("store", "clean", "all")[1] == "5 rows, 1 networks and 0 searches removed\n"
    assert not list((tiny / ".bench" / "networks").glob("*"))
    assert bench("store", "clean", "everything")[0] == 2


def test_completion_is_offered(bench: Bench) -> None:
    assert "--install-completion" in bench("--help")[1]


def test_a_run_that_cannot_begin_removes_nothing(tiny: Path, bench: Bench) -> None:
    assert bench(*RUN)[0] == 0
    before = bench("status", *RUN[1:-2])[1]
    code, _, err = bench(*RUN[:-2], "--force", "--executor", "ray", "--ray-address", "127.0.0.1:9")
    assert (code, err.count("\n")) == (2, 1)
    assert bench("status", *RUN[1:-2])[1] == before
    assert list(tiny.glob(".bench/networks/*.safetensors"))
    assert bench(*RUN, "--force", "--dry-run")[::2] == (2, "error: --dry-run says what the store lacks: leave out --force\n")


def test_an_output_replaces_neither_a_leaderboard_nor_the_suite(tiny: Path, bench: Bench) -> None:
    (tiny / "mine").mkdir()
    (tiny / "mine" / "suite.toml").write_text("# mine\n" + (tiny / "tiny.toml").read_text())
    mine = ("run", "--suite", "mine/suite.toml", *RUN[3:])
    assert bench(*mine, "--output", "mine")[::2] == (
        2, "error: --output 'mine' would replace the suite 'mine/suite.toml': choose another folder\n",
    )  # fmt: skip
    assert (tiny / "mine" / "suite.toml").read_text().startswith("# mine\n")
    (tiny / "board" / "results").mkdir(parents=True)
    assert bench(*RUN, "--output", "board")[0] == 0, "an empty folder is no leaderboard"
    (tiny / "board" / "results" / "magnitude.csv").write_text("")
    said = "error: --output 'board' contains results/*.csv, as the folder of a leaderboard: choose another one\n"
    assert bench(*RUN, "--output", "board")[::2] == (2, said)
    assert bench(*mine, "--output", "out")[0] == 0
    assert bench(*mine, "--output", "out")[0] == 0, "an output may be replaced"


def test_an_output_has_no_file_of_an_earlier_run(tiny: Path, bench: Bench) -> None:
    once = (
        "run",
        "--suite",
        "tiny.toml",
        "--methods",
        "random",
        "--seeds",
        "0",
        "--finetune-epochs",
        "0",
        "--workers",
        "1",
        "--output",
        "o",
    )
    assert bench(*once, "--trials", "2")[0] == 0
    assert (tiny / "o" / "tuned.csv").exists()
    assert bench(*once)[0] == 0
    assert sorted(path.name for path in (tiny / "o").iterdir()) == ["leaderboard.csv", "results.csv", "suite.toml"]


def test_a_suggested_command_with_a_flag_is_a_command(tiny: Path, bench: Bench) -> None:
    code, _, err = bench("compare", "magnitude", "random", "--suite", "tiny.toml", "--recalibrate-batchnorm")
    assert code == 2
    assert "--recalibrate-batchnorm" in err
    assert "True" not in err
    command = err.partition("python -m bench ")[2].split()
    assert bench(*command, "--dry-run")[0] == 0
