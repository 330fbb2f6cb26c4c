"""The page docs/which_method.md, done as a reader would: its commands in order, on a trained timm network and a folder of images."""

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bench import export
from bench.spec.row import Row
from bench.storage.results_csv import read_rows
from tests.bench.repositories import Once

Bench = Callable[..., tuple[int, str, str]]
PAGE = Path(__file__).parents[3] / "docs" / "which_method.md"
LESS = ("--methods", "random,magnitude,obd", "--sparsities", "0.2,0.4", "--seeds", "0,1", "--calibration", "64")
CLASSES = ("bars", "dots", "stripes")


def image(kind: int, generator: np.random.Generator) -> np.ndarray:
    """A noisy image of 32x32: vertical bars, single dots or horizontal stripes."""
    canvas = generator.integers(0, 120, (32, 32, 3))
    first, step = generator.integers(0, 4), 4
    place = (slice(None), slice(first, None, step)) if kind == 0 else (slice(first, None, step), slice(None))
    canvas[place if kind != 1 else (slice(first, None, step), slice(first, None, step))] += 100
    return canvas.astype(np.uint8)


def pixels(part: Path) -> tuple[Tensor, Tensor]:
    """The images of a part as the network sees them, with the moments of the page, and their labels."""
    files = [(file, k) for k, name in enumerate(CLASSES) for file in sorted((part / name).iterdir())]
    raw = torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f, _ in files]).float() / 255
    return (raw - 0.5) / 0.25, torch.tensor([k for _, k in files])


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(inputs).argmax(1) == labels).double().mean())


