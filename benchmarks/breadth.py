"""Which of timm's architectures work: the smallest model of each of its modules, with every granularity, criterion and `spam`.

    python benchmarks/breadth.py --out breadth.csv [--only test_vit,levit_128s] [--steps channel,obd] [--jobs 2] [--limit 300]
    python benchmarks/breadth_table.py breadth.csv

Steps: `weight`, `2:4` and `channel` prune by magnitude at sparsity 0.5 (`channel` also compares the outputs of the smaller network with
those of the masked one), every criterion prunes single weights, `spam` trains for one epoch, and `torch-pruning` and
`torch-pruning heads` use Torch-Pruning directly as its README does, the second one with the numbers of attention heads.
Inputs are noise of 32x32 pixels, or of the smallest size that the model accepts. Each model has its own process, small ones first; a
step that exceeds the limit (in seconds) is `slow`; `tracing_seconds` is CPU time. A second call computes what is missing.
--models writes `breadth_models.csv`, the smallest model of each module, again.
"""

import argparse
import copy
import csv
import json
import selectors
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import methods
from methods.granularity.channel import coupling_of

MODELS = Path(__file__).with_name("breadth_models.csv")
SIZES = (32, 64, 96, 128, 160, 192, 224, 256)
COLUMNS = ("module", "model", "parameters", "pixels", "step", "outcome", "seconds", "reached", "difference", "tracing_seconds")
CLASSES, SPARSITY = 10, 0.5
Data = list[tuple[Tensor, Tensor]]


def smallest() -> Iterator[tuple[str, str, int]]:
    """(module, model, parameters) of the smallest model of each module."""
    for module in timm.list_modules():
        found = []
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=CLASSES)
            if model.num_classes == CLASSES:  # a few have no classifier
                found.append((sum(p.numel() for p in model.parameters()), name))
        if found:
            yield module, min(found)[1], min(found)[0]


def fitted(name: str) -> tuple[nn.Module, int]:
    """A model and the size of its inputs in pixels, the smallest that it accepts."""
    own = None
    for size in (*SIZES, 0):
        every: tuple[dict[str, Any], ...] = ({"img_size": size}, {}) if size else ({},)
        for options in every:
            try:
                torch.manual_seed(0)
                model = own if own is not None and not options else timm.create_model(name, num_classes=CLASSES, **options)
                own = model if not options else own
                default: Any = model.default_cfg
                pixels: int = size or default["input_size"][-1]
                with torch.no_grad():
                    if model.eval()(torch.randn(2, 3, pixels, pixels)).shape == (2, CLASSES):
                        return model, pixels
            except Exception:  # networks raise all kinds of exceptions
                continue
    raise ValueError("no size of inputs was accepted")


