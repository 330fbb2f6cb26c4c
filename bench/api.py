"""The Python API: what `import bench` offers. The command line is a thin layer over it."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from bench.ranking import comparison, tracks
from bench.ranking import leaderboard as ranking
from bench.ranking import tradeoff as costs
from bench.spec.choices import Narrowing, Resources
from bench.spec.errors import UserError, nearest
from bench.spec.row import COLUMNS, DECLARED, Row
from bench.storage import csv_file, results_csv

# Tables of results that are there must not wait for torch and matplotlib: what runs or draws is imported where it is used.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.execution.run import Say, Watch

Rows: TypeAlias = pd.DataFrame | Iterable[Row]


def run(
    suite: str = "digits", *, ablate: Iterable[str] = (), tuned: str | Path | None = None, force: bool = False, progress: bool = True,
    **options: Any
) -> pd.DataFrame:  # fmt: skip
    """Run methods on a suite; results that are in the store are not computed again.

        rows = bench.run(methods=["magnitude", "spam"], datasets=["digits"], architectures=["mlp"], trials=0)

    Args:
        suite: a suite by name, or a .toml file.
        ablate: controls for each method: "shuffle", "reinit".
        tuned: a leaderboard or output folder whose tuned hyperparameters are used; nothing is searched then.
        force: whether to compute again what the store already has.
        progress: whether to show it, in a terminal or a notebook.
        options: the fields of `bench.spec.choices.Narrowing` and `Resources`: methods, datasets, architectures, sparsities, seeds,
            granularity, match, trials, epochs, finetune_epochs, weights, pretrained, calibration, mean, std, recalibrate_batchnorm;
            executor, ray_address, workers, device, stack, store, data_root, log, plugin.

    Returns:
        One line per method, data set, architecture, sparsity and seed, with the columns of results.csv, dense networks included.

    Raises:
        bench.UserError: an unknown name, or an invalid value.
        TypeError: an unknown option.
    """
    from bench.execution.display import Display

    narrowing, resources = _choices(options)
    watch = Display if progress else (lambda: nullcontext(lambda _: None))
    said = print if progress else (lambda _: None)
    return frame(run_rows(suite, narrowing, resources, ablate, tuned, watch, said, force=force))


def run_rows(
    suite: str, narrowing: Narrowing, resources: Resources, ablate: Iterable[str], tuned: str | Path | None,
    watch: "Watch", say: "Say", *, force: bool = False,
) -> list[Row]:  # fmt: skip
    """As `run`, for callers that have their own display; see `bench.execution.run.run` for `watch` and `say`."""
    from bench.execution import environment
    from bench.execution import run as execution

    request = environment.open_request(suite, narrowing, resources, ablate)
    found = None if tuned is None else execution.tuned_of(request, Path(tuned))
    store = environment.open_store(resources)
    pool = environment.open_executor(resources, request.environment)
    try:
        if force:  # not before it is sure that a run can begin: what is removed must be computed again
            execution.forget(request, store, found)
        return execution.run(request, store, pool, watch, say, found)
    finally:
        pool.close()


def leaderboard(rows: Rows) -> pd.DataFrame:
    """The leaderboard of rows: one line per track, tuning and method, with the columns of leaderboard.csv.

    Args:
        rows: from `run` or `read`, with those of the dense networks.
    """
    return ranking.leaderboard(rows_of(rows))


def plot(rows: Rows, kind: str = "accuracy", track: str | None = None) -> "Figure":
    """A figure of a leaderboard.

    Args:
        rows: from `run` or `read`.
        kind: accuracy, ranks, flops, latency, nll, ece or scoring.
        track: part of the name of a track, such as "fine-tuned"; the first one if not given.

    Raises:
        bench.UserError: there is no such figure of these rows.
    """
    from bench.publishing.plots import curves

    table = tracks.frame(rows_of(rows))
    kinds, slugs = list[str](), list[str]()

    def wanted(name: str, slug: str) -> bool:
        kinds.append(name)
        slugs.append(slug)
        return name == kind and (track is None or curves.slug(track) in slug)

    for _, _, figure in curves.figures(table, ranking.ranked(table)[0], wanted):
        return figure
    if kind not in kinds:
        raise UserError(f"no figure '{kind}'{nearest(kind, kinds)}; available: {', '.join(dict.fromkeys(kinds))}")
    raise UserError(f"no track '{track}' has a figure '{kind}'; available: {', '.join(dict.fromkeys(slugs))}")


def compare(rows: Rows, first: str, second: str) -> pd.DataFrame:
    """The paired differences of two methods: area under the accuracy-sparsity curve, first - second (positive: first is better).

    Args:
        rows: from `run` or `read`.
        first: a method.
        second: another one.

    Returns:
        One line per track, tuning and block, and one for all blocks, with the columns of `bench.ranking.comparison.COLUMNS`.

    Raises:
        bench.UserError: a method is not in the rows, or the two share no track.
    """
    made = rows_of(rows)
    there = list(dict.fromkeys(tracks.label(row.method, row.ablation) for row in made if row.criterion))
    for name in (first, second):
        if name not in there:
            raise UserError(f"no rows of method '{name}'{nearest(name, there)}; there are: {', '.join(there)}")
    if first == second:
        raise UserError(f"'{first}' and '{second}' are the same method: name two")
    found = comparison.compare(made, first, second)
    if not found:
        raise UserError(f"{first} and {second} share no track: they are applied at different stages and not fine-tuned")
    return comparison.table_of(found)


def tradeoff(rows: Rows) -> pd.DataFrame:
    """What accuracy costs: one line per track, tuning, data set, architecture, method and sparsity.

    Args:
        rows: from `run` or `read`, with those of the dense networks.

    Returns:
        Mean accuracy, the accuracy lost, what is left of parameters, FLOPs and latency as fractions of the dense network's, and for
        which of them the line is on the Pareto front, with the columns of `bench.ranking.tradeoff.COLUMNS`.
    """
    return costs.tradeoff(rows_of(rows))


def read(path: str | Path) -> pd.DataFrame:
    """The rows of a results.csv, or of a leaderboard's or output folder, of this or an older release.

    Raises:
        bench.UserError: there are no such files, or one cannot be read.
    """
    return frame(read_rows(path))


def read_rows(path: str | Path) -> list[Row]:
    """As `read`, but a list of rows."""
    try:
        return results_csv.read(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table with the columns of results.csv; None where nothing was measured."""
    kinds = {"integer": "Int64", "number": "Float64", "string": "object"}
    values = [[getattr(row, name) for name in COLUMNS] for row in rows]
    table = pd.DataFrame(values, columns=list(COLUMNS), dtype="object")
    return table.astype({name: kinds[column.type] for name, column in DECLARED.items()})