@pytest.fixture
def trained(tmp_path: Path, once: Once, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """`shapes/` and `net.safetensors` in an empty working folder; the network, trained without this project."""
    monkeypatch.chdir(tmp_path)
    return copy.deepcopy(once.into(tmp_path, _trained))


def _trained() -> nn.Module:
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 30)):
        for kind, name in enumerate(CLASSES):
            folder = Path("shapes") / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(image(kind, generator)).save(folder / f"{k}.png")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    inputs, labels = pixels(Path("shapes/train"))
    for _ in range(12):
        for chosen in torch.randperm(len(labels)).split(24):
            optimizer.zero_grad()
            F.cross_entropy(model.train()(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
    save_file(model.state_dict(), "net.safetensors")
    return model


def commands() -> list[list[str]]:
    """The commands of the page, without `python -m bench`."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[3:] for line in lines]


def test_from_the_first_command_to_the_exported_file(trained: nn.Module, bench: Bench) -> None:
    run, budget, smallest, exporting = commands()
    code, out, err = bench(*run, *LESS)
    assert code == 0, err
    rows = list(read_rows(Path("results/results.csv")))
    inputs, labels = pixels(Path("shapes/test"))
    dense = accuracy(trained, inputs, labels)
    assert dense > 0.9
    _check_rows(rows)
    for shown in ("one-shot on given weights, channel, equal flops, batch norm recalibrated", "20%", "Pareto front", "FLOPs"):
        assert " ".join(shown.split()) in " ".join(out.split()), shown

    code, out, err = bench(*budget)
    assert (code, err) == (0, "")
    offered = [shlex.split(line.partition("python -m bench ")[2]) for line in out.splitlines() if "export it" in line]
    assert [line[line.index("--finetune-epochs") + 1] for line in offered] == ["0", "2"], "one for each track"
    code, out, err = bench(*smallest)
    assert (code, err) == (0, "")
    assert "fewest FLOPs with loss of accuracy of at most 2 %" in out

    code, out, err = bench(*exporting)
    assert code == 0, err
    small, card = export.load("small")
    (row,) = [r for r in rows if (r.method, r.sparsity, r.finetune_epochs, r.seed) == ("obd", 0.4, 2, 0)]
    assert accuracy(small, inputs, labels) == row.accuracy == card["row"]["accuracy"]
    assert (card["inputs"]["mean"], card["inputs"]["std"]) == ([127.5] * 3, [63.75] * 3)
    assert sum(p.numel() for p in small.parameters()) == row.parameters_kept
    code, out, err = bench(*offered[0])
    assert code == 0, err
    assert len(list(Path("exported").iterdir())) == 1


def _check_rows(rows: list[Row]) -> None:
    assert {r.status for r in rows} == {"ok"}
    assert len(rows) == 2 * 2 * (1 + 3 * 2)  # seeds, lengths of fine-tuning, dense and three methods at two sparsities
    for row in rows:
        assert (row.epochs, row.recalibration, row.calibration_samples) == (0, "batchnorm", 64)
        assert row.initial_weights.startswith("sha256:")
        if row.criterion:
            assert row.match_reached == pytest.approx(1 - (row.flops_kept or 0) / (row.flops or 1))
            assert row.match_reached == pytest.approx(row.sparsity, abs=0.05)
            assert (row.latency_ms or 0) > 0
    assert json.loads(rows[0].hyperparameters)["training"]


def test_without_recalibration_the_dense_row_is_the_given_network(trained: nn.Module, bench: Bench) -> None:
    inputs, labels = pixels(Path("shapes/test"))
    given = ("--weights", "net.safetensors", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    where = ("--datasets", "folder:shapes", "--architectures", "test_resnet", "--epochs", "0", "--trials", "0", "--finetune-epochs", "0")
    code, _, err = bench("run", *where, *given, "--seeds", "0", "--sparsities", "0.5", "--methods", "magnitude", "--output", "out")
    assert code == 0, err
    dense, pruned = list(read_rows(Path("out/results.csv")))
    assert dense.accuracy == accuracy(trained, inputs, labels)
    # Independent: half of all weights of convolutions and of the last layer, by magnitude.
    weights = [p for n, p in trained.named_parameters() if p.dim() > 1]
    values = torch.cat([w.detach().abs().flatten() for w in weights])
    threshold = values.sort().values[round(0.5 * len(values)) - 1]
    with torch.no_grad():
        for w in weights:
            w.mul_(w.abs() > threshold)
    assert pruned.accuracy == accuracy(trained, inputs, labels)
    assert pruned.kept_weights == len(values) - round(0.5 * len(values))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights", "net.safetensors", "--calibration", "500"], "calibration = 500, but dataset 'folder:shapes' has"),
        (["--weights", "net.safetensors", "--methods", "spam"], "'spam' trains its networks by 'spam'"),
        (["--weights", "net.safetensors", "--methods", "snip"], "'snip' prunes before training"),
        (["--weights", "net.safetensors", "--ablate", "reinit"], "--ablate reinit trains new weights"),
        ([], "would have random weights: give --pretrained or --weights FILE"),
        (["--weights", "net.safetensors", "--pretrained"], "pretrained"),
        (["--weights", "net.safetensors", "--mean", "0.5"], "mean: mean and std must both be given"),
        (["--weights", "net.safetensors", "--mean", "0.5", "--std", "0.5"], "has 3 channels, but mean and std have 1 numbers"),
    ],
)
def test_a_mistake_is_one_line(trained: nn.Module, bench: Bench, options: list[str], said: str) -> None:
    where = ("--datasets", "folder:shapes", "--architectures", "test_resnet", "--epochs", "0", "--trials", "0")
    code, _, err = bench("run", *where, *options)
    assert (code, err.count("\n")) == (2, 1), err
    assert said in err


def test_choose_says_what_a_budget_is(trained: nn.Module, bench: Bench) -> None:
    for options, said in (
        (["--at-most", "flop=0.5"], "did you mean 'flops'?"),
        (["--at-most", "flops"], "must be flops=FRACTION"),
        (["--at-most", "flops=50"], "in [0, 1], got 50"),
        (["--smallest", "size"], "--smallest"),
        ([], "neither a results.csv nor a folder"),
    ):
        code, out, err = bench("choose", "nothing", *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err


def test_a_recalibrated_network_has_the_statistics_of_one_pass_over_the_calibration_samples(trained: nn.Module, bench: Bench) -> None:
    """All 120 training images are calibration samples, so that their order does not matter."""
    given = ("--weights", "net.safetensors", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--calibration", "120")
    options = ("--granularity", "weight", "--match", "weights", "--sparsity", "0.5", "--method", "magnitude", "--output", "sparse")
    where = ("--suite", "trained", "--dataset", "folder:shapes", "--architecture", "test_resnet")
    code, _, err = bench("export", *where, *given, *options)
    assert code == 0, err
    model, _ = export.load("sparse")
    before = {n: b.clone() for n, b in trained.named_buffers() if "running" in n}
    found = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.train().momentum = 1.0
    with torch.no_grad():
        model(pixels(Path("shapes/train"))[0])
    again = dict(model.named_buffers())
    for name, value in found.items():
        torch.testing.assert_close(value, again[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(value, before[name], rtol=0.05) for name, value in found.items())


COUNTING = """
import methods
from dataclasses import dataclass
from pathlib import Path


@methods.register("counting")
@dataclass(frozen=True, kw_only=True)
class Counting(methods.Criterion):
    "Magnitude; writes down which training images it may read."

    def score(self, problem):
        images = [x for batch, _ in problem.read() for x in batch]
        with Path("seen.txt").open("a") as file:
            print(problem.seed, problem.samples, *sorted(f"{float(x.double().sum()):.6f}" for x in images), file=file)
        return methods.Scores({n: w.detach().abs() for n, w in problem.weights.items()})
"""


def test_methods_read_as_many_training_images_as_the_budget_says(trained: nn.Module, bench: Bench) -> None:
    Path("counting.py").write_text(COUNTING)
    where = ("--suite", "trained", "--datasets", "folder:shapes", "--architectures", "test_resnet", "--weights", "net.safetensors")
    more = ("--granularity", "weight", "--match", "weights", "--sparsities", "0.5", "--seeds", "0,1", "--finetune-epochs", "0")
    methods = ("--methods", "counting", "--plugin", "counting.py")
    code, _, err = bench("run", *where, *more, *methods, "--calibration", "50", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    assert code == 0, err
    every = pixels(Path("shapes/train"))[0].double().sum((1, 2, 3))
    seen = {line.split()[0]: line.split()[1:] for line in Path("seen.txt").read_text().splitlines()}
    assert set(seen) == {"0", "1"}
    for samples, *images in seen.values():
        assert (samples, len(images)) == ("50", 50)
    assert seen["0"] != seen["1"], "a seed draws them"
    for value in seen["0"][1:]:
        assert float((every - float(value)).abs().min()) < 0.01, "a training image"
