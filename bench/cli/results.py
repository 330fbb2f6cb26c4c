"""The commands for what has been computed: compare, publish, verify, export. Parsing and printing, as in `bench.cli`."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Granularity, Match, Plugins, check_device, names, numbers


def compare(
    first: Annotated[str, typer.Argument(metavar="METHOD", help="A method by name.")],
    second: Annotated[str, typer.Argument(metavar="METHOD", help="The method to compare it with.")],
    suite: Annotated[str, typer.Option(help="A suite by name, or a .toml file.")] = "digits",
    datasets: Annotated[str | None, typer.Option(help="Data sets instead of the suite's, with commas.")] = None,
    architectures: Annotated[str | None, typer.Option(help="Architectures instead of the suite's.")] = None,
    granularity: Granularity = None,
    match: Match = None,
    sparsities: Annotated[str | None, typer.Option(help="Sparsities instead of the suite's, with commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, with commas.")] = None,
    trials: Annotated[int | None, typer.Option(help="Tuning trials of tuned rows; 0 compares the defaults only.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs.")] = None,
    finetune_epochs: Annotated[str | None, typer.Option(help="Fine-tuning epochs after the cut, with commas; 0 is one-shot.")] = None,
    store: Annotated[str | None, typer.Option(help="Database URL of the results; .bench/store.db by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data_root: Annotated[Path | None, typer.Option(help="Where torchvision's data sets lie.")] = None,
    plugin: Plugins = None,
) -> None:
    """Paired difference of two methods with interval and p-value, per data set and architecture, from the store."""
    from bench.spec.errors import UserError
    from bench.spec.suite import load_suite

    chosen = load_suite(suite)
    check_device(device)
    changes = {
        "sparsities": numbers("--sparsities", sparsities, float),
        "seeds": numbers("--seeds", seeds, int),
        "finetune_epochs": numbers("--finetune-epochs", finetune_epochs, int),
        "epochs": epochs,
        "trials": trials,
        "granularity": granularity,
        "match": match,
    }

    from bench.planning import catalogue  # before what takes longer to import: a mistyped name is said sooner

    catalogue.load_plugins(plugin or ())
    pair = catalogue.get_method(first), catalogue.get_method(second)
    if pair[0].name == pair[1].name:
        raise UserError(f"'{first}' and '{second}' are the same method: name two")

    given = {
        "--suite": suite, "--methods": f"{pair[0].name},{pair[1].name}", "--datasets": datasets, "--architectures": architectures,
        "--granularity": granularity, "--match": match, "--sparsities": sparsities, "--seeds": seeds, "--trials": trials,
        "--epochs": epochs, "--finetune-epochs": finetune_epochs, "--store": store, "--device": None if device == "auto" else device,
        "--data-root": data_root,
    }  # fmt: skip
    options = [*((name, value) for name, value in given.items() if value is not None), *(("--plugin", file) for file in plugin or ())]

    from bench.cli import compare as comparison

    comparison.compare(
        chosen, pair, datasets=names(datasets), architectures=names(architectures), changes=changes, device=device, store=store,
        data_root=data_root, plugins=tuple(plugin or ()),
        command=["python", "-m", "bench", "run", *(str(part) for option in options for part in option)],
    )  # fmt: skip


def export(
    method: Annotated[str, typer.Option(help="A method by name; options in brackets.")],
    sparsity: Annotated[float | None, typer.Option(help="Fraction to remove, in [0, 1); a pattern n:m has its own.")] = None,
    suite: Annotated[str, typer.Option(help="The suite whose settings to train with, or a .toml file.")] = "digits",
    dataset: Annotated[str | None, typer.Option(help="The data set.", show_default="the suite's first")] = None,
    architecture: Annotated[str | None, typer.Option(help="Ours or any timm name.", show_default="the suite's first")] = None,
    granularity: Granularity = None,
    match: Match = None,
    seed: Annotated[int | None, typer.Option(help="The seed.", show_default="the suite's first")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs.")] = None,
    finetune_epochs: Annotated[int, typer.Option(help="Fine-tuning epochs after the cut.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data_root: Annotated[Path | None, typer.Option(help="Where torchvision's data sets lie.")] = None,
    plugin: Plugins = None,
    output: Annotated[Path | None, typer.Option(help="The folder to write.", show_default="one under exported/")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx.")] = False,
) -> None:
    """Write one pruned network: safetensors, a card in JSON, and ONNX if asked for. `bench.export.load(folder)` opens it."""
    from bench.spec.suite import load_suite

    chosen = load_suite(suite)
    check_device(device)
    changes = {
        "sparsities": None if sparsity is None else [sparsity],
        "seeds": [chosen.seeds[0] if seed is None else seed],
        "finetune_epochs": [finetune_epochs],
        "epochs": epochs,
        "granularity": granularity,
        "match": match,
    }

    from bench.planning import catalogue  # before what takes longer to import: a mistyped name is said sooner

    catalogue.load_plugins(plugin or ())
    found = catalogue.get_method(method)

    from bench import export as exporting

    exporting.run(
        chosen, found, dataset=dataset, architecture=architecture, changes=changes, device=device, data_root=data_root,
        plugins=tuple(plugin or ()), output=output, onnx=onnx,
    )  # fmt: skip


def publish(
    suite: Annotated[str, typer.Option(help="A suite by name, or a .toml file.")] = "digits",
    methods: Annotated[str | None, typer.Option(help="'all', or names with commas.", show_default="the suite's")] = None,
    datasets: Annotated[str | None, typer.Option(help="Data sets instead of the suite's, with commas.")] = None,
    architectures: Annotated[str | None, typer.Option(help="Architectures instead of the suite's.")] = None,
    granularity: Granularity = None,
    match: Match = None,
    sparsities: Annotated[str | None, typer.Option(help="Sparsities instead of the suite's, with commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds instead of the suite's, with commas.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs.")] = None,
    finetune_epochs: Annotated[str | None, typer.Option(help="Fine-tuning epochs after the cut, with commas; 0 is one-shot.")] = None,
    trials: Annotated[int | None, typer.Option(help="Tuning trials a method: its tuned rows are published too.")] = None,
    store: Annotated[str | None, typer.Option(help="Database URL of the results; .bench/store.db by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data_root: Annotated[Path | None, typer.Option(help="Where torchvision's data sets lie.")] = None,
    plugin: Plugins = None,
    to: Annotated[Path, typer.Option(help="The folder of leaderboards; the suite's is in it.")] = Path("leaderboards"),
    merge: Annotated[Path | None, typer.Option(help="Add the rows of this results.csv to the folder, in place of the store's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
) -> None:
    """Write leaderboards/<suite>/: results, tables, data package and plots, from the store or from somebody else's rows."""
    from bench.spec.errors import UserError
    from bench.spec.suite import load_suite

    check_device(device)
    narrowed = {
        "--datasets": datasets, "--architectures": architectures, "--granularity": granularity, "--match": match,
        "--sparsities": sparsities, "--seeds": seeds, "--epochs": epochs, "--finetune-epochs": finetune_epochs, "--trials": trials,
    }  # fmt: skip
    if merge is not None:
        given = [name for name, value in {"--methods": methods, "--store": store, **narrowed}.items() if value is not None]
        if given:
            raise UserError(f"--merge takes all rows of its file: {', '.join(given)} cannot be given with it")
        name = load_suite(suite).name if suite.endswith(".toml") else suite

        from bench.publishing import publish as publishing

        publishing.merge_file(merge, suite=name, plugins=tuple(plugin or ()), to=to, dry_run=dry_run)
        return
    chosen = load_suite(suite)
    changes = {
        "sparsities": numbers("--sparsities", sparsities, float),
        "seeds": numbers("--seeds", seeds, int),
        "finetune_epochs": numbers("--finetune-epochs", finetune_epochs, int),
        "epochs": epochs,
        "trials": trials,
        "granularity": granularity,
        "match": match,
    }

    from bench.planning import catalogue  # before what takes longer to import: a mistyped name is said sooner

    catalogue.load_plugins(plugin or ())
    catalogue.select_methods(methods if methods is not None else ",".join(chosen.methods))
    shared = {
        "--suite": suite, "--methods": methods, **narrowed, "--store": store, "--device": None if device == "auto" else device,
        "--data-root": data_root,
    }  # fmt: skip
    options = [*((name, value) for name, value in shared.items() if value is not None), *(("--plugin", file) for file in plugin or ())]

    from bench.publishing import publish as publishing

    publishing.publish(
        chosen, methods=methods if methods is not None else ",".join(chosen.methods), datasets=names(datasets),
        architectures=names(architectures), changes=changes, device=device, store=store, data_root=data_root,
        plugins=tuple(plugin or ()), to=to, dry_run=dry_run, options=[str(part) for option in options for part in option],
    )  # fmt: skip


def verify(
    folder: Annotated[Path, typer.Argument(metavar="leaderboards/SUITE", help="A leaderboard's folder.")],
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
    workers: Annotated[int | None, typer.Option(help="Worker processes; as many as cores by default, one on a GPU.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data_root: Annotated[Path | None, typer.Option(help="Where torchvision's data sets lie.")] = None,
    plugin: Plugins = None,
) -> None:
    """Recompute a random sample of published results and compare, and rebuild derived files. Exit code 1 if anything differs."""
    from bench.spec.errors import UserError

    check_device(device)
    for option, value, least in (("--sample", sample, 1), ("--workers", workers, 1), ("--tolerance", tolerance, 0)):
        if value is not None and value < least:
            raise UserError(f"{option} must be at least {least}, got {value}")

    from bench.publishing import verify as verification

    agrees = verification.verify(
        folder, sample=sample, methods=methods, seed=seed, tolerance=tolerance, workers=workers, device=device, data_root=data_root,
        plugins=tuple(plugin or ()),
    )  # fmt: skip
    raise typer.Exit(0 if agrees else 1)
