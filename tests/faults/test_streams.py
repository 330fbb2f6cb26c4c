"""Standard streams that are closed, full or read in part, a folder that is gone, and plug-ins that fail at import in odd ways."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.trial import metrics  # noqa: F401 (before the plug-in that changes it, as in a worker)
from tests.faults.programs import ROOT

Bench = Callable[..., tuple[int, str, str]]
PROGRAM = f"{shlex.quote(sys.executable)} -m bench"


def shell(folder: Path, command: str) -> tuple[int, list[str]]:
    """Run a line of bash in a folder: (exit code of its first program, lines on standard error)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = f"{command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    assert shell(tmp_path, f"{PROGRAM} list methods > /dev/full") == (2, ["error: cannot write the output: No space left on device"])


@pytest.mark.parametrize("ending", ["| head -1", ">&-", "<&- >&-", "2>&-"])
def test_output_that_nobody_reads_is_no_fault(tmp_path: Path, ending: str) -> None:
    assert shell(tmp_path, f"{PROGRAM} list methods {ending}") == (0, [])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_without_dashes_is_no_fault(tmp_path: Path, encoding: str) -> None:
    board = ROOT / "leaderboards" / "spam-channel"
    assert shell(tmp_path, f"PYTHONIOENCODING={encoding} {PROGRAM} table {board} > out.txt") == (0, [])
    assert "magnitude" in (tmp_path / "out.txt").read_text(encoding)


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code, lines = shell(tmp_path, f"cd gone && rmdir ../gone && {PROGRAM} status --suite digits")
    assert (code, len(lines)) == (2, 1), lines  # some builds of torch say so themselves


PLUGINS = {
    "raise GeneratorExit": "GeneratorExit",
    "class Odd(BaseException): pass\nraise Odd('why')": "Odd: why",
    "class Silent(Exception):\n    def __str__(self): raise TypeError\nraise Silent": "Silent: its message cannot be shown",
    "import sys\nsys.exit(0)": "SystemExit",
    "import torch\ntorch.set_default_dtype(torch.float64)": "changed the default dtype",
    "import bench.trial.metrics as m\nm.logits_of = None": "changed the function 'logits_of'",
}


@pytest.mark.parametrize("text", PLUGINS)
def test_a_plug_in_that_fails_at_import_is_one_line(text: str, tmp_path: Path, bench: Bench) -> None:
    (tmp_path / "odd.py").write_text(text)
    code, out, err = bench("list", "methods", "--plugin", str(tmp_path / "odd.py"))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: plug-in ")
    assert "odd.py" in err
    assert PLUGINS[text] in err
