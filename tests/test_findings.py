"""The figures of docs/findings.md about the board `small`, computed a second time from its published rows, by plain loops."""

import csv
import functools
import json
import math
import re
import statistics
from collections import defaultdict
from pathlib import Path

import timm
import torch
from scipy import stats

import methods
from tests.bench.recomputed import area, signed_rank_p

ROOT = Path(__file__).resolve().parents[1]
BOARD = ROOT / "leaderboards" / "small" / "results"
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
BLOCKS = {
    "digits, MLP": ("digits", "mlp"), "digits, LeNet-5": ("digits", "lenet5"), "digits, ViT": ("digits", "vit_micro_patch4"),
    "breast_cancer, MLP": ("breast_cancer", "mlp"), "MNIST, LeNet-5": ("mnist", "lenet5"), "MNIST, MLP": ("mnist", "mlp_256"),
    "MNIST, ViT": ("mnist", "vit_micro_patch4"), "MNIST, ResNet": ("mnist", "test_resnet"),
    "MNIST, EfficientNet": ("mnist", "test_efficientnet"), "CIFAR-10 (JPEG), VGG": ("tar:cifar10-jpeg", "vgg_narrow"),
    "CIFAR-10 (JPEG), ViT": ("tar:cifar10-jpeg", "vit_micro_patch4"),
}  # fmt: skip
Block = tuple[str, str]
S = (0.5, 0.8, 0.9, 0.95, 0.98)


def tables(section: str) -> list[list[list[str]]]:
    """The cells of each table under the heading with this id."""
    (text,) = re.findall(r"\{ #" + section + r" \}\n(.*?)(?=\n##|\Z)", FINDINGS, re.DOTALL)
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]


@functools.cache
def accuracies(method: str, finetuned: int, tuning: str = "default") -> dict[Block, dict[int, dict[float, float]]]:
    """Block -> seed -> sparsity -> accuracy; a failed row has accuracy 0."""
    found: dict[Block, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for path in BOARD.glob("*.csv"):
        for r in csv.DictReader(path.open(encoding="utf-8", newline="")):
            if r["method"] != method:
                break
            if int(r["finetune_epochs"]) == finetuned and r["tuning"] == tuning and r["status"] != "unsupported":
                found[r["dataset"], r["architecture"]][int(r["seed"])][float(r["sparsity"])] = float(r["accuracy"] or 0)
    return found


def percent(method: str, block: Block, sparsity: float) -> float:
    """The mean of three seeds."""
    found = [line[sparsity] for line in accuracies(method, 0)[block].values()]
    assert len(found) == 3
    return 100 * sum(found) / 3


def difference(first: str, second: str, finetuned: int, tuning: str = "default", blocks: int = len(BLOCKS)) -> tuple[float, float]:
    """Difference in area, mean over blocks, and half of its 95 % interval over seeds (Welch and Satterthwaite)."""
    one, other = accuracies(first, finetuned, tuning), accuracies(second, finetuned, tuning)
    assert one.keys() == other.keys() <= set(BLOCKS.values())
    assert len(one) == blocks
    differences, parts = [], []
    for block in one:
        assert one[block].keys() == other[block].keys() == {0, 1, 2}
        apart = [area(one[block][seed]) - area(other[block][seed]) for seed in range(3)]
        differences.append(sum(apart) / 3)
        parts.append(statistics.variance(apart) / 3)
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    return sum(differences) / len(one), float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts)) / len(one)


def test_accuracies_of_the_blocks() -> None:
    columns = [("dense", 0.0), ("dense@spam", 0.0), *((m, s) for s in (0.8, 0.9) for m in ("magnitude", "opd", "spam", "kfac_obs"))]
    lines = tables("small")[2][3:]
    assert [cells[0] for cells in lines] == list(BLOCKS)
    for block, *cells in lines:
        for (method, sparsity), said in zip(columns, cells, strict=True):
            assert abs(percent(method, BLOCKS[block], sparsity) - float(said)) < 0.0501, (block, method, sparsity)


def means(method: str, finetuned: int, tuning: str = "default") -> dict[Block, float]:
    """Block -> mean area over seeds."""
    found = accuracies(method, finetuned, tuning)
    return {block: statistics.mean(area(curve) for curve in seeds.values()) for block, seeds in found.items()}


def after_training() -> list[str]:
    """The methods that are applied after training; the dense networks are none."""
    first = [next(csv.DictReader(path.open(encoding="utf-8", newline=""))) for path in BOARD.glob("*.csv")]
    return [r["method"] for r in first if r["stage"] == "after"]


