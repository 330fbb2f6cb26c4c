"""Check what a branch adds to leaderboards: the same for `submit`, for a maintainer, and in continuous integration.

A contribution adds files of methods and rows of leaderboards. It leaves published rows, their suite and the marks of others as they are.
"""

import datetime
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import methods
from bench.data import sources
from bench.publishing import board_folder, board_rules, contributions, git, history, merge, publish, readme, trust, verified
from bench.publishing.board_folder import Board
from bench.publishing.page import overview
from bench.publishing.verify import label
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.storage import results_csv
from methods.checking.clauses import Finding
from methods.registry.registry import KINDS

BOARDS = "leaderboards"
README = "README.md"
FOLDERS = {"criteria": "methods/criteria", "trainings": "methods/training", "granularities": "methods/granularity"}
_METHOD = re.compile(rf"(?:{'|'.join(FOLDERS.values())})/(?!__init__)\w+\.py")
_BOARD = re.compile(rf"{BOARDS}/([^/]+)/.+", re.S)


@dataclass(frozen=True)
class Branch:
    """What is different in a branch.

    `root`: top folder of the repository. `base`: the commit that the branch starts from. `methods`: new and changed files of methods.
    `boards`: names of changed leaderboards. `others`: all other changed files. Paths are relative to `root`.
    """

    root: Path
    base: str
    methods: tuple[str, ...]
    boards: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Addition:
    """What a branch adds to a leaderboard.

    `folder`: its folder. `new`: the rows that are added; all rows of a new leaderboard. `by`: the new lines of contributions.csv.
    `faults`: what a contribution must not do, in words. `methods`: those whose rows are checked, all if there are no new rows; None for a
    new leaderboard, which is checked as a whole. `records`: new, changed and removed records of verified.csv, which only maintainers write.
    """

    folder: Path
    new: tuple[Row, ...]
    by: tuple[contributions.Contribution, ...]
    faults: tuple[str, ...]
    methods: tuple[str, ...] | None
    records: int = 0


def branch(folder: Path, base: str) -> Branch:
    """Compare the checked-out commit with another one.

    Args:
        folder: a folder of the repository.
        base: the other commit or branch; changes since both have parted are not counted.

    Raises:
        UserError: it is not a commit, or there are changes that are not committed.
    """
    root = git.root(folder)
    commit = git.commit_of(root, base)
    dirty = git.uncommitted(root, BOARDS, "methods", "bench")
    if dirty:
        raise UserError(f"{_few(dirty)}: not committed; a review is of commits")
    if not git.succeeds(root, "merge-base", commit, "HEAD"):
        raise UserError(f"'{base}' and the commit that is checked out have no common history (in a shallow clone: git fetch --unshallow)")
    start = git.git(root, "merge-base", commit, "HEAD").strip()
    said = git.git(root, "diff", "--name-status", "--no-renames", "-z", start, "HEAD").split("\0")
    changed = dict(zip(said[1::2], said[::2], strict=False))  # path -> A, M, D, ...
    files = tuple(path for path, status in changed.items() if _METHOD.fullmatch(path) and status != "D")
    boards = tuple(dict.fromkeys(found[1] for path in changed if (found := _BOARD.fullmatch(path))))
    others = tuple(p for p in changed if p not in files and not _BOARD.fullmatch(p) and not _is_written_by_publish(root, start, p))
    return Branch(root, start, files, boards, others)


def _is_written_by_publish(root: Path, base: str, path: str) -> bool:
    """Whether a file outside of the leaderboards is what `publish` makes of them: their list, or the tables in the README."""
    file, table = root / path, root / BOARDS / publish.SHOWN / "leaderboard.csv"
    if path == f"{BOARDS}/{overview.FILE}" and file.is_file():
        return overview.overview(root / BOARDS) == file.read_bytes()
    if path != README or not (table.is_file() and file.is_file() and git.succeeds(root, "cat-file", "-e", f"{base}:{README}")):
        return False
    return readme.rewritten(git.git(root, "show", f"{base}:{README}"), table.read_bytes()) == file.read_text(encoding="utf-8")


def contract(found: Branch, file: str) -> list[Finding]:
    """Check all that a file of a method registers.

    Args:
        found: the branch.
        file: one of its `methods`.

    Raises:
        UserError: the running program is not the one of the branch, or the file registers nothing.
    """
    running = Path(methods.__file__).resolve().parent
    if running != (found.root / "methods").resolve():
        raise UserError(f"{file} is not what runs here, which is '{running}': run `python -m bench review` in '{found.root}'")
    module = file.removesuffix(".py").replace("/", ".")
    classes = [methods.lookup(kind, name) for kind in KINDS for name in methods.names(kind)]
    own = [cls for cls in dict.fromkeys(classes) if cls.__module__ == module]
    if not own:
        raise UserError(f"{file} registers no criterion, training or granularity")
    return [finding for cls in own for finding in (*methods.check(cls), unexplained(cls))]


