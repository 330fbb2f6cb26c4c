"""The command line as a user types it: results, mistakes, plug-ins, interruption."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.spec.row import COLUMNS

Bench = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_prints_a_leaderboard_and_writes_the_contract_columns(tiny: Path, bench: Bench) -> None:
    code, out, _ = bench("run", "--suite", "tiny.toml", "--methods", "magnitude,random,snip", "--workers", "2", "--output", "out")
    assert code == 0
    for title in ("dense networks", "one-shot after training", "one-shot at initialisation", "fine-tuned 1 epochs"):
        assert title in out
    rows = read(tiny / "out" / "results.csv")
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 3 * 2 * 2 * 2 + 2 * 2
    assert {row["status"] for row in rows} <= {"ok", "collapsed"}
    board = read(tiny / "out" / "leaderboard.csv")
    assert [b["method"] for b in board if b["track"] == "one-shot after training"][-1] == "random"
    before = (tiny / "out" / "results.csv").read_bytes()
    code, _again, _ = bench("run", "--suite", "tiny.toml", "--methods", "magnitude,random,snip", "--output", "out")
    assert code == 0
    assert (tiny / "out" / "results.csv").read_bytes() == before, "a second run is the store's, times too"
    code, out, _ = bench("status", "--suite", "tiny.toml", "--methods", "magnitude,obd")
    assert "12 of 20 rows in the store" in out
    code, out, _ = bench("run", "--suite", "tiny.toml", "--methods", "magnitude,obd", "--dry-run")
    assert "20 rows: 12 in the store, 8 to compute in 2 jobs" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--methods", "magnitud"], "unknown method 'magnitud' (did you mean 'magnitude'?)"),
        (["run", "--methods", "magnitude@mpa"], "unknown training 'mpa' (did you mean 'map'?)"),
        (["run", "--methods", ","], "--methods: no value in ','"),
        (["run", "--datasets", "digts"], "did you mean 'digits'"),
        (["run", "--architectures", "lenet"], "lenet5"),
        (["run", "--suite", "digit"], "unknown suite 'digit' (did you mean 'digits'?)"),
        (["run", "--sparsities", "0.5,1.0"], "sparsities.1: must be less than 1, got 1.0"),
        (["run", "--sparsities", "half"], "--sparsities: 'half' is not a number"),
        (["run", "--seeds", "0,x"], "--seeds: 'x' is not a whole number"),
        (["run", "--seeds", "-1"], "greater than or equal to 0"),
        (["run", "--epochs", "0"], "epochs = 0 prunes trained networks, but 'mlp' would have random weights"),
        (["run", "--epochs", "many"], "--epochs"),
        (["run", "--granularity", "wieght"], "did you mean 'weight'"),
        (["run", "--trials", "-1"], "trials: must be greater than or equal to 0, got -1"),
        (["run", "--seeds", "1000", "--methods", "random"], "tuning uses seed 1000, which is one of `seeds`"),
        (["run", "--match", "latency"], "--match latency needs --granularity channel"),
        (["run", "--executor", "lokal"], "did you mean 'local'"),
        (["run", "--workers", "0"], "--workers must be at least 1"),
        (["run", "--stack", "0"], "--stack must be at least 1"),
        (["run", "--device", "gpu"], "unknown device 'gpu'"),
        (["run", "--store", "sqlite:////proc/none/x.db"], "cannot open the store"),
        (["run", "--data-root", "/nowhere/at/all"], "--data-root '/nowhere/at/all' is not a directory"),
        (["run", "--datasets", "mnist"], "--data-root"),
        (["run", "--datasets", "tar:/nowhere"], "/nowhere"),
        (["run", "--plugin", "nowhere.py"], "no plug-in file"),
        (["run", "--mehods", "all"], "--mehods"),
        (["runn"], "runn"),
        (["list", "method"], "did you mean 'methods'"),
        (["check", "magnitud"], "did you mean 'magnitude'"),
        (["new", "Magnitude"], "is not a valid method name"),
        (["new", "méthode"], "is not a valid method name"),
        (["new", "torch"], "'torch' is a package or module of Python"),
        (["new", "csv", "--kind", "dataset"], "'csv' is a package or module of Python"),
        (["new", "mine", "--directory", "tiny.toml"], "'tiny.toml' is a file, not a folder"),
        (["verify", "leaderboards", "--tolerance", "nan"], "--tolerance must be at least 0, got nan"),
        (["review", "main", "--tolerance", "nan"], "--tolerance must be at least 0, got nan"),
        (["new", "magnitude"], "is already registered"),
        (["new", "dense"], "'dense' is reserved for the rows of unpruned networks; choose another name"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tiny: Path, bench: Bench, arguments: list[str], said: str) -> None:
    before = sorted(p.name for p in tiny.iterdir())
    code, out, err = bench(*arguments)
    assert code == 2, (out, err)
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert [p for p in sorted(p.name for p in tiny.iterdir()) if p != ".bench"] == before, "nothing half-written"


def test_a_missing_gpu_is_said(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench("run", "--device", "cuda")[0] == 2


def test_a_new_method_passes_check_and_runs(tiny: Path, bench: Bench) -> None:
    code, out, _ = bench("new", "my_method")
    assert code == 0
    assert "my_method.py" in out
    assert bench("new", "my_method")[0] == 2, "an existing file is not overwritten"
    code, out, _ = bench("check", "my_method.py")
    assert code == 0, out
    assert "the contract holds" in out
    code, out, _ = bench("run", "--suite", "tiny.toml", "--plugin", "my_method.py", "--methods", "my_method@spam,magnitude", "--seeds", "0")
    assert code == 0
    assert "my_method@spam" in out


def test_an_edited_plugin_is_not_served_stale(tiny: Path) -> None:
    """Two processes, as a user would: the same name with other code is another result."""
    file = tiny / "mine.py"
    source = (
        "import methods, torch\nfrom dataclasses import dataclass\n"
        "@methods.register('mine')\n@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(methods.Criterion):\n    '''Mine.'''\n    def score(self, problem):\n"
        "        return methods.Scores({n: SIGN * w.detach().abs() for n, w in problem.weights.items()})\n"
    )
    found = []
    for sign in ("1.0", "-1.0"):
        file.write_text(source.replace("SIGN", sign))
        razorbench(tiny, "run", "--suite", "tiny.toml", "--plugin", "mine.py", "--methods", "mine", "--seeds", "0", "--output", "out")
        found.append([row["nll"] for row in read(tiny / "out" / "results.csv") if row["method"] == "mine"])
    assert found[0] != found[1]


def test_check_reports_a_broken_file(tiny: Path, bench: Bench) -> None:
    (tiny / "bad.py").write_text(
        "import methods, torch\nfrom dataclasses import dataclass\n"
        "@methods.register('bad')\n@dataclass(frozen=True, kw_only=True)\n"
        "class Bad(methods.Criterion):\n    '''Bad.'''\n    def score(self, problem):\n"
        "        return methods.Scores({n: torch.rand_like(w.detach()) for n, w in problem.weights.items()})\n"
    )
    code, out, _ = bench("check", "bad.py")
    assert code == 1
    assert "FAIL  score leaves the global random state unchanged" in out
    assert "FAIL  the same seed gives the same scores" in out


@pytest.mark.parametrize("what", ["methods", "criteria", "trainings", "granularities", "architectures", "datasets", "suites"])
def test_list_says_a_line_each(bench: Bench, what: str) -> None:
    code, out, _ = bench("list", what)
    assert code == 0
    assert len(out.splitlines()) >= 1
    assert all(len(line.split()) >= 2 for line in out.splitlines()), "a name and what it is"


def razorbench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done
