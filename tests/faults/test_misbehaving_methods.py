"""Methods that misbehave in every way we know: their own rows fail, with the reason, and nothing else changes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bench
from tests.faults.mistakes import MISTAKES, PRINTED

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path(__file__).parent / "misbehaving.py"
WHAT = (
    "--datasets", "breast_cancer", "--seeds", "0", "--sparsities", "0.5", "--epochs", "2", "--finetune-epochs", "0", "--workers", "2",
)  # fmt: skip


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own: (exit code, stdout, stderr)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The rows of two good methods without company."""
    folder = tmp_path_factory.mktemp("alone")
    done = program(folder, "run", *WHAT, "--methods", "magnitude,snip", "--trials", "0", "--output", "out")
    assert done.returncode == 0, done.stderr
    return bench.read(folder / "out" / "results.csv").set_index("method")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same methods with all that misbehave, but for the one that hangs: (finished program, rows by method)."""
    folder = tmp_path_factory.mktemp("together")
    names = ["magnitude", *MISTAKES, "prints", "snip"]
    done = program(
        folder,
        "run",
        *WHAT,
        "--methods",
        ",".join(names),
        "--trials",
        "0",
        "--output",
        "out",
        "--plugin",
        str(PLUGIN),
        "--format",
        "markdown",
    )
    return done, bench.read(folder / "out" / "results.csv").set_index("method")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_method_that_misbehaves_has_a_failed_row_that_says_why(together: Any, mistake: str) -> None:
    row = together[1].loc[mistake]
    assert row["status"] == "failed"
    assert MISTAKES[mistake] in row["error"]


def test_the_other_methods_have_the_rows_that_they_have_alone(alone: Any, together: Any) -> None:
    done, rows = together
    assert done.returncode == 1, "a row failed"
    measured = ["accuracy", "nll", "kept_weights", "hyperparameters"]
    assert rows.loc[["magnitude", "snip"], measured].equals(alone.loc[["magnitude", "snip"], measured])
    assert rows.loc["prints", "accuracy"] == rows.loc["magnitude", "accuracy"]


def test_what_a_method_prints_does_not_get_into_the_table(together: Any) -> None:
    done, _ = together
    assert PRINTED in done.stderr
    assert "noise" not in done.stdout
    assert "| `magnitude` |" in done.stdout
    assert f"failed: raises on breast_cancer/mlp: {MISTAKES['raises']}" in done.stderr
    assert "Traceback" not in done.stderr


def test_failures_in_searches_concern_the_method_alone(tmp_path: Path) -> None:
    """In trials an exception counts as accuracy 0; a method that kills its process has failed tuned rows, and the others are tuned."""
    methods = "magnitude,raises,dies"
    done = program(tmp_path, "run", *WHAT, "--methods", methods, "--trials", "2", "--output", "out", "--plugin", str(PLUGIN))
    assert done.returncode == 1, done.stderr
    rows = bench.read(tmp_path / "out" / "results.csv")
    tuned = rows[(rows["tuning"] == "tuned") & (rows["criterion"] != "")].set_index("method")
    assert dict(tuned["status"]) == {"magnitude": "ok", "raises": "failed", "dies": "failed"}
    assert "its search failed" in tuned.loc["dies", "error"]


def test_a_method_that_hangs_is_stopped(tmp_path: Path) -> None:
    done = program(
        tmp_path,
        "run",
        *WHAT,
        "--methods",
        "hangs,magnitude",
        "--trials",
        "0",
        "--timeout",
        "30",
        "--output",
        "out",
        "--plugin",
        str(PLUGIN),
    )
    rows = bench.read(tmp_path / "out" / "results.csv").set_index("method")
    assert (done.returncode, rows.loc["magnitude", "status"]) == (1, "ok")
    assert rows.loc["hangs", "error"] == "stopped after 30 seconds, the time limit of a job (--timeout)"
