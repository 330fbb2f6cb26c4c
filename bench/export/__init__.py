"""`export`: one pruned network as files that anybody can open, and `load`, which opens them without unpickling anything.

    from bench.export import load
    model, card = load("exported/magnitude-0.9")      # a plain torch module in eval mode, and what the card says

A folder holds `model.safetensors` (the state dict under the network's own names), `mask.safetensors` (what is masked, or which rows and
columns of the whole network are left of a smaller one) and `card.json`: how to build it, how it was made, what it scores and costs.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.execution.run import tuned_of
from bench.export.loading import load
from bench.export.reading import FORMAT
from bench.planning.plan import Planned, expanded
from bench.planning.request import Request, make_request
from bench.spec.choices import Narrowing
from bench.spec.errors import UserError
from bench.spec.suite import load_suite
from bench.storage.checkpoints import Networks
from bench.trial import cost, trial
from bench.trial.job import Environment, Job
from bench.trial.loading import load_data
from methods import Mask

__all__ = ["FILES", "FORMAT", "export", "folder_of", "load", "request_of", "summary"]
FILES = ("model.safetensors", "mask.safetensors", "card.json")


def request_of(suite: str, narrowing: Narrowing, environment: Environment, tuned: Path | None = None) -> Request:
    """The request for one network.

    Args:
        suite: a suite by name, or a .toml file.
        narrowing: its first data set is used, otherwise the suite's first; the same for architecture and seed.
        environment: what the jobs run with.
        tuned: folder of results whose tuned hyperparameters are used; None: the defaults.

    Raises:
        UserError: more than one sparsity or number of fine-tuning epochs remains.
    """
    loaded = load_suite(suite)
    dataset = (narrowing.datasets or (loaded.blocks[0].dataset,))[0]
    own = next((b.architectures for b in loaded.blocks if b.dataset == dataset), loaded.blocks[0].architectures)
    one = dataclasses.replace(
        narrowing, datasets=(dataset,), architectures=narrowing.architectures or own[:1], seeds=narrowing.seeds or loaded.seeds[:1]
    )
    request = make_request(suite, one, environment)
    if len(request.suite.sparsities) > 1:
        raise UserError("--sparsity is required, e.g. --sparsity 0.9 removes 90 % of the weights")
    if len(request.suite.finetune_epochs) > 1:
        raise UserError("--finetune-epochs takes one number here")
    return request if tuned is None else dataclasses.replace(request, tuned=tuned_of(request, tuned))


def folder_of(request: Request) -> Path:
    """The folder for an exported network, if none is named."""
    block, suite = request.suite.blocks[0], request.suite
    asked = f"{request.methods[0].name}-{suite.granularity}-{suite.sparsities[0]:g}"
    asked += f"-finetuned-{suite.finetune_epochs[0]}" * bool(suite.finetune_epochs[0])
    plain = ("".join(c if c.isalnum() or c in "._" else "-" for c in part) for part in (block.dataset, block.architectures[0], asked))
    return Path("exported") / "-".join(plain)


def export(request: Request, folder: Path, *, onnx: bool = False) -> dict[str, Any]:
    """Make and write one pruned network. Networks of earlier runs are used again.

    Args:
        request: for one method, block, seed, sparsity and number of fine-tuning epochs.
        folder: where to write; it must not exist.
        onnx: whether to write model.onnx as well.

    Returns:
        The content of card.json.

    Raises:
        UserError: the folder exists, the method fails or does not support the network, or the ONNX packages are missing. Nothing is
            written then.
    """
    if folder.exists():
        raise UserError(f"'{folder}' is there already; name another with --output")
    if onnx:
        _check_onnx()
    planned = _planned(request)
    job = planned.job
    found = trial.pruned_network(job)
    row = planned.rows[job.points[0].key]
    card = _card(dataclasses.asdict(dataclasses.replace(row, **found.measurement)), job, found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        _write(scratch, card, found, onnx)
        scratch.chmod(0o755)
        for file in scratch.iterdir():
            file.chmod(0o644)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return card


def summary(card: dict[str, Any], folder: Path) -> list[str]:
    """What to say of an exported network, a line each."""
    row, latency = card["row"], card["latency_ms"]
    fast = ", ".join(f"batch {b.removeprefix('batch_')}: {t['pruned']:.3g} ms, dense {t['dense']:.3g}" for b, t in latency.items())
    return [
        f"accuracy {row['accuracy']:.2%}, {row['sparsity_reached']:.2%} of the prunable weights removed ({row['status']})",
        f"{row['parameters_kept']} of {row['parameters']} parameters, {row['flops_kept']} of {row['flops']} FLOPs; {fast}",
        f"wrote {folder}: {card['file_bytes']} bytes; the dense network has {card['dense_bytes']}",
    ]


def _planned(request: Request) -> Planned:
    """The method's job with its row; its dense network is trained if the job prunes one that is not there."""
    every = expanded(request)
    planned = next(planned for planned in every if planned.job.criterion)
    job = planned.job
    if not job.trains_each and not Networks(job.environment.cache / "networks").has(job.network):
        dense = next(p.job for p in every if not p.job.criterion and p.job.network == job.network)
        try:
            trial.execute(dataclasses.replace(dense, points=()))
        except Exception as error:  # a plug-in's training may raise anything
            raise UserError(f"{dense.label}: {' '.join(str(error).split())}") from error
    return planned


