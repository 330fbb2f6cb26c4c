"""The commands: parsing and printing, nothing else. Heavy packages are imported inside the commands that need them."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench.cli import results
from bench.cli.options import Granularity, Match, Plugins, check_device, names, numbers

app = typer.Typer(
    name="razorbench",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compare neural-network pruning methods: same networks, same batches, exact sparsities, several seeds.",
)
LISTS = ("methods", "criteria", "trainings", "granularities", "architectures", "datasets", "suites")
INTERRUPTED = 130
# The base of typer's usage errors: click's, or that of the copy of click inside newer releases of typer.
UsageFault: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def main() -> None:
    """Run the program; what a user can put right ends in one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except UsageFault as error:
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        from bench.spec.errors import UserError

        if not isinstance(error, UserError):
            raise
        _fail(str(error))
    if code == INTERRUPTED:  # newer releases of typer turn Ctrl-C into this code themselves
        print("interrupted: what was finished is kept; the same command continues", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


@app.command()
def run(
    suite: Annotated[str, typer.Option(help="A suite by name, or a .toml file.")] = "digits",
    methods: Annotated[
        str | None,
        typer.Option(
            help="'all', or names with commas; criterion@training and name(option=value) compose.", show_default="the suite's, mostly all"
        ),
    ] = None,
    datasets: Annotated[str | None, typer.Option(help="Data sets instead of the suite's, with commas.")] = None,
    architectures: Annotated[str | None, typer.Option(help="Architectures instead of the suite's: ours or any timm name.")] = None,
    sparsities: Annotated[str | None, typer.Option(help="Fractions of weights to remove, in [0, 1), with commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, with commas.")] = None,
    granularity: Granularity = None,
    match: Match = None,
    ablate: Annotated[
        str,
        typer.Option(help="Controls beside each method, with commas: shuffle permutes its mask in each layer, reinit draws new weights."),
    ] = "",
    trials: Annotated[
        int | None, typer.Option(help="Number of tuning trials per method; 0 uses the default hyperparameters.", show_default="the suite's")
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(
            metavar="leaderboards/SUITE", help="Use the tuned hyperparameters of this leaderboard or --output folder; do not search."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs.")] = None,
    finetune_epochs: Annotated[str | None, typer.Option(help="Fine-tuning epochs after the cut, with commas; 0 is one-shot.")] = None,
    executor: Annotated[str, typer.Option(help="Where jobs run: local or ray.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Address of a Ray cluster.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; as many as cores by default, one on a GPU.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    store: Annotated[str | None, typer.Option(help="Database URL of the results; .bench/store.db by default.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where torchvision's data sets lie, or are downloaded to.")] = None,
    plugin: Plugins = None,
    output: Annotated[Path | None, typer.Option(help="Also write results.csv and leaderboard.csv into this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
) -> None:
    """Run methods on a suite and print the leaderboard. What was computed before is taken from the store."""
    from bench.execution import executors
    from bench.spec.errors import UserError, unknown
    from bench.spec.row import ABLATIONS
    from bench.spec.suite import load_suite

    chosen = load_suite(suite)
    if executor not in executors.EXECUTORS:
        raise unknown("executor", executor, executors.EXECUTORS)
    check_device(device)
    ablations = tuple(dict.fromkeys(names(ablate)))
    for name in ablations:
        if name not in ABLATIONS:
            raise unknown("ablation", name, ABLATIONS)
    changes = {
        "sparsities": numbers("--sparsities", sparsities, float),
        "seeds": numbers("--seeds", seeds, int),
        "finetune_epochs": numbers("--finetune-epochs", finetune_epochs, int),
        "epochs": epochs,
        "trials": trials,
        "granularity": granularity,
        "match": match,
    }
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"--output '{output}' is not a folder")

    if executor == "local" and not dry_run:
        executors.preload()

    from bench.planning import catalogue  # before what takes longer to import: a mistyped name is said sooner

    catalogue.load_plugins(plugin or ())
    methods = methods if methods is not None else ",".join(chosen.methods)
    catalogue.select_methods(methods)

    from bench.cli import report

    report.run(
        chosen, methods=methods, datasets=names(datasets), architectures=names(architectures), changes=changes,
        ablations=ablations, executor=executor, ray_address=ray_address, workers=workers,
        device=device, store=store, data_root=data_root, plugins=tuple(plugin or ()), output=output, dry_run=dry_run, chosen=tuned,
    )  # fmt: skip


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help=", ".join(LISTS))] = "methods",
    plugin: Plugins = None,
) -> None:
    """List what there is, a line each."""
    from bench.spec.errors import unknown

    if what not in LISTS:
        raise unknown("list", what, LISTS)
    from bench.planning import catalogue

    for name, about in catalogue.entries(what, plugin or ()):
        print(f"{name:<20} {about}".rstrip())


@app.command()
def check(
    entry: Annotated[str | None, typer.Argument(metavar="[METHOD | FILE]", help="A registered name or a plug-in file.")] = None,
    plugin: Plugins = None,
) -> None:
    """Run the contract over registered entries or your file; exit code 1 where it is broken."""
    from bench.planning import catalogue

    broken = 0
    for title, findings in catalogue.checked(entry, plugin or ()):
        print(title)
        for finding in findings:
            mark = "FAIL" if finding.error else "skip" if finding.skipped else "ok"
            print(": ".join(filter(None, (f"  {mark:<4}  {finding.clause}", finding.error, finding.skipped))))
            broken += bool(finding.error)
    print(f"{broken} clauses broken" if broken else "the contract holds")
    raise typer.Exit(1 if broken else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The method's name: lower case, words joined by underscores.")],
    directory: Annotated[Path, typer.Option("--directory", help="Where to write NAME.py.")] = Path("."),
) -> None:
    """Write a method file to start from, which passes `check`."""
    from bench.planning import catalogue

    path = catalogue.write_template(name, directory)
    print(f"wrote {path}")
    print(f"check it:  python -m bench check {path}")
    print(f"run it:    python -m bench run --plugin {path} --methods {name},magnitude,random")


@app.command()
def status(
    suite: Annotated[str, typer.Option(help="A suite by name, or a .toml file.")] = "digits",
    methods: Annotated[str | None, typer.Option(help="'all', or names with commas.", show_default="the suite's")] = None,
    store: Annotated[str | None, typer.Option(help="Database URL of the results; .bench/store.db by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data_root: Annotated[Path | None, typer.Option(help="Where torchvision's data sets lie.")] = None,
    plugin: Plugins = None,
) -> None:
    """What of a suite is done, failed and left in the store."""
    from bench.cli import report
    from bench.spec.suite import load_suite

    chosen = load_suite(suite)
    named = methods if methods is not None else ",".join(chosen.methods)
    report.status(chosen, methods=named, store=store, device=device, data_root=data_root, plugins=tuple(plugin or ()))


for command in (results.compare, results.publish, results.verify, results.export):
    app.command()(command)