def unexplained(cls: type[methods.Configuration]) -> Finding:
    """Whether each hyperparameter of a class says what it is: the documentation shows it. Plug-ins need not."""
    without = [name for name, allowed in methods.ranges(cls).items() if not allowed.meaning]
    error = f"{', '.join(without)}: give it meaning='...'" if without else ""
    return Finding(cls.name, "each hyperparameter says what it is", error=error)


def addition(found: Branch, name: str) -> Addition:
    """Compare a leaderboard of a branch with the same one before.

    Args:
        found: the branch.
        name: one of its `boards`.

    Raises:
        UserError: the branch removes the leaderboard, or it cannot be read.
    """
    folder = found.root / BOARDS / name
    if not folder.is_dir():
        raise UserError(f"the branch removes the leaderboard '{name}'")
    head = board_folder.read(folder)
    with git.exported(found.root, found.base, f"{BOARDS}/{name}") as before:
        there = before / BOARDS / name
        if not there.is_dir():
            return Addition(folder, head.rows, head.contributions, (), None, len(head.verified))
        base = board_folder.read(there)
    published = {row.identity for row in base.rows}
    new = tuple(row for row in results_csv.ordered(head.rows) if row.identity not in published)
    marked = set(base.contributions)
    by = tuple(line for line in head.contributions if line not in marked)
    names = tuple(dict.fromkeys(row.method for row in new or head.rows))
    records = {one.key for one in set(base.verified) ^ set(head.verified)}
    return Addition(folder, new, by, tuple(_faults(base, head, new)), names, len(records))


def _faults(base: Board, head: Board, new: Iterable[Row]) -> Iterator[str]:
    """What a contribution must not do."""
    if head.suite != base.suite:
        yield "suite.toml differs from that of the published rows; a contribution does not change it"
    now = {row.identity: row for row in head.rows}
    removed = Counter(row.method for row in base.rows if row.identity not in now)
    altered = Counter(row.method for row in base.rows if row.identity in now and now[row.identity] != row)
    for counts, what in ((removed, "removed"), (altered, "changed")):
        yield from (f"{number} published row{'s' * (number != 1)} of '{method}' {what}" for method, number in counts.items())
    yield from _refusals(base, list(new))
    yield from _wrong_marks(base, head, new)
    yield from _wrong_records(base, head, new)


def _refusals(base: Board, new: list[Row]) -> Iterator[str]:
    """Why `publish --merge` refuses the new rows."""
    if not new:
        return
    with tempfile.TemporaryDirectory(prefix="razorbench-") as scratch:
        file = Path(scratch) / "new.csv"
        results_csv.write_rows(new, file)
        refused = merge.check(file, base).refused
    yield from (f"{label(new[number - 2])}: {reason}" for number, reason in refused)  # row 1 of a file is its header


def _wrong_marks(base: Board, head: Board, new: Iterable[Row]) -> Iterator[str]:
    """New rows that nobody has contributed, and changed marks of other rows."""
    lines = {line.key for line in head.contributions}
    rows = dict.fromkeys(map(board_rules.key_of, new))
    for key in rows:
        if key not in lines:
            yield f"contributions.csv has no line for the new rows of '{board_rules.label_of(key)}'"
    before, after = set(base.contributions), {line for line in head.contributions if line.key not in rows}
    for line in sorted(before ^ after):
        yield f"contributions.csv: the line of '{board_rules.label_of(line.key)}' is not that of the published rows"


def _wrong_records(base: Board, head: Board, new: Iterable[Row]) -> Iterator[str]:
    """Records that only maintainers write, and a changelog other than that of `publish`."""
    if new and head.verified != base.verified:
        yield f"{verified.FILE} differs; maintainers record there what they have computed again"
    if not (base.history or head.history):
        return
    try:
        day = datetime.date.fromisoformat(history.entries(head.history)[0].date)
    except (IndexError, ValueError):  # there is no entry, or no such day
        day = datetime.date.min
    if head.history != history.updated(base.history, base, head, day):
        yield f"{board_folder.HISTORY} is not that of the published rows, with an entry for the new ones"


def at_hand(dataset: str, data_root: Path | None) -> bool:
    """Whether a data set can be read without a download: it is inside scikit-learn, or its files are in `data_root`."""
    if trust.is_foreign_data(dataset, data_root):
        return False
    try:
        return sources.stamp(dataset, data_root) is not None
    except UserError:
        return False


def kind_of(file: Path) -> str:
    """The kind of what a loaded plug-in file registers: criteria, trainings or granularities.

    Raises:
        UserError: it registers none of them, or several.
    """
    module_files = {kind: {_file(methods.lookup(kind, name)) for name in methods.names(kind)} for kind in KINDS}
    kinds = [kind for kind, files in module_files.items() if file.resolve() in files]
    if len(kinds) != 1:
        said = " and ".join(kinds) if kinds else "no criterion, training or granularity"
        raise UserError(f"'{file}' registers {said}; a file of a submission registers one kind, e.g. one criterion")
    return kinds[0]


def _file(cls: type) -> Path | None:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return Path(file).resolve() if file else None


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
