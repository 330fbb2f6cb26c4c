"""`publish`: what it prints. What is written, and whether it may be, is decided by `bench.publishing.publish`."""

from pathlib import Path

from rich.console import Console

from bench.cli.tables import make_console, say
from bench.publishing import publish as publishing
from bench.publishing.contributions import UNNAMED
from bench.publishing.publish import Publication, Refused
from bench.spec.choices import Narrowing, Resources
from bench.spec.suite import load_suite


def publish(suite: str, narrowing: Narrowing, resources: Resources, to: Path, dry_run: bool, options: list[str]) -> None:
    """Publish the store's rows of a suite."""
    _finish(make_console(), publishing.publish(suite, narrowing, resources, to, options), dry_run)


def merge_file(file: Path, suite: str, to: Path, contributor: str | None, dry_run: bool, plugins: tuple[str, ...] = ()) -> None:
    """Merge somebody else's rows, or print each refusal."""
    console = make_console()
    name = load_suite(suite).name if suite.endswith(".toml") else suite
    if contributor is None:
        say(console, f"note: the rows are marked as contributed by '{UNNAMED}'; --contributor NAME says who has computed them")
    try:
        found = publishing.merge_file(file, name, to, contributor or UNNAMED, plugins)
    except Refused as refused:
        say_refusals(console, refused)
        raise
    _finish(console, found, dry_run)


def say_refusals(console: Console, refused: Refused) -> None:
    """A line for each reason why a row was refused."""
    for number, reason in refused.reasons:
        say(console, f"row {number}: {reason}")


def _finish(console: Console, found: Publication, dry_run: bool) -> None:
    """Say what changes, and write it."""
    for note in found.notes:
        say(console, note)
    for name in found.changes:
        what = "removed" if found.changes.removes(name) else "changed" if (found.folder / name).exists() else "new"
        say(console, f"{what:<8} {found.folder / name}")
    if found.index is not None:
        say(console, f"changed  {found.folder.parent / 'index.html'}: the list of all leaderboards")
    if found.readme is not None:
        say(console, f"changed  {found.readme_file.name} above '{found.folder.parent}': the leaderboard's tables")
    said = f"{found.folder}: {found.rows} rows of {found.methods} methods, {len(found.changes)} files"
    if dry_run:
        say(console, f"{said} would change; nothing was written")
    else:
        found.write()
        say(console, f"{said} written")
