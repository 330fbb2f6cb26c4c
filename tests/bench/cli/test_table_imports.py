"""Tables of results that are already there do not wait for torch, timm and matplotlib."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "timm", "torchvision", "matplotlib", "optuna", "sqlalchemy")
BOARD = Path(__file__).parents[3] / "leaderboards" / "digits"


@pytest.mark.parametrize(
    "code",
    [
        "sys.argv = ['bench', 'table', board]; from bench.cli.main import main; run(main)",
        "sys.argv = ['bench', 'choose', board]; from bench.cli.main import main; run(main)",
        "sys.argv = ['bench', 'compare', 'spam', 'magnitude', board]; from bench.cli.main import main; run(main)",
        "import bench; rows = bench.read(board); assert len(bench.leaderboard(rows)); bench.tradeoff(rows)",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    program = f"""
import sys
board = sys.argv[1]
def run(main):
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
{code}
print("heavy:", *[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program, str(BOARD)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"
