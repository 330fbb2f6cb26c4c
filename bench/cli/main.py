"""The commands: parsing and printing, nothing else. Heavy packages are imported inside the commands that need them."""

import contextlib
import errno
import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench.cli import contributing, interruption, results, stores
from bench.cli.options import Suite, names, shared
from bench.cli.results import NARROWED, STORED, Style, check_style
from bench.spec.choices import Narrowing, Resources

app = typer.Typer(
    name="razorbench",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compare neural-network pruning methods: same networks, same batches, exact sparsities, several seeds.",
)
Plugin = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE", help="A Python file that registers methods or networks; repeatable.")
]
LISTS = ("methods", "criteria", "trainings", "granularities", "metrics", "architectures", "datasets", "suites", "hyperparameters")
INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The base of typer's usage errors: click's, or that of the copy of click inside newer releases of typer.
UsageFault: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def _print_version(wanted: bool) -> None:
    if wanted:
        import bench

        print(f"razorbench {bench.__version__}")
        raise typer.Exit(0)


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the program. A user-input error ends in one line on standard error and exit code 2."""
    computes = sys.argv[1:2] == ["run"] and "--dry-run" not in sys.argv
    interruption.watch(interruption.KEPT if computes else interruption.MESSAGE)
    _prepare_streams()
    _check_own_packages()
    try:
        alone = sys.argv[1:] in ([], ["store"])  # without a command: help
        code = app([*sys.argv[1:], *["--help"] * alone], standalone_mode=False)
        sys.stdout.flush()
    except typer.Exit as stop:
        code = stop.exit_code
    except UsageFault as error:
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        code = interruption.exit_code()
    except (BrokenPipeError, SystemExit):  # `| head` has read enough; typer makes an exit of it
        _silence()
        code = 0
    except Exception as error:
        from bench.spec.errors import UserError

        if interruption.received():  # raised in the middle of an import, it may come out as another error
            interruption.end(interruption.exit_code())
        if isinstance(error, OSError) and isinstance(error.filename, str):  # a path of the user's that no command has tried before
            _fail(f"'{error.filename[:200]}': {error.strerror}")
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            _silence()
            _fail(f"cannot write the output: {error.strerror}")
        if isinstance(error, FileNotFoundError) and not _has_folder():
            _fail("the working folder does not exist any more")
        if not isinstance(error, UserError):
            raise
        _fail(str(error))
    if code == INTERRUPTED or interruption.received():  # newer releases of typer turn Ctrl-C into this code themselves
        code = interruption.exit_code()
    if code in {128 + number for number in interruption.SIGNALS}:
        interruption.end(code)
    sys.exit(code if isinstance(code, int) else 0)


def _prepare_streams() -> None:
    """Make the standard streams such that no output is a fault: the caller may have closed them, or have an encoding without dashes."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 (open until the end)
    if getattr(sys.stdout, "errors", "") == "strict":
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]


def _has_folder() -> bool:
    """Whether the working folder exists."""
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _silence() -> None:
    """Write nothing more to standard output, also not what is buffered."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_own_packages() -> None:
    """Fail in one line where a folder of the user's hides the package `methods`."""
    own = Path(__file__).resolve().parents[2] / "methods"
    spec = importlib.util.find_spec("methods")
    found = [*(spec.submodule_search_locations or ()), str(spec.origin)][:1] if spec is not None else []
    if found and Path(str(found[0])).resolve() != own:
        _fail(f"'{found[0]}' hides razorbench's package 'methods': rename it, or run this command in another folder")


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())
    print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    sys.exit(2)


