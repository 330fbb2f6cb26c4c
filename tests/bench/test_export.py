"""`export` as a user types it: what is written opens again, without the harness's store, and computes the same."""

import json
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import data
from bench.export import load
from bench.storage.results_csv import read_rows
from bench.trial import metrics

Bench = Callable[..., tuple[int, str, str]]
OPTIONS = ("--suite", "tiny.toml", "--finetune-epochs", "1")
LENET = ("--dataset", "digits", "--architecture", "lenet5")


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("something was unpickled")


@pytest.mark.parametrize(
    ("method", "what", "removed"),
    [
        ("magnitude", ("--granularity", "weight", "--sparsity", "0.9"), 0.9),
        ("spam", ("--granularity", "channel", "--sparsity", "0.5"), 0.5),
        ("snip", ("--granularity", "channel", "--match", "flops", "--sparsity", "0.5"), 0.5),
        ("magnitude_gradual", ("--granularity", "2:4",), 0.5),
    ],
)  # fmt: skip
def test_an_exported_network_is_the_one_of_the_row(
    tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str, what: tuple[str, ...], removed: float
) -> None:
    code, out, _ = bench("export", "--method", method, *OPTIONS, *LENET, *what, "--output", "net")
    assert code == 0, out
    assert sorted(f.name for f in Path("net").iterdir()) == ["card.json", "mask.safetensors", "model.safetensors"]
    monkeypatch.setattr(pickle, "Unpickler", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(torch, "load", never)
    model, card = load("net")
    row = card["row"]
    held_out = data.load("digits", None, validation=0.15).test
    assert metrics.quality(metrics.logits_of(model, held_out), held_out.targets)["nll"] == pytest.approx(row["nll"], rel=1e-6)
    assert row["status"] == "ok"
    assert (row["method"], row["finetune_epochs"], row["accuracy_before_finetune"] is None) == (method, 1, False)
    if "channel" in what:
        assert card["memory_mb"]["pruned"] < card["memory_mb"]["dense"]
        assert sum(p.numel() for p in model.parameters()) == row["parameters_kept"] < row["parameters"]
        assert card["file_bytes"] < card["dense_bytes"]
        share = 1 - row["flops_kept"] / row["flops"] if "flops" in what else row["sparsity_reached"]
        assert share == pytest.approx(removed, abs=0.05)
    raw = data.load("digits", None, validation=0.15)
    assert card["inputs"]["mean"] == pytest.approx(raw.mean.flatten().tolist())
    assert set(card["latency_ms"]) == {"batch_1", "batch_128"}


def test_it_is_the_network_that_run_measures(tiny: Path, bench: Bench) -> None:
    bench("run", *OPTIONS, "--methods", "magnitude", "--workers", "1", "--output", "out", "--sparsities", "0.9", "--seeds", "1")
    bench("export", *OPTIONS, "--method", "magnitude", "--sparsity", "0.9", "--seed", "1", "--output", "net")
    card = json.loads(Path("net/card.json").read_text())
    import pandas as pd

    measured = pd.read_csv("out/results.csv").query("method == 'magnitude'").iloc[0]
    for name in ("accuracy", "nll", "kept_weights", "accuracy_before_finetune"):
        assert card["row"][name] == measured[name]


def test_a_file_that_is_not_the_cards_is_refused(tiny: Path, bench: Bench) -> None:
    bench("export", *OPTIONS, "--method", "random", "--sparsity", "0.5", "--output", "net")
    weights = Path("net/model.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    with pytest.raises(ValueError, match=r"'net' holds no exported network: model\.safetensors is not the file"):
        load("net")
    with pytest.raises(ValueError, match="'nowhere' holds no exported network"):
        load("nowhere")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sparsity", "0.5"], "Missing option '--method'"),
        (["--method", "magnitude"], "--sparsity is required"),
        (["--method", "magnitud", "--sparsity", "0.5"], "did you mean 'magnitude'"),
        (["--method", "magnitude", "--sparsity", "1.5"], "sparsities.0"),
        (["--method", "magnitude", "--sparsity", "0.5", "--granularity", "2:4x"], "unknown granularity '2:4x'"),
        (["--method", "synflow", "--sparsity", "0.5", "--architecture", "vit_micro_patch4", "--dataset", "digits"], "synflow"),
        (["--method", "magnitude", "--sparsity", "0.5", "--output", "."], "'.' is there already"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tiny: Path, bench: Bench, arguments: list[str], said: str) -> None:
    code, _, err = bench("export", *OPTIONS, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not Path("exported").exists()


def test_onnx_gives_the_same_outputs(tiny: Path, bench: Bench) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    bench("export", *OPTIONS, *LENET, "--method", "magnitude", "--sparsity", "0.5", "--granularity", "channel", "--output", "n", "--onnx")
    model, _ = load("n")
    inputs = torch.randn(5, 1, 8, 8)
    (logits,) = runtime.InferenceSession("n/model.onnx").run(None, {"inputs": inputs.numpy()})
    assert torch.allclose(torch.from_numpy(logits), model(inputs), atol=1e-4)


def test_tuned_hyperparameters_come_from_a_folder_of_results(tiny: Path, bench: Bench) -> None:
    """The exported network is the tuned row of the run, and `choose` prints the command."""
    run = ("run", "--suite", "tiny.toml", "--seeds", "0", "--sparsities", "0.5", "--finetune-epochs", "1", "--trials", "2")
    assert bench(*run, "--methods", "magnitude", "--output", "out")[0] == 0
    (row,) = [r for r in read_rows(Path("out/results.csv")) if r.criterion and r.tuning == "tuned"]
    _, out, _ = bench("choose", "out", "--at-most", "parameters=1")
    (command,) = [line.partition("python -m bench ")[2] for line in out.splitlines() if "--tuned" in line]
    assert "--finetune-epochs 1 --tuned out" in command
    code, _, err = bench(*shlex.split(command), "--output", "small")
    assert code == 0, err
    card = json.loads(Path("small/card.json").read_text())
    assert card["hyperparameters"] == json.loads(row.hyperparameters)
    assert card["hyperparameters"]["tuning"]["trials"] == 2
    assert card["row"]["accuracy"] == row.accuracy