def test_mean_ranks_and_the_tests_of_friedman_and_nemenyi() -> None:
    lines, methods = tables("small")[0][2:], after_training()
    assert len(methods) == 24
    assert len(lines) == 12
    said = re.findall(r"\(p = (\S+) one-shot, (\S+) fine-tuned\)", FINDINGS)
    for finetuned, p in enumerate(*said):
        areas = {m: means(m, finetuned) for m in methods}
        apart = {(a, b, k): areas[a][k] - areas[b][k] for a in methods for b in methods for k in BLOCKS.values()}
        ranks = {
            m: statistics.mean(
                0.5 + sum(apart[o, m, k] > 1e-12 or (abs(apart[o, m, k]) <= 1e-12) / 2 for o in methods) for k in BLOCKS.values()
            )
            for m in methods
        }
        assert [f"{ranks[name.strip('`')]:.1f}" for name, *_ in lines] == [cells[finetuned] for _, *cells in lines]
        assert f"{stats.friedmanchisquare(*(list(areas[m].values()) for m in methods)).pvalue:.2g}" == p
        if finetuned == 0:
            distance = stats.studentized_range.ppf(0.95, 24, math.inf) / math.sqrt(2) * math.sqrt(24 * 25 / (6 * len(BLOCKS)))
            assert f"two mean ranks must be {distance:.1f} apart" in FINDINGS
            assert ranks["obd"] - ranks["kfac_obs@spam"] > distance > ranks["magnitude"] - ranks["kfac_obs@spam"]
            behind = {m for m in methods if ranks[m] - ranks["spam"] > distance}
            assert behind == {"sparsegpt", "wanda", "wanda@spam", "magnitude_layer", "magnitude_layer@spam", "random", "random@spam"}


def test_differences_of_areas_their_intervals_and_what_blocks_say() -> None:
    lines = tables("small")[1][2:]
    assert len(lines) >= 8
    for pair, *cells in lines:
        first, second = re.findall("`([^`]+)`", pair)
        for finetuned in (0, 1):
            mean, half = difference(first, second, finetuned)
            one, other = means(first, finetuned), means(second, finetuned)
            apart = [one[block] - other[block] for block in BLOCKS.values()]
            said = [f"{mean:+.3f} ± {half:.3f}", str(sum(d > 1e-12 for d in apart)), f"{signed_rank_p(apart):.3f}"]
            assert cells[3 * finetuned : 3 * finetuned + 3] == said, (pair, finetuned)


def test_what_tuning_changes() -> None:
    lines = tables("tuned-small")[0][2:]
    assert len(lines) == 10
    chosen = list(csv.DictReader((BOARD.parent / "tuned.csv").open(encoding="utf-8", newline="")))
    for name, default, tuned, other in lines:
        method = name.strip("`")
        found = means(method, 0, "tuned")
        assert len(found) == 6
        before = [means(method, 0)[block] for block in found]
        assert [f"{statistics.mean(before):.3f}", f"{statistics.mean(found.values()):.3f}"] == [default, tuned], method
        mine = [r for r in chosen if r["method"] == method and r["finetune_epochs"] == "0"]
        assert (len(mine), sum(r["validation_tuned"] != r["validation_default"] for r in mine)) == (6, int(other)), method
    scopes = [
        json.loads(r["hyperparameters"])["criterion"]["scope"] for r in chosen if (r["method"], r["finetune_epochs"]) == ("wanda", "0")
    ]
    assert sorted(scopes) == ["erk", *["lamp"] * 5]
    obc = [r for r in chosen if (r["method"], r["finetune_epochs"]) == ("obc", "0")]
    scope = {(r["dataset"], r["architecture"]): json.loads(r["hyperparameters"])["criterion"]["scope"] for r in obc}
    assert scope == dict.fromkeys(means("obc", 0, "tuned"), "layer") | {
        ("digits", "lenet5"): "lamp", ("digits", "vit_micro_patch4"): "global", ("mnist", "mlp_256"): "global",
    }  # fmt: skip