def rows_of(rows: Rows) -> list[Row]:
    """Rows from a table, whether `frame` has made it or pandas has read it from a results.csv. Raises UserError for missing columns, and
    for rows that are there twice.
    """
    if not isinstance(rows, pd.DataFrame):
        return list(rows)
    missing = [name for name in COLUMNS if DECLARED[name].since == 1 and name not in rows.columns]
    if missing:
        raise UserError(f"these are not rows of razorbench: no column '{missing[0]}'")
    made = [_row(line) for line in rows[[name for name in COLUMNS if name in rows.columns]].to_dict("records")]
    try:
        results_csv.check_once(made, "this table")
    except ValueError as error:
        raise UserError(str(error)) from None
    return made


def _row(line: Mapping[Any, Any]) -> Row:
    values: dict[str, Any] = {}
    for name, value in line.items():
        kind, empty = DECLARED[name].type, pd.isna(value)
        if kind == "string":
            values[name] = "" if empty else csv_file.restored(str(value))
        else:
            values[name] = None if empty else float(value) if kind == "number" else int(value)
    return Row(**values)


def _choices(options: Mapping[str, Any]) -> tuple[Narrowing, Resources]:
    """The options by the dataclass that they belong to. Raises TypeError for an unknown one."""
    fields = {cls: [f.name for f in dataclasses.fields(cls)] for cls in (Narrowing, Resources)}
    unknown = [name for name in options if not any(name in names for names in fields.values())]
    if unknown:
        every = [name for names in fields.values() for name in names]
        raise TypeError(f"run() has no option '{unknown[0]}'{nearest(unknown[0], every)}")
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, (list, range)) else v for name, v in options.items()}
    given |= {name: (v,) for name, v in given.items() if isinstance(v, (str, int, float)) and name in LISTS}
    given |= {name: Path(given[name]) for name in ("data_root", "log") if isinstance(given.get(name), str)}
    if isinstance(given.get("weights"), Path):
        given["weights"] = str(given["weights"])
    own = [{name: given[name] for name in names if name in given} for names in fields.values()]
    return Narrowing(**own[0]), Resources(**own[1])


LISTS = tuple(f.name for cls in (Narrowing, Resources) for f in dataclasses.fields(cls) if "tuple" in str(f.type))


def _signature() -> inspect.Signature:
    """The signature of `run` with every option by name, for `help` and editors."""
    own = [p for p in inspect.signature(run).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for cls in (Narrowing, Resources)
        for field in dataclasses.fields(cls)
    ]
    return inspect.Signature([*own, *options], return_annotation=pd.DataFrame)


run.__signature__ = _signature()  # type: ignore[attr-defined]
