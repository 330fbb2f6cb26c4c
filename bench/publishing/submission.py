"""What a user submits, checked without importing anything heavy: a mistake is said at once."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.publishing import contributions, git
from bench.spec.errors import UserError, unknown
from bench.storage import csv_file

BOARDS = "leaderboards"


@dataclass(frozen=True)
class Submission:
    """Rows, and files of methods, that shall become a branch.

    `root`: top folder of the user's repository. `base`: the commit that is checked out there; the branch starts from it. `file`: a
    results.csv. `suite`: name of its suite, and of the leaderboard. `plugins`: files of methods. `name`: of the branch; None: made from
    the methods. `contributor`: the user's name in git. `author`: environment variables that give the commit the user's name.
    """

    root: Path
    base: str
    file: Path
    suite: str
    plugins: tuple[Path, ...]
    name: str | None
    contributor: str
    author: dict[str, str]


def asked(path: Path, plugins: Iterable[str], name: str | None, folder: Path) -> Submission:
    """Check what a user has given.

    Args:
        path: a results.csv, or a folder with one.
        plugins: files of methods.
        name: of the branch, or None.
        folder: where the command runs.

    Raises:
        UserError: a file is missing, there is no repository or no such leaderboard, the leaderboard has changes that are not committed,
            the branch exists, or git does not know the user's name.
    """
    file = path / "results.csv" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"'{path}' is neither a results.csv nor a folder with one; `run --output FOLDER` writes it")
    files = tuple(Path(plugin).expanduser().resolve() for plugin in plugins)
    for plugin in files:
        _check_plugin(plugin)
    suite = _suite_of(file)
    root = git.root(folder)
    base = git.commit_of(root, "HEAD")
    _check_board(root, base, suite)
    if name is not None:
        check_name(root, name)
    author = _author(root)
    contributor = author["GIT_AUTHOR_NAME"]
    contributions.of_rows((), contributor)  # raises if the leaderboard cannot show it
    return Submission(root, base, file.resolve(), suite, files, name, contributor, author)


def check_name(root: Path, name: str) -> None:
    """Raise UserError unless a branch of this name can be made."""
    if name.startswith("-") or not git.succeeds(root, "check-ref-format", "--branch", name):
        raise UserError(f"--branch '{name}' is not a valid name of a branch")
    if git.succeeds(root, "show-ref", "--verify", "--quiet", f"refs/heads/{name}"):
        raise UserError(f"the branch '{name}' exists; choose another name by --branch, or delete it: git branch -D {name}")


def _check_plugin(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"no plug-in file {file}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*\.py", file.name):
        raise UserError(f"'{file.name}' cannot be a module of the project: rename it, with lower-case letters, digits and underscores")


def _suite_of(file: Path) -> str:
    """The name of the suite in the first row of a results.csv. Whether all rows are of this suite is checked when they are merged."""
    try:
        found = csv_file.lines(file)
        _, header = next(found, (1, []))
        _, cells = next(found, (2, []))
    except ValueError as error:
        raise UserError(str(error)) from None
    suite = dict(zip(header, cells, strict=False)).get("suite", "")
    if not suite:
        raise UserError(f"'{file}' has no rows" if "suite" in header else f"'{file}' is not a results.csv: it has no column suite")
    return suite


def _check_board(root: Path, base: str, suite: str) -> None:
    """Raise UserError unless the leaderboard of the suite is in the commit, and unchanged since."""
    said = git.git(root, "ls-tree", "-d", "-z", "--name-only", base, f"{BOARDS}/")
    boards = [path.removeprefix(f"{BOARDS}/") for path in said.split("\0") if path]
    if not boards:
        raise UserError(f"'{root}' has no committed leaderboards; run this command in a clone of the project")
    if suite not in boards:
        raise unknown("leaderboard (the suite of the rows)", suite, boards)
    dirty = git.uncommitted(root, f"{BOARDS}/{suite}")
    if dirty:
        raise UserError(
            f"{len(dirty)} files of {BOARDS}/{suite} are changed and not committed, e.g. '{dirty[0]}': `submit` adds rows to the committed"
            " leaderboard; put the changes aside first (git stash -u)"
        )


def _author(root: Path) -> dict[str, str]:
    """The environment variables that give a commit the user's name, also in a clone without the user's settings."""
    found: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        try:
            said = git.git(root, "var", f"GIT_{role}_IDENT")
        except UserError:
            raise UserError("git does not know who you are: git config user.name 'YOUR NAME' && git config user.email ADDRESS") from None
        parts = re.fullmatch(r"(.*) <([^<>]*)> \d+ [+-]\d+\n?", said)
        if parts is None:
            raise UserError(f"git's name of you cannot be read: {said}")
        found |= {f"GIT_{role}_NAME": parts[1], f"GIT_{role}_EMAIL": parts[2]}
    return found