def test_single_figures_in_the_text() -> None:
    """Each is computed, and found in the sentence that gives it."""
    vgg, net, effnet = BLOCKS["CIFAR-10 (JPEG), VGG"], BLOCKS["MNIST, ResNet"], BLOCKS["MNIST, EfficientNet"]
    tuned = {s: {k: statistics.mean(c[s] for c in accuracies(m, 1)[vgg].values()) for k, m in enumerate(("spam", "magnitude"))} for s in S}
    behind = {s: 100 * (pair[1] - pair[0]) for s, pair in tuned.items()}
    prices = {k: percent("dense", k, 0.0) - percent("dense@spam", k, 0.0) for k in BLOCKS.values()}
    gains = {m: {k: means(m, 0)[k] - means("magnitude", 0)[k] for k in (vgg, net)} for m in ("spam", "magnitude@spam")}
    best = max((m for m in after_training()), key=lambda m: percent(m, effnet, 0.9))
    vit = BLOCKS["CIFAR-10 (JPEG), ViT"]
    fewest = {m: 100 * statistics.mean(c[0.98] for c in accuracies(m, 1)[vit].values()) for m in ("spam", "kfac_obs")}
    apart = [means("spam", 1)[k] - means("obd@spam", 1)[k] for k in BLOCKS.values()]
    for sentence in (
        f"is {prices.pop(vgg):.1f} points of dense accuracy on VGG, and at most {max(prices.values()):.1f} on the other blocks",
        f"behind `magnitude` by {behind[0.5]:.1f} points at 50 % and by {behind[0.8]:.1f} at 80 %, equal at 90 %",
        f"ahead by {-behind[0.95]:.1f} at 95 % and {-behind[0.98]:.1f} at 98 %",
        f"in area to `magnitude` of {gains['magnitude@spam'][vgg]:.3f} and {gains['spam'][vgg]:.3f})",
        f"even worse than `magnitude` ({gains['magnitude@spam'][net]:+.3f}), while `spam` is better ({gains['spam'][net]:+.3f})",
        f"behind on VGG ({means('spam', 1)[vgg] - means('magnitude', 1)[vgg]:+.3f})",
        f"on VGG at 90 % `spam` is {percent('spam', vgg, 0.9) - percent('kfac_obs', vgg, 0.9):.0f} points ahead",
        f"on EfficientNet at 80 % {percent('kfac_obs', effnet, 0.8) - percent('spam', effnet, 0.8):.0f} points behind",
        f"fine-tuned at 98 %, `spam` has {fewest['spam']:.1f}, `kfac_obs` {fewest['kfac_obs']:.1f} (",
        f"at 95 % `magnitude@spam` has {percent('magnitude@spam', BLOCKS['MNIST, LeNet-5'], 0.95):.1f} after",
        f"the best method has {percent(best, effnet, 0.9):.1f} (`{best}`)",
        f"it has {percent('grasp', effnet, 0.9):.1f} (`grasp`), and even {percent('random_init', effnet, 0.9):.1f} (`random_init`)",
        f"`synflow` has {percent('synflow', net, 0.9):.1f} at 90 % and at 99 %",
        f"both have {percent('snip', net, 0.9):.1f} at 90 %, `random_init_erk` {percent('random_init_erk', net, 0.9):.1f}.",
        f"better on {sum(d > 0 for d in apart)} of them, but by {statistics.median(apart):.3f} (median)",
    ):
        assert sentence in " ".join(FINDINGS.split()), sentence
    assert f"{percent('synflow', net, 0.99):.1f}" == f"{percent('synflow', net, 0.9):.1f}"
    assert f"{percent('grasp', net, 0.9):.1f}" == f"{percent('snip', net, 0.9):.1f}"
    assert abs(behind[0.9]) < 0.5


def test_why_synflow_gives_one_class_on_a_residual_network() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    batch = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    mask = methods.prune(model, [batch], method="synflow", sparsity=0.9)
    removed = [name for name, kept in mask.items() if not kept.any()]
    assert removed == ["layer3.0.downsample.1.weight"]
    assert all(bool((parameter == 0).all()) for name, parameter in model.named_parameters() if name == "layer3.0.bn3.weight")
    outputs = model.train()(batch[0])
    assert outputs.std(dim=0).max() == 0
    torch.nn.functional.cross_entropy(outputs, batch[1]).backward()
    assert all(not parameter.grad.any() for name, parameter in model.named_parameters() if name in mask and name != "fc.weight")


def test_differences_of_tuned_methods() -> None:
    (text,) = re.findall(r"tuned, `spam` is better than .*", FINDINGS)
    said = re.findall(r"[+-][\d.]+ ± [\d.]+", text)
    for other, finetuned, wanted in zip(("magnitude", "magnitude", "kfac_obs", "kfac_obs"), (0, 1, 0, 1), said, strict=True):
        mean, half = difference("spam", other, finetuned, "tuned", 6)
        assert wanted == f"{mean:+.3f} ± {half:.3f}"


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
    assert compared == 4 + 6 * 4 + 3 * 6
