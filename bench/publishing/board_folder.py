"""The folder of a leaderboard: suite and results (the evidence), and files derived from them.

suite.toml            the suite as it was run
results/<method>.csv  rows of results, one file per method, so that contributions do not conflict
contributions.csv     who has contributed which rows; missing if nobody has
verified.csv          which rows a maintainer has computed again (see `bench.publishing.verified`), if any
CHANGELOG.md          what changed, when, by which commits (see `bench.publishing.history`)
index.html, leaderboard.csv, blocks.csv, tuned.csv, datapackage.json, schemas/, plots/    derived (see `bench.publishing.derived_files`)
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote, unquote

import tomli_w

from bench.publishing import contributions, derived_files, verified
from bench.publishing.contributions import Contribution
from bench.publishing.plots import curves
from bench.publishing.plots.plain import is_plain
from bench.publishing.verified import Verified
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.spec.suite import Suite, load_suite
from bench.storage import results_csv
from bench.storage.contents import Contents
from bench.storage.files import replacing, write_files

SUITE = "suite.toml"
HISTORY = "CHANGELOG.md"
DERIVED = ("index.html", "leaderboard.csv", "tuned.csv", "blocks.csv", "datapackage.json", "schemas/*.json", "plots/*.svg", "plots/*.png")
README = "README.md"  # about the leaderboard, for readers; nothing follows from it
LONGEST = 80  # characters of a file's name without .csv
SPARE = 1_000_000  # bytes that a plot of another release of matplotlib may be larger than twice this one's


@dataclass(frozen=True)
class Board:
    """The evidence of one leaderboard: suite and rows. `verified`: records of rows that were computed again. `history`: its changelog.
    `contributions`: who has contributed rows.
    """

    suite: Suite
    rows: tuple[Row, ...]
    verified: tuple[Verified, ...] = ()
    history: str = ""
    contributions: tuple[Contribution, ...] = ()

    @cached_property
    def first_of_block(self) -> dict[tuple[str, str], Row]:
        """(data set, architecture) -> its first row."""
        return {(row.dataset, row.architecture): row for row in reversed(self.rows)}


def file_name(method: str) -> str:
    """The name of the file with a method's rows.

    Characters other than letters, digits and `_ . - @ = ,` are percent-encoded. A name longer than `LONGEST` is cut, and ends in `~` and
    12 hex digits of the method's SHA-256.
    """
    quoted = quote(method, safe="@=,").replace("~", "%7E")
    if len(quoted) > LONGEST:
        digest = hashlib.sha256(method.encode()).hexdigest()[:12]
        start = re.sub("%.?$", "", quoted[: LONGEST - len(digest) - 1])  # an escape is never cut in two
        quoted = f"{start}~{digest}"
    return quoted + ".csv"


def evidence(board: Board) -> Contents:
    """The files with the evidence: path relative to the folder -> content.

    Raises:
        UserError: the names of two methods differ only in upper and lower case.
    """
    by_method: dict[str, list[Row]] = {}
    for row in board.rows:
        by_method.setdefault(row.method, []).append(row)
    if len({file_name(name).lower() for name in by_method}) < len(by_method):
        raise UserError("the names of two methods differ only in upper and lower case; some file systems cannot store both files")
    files = Contents(
        (f"results/{file_name(method)}", b"".join(text.encode() for text in results_csv.text_parts(rows)))
        for method, rows in by_method.items()
    )
    marks = contributions.text(board.contributions) if board.contributions else ""
    records = {contributions.FILE: marks, verified.FILE: verified.text(board.verified) if board.verified else "", HISTORY: board.history}
    return files | {SUITE: suite_toml(board.suite).encode()} | {name: text.encode() for name, text in records.items() if text}


def read(folder: Path) -> Board:
    """Read the evidence of a leaderboard. Without a suite.toml, the package's suite with the name of the folder is used.

    Raises:
        UserError: it is not a leaderboard folder, or a file cannot be read.
    """
    if not (folder / "results").is_dir():
        raise UserError(f"'{folder}' is not a leaderboard folder: it contains no results/ directory")
    rows: list[Row] = []
    for path in sorted((folder / "results").glob("*.csv")):
        try:
            found = results_csv.read_rows(path)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from None
        wrong = next((row.method for row in found if path.name != file_name(row.method) and unquote(path.stem) != row.method), None)
        if wrong is not None:
            raise UserError(f"'{path}' contains a row of '{wrong}'; a file may only contain rows of the method in its name")
        rows += found
    own, log = folder / SUITE, folder / HISTORY
    suite = load_suite(str(own) if own.is_file() else folder.resolve().name)
    text = _text(log) if log.exists() else ""
    return Board(suite, tuple(rows), verified.read(folder / verified.FILE), text, contributions.read(folder))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"cannot read '{path}': it is not a text in UTF-8") from None


def files_of(board: Board) -> Contents:
    """All files of a leaderboard: path relative to the folder -> content."""
    own = evidence(board)
    return own | derived_files.files_of(board.suite, own, derived_files.tables(board))


def changes(folder: Path, files: Contents) -> Contents:
    """What must change in a folder so that it contains exactly these files.

    Args:
        folder: folder of a leaderboard.
        files: path relative to the folder -> content.

    Returns:
        Path -> new content, or None for a file of a leaderboard to remove. Other files in the folder are ignored.
    """
    ours = ("results/*.csv", contributions.FILE, verified.FILE, HISTORY, *DERIVED)
    there = {path.relative_to(folder).as_posix() for pattern in ours for path in folder.glob(pattern)}
    new = files.only(name for name, content in files.items() if _bytes(folder / name) != content)
    every = new | dict.fromkeys(there - files.keys())
    return every.only(sorted(every))


def write(folder: Path, changed: Contents, others: Mapping[Path, bytes]) -> None:
    """Write the changes of a folder, and other files that follow from them. If one cannot be written, none is changed.

    Args:
        folder: folder of a leaderboard.
        changed: what `changes` returns.
        others: path -> new content.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        with contextlib.ExitStack() as stack:
            for path, content in others.items():
                stack.enter_context(replacing(path)).write_bytes(content)
            write_files(folder, changed)
    except OSError as error:
        raise UserError(f"cannot write '{folder}': {error.strerror}") from None


