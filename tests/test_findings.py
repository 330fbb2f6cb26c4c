"""The figures of docs/findings.md about the board `small`, computed a second time from its published rows, by plain loops."""

import csv
import itertools
import math
import re
import statistics
from collections import defaultdict
from pathlib import Path

from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
BOARD = ROOT / "leaderboards" / "small" / "results"
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
BLOCKS = {
    "digits, MLP": ("digits", "mlp"), "digits, LeNet-5": ("digits", "lenet5"), "digits, ViT": ("digits", "vit_micro_patch4"),
    "breast_cancer, MLP": ("breast_cancer", "mlp"), "MNIST, LeNet-5": ("mnist", "lenet5"), "MNIST, MLP": ("mnist", "mlp_256"),
    "MNIST, ViT": ("mnist", "vit_micro_patch4"), "MNIST, EfficientNet": ("mnist", "test_efficientnet"),
    "CIFAR-10 (JPEG), VGG": ("tar:cifar10-jpeg", "vgg_narrow"),
}  # fmt: skip
Block = tuple[str, str]


def tables(section: str) -> list[list[list[str]]]:
    """The cells of each table under the heading with this id."""
    (text,) = re.findall(r"\{ #" + section + r" \}\n(.*?)(?=\n##|\Z)", FINDINGS, re.DOTALL)
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]


def accuracies(method: str, finetuned: int) -> dict[Block, dict[int, dict[float, float]]]:
    """Block -> seed -> sparsity -> accuracy; a failed row has accuracy 0."""
    found: dict[Block, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for path in BOARD.glob("*.csv"):
        for r in csv.DictReader(path.open(encoding="utf-8", newline="")):
            if r["method"] != method:
                break
            if int(r["finetune_epochs"]) == finetuned and r["tuning"] == "default" and r["status"] != "unsupported":
                found[r["dataset"], r["architecture"]][int(r["seed"])][float(r["sparsity"])] = float(r["accuracy"] or 0)
    return found


def percent(method: str, block: Block, sparsity: float) -> float:
    """The mean of three seeds."""
    found = [line[sparsity] for line in accuracies(method, 0)[block].values()]
    assert len(found) == 3
    return 100 * sum(found) / 3


def area(curve: dict[float, float]) -> float:
    """The area under accuracies against sparsity, divided by its width."""
    places = sorted(curve)
    parts = [(b - a) * (curve[a] + curve[b]) / 2 for a, b in itertools.pairwise(places)]
    return sum(parts) / (places[-1] - places[0])


def difference(first: str, second: str, finetuned: int) -> tuple[float, float]:
    """Difference in area, mean over blocks, and half of its 95 % interval over seeds (Welch and Satterthwaite)."""
    one, other = accuracies(first, finetuned), accuracies(second, finetuned)
    assert one.keys() == other.keys() == set(BLOCKS.values())
    means, parts = [], []
    for block in one:
        assert one[block].keys() == other[block].keys() == {0, 1, 2}
        apart = [area(one[block][seed]) - area(other[block][seed]) for seed in range(3)]
        means.append(sum(apart) / 3)
        parts.append(statistics.variance(apart) / 3)
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    return sum(means) / len(means), float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts)) / len(means)


def test_accuracies_of_the_blocks() -> None:
    columns = [("dense", 0.0), ("dense@spam", 0.0), *((m, s) for s in (0.8, 0.9) for m in ("magnitude", "opd", "spam", "kfac_obs"))]
    lines = tables("small")[0][3:]
    assert [cells[0] for cells in lines] == list(BLOCKS)
    for block, *cells in lines:
        for (method, sparsity), said in zip(columns, cells, strict=True):
            assert abs(percent(method, BLOCKS[block], sparsity) - float(said)) < 0.0501, (block, method, sparsity)


def test_differences_of_areas_and_their_intervals() -> None:
    lines = tables("small")[1][2:]
    assert len(lines) >= 8
    for pair, *cells in lines:
        first, second = re.findall("`([^`]+)`", pair)
        for finetuned, said in enumerate(cells):
            mean, half = difference(first, second, finetuned)
            assert said == f"{mean:+.3f} ± {half:.3f}", (pair, finetuned)


def test_dense_networks_and_methods_at_initialisation_and_with_regrowth() -> None:
    compared = 0
    for block, here, *_ in tables("dense")[0][2:]:
        assert f"{percent('dense', BLOCKS[block], 0.0):.1f}" == here, block
        compared += 1
    for section in ("initialisation", "regrowth-small"):
        header, _, *lines = tables(section)[0]
        for method, *cells in lines:
            for name, said in zip(header[1:], cells, strict=True):
                block, _, sparsity = name.rpartition(", ")
                found = percent(method.split("`")[1], BLOCKS[block], float(sparsity.removesuffix(" %")) / 100)
                assert f"{found:.1f}" == said, (section, method, name)
                compared += 1
    assert compared == 3 + 6 * 4 + 3 * 4
