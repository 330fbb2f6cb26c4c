"""`verify`: what it prints. The comparison itself is `bench.publishing.verify`."""

from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from bench.cli.tables import make_console, say
from bench.execution import environment
from bench.execution.display import Display
from bench.publishing import recording, row_comparison, verified, verify
from bench.publishing.row_comparison import Shift, Verdict
from bench.publishing.verify import SAMPLE, Verification
from bench.spec.choices import Resources
from bench.spec.row import Row

MOST = 40  # lines of faults


def run(
    folder: Path, resources: Resources, *, sample: int | None, methods: str | None, seed: int, tolerance: float | None,
    among: Collection[Row] | None = None, record: bool = False,
) -> bool:  # fmt: skip
    """Compute a sample of rows again and print the verdict; whether all is as published.

    `among`: see `verify.draw`. `record`: then also write it in verified.csv.
    """
    console = make_console()
    drawn = verify.draw(folder, resources, methods=methods, size=SAMPLE if sample is None else sample, seed=seed, among=among)
    if among is None or among:
        how = f"{len(drawn.rows)} of {len(drawn.board.rows if among is None else among)} rows, drawn with seed {seed}"
        say(console, f"{folder}: computing {how}" + (f" (--sample {SAMPLE} by default)" if sample is None else ""))
    for fault in drawn.faults[:MOST]:
        say(console, f"FAULT    {fault}")
    if len(drawn.faults) > MOST:
        say(console, f"FAULT    and {len(drawn.faults) - MOST} more of this kind")
    for note in drawn.notes:
        say(console, f"note: {note}")
    pool = environment.open_executor(resources, drawn.environment)
    try:
        with Display() as display:
            found = verify.recompute(drawn, pool, display, tolerance)
    finally:
        pool.close()
    _print(console, folder, found)
    if record and found.agrees:
        say(console, f"{recording.record(drawn, found)} rows recorded in '{folder / verified.FILE}'")
    elif record:
        say(console, "nothing is recorded, because not everything is as published")
    return found.agrees


def _print(console: Console, folder: Path, found: Verification) -> None:
    """A line for each row, for what differs in it, for the sample as a whole, for each broken rule, and for each stale file."""
    for (row, got), verdict in zip(found.pairs, found.verdicts, strict=True):
        _print_verdict(console, row, got, verdict)
    for shift in found.shifts:
        _print_shift(console, shift)
    if found.near:
        hint = "differ no more than another seed of the same cell does: perhaps the processor is another one of the same name"
        say(console, f"{found.near} of them {hint}")
    rows = len(found.pairs)
    same = f"all {rows} rows are as published" if rows > 1 else "the row is as published"
    end = f"{found.differing} of {rows} rows differ" if found.differing else same
    if rows:
        say(console, end + ("; all rows together are shifted" if any(shift.significant for shift in found.shifts) else ""))
    for name, reason in found.stale.items():
        say(console, f"STALE    {folder / (name if name.isprintable() else ascii(name))} {reason}")
    files = len(found.stale)
    say(
        console,
        f"{files} file{'s differ' if files > 1 else ' differs'} from what `publish` writes"
        if files
        else "the derived files follow from the rows",
    )


def _print_verdict(console: Console, row: Row, got: Row, verdict: Verdict) -> None:
    """A line for the row, and one for each difference."""
    equal = not row_comparison.unequal(row, got)
    word = "DIFFERS" if verdict.differences else "equal" if equal else "agrees"
    reasons = [*verdict.differences, *([got.error] if got.error and got.error != row.error else [])]
    allowed = "" if equal or verdict.differences else f"; {verdict.allowed}"
    say(console, f"{word:<8} {verify.label(row)}: accuracy {_percent(row)} published, {_percent(got)} computed{allowed}")
    for reason in reasons:
        say(console, f"{'':9}{reason}")


def _print_shift(console: Console, shift: Shift) -> None:
    """A line for a test of the whole sample."""
    word = "DIFFERS" if shift.significant else "agrees"
    size = f"{abs(shift.mean):.2f} deviations {'above' if shift.mean > 0 else 'below'} the published"
    said = f"on average computed {shift.column} lies {size}" if shift.mean else f"on average computed {shift.column} is as published"
    networks = f"{shift.networks} independent network{'s' * (shift.networks != 1)}"
    say(console, f"{word:<8} all rows together: {said} ({networks}, p = {shift.p:.2g})")


def _percent(row: Row) -> str:
    return row.status if row.accuracy is None else f"{row.accuracy:.2%}"
