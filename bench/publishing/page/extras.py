"""Tables of the page about more than the results: rows that were computed again, and numbers that papers report."""

from collections.abc import Collection

from bench.publishing import history
from bench.publishing.page.cells import MISSING, Cell, Column, Line, Table, number, percent, text
from bench.publishing.page.tables import cut, key_column
from bench.publishing.reported import Comparison
from bench.publishing.verified import VERDICTS, Verified
from bench.spec.row import KEY

SHOWN_KEY = ("method", "dataset", "architecture", "tuning", "sparsity", "seed", "finetune_epochs")


def verified_table(records: Collection[Verified]) -> Table | None:
    """Rows that a maintainer has computed again, the latest first; None if there are none."""
    if not records:
        return None
    columns = [*map(key_column, SHOWN_KEY), Column("Published"), Column("Computed"), Column("Verdict", first="ascending", kind="text")]
    columns += [Column(title, first="ascending", kind="text") for title in ("Date", "Machine", "torch", "Commit")]
    lines = []
    for one in sorted(records, key=lambda one: (one.date, one.key), reverse=True):
        of = dict(zip(KEY, one.key, strict=True))
        shown = [text(of[name], "method" if name == "method" else "text") for name in SHOWN_KEY]
        shown += [percent(float(value)) if value else Cell(MISSING) for value in (one.published, one.computed)]
        shown += [Cell(one.verdict, one.verdict, hint=VERDICTS[one.verdict], kind="text"), text(one.date), text(one.device, "prose")]
        shown += [text(one.torch), text(history.short(one.commit))]
        lines.append(Line(of["method"], shown, of["dataset"], of["architecture"]))
    return cut(Table(columns, lines))


def reported_table(comparisons: Collection[Comparison]) -> Table | None:
    """Numbers of papers next to the measured ones; None if there are none."""
    if not comparisons:
        return None
    columns = [*map(key_column, ("method", "dataset", "architecture")), Column("Sparsity, %"), Column("Metric", kind="text")]
    columns += [Column("Reported"), Column("Measured", hint="mean over seeds"), Column("Difference", hint="measured - reported")]
    columns += [Column("Seeds"), Column("Source", first="ascending", kind="text")]
    lines = []
    for one in comparisons:
        form = percent if one.fraction else number
        said = [
            text(one.method, "method"),
            text(one.dataset),
            text(one.architecture),
            number(100 * one.sparsity, "{:.4g}"),
            text(one.metric),
        ]
        said += [form(one.value), form(one.measured), form(one.measured - one.value), number(one.seeds, "{:.0f}")]
        said.append(Cell(f"{one.paper}, {one.place}", f"{one.paper}, {one.place}", kind="link", hint=one.url))
        lines.append(Line(one.method, said, one.dataset, one.architecture))
    return Table(columns, lines)
