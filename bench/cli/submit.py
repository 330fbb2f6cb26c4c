"""`submit`: what it prints, in the order in which it works: merge, commit in a temporary clone, check there, take the branch over."""

import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from bench.cli import review
from bench.cli.publishing import say_refusals
from bench.cli.tables import make_console, say
from bench.publishing import branch, git
from bench.publishing.branch import Draft
from bench.publishing.publish import Refused
from bench.publishing.submission import BOARDS, Submission
from bench.spec.choices import Resources
from bench.spec.errors import UserError

TOX = "the tests of the project; run `tox` on the branch, or wait for continuous integration"


def run(asked: Submission, resources: Resources, *, sample: int, seed: int, tolerance: float | None, tox: bool, dry_run: bool) -> bool:
    """Make the branch; whether its checks passed. Without, nothing is written."""
    console = make_console()
    options = ["--sample", str(sample), "--seed", str(seed)] + (["--tolerance", str(tolerance)] if tolerance is not None else [])
    with git.cloned(asked.root, asked.base) as clone:
        made = _draft(console, asked, clone)
        unchecked = [*review.skipped(made.new, resources.data_root, sample), *([] if tox else [TOX])]
        shown = shlex.join(["python", "-m", "bench", "review", asked.base[:10], *options])
        message = branch.message(asked, made, shown, unchecked)
        changed = branch.commit(asked, clone, made, message)
        say(console, f"checking the branch as continuous integration does: {shown}")
        if not _checked(clone, ["-m", "bench", "review", asked.base, *options, *_where(resources)], tox):
            say(console, "the checks failed; nothing was written")
            return False
        if not tox:
            say(console, f"note: not checked: {TOX}")
        say(console, f"{changed} files: {BOARDS}/{asked.suite}" + "".join(f", {path}" for path in made.methods))
        if dry_run:
            say(console, f"the branch '{made.name}' would be made; nothing was written")
            return True
        branch.take_over(asked, clone, made.name)
    say(console, f"made the branch '{made.name}': one commit on {asked.base[:10]}, which is checked out; your files are as they were")
    say(console, f"next: git push -u {branch.remote(asked)} {shlex.quote(made.name)}    (to your fork of the project)")
    say(console, "then open a pull request for this branch. Its text is the message of the commit:\n")
    print(message, end="")
    return True


def _draft(console: Console, asked: Submission, clone: Path) -> Draft:
    """Check the rows, and print what is merged or each refusal."""
    try:
        made = branch.draft(asked, clone)
    except Refused as refused:
        say_refusals(console, refused)
        raise
    say(console, made.note)
    return made


def _where(resources: Resources) -> list[str]:
    """The options of `review` that say where to compute."""
    given = {"--workers": resources.workers, "--data-root": resources.data_root and resources.data_root.resolve()}
    return ["--device", resources.device, *(part for name, value in given.items() if value is not None for part in (name, str(value)))]


def _checked(clone: Path, arguments: list[str], tox: bool) -> bool:
    """Whether the checks of the clone passed. UserError if they could not be carried out."""
    status = branch.run(clone, [sys.executable, *arguments])
    if status not in (0, 1):
        raise UserError("the branch could not be checked, for the reason above; nothing was written")
    if status == 0 and tox:
        status = branch.run(clone, [shutil.which("tox") or "tox"])
    return status == 0
