"""The commands for contributions: submit, review. Heavy packages are imported inside."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import shared
from bench.spec.choices import Resources

COMPUTED = ("workers", "device", "data_root")
SAMPLE = 3
Sample = Annotated[int, typer.Option(help="Number of new rows to compute again, drawn at random; 0: none.")]
Seed = Annotated[int, typer.Option(help="Seed of the draw.")]
Tolerance = Annotated[
    float | None, typer.Option(help="Allowed difference in accuracy, a fraction, instead of the tests.", show_default="as `verify`")
]


@shared(("resources", Resources, (*COMPUTED, "plugin")))
def submit(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A results.csv, or the --output folder of a run.")],
    resources: Resources,
    branch: Annotated[str | None, typer.Option(help="Name of the branch.", show_default="submit-SUITE-METHOD")] = None,
    sample: Sample = SAMPLE, seed: Seed = 0, tolerance: Tolerance = None,
    tox: Annotated[bool, typer.Option("--tox", help="Also run the tests of the project on the branch: many minutes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and make no branch.")] = False,
) -> None:  # fmt: skip
    """Make a git branch that adds your rows, and your method's file (--plugin), to a leaderboard, and check it. Exit code 1 if a check
    fails. Your files are not changed."""
    from bench.execution.resources import check
    from bench.publishing import submission
    from bench.spec.errors import UserError

    check(resources)
    _check(sample, tolerance)
    if tox and shutil.which("tox") is None:
        raise UserError("--tox: tox is not installed: pip install tox")
    asked = submission.asked(path, resources.plugin, branch, Path.cwd())

    from bench.cli import submit as submitting

    good = submitting.run(asked, resources, sample=sample, seed=seed, tolerance=tolerance, tox=tox, dry_run=dry_run)
    raise typer.Exit(0 if good else 1)


@shared(("resources", Resources, COMPUTED))
def review(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The commit or branch that the checked-out branch shall be merged into.")],
    resources: Resources, sample: Sample = SAMPLE, seed: Seed = 0, tolerance: Tolerance = None,
) -> None:  # fmt: skip
    """Check the methods and rows that the checked-out branch adds, as continuous integration does. Exit code 1 if anything is wrong."""
    from bench.execution.resources import check
    from bench.publishing import git

    check(resources)
    _check(sample, tolerance)
    git.commit_of(git.root(Path.cwd()), base)  # before what takes longer to import: a mistyped name is said sooner

    from bench.cli import review as reviewing

    good = reviewing.run(base, resources, sample=sample, seed=seed, tolerance=tolerance)
    raise typer.Exit(0 if good else 1)


def _check(sample: int, tolerance: float | None) -> None:
    """Raise UserError for a value out of range."""
    from bench.spec.errors import UserError

    for option, value in (("--sample", sample), ("--tolerance", tolerance)):
        if value is not None and not value >= 0:  # also not a number
            raise UserError(f"{option} must be at least 0, got {value}")