@app.command()
@shared(("narrowing", Narrowing, ()), ("resources", Resources, ()))
def run(
    narrowing: Narrowing, resources: Resources, suite: Suite = "digits",
    ablate: Annotated[
        str, typer.Option(metavar="NAME,...", help="Controls: shuffle permutes each mask within its layers, reinit draws new weights.")
    ] = "",
    tuned: Annotated[
        Path | None,
        typer.Option(
            metavar="leaderboards/SUITE", help="Use the tuned hyperparameters of this leaderboard or --output folder; do not search."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute again what the store already has.")] = False,
    style: Style = "text",
    output: Annotated[Path | None, typer.Option(help="Also write results.csv and leaderboard.csv into this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and how long it takes, and run nothing.")] = False,
) -> None:  # fmt: skip
    """Run methods on a suite and print the leaderboard; exit code 1 if a row failed. What was computed before is taken from the store."""
    from bench.execution.resources import check
    from bench.spec.suite import load_suite

    chosen, ablations = load_suite(suite), names(ablate)
    check(resources)
    _check_run(ablations, output, style, again=force and dry_run)
    _check_output(output, suite)
    if resources.executor == "local":
        from bench.execution import local

        local.preload()

    from bench.planning import catalogue  # before what takes longer to import: a mistyped name is said sooner

    catalogue.load_plugins(resources.plugin)
    catalogue.select_methods(",".join(narrowing.methods if narrowing.methods is not None else chosen.methods))

    from bench.cli import run as running

    if dry_run:
        running.dry_run(suite, narrowing, resources, ablations, tuned)
    else:
        whole = running.run(suite, narrowing, resources, ablations=ablations, tuned=tuned, output=output, style=style, force=force)
        raise typer.Exit(0 if whole else 1)


def _check_run(ablations: tuple[str, ...], output: Path | None, style: str, *, again: bool) -> None:
    """Raise UserError for invalid values of `run`, before anything heavy is imported. `again`: whether --force is to count only."""
    from bench.spec.errors import UserError, unknown
    from bench.spec.row import ABLATIONS

    check_style(style)
    for name in ablations:
        if name not in ABLATIONS:
            raise unknown("ablation", name, ABLATIONS)
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"--output '{output}' is not a folder")
    if again:
        raise UserError("--dry-run says what the store lacks: leave out --force")


def _check_output(output: Path | None, suite: str) -> None:
    """Raise UserError if the files of `--output` would replace a leaderboard, or the suite that is run."""
    from bench.spec.errors import UserError

    if output is None:
        return
    if any((output / "results").glob("*.csv")):  # these would be read together with results.csv
        raise UserError(f"--output '{output}' contains results/*.csv, as the folder of a leaderboard: choose another one")
    own = output / "suite.toml"
    if own.exists() and Path(suite).exists() and own.samefile(suite):
        raise UserError(f"--output '{output}' would replace the suite '{suite}': choose another folder")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help=", ".join(LISTS))] = "methods",
    method: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="With hyperparameters: the method.")] = None,
    plugin: Plugin = None,
) -> None:
    """List available methods, data sets, architectures, suites, or the hyperparameters of a method."""
    from bench.spec.errors import UserError, unknown

    if what not in LISTS:
        raise unknown("list", what, LISTS)
    from bench.planning import catalogue

    if (what == "hyperparameters") != (method is not None):
        raise UserError(
            "list hyperparameters METHOD, e.g. list hyperparameters magnitude" if method is None else f"list {what} takes no method"
        )
    for name, about in catalogue.entries(what, plugin or (), method):
        print(f"{name:<20} {about}".rstrip())


@app.command()
def check(
    entry: Annotated[
        str | None,
        typer.Argument(metavar="[METHOD | FILE | FILE:NAME]", help="A registered name, a plug-in file, or your network or data set."),
    ] = None,
    plugin: Plugin = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data, for a data set with the parameter `root`.")] = None,
) -> None:
    """Run the contract over registered entries, your file, your network or your data set; exit code 1 where it is broken."""
    from bench.planning import checks

    broken = 0
    for title, findings in checks.checked(entry, plugin or (), data_root):
        print(title)
        for finding in findings:
            mark = "FAIL" if finding.error else "skip" if finding.skipped else "ok"
            print(": ".join(filter(None, (f"  {mark:<4}  {finding.clause}", finding.error, finding.skipped))))
            broken += bool(finding.error)
    print(f"{broken} check{'s' * (broken != 1)} failed" if broken else "the contract holds")
    raise typer.Exit(1 if broken else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Its name: lower case, words joined by underscores.")],
    directory: Annotated[Path, typer.Option("--directory", help="Where to write NAME.py.")] = Path("."),
    kind: Annotated[
        str, typer.Option(help="What the file is for: criterion, training, granularity, metric, architecture or dataset.")
    ] = "criterion",
) -> None:
    """Write a file to start from, for a method, a metric, a network or a data set; it passes `check`."""
    from bench.planning.templates import TEMPLATES, write_template

    path = write_template(name, directory, kind)
    words = {"file": path, "name": name}
    print(f"wrote {path}")
    print(f"check it:  python -m bench check {TEMPLATES[kind].check.format(**words)}")
    print(f"run it:    python -m bench run {TEMPLATES[kind].run.format(**words)}")


@app.command()
@shared(("narrowing", Narrowing, ("methods", *NARROWED)), ("resources", Resources, STORED))
def status(narrowing: Narrowing, resources: Resources, suite: Suite = "digits") -> None:
    """Show how many results of a suite are finished, failed or missing."""
    from bench.execution.resources import check

    check(resources)

    from bench.cli import run as running

    running.status(suite, narrowing, resources)


app.command()(results.compare)
app.command()(results.table)
app.command()(results.choose)
app.command()(results.publish)
app.command()(results.verify)
app.command()(contributing.submit)
app.command()(contributing.review)
app.command()(results.export)
app.add_typer(stores.app, name="store")
