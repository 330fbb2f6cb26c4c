"""git, run as a program. Nothing here uses the network."""

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.spec.errors import UserError

# Set where git runs a hook; they would lead to another repository than that of the folder.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR")
PLAIN = ("-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false", "-c", "commit.gpgSign=false")  # files are written byte by byte


def git(folder: Path, *arguments: str, **variables: str) -> str:
    """The standard output of a git command.

    Args:
        folder: where it runs.
        arguments: its arguments.
        variables: environment variables.

    Raises:
        UserError: git is not installed, or fails; with its last line.
    """
    done = _run(folder, arguments, variables)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"git {next(a for a in arguments if not a.startswith('-'))}: {said[-1]}")
    return done.stdout.decode(errors="surrogateescape")


def succeeds(folder: Path, *arguments: str) -> bool:
    """Whether a git command has exit status 0."""
    return _run(folder, arguments, {}).returncode == 0


def _run(folder: Path, arguments: tuple[str, ...], variables: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    here = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        command = ["git", *PLAIN, *arguments]
        return subprocess.run(command, cwd=folder, env=here | {"LC_ALL": "C"} | variables, capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed, or the working folder does not exist") from None


def root(folder: Path) -> Path:
    """The top folder of the repository that contains a folder.

    Raises:
        UserError: there is none, or it has no commit yet.
    """
    if not succeeds(folder, "rev-parse", "--show-toplevel"):
        raise UserError(f"'{folder.resolve()}' is not in a git repository; run this command in a clone of the project")
    top = Path(git(folder, "rev-parse", "--show-toplevel").removesuffix("\n"))
    if not succeeds(top, "rev-parse", "--verify", "--quiet", "HEAD^{commit}"):
        raise UserError(f"the repository '{top}' has no commit yet")
    return top


def commit_of(repository: Path, name: str) -> str:
    """The commit that a name stands for.

    Raises:
        UserError: it stands for none.
    """
    if name.startswith("-") or not succeeds(repository, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"):
        raise UserError(f"'{name}' is not a commit or branch of this repository")
    return git(repository, "rev-parse", "--verify", f"{name}^{{commit}}").strip()


def uncommitted(repository: Path, *paths: str) -> list[str]:
    """The changed and the new files below some paths."""
    said = git(repository, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *paths)
    return [entry[3:] for entry in said.split("\0") if entry]


@contextmanager
def exported(repository: Path, commit: str, path: str) -> Iterator[Path]:
    """A temporary folder with the files of a commit below a path; empty if the commit has none."""
    with tempfile.TemporaryDirectory(prefix="razorbench-") as scratch:
        if succeeds(repository, "cat-file", "-e", f"{commit}:{path}"):
            archive = Path(scratch) / "files.tar"
            git(repository, "archive", "--format=tar", f"--output={archive}", commit, "--", path)
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            archive.unlink()
        yield Path(scratch)


@contextmanager
def cloned(repository: Path, commit: str) -> Iterator[Path]:
    """A temporary clone with the files of a commit. It borrows the objects of the repository, and writes nothing into it."""
    with tempfile.TemporaryDirectory(prefix="razorbench-") as scratch:
        clone = Path(scratch) / "clone"
        git(repository, "clone", "--quiet", "--shared", "--no-checkout", "--template=", str(repository), str(clone))
        git(clone, "checkout", "--quiet", "--detach", commit)
        yield clone
