"""`submit`: make the branch of a submission in a temporary clone, and take it over into the user's repository when it is checked.

Until then nothing is written into the repository. The working tree and the index of the user are never changed.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.planning import catalogue
from bench.publishing import git, publish, review
from bench.publishing.submission import BOARDS, Submission, check_name
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.storage import files

TO_DO = (
    "a docstring with the formula, its symbols, the paper and the equation",
    "a test in `tests/methods/` against an independent reference",
    "a line in CHANGELOG.md",
)


@dataclass(frozen=True)
class Draft:
    """A branch that is not committed yet.

    `name`: of the branch. `new`: the rows that it adds. `methods`: files of methods that it adds: path in the repository -> content.
    `note`: a message for the user.
    """

    name: str
    new: tuple[Row, ...]
    methods: dict[str, bytes]
    note: str


def draft(asked: Submission, clone: Path) -> Draft:
    """Check that the rows can be merged into the leaderboard of a clone. Nothing is written.

    Args:
        asked: the submission.
        clone: a clone of its repository, at its base.

    Raises:
        Refused: a row is invalid.
        UserError: no row is new, a file of a method cannot be added, or the branch exists.
    """
    added = dict(_method_files(asked, clone))
    before, after, note = publish.merged(asked.file, asked.suite, clone / BOARDS, asked.contributor, map(str, asked.plugins))
    published = {row.identity for row in before.rows}
    new = tuple(row for row in after.rows if row.identity not in published)
    if not new:
        raise UserError(f"'{asked.file}' has no new rows: all of them are published in {BOARDS}/{asked.suite}")
    name = asked.name or _name(asked.suite, new)
    check_name(asked.root, name)
    return Draft(name, new, added, note)


def _method_files(asked: Submission, clone: Path) -> Iterator[tuple[str, bytes]]:
    """(path in the repository, content) of each file of a method that the repository does not have."""
    home = (asked.root / "methods").resolve()
    foreign = [file for file in asked.plugins if not file.is_relative_to(home)]
    catalogue.load_plugins(map(str, foreign))
    for file in asked.plugins:
        path = f"{review.FOLDERS[review.kind_of(file)]}/{file.name}"
        if not (clone / path).parent.is_dir():
            raise UserError(f"the repository has no folder {Path(path).parent} for '{file.name}'")
        content = file.read_bytes()
        if not (clone / path).exists():
            yield path, content
        elif (clone / path).read_bytes() != content:
            raise UserError(f"{path} exists with other content; rename '{file.name}', or commit the change of this file yourself first")


def _name(suite: str, new: Iterable[Row]) -> str:
    """A name for the branch: `submit-digits-my_method`."""
    first, *others = dict.fromkeys(row.method for row in new if row.criterion) or dict.fromkeys(row.method for row in new)
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", first).strip("-")[:60]
    return f"submit-{suite}-{plain}" + f"-and-{len(others)}-more" * bool(others)


def commit(asked: Submission, clone: Path, made: Draft, message: str) -> int:
    """Write the files of a draft into the clone and commit them there.

    Returns:
        The number of files that are added or changed.
    """
    try:
        files.write_files(clone, made.methods)
    except OSError as error:
        raise UserError(f"cannot write into '{clone}': {error.strerror}") from None
    merge(asked, clone)
    git.git(clone, "checkout", "--quiet", "-b", made.name)
    git.git(clone, "add", "--all", "--force", "--", *made.methods, BOARDS)
    git.git(clone, "add", "--update")  # the README, which shows some leaderboards
    git.git(clone, "commit", "--quiet", "--no-verify", "--cleanup=whitespace", "-m", message, **asked.author)
    return len(git.git(clone, "diff", "--name-only", "-z", asked.base, "HEAD").split("\0")) - 1


def merge(asked: Submission, clone: Path) -> None:
    """Write the leaderboard with the rows into the clone, with the code of the clone: its page names the methods that the project has.

    Raises:
        UserError: it could not be written.
    """
    command = ["publish", "--suite", asked.suite, "--merge", str(asked.file), "--contributor", asked.contributor]
    with tempfile.TemporaryFile() as said:
        status = run(clone, [sys.executable, "-m", "bench", *command], said)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    if status:
        raise UserError(f"the leaderboard of the branch cannot be written: {_reason(lines)}{_left_out(asked)}")


def _reason(lines: list[str]) -> str:
    """The error among the lines that `publish` has printed, with the first row that it refused."""
    refused = next((f" ({line[:120]})" for line in lines if line.startswith("row ")), "")
    return (lines or ["no reason given"])[-1].removeprefix("error: ") + refused


def _left_out(asked: Submission) -> str:
    """A hint at code that runs in the user's working tree, and is not in the branch."""
    given = {str(path.relative_to(asked.root)) for path in asked.plugins if path.is_relative_to(asked.root)}
    left = [path for path in git.uncommitted(asked.root, "methods", "bench") if path not in given]
    return f"; not in the branch, because not committed: {', '.join(left[:3])} (the file of a method: --plugin FILE)" if left else ""


