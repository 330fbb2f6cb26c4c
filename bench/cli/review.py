"""`review`: what it prints. The comparison itself is `bench.publishing.review`."""

import os
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from bench.cli import verify as verification
from bench.cli.tables import make_console, say
from bench.publishing import contributions, review
from bench.publishing.review import Addition, Branch
from bench.spec.choices import Resources
from bench.spec.row import Row


def run(base: str, resources: Resources, *, sample: int, seed: int, tolerance: float | None) -> bool:
    """Check what the checked-out branch adds and print it; whether nothing is wrong."""
    console = make_console()
    found = review.branch(Path.cwd(), base)
    good = True
    for file in found.methods:
        good &= _contract(console, found, file)
    for name in found.boards:
        good &= _addition(console, review.addition(found, name), resources, sample=sample, seed=seed, tolerance=tolerance)
    if found.others:
        some = ", ".join(found.others[:5]) + f" and {len(found.others) - 5} more" * (len(found.others) > 5)
        say(console, f"note: the branch also changes {some}; read these changes, nothing here checks them")
    if not (found.methods or found.boards):
        say(console, f"the branch adds no method and no rows since {found.base[:10]}")
    else:
        say(console, "nothing is wrong with what the branch adds" if good else "the branch cannot be merged as it is")
    return good


def _contract(console: Console, found: Branch, file: str) -> bool:
    """The contract of a file's methods, a line for each check that fails."""
    findings = review.contract(found, file)
    failed = [finding for finding in findings if finding.error]
    for finding in failed:
        say(console, f"FAULT    {file}: {finding.entry}: {finding.clause}: {finding.error}")
    say(console, f"{file}: {len(failed)} of {len(findings)} checks failed" if failed else f"{file}: the contract holds")
    return not failed


def _addition(
    console: Console, added: Addition, resources: Resources, *, sample: int, seed: int, tolerance: float | None
) -> bool:  # fmt: skip
    """What a leaderboard gains, what is wrong with it, and a sample of it computed again."""
    names = ", ".join(dict.fromkeys(row.method for row in added.new)) or "none"
    what = "a new leaderboard, " if added.methods is None else ""
    folder = Path(os.path.relpath(added.folder))
    say(console, f"{folder}: {what}{len(added.new)} new rows ({names})")
    if added.by:
        say(console, f"contributed: {contributions.in_words(added.by)}")
    if added.records:
        say(console, f"note: {added.records} of its records of verified rows are not those of before; only maintainers write them")
    for fault in added.faults[: verification.MOST]:
        say(console, f"FAULT    {fault}")
    if len(added.faults) > verification.MOST:
        say(console, f"FAULT    and {len(added.faults) - verification.MOST} more")
    if added.faults:
        return False
    rows = [row for row in added.new if review.at_hand(row.dataset, resources.data_root)] if sample else []
    for line in skipped(added.new, resources.data_root, sample):
        say(console, f"note: not checked: {line}")
    methods = None if added.methods is None else ",".join(added.methods)
    return verification.run(folder, resources, sample=sample, methods=methods, seed=seed, tolerance=tolerance, among=rows)


def skipped(new: Iterable[Row], data_root: Path | None, sample: int) -> list[str]:
    """What a review of new rows does not check, in words."""
    if not sample:
        return ["rows are not computed again (--sample 0)"]
    lacking = [name for name in dict.fromkeys(row.dataset for row in new) if not review.at_hand(name, data_root)]
    return [f"rows of {', '.join(lacking)}, whose data are not here (--data-root), are not computed again"] if lacking else []
