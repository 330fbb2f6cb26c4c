"""Methods that misbehave in every way we know: their own rows fail, with the reason, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.mistakes import MISTAKES, PRINTED
from tests.faults.programs import PLUGIN, program, rows

RUN = (
    "run", "--datasets", "breast_cancer", "--seeds", "0", "--sparsities", "0.5", "--epochs", "2", "--finetune-epochs", "0", "--workers",
    "2", "--output", "out", "--plugin", str(PLUGIN),
)  # fmt: skip
DEFAULTS = (*RUN, "--trials", "0", "--methods")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The rows of two good methods without company."""
    folder = tmp_path_factory.mktemp("alone")
    code, _, err = program(folder, *DEFAULTS, "magnitude,snip")
    assert code == 0, err
    return rows(folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same methods with all that misbehave, but for the one that hangs: (exit code, standard output, standard error, rows)."""
    folder = tmp_path_factory.mktemp("together")
    done = program(folder, *DEFAULTS, ",".join(["magnitude", *MISTAKES, "prints", "snip"]), "--format", "markdown")
    return *done, rows(folder)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_method_that_misbehaves_has_a_failed_row_that_says_why(together: Any, mistake: str) -> None:
    row = together[3].loc[mistake]
    assert row["status"] == "failed"
    assert MISTAKES[mistake] in row["error"]


def test_the_other_methods_have_the_rows_that_they_have_alone(alone: Any, together: Any) -> None:
    code, _, _, found = together
    assert code == 1, "a row failed"
    measured = ["accuracy", "nll", "kept_weights", "hyperparameters"]
    assert found.loc[["magnitude", "snip"], measured].equals(alone.loc[["magnitude", "snip"], measured])
    assert found.loc["prints", "accuracy"] == found.loc["magnitude", "accuracy"]


def test_what_a_method_prints_does_not_get_into_the_table(together: Any) -> None:
    _, out, err, _ = together
    assert PRINTED in err
    assert "noise" not in out
    assert "| `magnitude` |" in out
    assert f"failed: raises on breast_cancer/mlp: {MISTAKES['raises']}" in err
    assert "Traceback" not in err


def test_failures_in_searches_concern_the_method_alone(tmp_path: Path) -> None:
    """In trials an exception counts as accuracy 0; a method that kills its process has failed tuned rows, and the others are tuned."""
    code, _, err = program(tmp_path, *RUN, "--trials", "2", "--methods", "magnitude,raises,dies")
    assert code == 1, err
    found = rows(tmp_path)
    tuned = found[(found["tuning"] == "tuned") & (found["criterion"] != "")]
    assert dict(tuned["status"]) == {"magnitude": "ok", "raises": "failed", "dies": "failed"}
    assert "its search failed" in tuned.loc["dies", "error"]


def test_a_method_that_hangs_is_stopped(tmp_path: Path) -> None:
    code, _, _ = program(tmp_path, *DEFAULTS, "hangs,magnitude", "--timeout", "20")
    found = rows(tmp_path)
    assert (code, found.loc["magnitude", "status"]) == (1, "ok")
    assert found.loc["hangs", "error"] == "stopped after 20 seconds, the time limit of a job (--timeout)"