def noise(pixels: int) -> Data:
    """Two batches of four images of noise."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, pixels, pixels, generator=generator), torch.arange(4) + 4 * i) for i in range(2)]


def channel(model: nn.Module, data: Data) -> dict[str, float]:
    """Prune and remove channels; the outputs of the smaller network must have the right shape."""
    problem = methods.Problem(model, data)
    start = time.process_time()
    coupling_of(problem)
    traced = time.process_time() - start
    mask = methods.prune(model, data, sparsity=SPARSITY, granularity="channel")
    small = methods.compact(model, mask, data)
    x = data[0][0]
    with torch.no_grad():
        masked, smaller = model.double().eval()(x.double()), small.double().eval()(x.double())
    left = sum(p.numel() for p in methods.Problem(small, data).weights.values())
    assert left == sum(int(m.sum()) for m in mask.values())
    difference = float((masked - smaller).abs().max() / masked.abs().max())
    return {"reached": methods.sparsity_of(mask), "difference": difference, "tracing_seconds": traced}


def single(model: nn.Module, data: Data, **options: Any) -> dict[str, float]:
    """Prune single weights or a pattern."""
    mask = methods.prune(model, data, sparsity=SPARSITY, **options)
    assert methods.mask_holds(model, mask)
    return {"reached": methods.sparsity_of(mask)}


def spam(model: nn.Module, data: Data) -> dict[str, float]:
    """One epoch of training by marginal likelihood."""
    methods.train(model, data, "spam", epochs=1, lr=0.001)
    return {}


def torch_pruning(model: nn.Module, data: Data, heads: bool) -> dict[str, float]:
    """Torch-Pruning as its README and its example for transformers use it."""
    import torch_pruning as tp

    x = data[0][0]
    attentions: list[Any] = [m for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")] if heads else []
    before = sum(p.numel() for p in model.parameters())
    pruner = tp.pruner.MagnitudePruner(
        model, x[:1], importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=SPARSITY,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES],
        num_heads={m.qkv: m.num_heads for m in attentions},
    )  # fmt: skip
    pruner.step()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
    after = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        assert model(x).shape == (len(x), CLASSES)
    assert after < before, "nothing was removed"
    return {"reached": 1 - after / before}


def steps() -> dict[str, Callable[[nn.Module, Data], dict[str, float]]]:
    """Name -> what is tried."""
    found: dict[str, Any] = {
        "weight": single,
        "2:4": lambda model, data: single(model, data, granularity="2:4"),
        "channel": channel,
        "spam": spam,
        "torch-pruning": lambda model, data: torch_pruning(model, data, False),
        "torch-pruning heads": lambda model, data: torch_pruning(model, data, True),
    }
    for name in methods.names("criteria"):
        only = methods.make("criteria", name, {}).granularities or ("weight",)
        found[name] = lambda model, data, name=name, only=only: single(model, data, method=name, granularity=only[0])
    return found


def outcome(step: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """The cells of a row: what came out, in one line."""
    start = time.perf_counter()
    try:
        cells: dict[str, Any] = {"outcome": "works", **step()}
    except Exception as error:  # every exception is a result here
        line = next(iter(str(error).splitlines()), "")
        refused = isinstance(error, ValueError) and "\n" not in str(error)
        cells = {"outcome": f"refused: {line}" if refused else f"fails: {type(error).__name__}: {line}"}
    return {**cells, "seconds": round(time.perf_counter() - start, 2)}


def worker(name: str, chosen: list[str]) -> None:
    """Try steps with a model, and print a line of JSON for each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known = steps()
    try:
        model, pixels = fitted(name)
    except Exception as error:
        for step in chosen:
            print(json.dumps({"step": step, "outcome": f"no inputs: {error}"}), flush=True)
        return
    print(json.dumps({"pixels": pixels}), flush=True)
    for step in chosen:
        own, function = copy.deepcopy(model), known[step]
        result = outcome(lambda own=own, function=function: function(own, noise(pixels)))  # type: ignore[misc]
        print(json.dumps({"step": step, "pixels": pixels, **result}), flush=True)


def lines(process: subprocess.Popen[str], limit: float) -> Iterator[str | None]:
    """The lines that a process prints; None if the next one does not come within the limit, in seconds."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(limit):
                yield None
                return
            line = process.stdout.readline()
            if not line:
                return
            yield line


def tried(name: str, chosen: list[str], limit: float) -> Iterator[dict[str, Any]]:
    """The rows of a model; after a crash or a timeout the steps that are left run in a new process."""
    left = list(chosen)
    while left:
        command = [sys.executable, __file__, "--worker", name, "--steps", ",".join(left)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line: str | None = ""
        pixels = ""
        for line in lines(process, limit):
            row = json.loads(line) if line is not None and line.startswith("{") else {}
            pixels = row.get("pixels", pixels)
            if "step" in row:
                left.remove(row["step"])
                yield row
        process.kill()
        code = process.wait()
        if left:
            reason = f"slow: more than {limit:g} s" if line is None else f"fails: the process ended with code {code}"
            yield {"step": left.pop(0), "pixels": pixels, "outcome": reason}


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(options: argparse.Namespace) -> None:
    """Compute the rows that are missing."""
    chosen = options.steps.split(",") if options.steps else list(steps())
    unknown = sorted(set(chosen) - set(steps()))
    if unknown:
        raise SystemExit(f"unknown step '{unknown[0]}': choose from {', '.join(steps())}")
    only = set(options.only.split(",")) if options.only else None
    out, lock = Path(options.out), threading.Lock()
    done = {(r["model"], r["step"]) for r in read(out)} if out.exists() else set()
    models = [m for m in read(MODELS) if only is None or only & {m["model"], m["module"]}]
    models.sort(key=lambda m: int(m["parameters"]))
    with out.open("a", newline="", encoding="utf-8") as file, ThreadPoolExecutor(options.jobs) as pool:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()

        def compute(model: dict[str, str]) -> None:
            for row in tried(model["model"], [s for s in chosen if (model["model"], s) not in done], options.limit):
                with lock:
                    writer.writerow({**model, **row})
                    file.flush()
                    print(f"{model['model']:<40}{row['step']:<22}{row.get('seconds', ''):>8}  {row['outcome'][:120]}", flush=True)

        list(pool.map(compute, models))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--out", "--worker", "--only", "--steps"):
        parser.add_argument(name, default="")
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300.0)
    options = parser.parse_args()
    if options.models:
        rows = [("module", "model", "parameters"), *smallest()]
        with MODELS.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    elif options.worker:
        worker(options.worker, options.steps.split(","))
    elif options.out:
        run(options)
    else:
        parser.error("--out is required")


if __name__ == "__main__":
    main()