def _card(row: dict[str, Any], job: Job, found: trial.PrunedNetwork) -> dict[str, Any]:
    """The content of card.json, without the digest of the weights."""
    data = load_data(job.dataset, job.protocol, job.environment)
    drop = ("hyperparameters", "latency_ms", "dense_latency_ms")
    latencies, inputs = {}, data.train.read(cost.LATENCY_BATCHES[-1])
    for batch in cost.LATENCY_BATCHES:
        dense, pruned = cost.latency([found.whole, found.model], inputs[:batch], found.mask)
        latencies[f"batch_{batch}"] = {"dense": dense, "pruned": pruned}
    return {
        "format": FORMAT,
        "architecture": {"name": job.architecture, "input_shape": list(data.input_shape), "classes": data.classes},
        "inputs": {
            "standardised": "(x - mean) / std of raw values",
            "mean": data.mean.flatten().tolist(),
            "std": data.std.flatten().tolist(),
        },
        "method": job.method,
        "granularity": job.granularity,
        "compact": found.whole_mask is not None,
        "hyperparameters": json.loads(row["hyperparameters"]),
        "protocol": dataclasses.asdict(job.protocol),
        "row": {name: value for name, value in row.items() if name not in drop},
        "latency_ms": latencies,
        "memory_mb": {name: cost.peak_memory(model, inputs) for name, model in (("dense", found.whole), ("pruned", found.model))},
    }


def _write(folder: Path, card: dict[str, Any], found: trial.PrunedNetwork, onnx: bool) -> None:
    from safetensors.torch import save_file

    model = found.model.cpu().eval()
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    save_file(_rows_and_columns(found.whole_mask) if found.whole_mask is not None else _plain(found.mask), folder / "mask.safetensors")
    weights = (folder / "model.safetensors").read_bytes()
    card |= {"sha256": hashlib.sha256(weights).hexdigest(), "file_bytes": len(weights), "dense_bytes": _bytes(found.whole)}
    if onnx:
        card["onnx"] = "model.onnx"
        _write_onnx(model, tuple(card["architecture"]["input_shape"]), folder / "model.onnx")
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _bytes(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def _plain(mask: Mask) -> dict[str, Tensor]:
    return {name: m.cpu().contiguous() for name, m in mask.items()}


def _rows_and_columns(mask: Mask) -> dict[str, Tensor]:
    """What whole channels leave of each weight: rows that have a weight left, and columns."""
    kept = {f"rows.{name}": m.flatten(1).any(1).cpu() for name, m in mask.items()}
    return kept | {f"columns.{name}": m.transpose(0, 1).flatten(1).any(1).cpu() for name, m in mask.items()}


def _check_onnx() -> None:
    try:
        importlib.import_module("onnxscript")
    except ImportError:
        raise UserError("--onnx needs the packages onnx and onnxscript: pip install 'razorbench[onnx]'") from None


def _write_onnx(model: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """Write the network as ONNX, for batches of any size. Raises UserError if torch cannot express it."""
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (torch.zeros(2, *input_shape),), path, dynamo=True, dynamic_shapes=({0: batch},), external_data=False,
                input_names=["inputs"], output_names=["logits"], verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises its own and torch.export's errors
        raise UserError(f"torch cannot export this network to ONNX: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
