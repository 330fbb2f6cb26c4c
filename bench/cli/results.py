"""The commands for results: compare, table, publish, verify, export, store. Heavy packages are imported inside."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import Suite, command_line, shared
from bench.spec.choices import Narrowing, Resources

GIVEN = ("weights", "pretrained", "calibration", "mean", "std", "recalibrate_batchnorm")
NARROWED = (
    "datasets", "architectures", "sparsities", "seeds", "granularity", "match", "trials", "epochs", "finetune_epochs", *GIVEN,
)  # fmt: skip
STORED = ("device", "store", "data_root", "plugin")
Style = Annotated[str, typer.Option("--format", help="Tables as text, markdown or latex.")]


def check_style(style: str) -> None:
    """Raise UserError for an unknown format of tables."""
    from bench.spec.errors import unknown

    if style not in ("text", "markdown", "latex"):
        raise unknown("format", style, ("text", "markdown", "latex"))


@shared(("narrowing", Narrowing, NARROWED), ("resources", Resources, STORED))
def compare(
    first: Annotated[str, typer.Argument(metavar="METHOD", help="A method by name.")],
    second: Annotated[str, typer.Argument(metavar="METHOD", help="The method to compare it with.")],
    narrowing: Narrowing, resources: Resources, suite: Suite = "digits",
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="A leaderboard's or output folder, or a results.csv, instead of the store.")
    ] = None,
) -> None:  # fmt: skip
    """Paired difference of two methods with interval and p-value, per data set and architecture; from the store, or from a folder."""
    if path is None:
        _compare_stored(first, second, narrowing, resources, suite)
        return
    if (narrowing, resources, suite) != (Narrowing(), Resources(), "digits"):
        from bench.spec.errors import UserError

        raise UserError(f"the rows of '{path}' are compared as they are: give either a path or options")
    from bench.cli import differences

    differences.compare_folder(path, (first, second))


def _compare_stored(first: str, second: str, narrowing: Narrowing, resources: Resources, suite: str) -> None:
    import dataclasses

    from bench.execution.resources import check

    check(resources)

    from bench.planning import catalogue  # before what takes longer to import: a mistyped name is said sooner

    catalogue.load_plugins(resources.plugin)
    pair = catalogue.get_method(first).name, catalogue.get_method(second).name

    from bench.cli import compare as comparison

    command = ["python", "-m", "bench", "run", *command_line(suite, dataclasses.replace(narrowing, methods=pair), resources)]
    comparison.compare(suite, pair, narrowing, resources, command)


def table(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A leaderboard's or output folder, or a results.csv.")],
    style: Style = "text",
) -> None:
    """Print the leaderboard of results that are already there, e.g. of leaderboards/digits."""
    check_style(style)

    from bench import api
    from bench.cli.board import ranked, show
    from bench.cli.tables import make_console, say
    from bench.publishing import contributions
    from bench.spec.errors import UserError

    rows = api.read_rows(path)
    if not rows:
        raise UserError(f"'{path}' has no rows")
    show(make_console(), ranked(rows), style)
    contributed = contributions.in_words(contributions.read(path)) if path.is_dir() and style == "text" else ""
    if contributed:
        say(make_console(), f"contributed rows: {contributed}")


def choose(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An output or leaderboard's folder, or a results.csv.")],
    at_most: Annotated[
        str, typer.Option(metavar="NAME=FRACTION,...", help="Budget: parameters, flops, latency relative to dense; drop: lost accuracy.")
    ] = "",
    smallest: Annotated[str, typer.Option(metavar="NAME", help="Minimise parameters, flops or latency instead of the loss.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Show all networks, not only the Pareto front.")] = False,
) -> None:
    """Show accuracy against size, FLOPs and latency, the best method under a budget, and the command that exports it."""
    from bench.cli import choose as choosing

    budget = choosing.budget_of(at_most)
    choosing.check_by(smallest)

    from bench import api
    from bench.cli.tables import make_console

    rows = api.read_rows(path)
    choosing.show(make_console(), rows, path, budget=budget, by=smallest, every=every)


@shared(("narrowing", Narrowing, ("granularity", "match", "epochs", *GIVEN)), ("resources", Resources, ("device", "data_root", "plugin")))
def export(
    method: Annotated[str, typer.Option(help="A method by name; hyperparameters in brackets.")],
    narrowing: Narrowing, resources: Resources,
    sparsity: Annotated[float | None, typer.Option(help="Fraction to remove, in [0, 1); a pattern n:m has its own.")] = None,
    suite: Annotated[str, typer.Option(help="The suite whose settings to train with, or a .toml file.")] = "digits",
    dataset: Annotated[str | None, typer.Option(help="The data set.", show_default="the suite's first")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="One of razorbench's own, any timm name, or FILE.py:NAME.", show_default="the suite's first")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The seed.", show_default="the suite's first")] = None,
    finetune_epochs: Annotated[int, typer.Option(help="Fine-tuning epochs after pruning; 0 is one-shot.")] = 0,
    tuned: Annotated[Path | None, typer.Option(metavar="PATH", help="Use the tuned hyperparameters of these results.")] = None,
    output: Annotated[Path | None, typer.Option(help="The folder to write.", show_default="one in exported/")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx.")] = False,
) -> None:  # fmt: skip
    """Write one pruned network: safetensors, a card in JSON, and ONNX if asked for. `bench.export.load(folder)` opens it."""
    import dataclasses

    from bench.execution.environment import environment_of
    from bench.execution.resources import check

    check(resources)

    from bench.planning import catalogue  # before what takes longer to import: a mistyped name is said sooner

    catalogue.load_plugins(resources.plugin)
    catalogue.get_method(method)

    from bench import export as exporting
    from bench.cli.tables import make_console, say

    given = {"datasets": dataset, "architectures": architecture, "sparsities": sparsity, "seeds": seed, "finetune_epochs": finetune_epochs}
    lists: dict[str, Any] = {name: (value,) for name, value in given.items() if value is not None}
    one = dataclasses.replace(narrowing, methods=(method,), **lists)
    request = exporting.request_of(suite, one, environment_of(resources), tuned)
    folder = output or exporting.folder_of(request)
    block, console = request.suite.blocks[0], make_console()
    where = f"{request.methods[0].name} on {block.dataset}/{block.architectures[0]}, seed {request.suite.seeds[0]}"
    say(console, f"{where}: training missing networks ...")
    for line in exporting.summary(exporting.export(request, folder, onnx=onnx), folder):
        say(console, line)


@shared(("narrowing", Narrowing, ("methods", *NARROWED)), ("resources", Resources, STORED))
def publish(
    narrowing: Narrowing, resources: Resources, suite: Suite = "digits",
    to: Annotated[Path, typer.Option(help="The folder of leaderboards, each in a folder of its suite's name.")] = Path("leaderboards"),
    merge: Annotated[Path | None, typer.Option(help="Add the rows of this results.csv to the folder instead of the store's.")] = None,
    contributor: Annotated[str | None, typer.Option(help="With --merge: who has computed these rows.", show_default="not named")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
) -> None:  # fmt: skip
    """Write leaderboards/<suite>/: results, tables, data package and plots, from the store or from somebody else's rows."""
    from bench.execution.resources import check

    check(resources)
    _check_merge(merge, contributor, narrowing, resources)

    from bench.planning import catalogue  # before what takes longer to import: a mistyped name is said sooner

    catalogue.load_plugins(resources.plugin)
    if narrowing.methods is not None:
        catalogue.select_methods(",".join(narrowing.methods))

    from bench.cli import publishing

    if merge is not None:
        publishing.merge_file(merge, suite, to, contributor, dry_run, resources.plugin)
    else:
        publishing.publish(suite, narrowing, resources, to, dry_run, command_line(suite, narrowing, resources))