def stale(folder: Path, board: Board) -> dict[str, str]:
    """The files of a folder that are not what `publish` writes for the evidence, and files that it does not write.

    Plots of another release of matplotlib place text differently. They are not compared; then they must contain nothing but a plot.

    Args:
        folder: folder of a leaderboard.
        board: its evidence.

    Returns:
        Path relative to the folder -> reason.
    """
    found: dict[str, str] = {}
    wanted = files_of(board)
    there = {path.relative_to(folder).as_posix(): path for path in _inside(folder)}
    for name in sorted(wanted.keys() | there.keys()):
        if name not in there:
            found[name] = "is missing"
        elif name not in wanted and name != README:
            found[name] = "does not belong here"
        elif there[name].is_symlink() or not there[name].is_file():
            found[name] = "is not a plain file"
        elif name in wanted and not _same(name, there[name], wanted[name]):
            derives = name not in (SUITE, HISTORY, contributions.FILE, verified.FILE) and not name.startswith("results/")
            found[name] = "does not follow from results/" if derives else "is not as `publish` writes it"
    return found


def uncompared(folder: Path) -> list[str]:
    """The releases of matplotlib, other than the installed one, that drew plots of a folder. `stale` does not compare these plots."""
    drawn = {curves.drawn_by(_start(path)) for path in (folder / "plots").glob("*.*g") if path.is_file()}
    return sorted(drawn - {"", curves.RELEASE})


def _inside(folder: Path) -> Iterator[Path]:
    """Everything in a folder except folders that contain something. Symbolic links are not followed."""
    for root, folders, names in os.walk(folder):
        linked = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from (Path(root) / name for name in [*names, *linked])
        if not folders and not names:
            yield Path(root)


def _same(name: str, path: Path, content: bytes) -> bool:
    """Whether a file has this content, except for plots of another release of matplotlib."""
    if path.stat().st_size > SPARE + 2 * len(content):
        return False
    there = path.read_bytes()
    if there == content:
        return True
    return name.startswith("plots/") and curves.drawn_by(there) not in ("", curves.RELEASE) and is_plain(there)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4000)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def suite_toml(suite: Suite) -> str:
    """The suite as a TOML file that `load_suite` reads back to an equal one. Left out are keys without a value, and a default `timeout`."""
    values = suite.model_dump(mode="json", exclude_none=True)
    if suite.timeout == Suite.model_fields["timeout"].default:  # it decides no row
        del values["timeout"]
    architectures = values.pop("architecture")
    return tomli_w.dumps(values | ({"architecture": dict(sorted(architectures.items()))} if architectures else {}))
