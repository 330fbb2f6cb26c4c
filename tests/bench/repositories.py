"""Git repositories for tests, with a small leaderboard whose numbers are made up."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bench.publishing import board_folder
from bench.publishing.board_folder import Board
from bench.spec.suite import load_suite
from bench.storage import files
from tests.bench.publishing.test_merge import cells

T = TypeVar("T")
CONTROLS = ("dense", "dense@spam", "random", "magnitude", "magnitude_layer")


class Once:
    """What takes seconds to make in a folder is made by the first test of a file, and copied for the others.

    Args:
        kept: an empty folder for the copy.
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._made: list[Any] = []

    def into(self, folder: Path, make: Callable[[], T]) -> T:
        """What `make` returns, with the files that it makes in an otherwise empty folder."""
        if self._made:
            shutil.copytree(self._kept, folder, dirs_exist_ok=True)
        else:
            self._made.append(make())
            shutil.copytree(folder, self._kept, dirs_exist_ok=True)
        found: T = self._made[0]
        return found


def git(folder: Path, *arguments: str) -> str:
    """The output of git, with a name for commits that is not that of a contributor."""
    names = ("-c", "user.name=Maintainer", "-c", "user.email=m@example.org")
    return subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path) -> str:
    """Commit everything in a folder; the new commit."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")
    return git(folder, "rev-parse", "HEAD").strip()


def make(folder: Path, identity: str = "Ada Stranger") -> Board:
    """Make a folder with tiny.toml a repository with `leaderboards/tiny`, committed, and the user's name."""
    suite = load_suite(str(folder / "tiny.toml")).model_copy(update={"seeds": (0, 1, 2), "finetune_epochs": (0,)})
    board = Board(suite, tuple(row for method in CONTROLS for row in cells(method)))
    files.write_files(folder / "leaderboards" / "tiny", board_folder.files_of(board))
    (folder / "methods" / "criteria").mkdir(parents=True)
    (folder / "methods" / "criteria" / "there.py").write_text("# a method\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "user.name", identity)
    git(folder, "config", "user.email", "ada@example.org")
    commit(folder)
    return board


def state(folder: Path) -> tuple[str, ...]:
    """Refs, objects, index and working tree of a repository."""
    commands = (["for-each-ref"], ["count-objects", "-v"], ["worktree", "list"], ["ls-files", "--stage"], ["diff"], ["diff", "--cached"],
                ["status", "--porcelain", "--untracked-files=all"], ["symbolic-ref", "HEAD"])  # fmt: skip
    return tuple(git(folder, *command) for command in commands)
