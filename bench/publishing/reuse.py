"""`store add`: put published rows into the store, so that a run continues a leaderboard of another machine.

A row is used only if this code would compute it in the same way: with the same settings, packages, device and threads, and if the files
that its result depends on are as they were at the commit in the row. A leaderboard does not contain its data: files of the same name must
have the same content.
"""

import functools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import methods
from bench.execution.environment import open_request, open_store
from bench.planning.plan import by_cell
from bench.planning.request import Request
from bench.publishing import board_check, board_folder
from bench.publishing.git import git, root, succeeds
from bench.publishing.trust import refuse_foreign_code, refuse_foreign_data
from bench.ranking import tuning_gain
from bench.spec.choices import Narrowing, Resources
from bench.spec.columns import Role
from bench.spec.errors import UserError
from bench.spec.row import PROTOCOL_VERSION, Row, columns_of
from bench.trial import trial

HERE = Path(__file__).resolve().parent
COMPARED = columns_of(Role.KEY, Role.SETTING, Role.WHERE)
_ablation = attrgetter("ablation")


@dataclass
class Reused:
    """Rows of a leaderboard for the store.

    `rows`: key -> row. `there`: number of rows that the store has already. `left_out`: reason -> number of rows that are not used.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    there: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def add(folder: Path, resources: Resources) -> Reused:
    """Put the rows of a leaderboard into the store. A row that is there already stays as it is.

    Args:
        folder: folder of the leaderboard.
        resources: the store, and further resources.

    Raises:
        UserError: it is not a leaderboard, names a network or data set that is somebody's own code, which may have changed since, or files
            outside of `data_root`.
    """
    board = board_folder.read(folder)
    try:
        refuse_foreign_code(board, ())
    except UserError:
        raise UserError(f"'{folder}' names a network or data set that is somebody's own code, which may have changed since") from None
    refuse_foreign_data(board, resources.data_root)
    found, rows, named = Reused(), dict[tuple[object, ...], Row](), set[str]()
    for row in board.rows:
        reason = _unusable(row)
        if reason:
            found.left_out[reason] += 1
        else:
            rows[row.identity] = row
            named.add(row.method if row.criterion else "")
    names = tuple(sorted(named - {""}))
    if not names:
        return found
    ablations = sorted({*map(_ablation, rows.values())} - {"none"})
    request = open_request(str(folder / board_folder.SUITE), Narrowing(methods=names), resources, ablations)
    broken = board_check.faults(board, request.environment).rows
    tuned = replace(request, tuned=tuning_gain.chosen(row for row in board.rows if row not in broken), ablations=())
    for of in (request, tuned) if tuned.tuned else (request,):
        for key, planned, code in _expected(of):
            if planned.identity not in rows:
                continue
            row = rows.pop(planned.identity)
            reason = "it breaks a rule of leaderboards" if row in broken else _unequal(planned, row) or code.changed_since(row.commit)
            if reason:
                found.left_out[reason] += 1
            else:
                found.rows[key] = row
    if rows:
        found.left_out["the suite does not contain it"] = len(rows)
    store = open_store(resources)
    there = store.done(found.rows)
    found.there, found.rows = len(there), {key: row for key, row in found.rows.items() if key not in there}
    store.put(found.rows)
    return found


def _unusable(row: Row) -> str:
    """Why a row cannot be used, whatever is planned; '' if it may be."""
    if row.status == "failed":
        return "it failed"
    if row.protocol != PROTOCOL_VERSION:
        return f"it has protocol {row.protocol}, this release has protocol {PROTOCOL_VERSION}"
    try:
        _ = methods.get(row.method) if row.criterion else methods.lookup("trainings", row.training)
    except ValueError:
        return "its method is not one of this repository"
    return ""


def _unequal(planned: Row, row: Row) -> str:
    """The first column in which a row differs from the plan of it; '' if there is none."""
    name = next((name for name in COMPARED if getattr(planned, name) != getattr(row, name)), None)
    return "" if name is None else f"its `{name}` is not what this machine would write"


class Code:
    """The files that a result depends on."""

    def __init__(self, roots: Iterable["type | ModuleType"]) -> None:
        self._files = tuple(sorted(methods.source_files(*roots)))

    @functools.cache  # noqa: B019 - as many as methods
    def changed_since(self, commit: str) -> str:
        """Why the code at a commit is not this code; '' if it is the same, apart from comments, docstrings and layout."""
        try:
            top = root(HERE)
        except UserError:
            return "this code is not in a git repository, which could tell whether it is the same"
        if not commit.isalnum() or not succeeds(top, "cat-file", "-e", f"{commit}^{{commit}}"):
            return f"this repository does not have its commit ({commit or 'none'})"
        outside = [file for file in self._files if not file.is_relative_to(top)]
        if outside:
            return f"its method is not in this repository ({outside[0].name})"
        names = [file.relative_to(top).as_posix() for file in self._files]
        touched = git(top, "diff", "--name-only", "--no-renames", "-z", commit, "--", *names).split("\0")
        edited = next((name for name in touched if name and _edited(top, commit, name)), None)
        return "" if edited is None else f"{edited} has changed since its commit"


def _edited(top: Path, commit: str, name: str) -> bool:
    """Whether a file of the repository has other code than at a commit."""
    if not succeeds(top, "cat-file", "-e", f"{commit}:{name}"):
        return True
    with tempfile.TemporaryDirectory(prefix="razorbench-") as scratch:
        before = Path(scratch) / "before.py"
        before.write_text(git(top, "show", f"{commit}:{name}"), encoding="utf-8", errors="surrogateescape")
        return methods.code_hash([before]) != methods.code_hash([top / name])


def _expected(request: Request) -> Iterator[tuple[str, Row, Code]]:
    """(key, row without measurements, code) of everything that a request computes."""
    known: dict[tuple[str, str], Code] = {}
    granularity = type(methods.get_granularity(request.suite.granularity))
    for jobs in by_cell(request):
        for planned in jobs:
            job = planned.job
            roots: list[type | ModuleType] = [trial, methods.lookup("trainings", job.training)]
            if job.criterion:
                roots += [methods.lookup("criteria", job.criterion), granularity]
            of = job.training, job.criterion
            if of not in known:
                known[of] = Code(roots)
            yield from ((key, row, known[of]) for key, row in planned.rows.items())