def _check_merge(merge: Path | None, contributor: str | None, narrowing: Narrowing, resources: Resources) -> None:
    """Raise UserError for options that a merge cannot heed, or that need one."""
    import dataclasses

    from bench.spec.errors import UserError

    if merge is None:
        if contributor is not None:
            raise UserError("--contributor needs --merge: rows of the store are published as the maintainers' own")
        return
    given = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(narrowing) if getattr(narrowing, f.name) is not None]
    given += ["--store"] * (resources.store is not None)
    if given:
        raise UserError(f"--merge takes all rows of its file: {', '.join(given)} cannot be given with it")


@shared(("resources", Resources, ("workers", "device", "data_root", "plugin")))
def verify(
    folder: Annotated[Path, typer.Argument(metavar="leaderboards/SUITE", help="A leaderboard's folder.")],
    resources: Resources,
    sample: Annotated[int | None, typer.Option(help="Number of rows to recompute, drawn at random.", show_default="3")] = None,
    methods: Annotated[str | None, typer.Option(help="Draw only from these methods (comma-separated).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Allowed difference in accuracy, a fraction, instead of the tests.",
            show_default="none on the same torch and device, elsewhere what each cell shows over seeds",
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="For maintainers: if all agrees, record in verified.csv which rows, when, and where.")
    ] = False,
) -> None:
    """Recompute a random sample of published results and compare, and rebuild derived files. Exit code 1 if anything differs."""
    from bench.execution.resources import check
    from bench.spec.errors import UserError

    check(resources)
    for option, value, least in (("--sample", sample, 1), ("--tolerance", tolerance, 0)):
        if value is not None and not value >= least:  # also not a number
            raise UserError(f"{option} must be at least {least}, got {value}")
    if record and tolerance is not None:
        raise UserError("--record is for the tests of `verify`: leave out --tolerance")

    from bench.cli import verify as verification

    agrees = verification.run(folder, resources, sample=sample, methods=methods, seed=seed, tolerance=tolerance, record=record)
    raise typer.Exit(0 if agrees else 1)
