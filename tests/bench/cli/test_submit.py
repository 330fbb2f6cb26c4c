"""`submit` with made-up rows: the branch, mistakes in one line, nothing half-written. The checks themselves run in test_contribution."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

import methods
from bench.publishing import branch, contributions, publish
from bench.publishing.plots import curves
from bench.publishing.submission import Submission
from bench.storage import results_csv
from tests.bench import repositories
from tests.bench.publishing.test_merge import DENSE_MINE, cells
from tests.bench.repositories import git, state

Bench = Callable[..., tuple[int, str, str]]
Checks = list[list[str]]
MERGE = branch.merge  # in a process of its own
TRAINING = """
@methods.register("their_training")
@dataclass(frozen=True, kw_only=True)
class Theirs(methods.Training):
    pass
"""


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    """The commands that would check the branch; they pass."""
    ran: Checks = []

    def run(clone: Path, command: list[str]) -> int:
        assert git(clone, "status", "--porcelain") == ""
        ran.append(list(command))
        return 0

    def merge(asked: Submission, clone: Path) -> None:
        publish.merge_file(asked.file, asked.suite, clone / "leaderboards", asked.contributor).write()

    monkeypatch.setattr(branch, "run", run)
    monkeypatch.setattr(branch, "merge", merge)  # in this process; test_contribution has one of its own
    return ran


@pytest.fixture
def repository(tiny: Path, monkeypatch: pytest.MonkeyPatch, checks: Checks) -> Path:
    """The working folder: a clone with `leaderboards/tiny`, and out/results.csv with rows of spam."""
    monkeypatch.setattr(curves, "draw", lambda rows, board: {})
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    repositories.make(tiny)
    results_csv.write_rows([*cells("spam", 0.93), *cells("dense")], Path("out/results.csv"))
    return tiny


def test_a_branch_has_one_commit_with_the_board_and_the_method(repository: Path, bench: Bench, checks: Checks) -> None:
    Path("mine.py").write_text(DENSE_MINE)
    methods.load_plugin("mine.py")
    results_csv.write_rows([*cells("dense_mine", 0.93), *cells("dense")], Path("out/results.csv"))
    (repository / "methods/criteria/there.py").write_text("# edited\n")
    (repository / "staged.txt").write_text("staged")
    git(repository, "add", "staged.txt")
    before, base = state(repository), git(repository, "rev-parse", "HEAD").strip()
    code, out, err = bench("submit", "out", "--plugin", "mine.py", "--sample", "2", "--seed", "5")
    assert (code, err) == (0, "")
    name = "submit-tiny-dense_mine"
    assert "next: git push -u origin submit-tiny-dense_mine" in out
    assert git(repository, "rev-parse", f"{name}~1").strip() == base
    assert git(repository, "log", "-1", "--format=%an <%ae> %cn", name) == "Ada Stranger <ada@example.org> Ada Stranger\n"
    changed = git(repository, "diff", "--name-status", base, name).split("\n")
    assert set(changed) == {
        "", "A\tmethods/criteria/mine.py", *(f"A\tleaderboards/tiny/{file}" for file in (
            "CHANGELOG.md", "contributions.csv", "results/dense_mine.csv", "schemas/contributions.json")),
        *(f"M\tleaderboards/tiny/{file}" for file in ("blocks.csv", "datapackage.json", "index.html", "leaderboard.csv")),
        "A\tleaderboards/index.html",
    }  # fmt: skip
    assert git(repository, "show", f"{name}:methods/criteria/mine.py") == DENSE_MINE
    marks = git(repository, "show", f"{name}:leaderboards/tiny/contributions.csv")
    assert marks == "method,tuning,ablation,contributor\ndense_mine,default,none,Ada Stranger\n"
    assert [command[:3] for command in checks] == [[sys.executable, "-m", "bench"]]
    assert checks[0][3:] == ["review", base, "--sample", "2", "--seed", "5", "--device", "auto"]
    message = git(repository, "log", "-1", "--format=%B", name)
    assert message.startswith("Add dense_mine to the leaderboard tiny\n")
    assert message.strip() in out
    assert "- `dense_mine`: 6 rows" in message
    assert "Training and scoring took 6.6 seconds" in message
    assert "- [ ] a test in `tests/methods/`" in message
    git(repository, "branch", "-D", name)
    assert state(repository)[2:] == before[2:], "working tree and index are as they were"


def test_a_trial_writes_nothing_at_all(repository: Path, bench: Bench) -> None:
    before = state(repository)
    code, out, _ = bench("submit", "out/results.csv", "--dry-run")
    assert code == 0
    assert out.endswith("the branch 'submit-tiny-spam' would be made; nothing was written\n")
    assert state(repository) == before


@pytest.mark.parametrize(("status", "code", "said"), [(1, 1, "the checks failed; nothing was written"), (2, 2, "could not be checked")])
def test_a_branch_that_fails_is_not_made(
    repository: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, status: int, code: int, said: str
) -> None:
    monkeypatch.setattr(branch, "run", lambda clone, command: status)
    before = state(repository)
    got, out, err = bench("submit", "out", "--branch", "mine")
    assert got == code
    assert said in out + err
    assert state(repository) == before


def test_a_board_that_the_branch_refuses_is_said_with_a_row_and_what_is_not_committed(
    repository: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(clone: Path, command: list[str], output: IO[bytes]) -> int:
        output.write(b"note: x\nrow 7: unknown method 'y'\nrow 8: z\nerror: 'f': 2 rows refused; nothing was merged\n")
        return 2

    monkeypatch.setattr(branch, "merge", MERGE)
    monkeypatch.setattr(branch, "run", run)
    cannot = "error: the leaderboard of the branch cannot be written: 'f': 2 rows refused; nothing was merged (row 7: unknown method 'y')"
    assert bench("submit", "out")[2] == cannot + "\n"
    (repository / "methods/criteria/mine.py").write_text("x = 1\n")
    hint = "; not in the branch, because not committed: methods/criteria/mine.py (the file of a method: --plugin FILE)"
    assert bench("submit", "out")[2] == cannot + hint + "\n"


def test_the_projects_tests_run_if_they_are_asked_for(
    repository: Path, bench: Bench, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/tox")
    code, out, _ = bench("submit", "out", "--tox", "--dry-run")
    assert code == 0
    assert checks[1:] == [["/usr/bin/tox"]]
    assert "the tests of the project" not in out
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert bench("submit", "out", "--tox")[2] == "error: --tox: tox is not installed: pip install tox\n"


def _write(name: str, text: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return write


def _rows(**changes: object) -> Callable[[Path], object]:
    return lambda folder: results_csv.write_rows(
        [replace(row, **changes) for row in cells("spam")],  # type: ignore[arg-type]
        folder / "out/results.csv",
    )


def _nothing(folder: Path) -> None:
    pass


MISTAKES: list[tuple[Callable[[Path], object], tuple[str, ...], str]] = [
    (_nothing, ("nowhere",), "'nowhere' is neither a results.csv nor a folder with one"),
    (_write("out/results.csv", "a,b\n1,2\n"), ("out",), "is not a results.csv: it has no column suite"),
    (_write("out/results.csv", "suite\n"), ("out",), "has no rows"),
    (_rows(suite="tinny"), ("out",), "unknown leaderboard (the suite of the rows) 'tinny' (did you mean 'tiny'?); available: tiny"),
    (_rows(epochs=30), ("out",), "6 rows refused; nothing was merged"),
    (lambda _: results_csv.write_rows(cells("magnitude"), Path("out/results.csv")), ("out",), "has no new rows"),
    (_write("leaderboards/tiny/x", ""), ("out",), "1 files of leaderboards/tiny are changed and not committed, e.g. 'leaderboards/tiny/x'"),
    (lambda folder: git(folder, "branch", "b"), ("out", "--branch", "b"), "the branch 'b' exists"),
    (lambda folder: git(folder, "branch", "submit-tiny-spam"), ("out",), "the branch 'submit-tiny-spam' exists"),
    (_nothing, ("out", "--branch", "a..b"), "--branch 'a..b' is not a valid name of a branch"),
    (_nothing, ("out", "--branch=-d"), "--branch '-d' is not a valid name of a branch"),
    (_nothing, ("out", "--plugin", "nowhere.py"), "no plug-in file"),
    (_write("my-method.py", ""), ("out", "--plugin", "my-method.py"), "'my-method.py' cannot be a module of the project"),
    (_write("m.py", "x = 1\n"), ("out", "--plugin", "m.py"), "registers nothing"),
    (_write("net.py", "def build(classes): ...\n"), ("out", "--plugin", "net.py"), "registers no criterion, training or granularity"),
    (_write("two.py", DENSE_MINE + TRAINING), ("out", "--plugin", "two.py"), "registers criteria and trainings"),
    (_write("there.py", DENSE_MINE), ("out", "--plugin", "there.py"), "methods/criteria/there.py exists with other content"),
    (_nothing, ("out", "--sample", "-1"), "--sample must be at least 0"),
    (lambda folder: git(folder, "config", "user.name", "x" * 200), ("out",), "the contributor's name has more than 100 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("arrange", "arguments", "said"), MISTAKES, ids=[said for _, _, said in MISTAKES])
def test_a_mistake_is_one_line_and_changes_nothing(
    repository: Path, bench: Bench, checks: Checks, arrange: Callable[[Path], object], arguments: tuple[str, ...], said: str
) -> None:
    arrange(repository)
    before = state(repository)
    code, _, err = bench("submit", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert (state(repository), checks) == (before, [])


def test_outside_of_a_repository_and_without_a_name(
    repository: Path, bench: Bench, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("user.name", "user.email"):
        git(repository, "config", "--unset", key)
    git(repository, "config", "user.useConfigOnly", "true")
    assert "git does not know who you are: git config user.name" in bench("submit", "out")[2]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = repository / "out/results.csv"
    monkeypatch.chdir(elsewhere)
    assert "is not in a git repository; run this command in a clone" in bench("submit", str(file))[2]
    git(elsewhere, "init", "--quiet")
    assert "has no commit yet" in bench("submit", str(file))[2]
    git(elsewhere, "commit", "--quiet", "--allow-empty", "-m", "x")
    assert "has no committed leaderboards" in bench("submit", str(file))[2]
    monkeypatch.setenv("PATH", str(elsewhere))
    assert "git is not installed" in bench("submit", str(file))[2]


def test_rows_of_several_people_keep_their_marks(repository: Path, bench: Bench) -> None:
    assert bench("submit", "out")[0] == 0
    git(repository, "merge", "--quiet", "submit-tiny-spam")
    git(repository, "config", "user.name", "Bob")
    results_csv.write_rows([*cells("obd"), *cells("spam", 0.93)], Path("out/results.csv"))
    assert bench("submit", "out")[0] == 0
    git(repository, "merge", "--quiet", "submit-tiny-obd")
    found = contributions.read(repository / "leaderboards/tiny")
    assert [(line.method, line.contributor) for line in found] == [("obd", "Bob"), ("spam", "Ada Stranger")]
    code, out, _ = bench("table", "leaderboards/tiny")
    assert code == 0
    assert out.endswith("contributed rows: obd (Bob), spam (Ada Stranger)\n")