def message(asked: Submission, made: Draft, checks: str, unchecked: Sequence[str]) -> str:
    """The message of the commit, which is also the text of the pull request.

    Args:
        asked: the submission.
        made: its draft.
        checks: the command that has checked the branch.
        unchecked: what it has not checked.
    """
    counts = {name: sum(row.method == name for row in made.new) for name in dict.fromkeys(row.method for row in made.new)}
    names = [name for name in counts if any(row.method == name and row.criterion for row in made.new)] or list(counts)
    subject = f"Add {names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1) + f" to the leaderboard {asked.suite}"
    seconds = sum((row.train_seconds or 0) + (row.score_seconds or 0) for row in made.new)
    took = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.1f} seconds"
    where = "; ".join(dict.fromkeys(f"razorbench {r.version}, torch {r.torch}, {r.device}" for r in made.new))
    lines = [subject, "", f"New rows in `{BOARDS}/{asked.suite}`, contributed by {asked.contributor}:", ""]
    lines += [f"- `{name}`: {number} rows" for name, number in counts.items()]
    lines += ["", f"Computed with {where}. Training and scoring took {took}.", "", f"Checked with `{checks}`."]
    lines += [f"Not checked: {what}." for what in unchecked]
    if made.methods:
        lines += [
            "",
            f"New: {', '.join(f'`{path}`' for path in made.methods)}. A review asks for:",
            "",
            *(f"- [ ] {what}" for what in TO_DO),
        ]
    return "\n".join(lines) + "\n"


def run(clone: Path, command: Sequence[str], output: IO[bytes] | None = None) -> int:
    """Run a program in the clone, with the code of the clone; it ends with this process.

    Args:
        clone: the clone.
        command: the program and its arguments.
        output: receives what it prints; None: standard output and standard error.

    Returns:
        Its exit status.
    """
    paths = [str(clone), str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    here = {name: value for name, value in os.environ.items() if name not in (*git.ELSEWHERE, "PYTHONSAFEPATH")}
    sys.stdout.flush()
    here["PYTHONPATH"] = os.pathsep.join(paths)
    with subprocess.Popen(command, cwd=clone, env=here, stdout=output, stderr=output) as process:
        try:
            return process.wait()
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program within seconds: a temporary folder of its is removed next."""
    if process.poll() is not None:
        return
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    process.kill()


def take_over(asked: Submission, clone: Path, name: str) -> None:
    """Make the branch of the clone a branch of the user's repository."""
    git.git(asked.root, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(clone), f"refs/heads/{name}")
    git.git(asked.root, "branch", "--no-track", name, git.commit_of(clone, "HEAD"))


def remote(asked: Submission) -> str:
    """The remote to push to, for the instructions: origin, or the first one."""
    names = git.git(asked.root, "remote").split()
    return "origin" if "origin" in names or not names else names[0]
