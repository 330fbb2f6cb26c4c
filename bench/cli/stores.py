"""`store list`, `store add` and `store clean`: what is kept in the store, how published rows get into it, and how to get rid of rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import shared
from bench.spec.choices import Resources

if TYPE_CHECKING:
    from bench.spec.row import Row

app = typer.Typer(no_args_is_help=True, help="Show, add or remove what the store keeps.")
KINDS = ("failed", "stale", "unreadable", "networks", "all")


@app.command("list")
@shared(("resources", Resources, ("store",)))
def list_(resources: Resources) -> None:
    """Show what the store keeps: rows by suite, method and status, and the trained networks."""
    from bench.cli.tables import Shown, make_console, print_table
    from bench.execution.environment import CACHE, open_store
    from bench.storage.checkpoints import Networks
    from bench.tuning import trials

    store = open_store(resources)
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    unreadable = 0
    for _, row in store.every():
        if row is None:
            unreadable += 1
            continue
        kinds = counts.setdefault((row.suite, row.method, row.protocol), {})
        kinds[row.status] = kinds.get(row.status, 0) + 1
    console, lines = make_console(), sorted(counts.items())
    named = [Shown(h, [key[k] for key, _ in lines], name=k < 2) for k, h in enumerate(("suite", "method", "protocol"))]
    print_table(
        console, "", [*named, *(Shown(s, [str(c.get(s, 0)) for _, c in lines]) for s in ("ok", "collapsed", "failed", "unsupported"))]
    )
    if unreadable:
        print(f"{unreadable} rows are of a later release or damaged, and cannot be read")
    networks, size = Networks(CACHE / "networks").size()
    print(f"{networks} trained networks, {size / 1e6:.1f} MB in {CACHE / 'networks'}")
    print(f"{len(trials.studies(store.url))} searches")


@app.command()
@shared(("resources", Resources, ("device", "store", "data_root")))
def add(
    leaderboard: Annotated[Path, typer.Argument(help="Folder of a leaderboard.")],
    resources: Resources,
) -> None:
    """Add the rows of a leaderboard to the store, so that `run` continues it; only rows that this code and machine would compute."""
    from bench.cli.tables import make_console, say
    from bench.publishing import reuse

    found = reuse.add(leaderboard, resources)
    console = make_console()
    say(console, f"{len(found.rows)} rows added; {found.there} were in the store; {found.left_out.total()} left out")
    for reason, count in found.left_out.most_common():
        say(console, f"left out: {count} row{'s' * (count != 1)}: {reason}")


@app.command()
@shared(("resources", Resources, ("store",)))
def clean(
    what: Annotated[
        str,
        typer.Argument(help="failed rows; stale rows (another protocol or torch); unreadable rows; networks; all, with searches."),
    ],
    resources: Resources,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove rows or trained networks. Published leaderboards are not touched."""
    from bench.execution.environment import CACHE, open_store
    from bench.spec.errors import unknown
    from bench.storage.checkpoints import Networks
    from bench.tuning import trials

    if what not in KINDS:
        raise unknown("kind", what, KINDS)

    import importlib.metadata

    store, networks = open_store(resources), Networks(CACHE / "networks")
    here = importlib.metadata.version("torch")
    keys = [key for key, row in store.every() if what == "all" or (what == "unreadable" if row is None else _is_of(what, row, here))]
    files = networks.size()[0] if what in ("networks", "all") else 0
    searches = trials.studies(store.url) if what == "all" else []
    if not dry_run:
        store.remove(keys)
        trials.remove(store.url, searches)
        if what in ("networks", "all"):
            networks.clear()
    print(f"{len(keys)} rows, {files} networks and {len(searches)} searches {'would be ' * dry_run}removed")


def _is_of(what: str, row: "Row", torch: str) -> bool:
    """Whether a row is failed or stale, as `what` says. `torch`: the version that is installed."""
    from bench.spec.row import PROTOCOL_VERSION

    if what == "failed":
        return row.status == "failed"
    return what == "stale" and (row.protocol != PROTOCOL_VERSION or row.torch.partition("+")[0] != torch.partition("+")[0])
