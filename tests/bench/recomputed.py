"""leaderboard.csv and tuned.csv computed a second time from results/*.csv (protocol, rule 14): plain loops, no pandas, no numpy.

Nothing here comes from `bench`. Of scipy, only the distributions are taken.
"""

import csv
import itertools
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from scipy import stats

Record = dict[str, str]
Block = tuple[str, str]
Key = tuple[str, str, int]  # data set, architecture, seed
Curve = dict[float, float]  # sparsity -> accuracy / dense accuracy
ORDER = ["one-shot after training", "one-shot while training", "one-shot at initialisation"]
AT_SPARSITY = {"accuracy_90": 0.9, "accuracy_95": 0.95, "accuracy_99": 0.99, "nll_95": 0.95, "ece_95": 0.95}


def read(folder: Path) -> list[Record]:
    """Every record of results/*.csv."""
    records = []
    for path in sorted((folder / "results").glob("*.csv")):
        with path.open(newline="") as file:
            records += list(csv.DictReader(file))
    return records


def number(text: str) -> float | None:
    return float(text) if text != "" else None


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def block_of(record: Record) -> Block:
    return record["dataset"], record["architecture"]


def epochs_of(record: Record) -> int:
    return int(record["epochs"]) + int(record["finetune_epochs"])


def accuracy(record: Record) -> float:
    return 0.0 if record["status"] == "failed" else float(record["accuracy"])


def track_of(record: Record) -> str:
    finetuned = int(record["finetune_epochs"])
    stage = {"after": ORDER[0], "during": ORDER[1], "init": ORDER[2]}[record["stage"]]
    name = f"fine-tuned {finetuned} epochs" if finetuned else stage
    if record["granularity"] != "weight":
        name += ", " + record["granularity"]
    return name if record["match"] == "weights" else name + ", equal " + record["match"]


def leaderboard(records: list[Record]) -> list[dict[str, Any]]:
    """The lines of leaderboard.csv, in order: None is an empty cell."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["stage"]:
            groups[track_of(record), record["tuning"]].append(record)
    lines = []
    for name, tuning in sorted(groups, key=lambda g: (ORDER.index(g[0].split(",")[0]) if g[0].split(",")[0] in ORDER else 9, *g)):
        board = one_board(groups[name, tuning], records)
        lines += [{"track": name, "tuning": tuning, **line} for line in board]
    return lines


def one_board(rows: list[Record], everything: list[Record]) -> list[dict[str, Any]]:
    methods: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        methods[row["method"] + (f" ({row['ablation']})" if row["ablation"] != "none" else "")].append(row)
    dense = [
        r for r in everything
        if r["method"] == "dense" and r["tuning"] == "default" and r["finetune_epochs"] == rows[0]["finetune_epochs"]
    ]  # fmt: skip
    divisors = {m: denominators([r for r in own if r["status"] != "unsupported"], dense) for m, own in methods.items()}
    curves = {m: relative_curves(own, divisors[m]) for m, own in methods.items()}
    lines = [one_line(m, own, divisors[m], curves) for m, own in methods.items()]
    networks = [r for r in everything if not r["stage"]]
    ranked = [m for m, own in methods.items() if curves[m] and not any(r["ablation"] != "none" or too_long(r, networks) for r in own)]
    means = {line["method"]: line["relative_area"] for line in lines}
    failed = {m for m, own in methods.items() if any(r["status"] == "failed" for r in own)}
    ranks = rank_ranges(ranked, {m: curves[m] for m in ranked}, means, failed)
    for line in lines:
        low, high = ranks.get(line["method"], (None, None))
        line.update(rank=low, rank_low=low, rank_high=high)
    return sorted(lines, key=lambda line: (line["relative_area"] is None, -round(line["relative_area"] or 0.0, 10), line["method"]))


def denominators(ran: list[Record], dense: list[Record]) -> dict[Block, float]:
    found = {}
    for block in sorted({block_of(r) for r in ran}):
        reference = [r for r in dense if block_of(r) == block]
        if sum(r["status"] in ("collapsed", "failed") for r in reference) >= len(reference) / 2 and reference:
            continue
        found[block] = mean([float(r["accuracy"]) for r in reference if r["accuracy"]])
        if found[block] is None:
            found[block] = mean([float(r["dense_accuracy"]) for r in ran if block_of(r) == block and r["dense_accuracy"]])
        assert found[block], f"nothing to divide by on {block}"
    return found


def relative_curves(rows: list[Record], divisors: dict[Block, float]) -> dict[Key, Curve]:
    curves: dict[Key, Curve] = defaultdict(dict)
    for row in rows:
        if row["status"] != "unsupported" and block_of(row) in divisors:
            curves[(*block_of(row), int(row["seed"]))][float(row["sparsity"])] = accuracy(row) / divisors[block_of(row)]
    return dict(curves)


def too_long(row: Record, networks: list[Record]) -> bool:
    budgets = [int(r["epochs"]) for r in networks if block_of(r) == block_of(row)]
    return bool(budgets) and int(row["epochs"]) > min(budgets)


def area(curve: Curve) -> float:
    points = sorted(curve.items())
    if len(points) == 1:
        return points[0][1]
    total = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
    return total / (points[-1][0] - points[0][0])


def signed_rank_p(differences: list[float]) -> float:
    """Wilcoxon's p-value by definition: the share of all ways to give signs to the ranks that are at least as far from even. No ties."""
    ranks = [sum(abs(other) <= abs(mine) for other in differences) for mine in differences]
    found = abs(sum(rank if d > 0 else -rank for rank, d in zip(ranks, differences, strict=True)))
    ways = [abs(sum(r * s for r, s in zip(ranks, signs, strict=True))) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    return sum(way >= found for way in ways) / len(ways)


def by_block(values: dict[Key, float]) -> dict[Block, list[float]]:
    blocks: dict[Block, list[float]] = defaultdict(list)
    for (dataset, architecture, _), value in values.items():
        blocks[dataset, architecture].append(value)
    return blocks


class Sample:
    """Mean of block means with its standard error and Welch-Satterthwaite degrees of freedom, by the textbook."""

    def __init__(self, values: dict[Key, float]) -> None:
        blocks = list(by_block(values).values())
        self.mean = sum(sum(b) / len(b) for b in blocks) / len(blocks)
        self.known = all(len(b) > 1 for b in blocks)
        if not self.known:
            return
        squares = [sum((v - sum(b) / len(b)) ** 2 for v in b) for b in blocks]
        parts = [s / (len(b) - 1) / len(b) / len(blocks) ** 2 for s, b in zip(squares, blocks, strict=True)]
        self.error = math.sqrt(sum(parts))
        if all(abs(v - sum(b) / len(b)) < 1e-12 for b in blocks for v in b):
            self.error = 0.0
        self.most = sum(len(b) - 1 for b in blocks)
        self.least = min(len(b) - 1 for b in blocks)
        self.std = math.sqrt(sum(squares) / self.most) if self.error else 0.0
        self.df = sum(parts) ** 2 / sum(p**2 / (len(b) - 1) for p, b in zip(parts, blocks, strict=True)) if self.error else float(self.most)


def rank_ranges(
    names: list[str], curves: dict[str, dict[Key, Curve]], means: dict[str, Any], failed: set[str]
) -> dict[str, tuple[int, int]]:
    better = set()
    samples = {}
    for a, b in itertools.combinations(names, 2):
        differences = {}
        for key in curves[a].keys() & curves[b].keys():
            common = curves[a][key].keys() & curves[b][key].keys()
            if common:
                differences[key] = area({s: curves[a][key][s] - curves[b][key][s] for s in common})
        if differences and Sample(differences).known:
            samples[a, b] = Sample(differences)
    if len(names) > 1 and len({seed for curve in curves.values() for _, _, seed in curve}) < 2:
        return {}
    if samples:
        noisy = [s for s in samples.values() if s.error > 0]
        least = min(s.least for s in samples.values())
        df = (len(noisy) + 0.5) / (sum(1 / s.df for s in noisy) + 0.5 / least) if noisy else least
        steady = [s.error for pair, s in samples.items() if not failed.intersection(pair)]
        error = statistics.median(steady) if steady else 0.0
        critical = stats.t.isf(0.05 / len(samples) / 2, df)
        if error > 0 and stats.nct.sf(critical, df, 0.5 / error) <= 0.8:
            return {}
        p = {}
        for pair, s in samples.items():
            exact = 1.0 if abs(s.mean) < 1e-12 else 0.0
            p[pair] = 2 * stats.t.sf(abs(s.mean) / s.error, min(df, s.most)) if s.error > 0 else exact
        for place, pair in enumerate(sorted(p, key=lambda pair: p[pair])):  # Holm: stop at the first that is not significant
            if p[pair] >= 0.05 / (len(p) - place):
                break
            better.add(pair if samples[pair].mean > 0 else pair[::-1])
    for a, b in itertools.permutations(names, 2):
        if b in failed and a not in failed and means[a] > means[b] and (b, a) not in better:
            better.add((a, b))
    return {m: (1 + sum(w == m for _, w in better), len(names) - sum(g == m for g, _ in better)) for m in names}


def one_line(method: str, rows: list[Record], divisors: dict[Block, float], curves: dict[str, dict[Key, Curve]]) -> dict[str, Any]:
    empty = [
        "relative_area", "relative_area_low", "relative_area_high", "relative_area_std", "sparsity_within_one_point", *AT_SPARSITY,
        "scoring_epochs", "wins", "ties", "losses", "training_flops_share",
    ]  # fmt: skip
    line: dict[str, Any] = dict.fromkeys(empty)
    ran = [r for r in rows if r["status"] != "unsupported"]
    line |= {s: sum(r["status"] == s for r in rows) for s in ("failed", "collapsed", "unsupported")}
    line |= {"method": method, "rows": len(rows), "blocks": len(divisors), "seeds": len({r["seed"] for r in ran})}
    line["epochs"] = mean([float(epochs_of(r)) for r in rows])
    further = {f"accuracy_{100 * s:g}": s for s in {float(r["sparsity"]) for r in ran}}
    for name, sparsity in (further | AT_SPARSITY).items():
        line[name] = mean_at(ran, name.split("_")[0], sparsity)
    costs = [
        float(r["score_seconds"]) / (float(r["train_seconds"]) / epochs_of(r)) for r in ran if r["score_seconds"] and r["train_seconds"]
    ]
    line["scoring_epochs"] = statistics.median(costs) if costs else None
    trained = [int(r["training_flops"]) / int(r["dense_training_flops"]) for r in ran if r["dense_training_flops"] not in ("", "0")]
    line["training_flops_share"] = mean(trained) if trained else None
    if curves[method]:
        sample = Sample({key: area(curve) for key, curve in curves[method].items()})
        line["relative_area"] = sample.mean
        if sample.known:
            half = stats.t.ppf(0.975, sample.df) * sample.error
            most = sum(1 / d for d in divisors.values()) / len(divisors)
            line["relative_area_low"], line["relative_area_high"] = max(0.0, sample.mean - half), min(most, sample.mean + half)
            line["relative_area_std"] = sample.std
        line["sparsity_within_one_point"] = mean([within(ran, block, dense) for block, dense in divisors.items()])
    if ran and any(curves.get("magnitude", {})):
        signs = []
        for key in curves[method].keys() & curves["magnitude"].keys():
            mine, other = curves[method][key], curves["magnitude"][key]
            common = mine.keys() & other.keys()
            if common:
                signs.append(round(area({s: mine[s] - other[s] for s in common}), 12))
        line |= {"wins": sum(s > 0 for s in signs), "ties": sum(s == 0 for s in signs), "losses": sum(s < 0 for s in signs)}
    return line


def mean_at(ran: list[Record], column: str, sparsity: float) -> float | None:
    means = []
    for block in {block_of(r) for r in ran}:
        rows = [r for r in ran if block_of(r) == block and abs(float(r["sparsity"]) - sparsity) < 1e-6]
        values = [accuracy(r) if column == "accuracy" else number(r[column]) for r in rows]
        value = mean([v for v in values if v is not None])
        means += [value] if value is not None else []
    return mean(means)


def within(ran: list[Record], block: Block, dense: float) -> float:
    """Where the mean curve, which starts at (0, dense), first falls below dense - 0.01; its last sparsity if it never does."""
    heights: dict[float, list[float]] = defaultdict(list)
    for row in ran:
        if block_of(row) == block:
            heights[float(row["sparsity"])].append(accuracy(row))
    points = [(0.0, dense), *((s, sum(v) / len(v)) for s, v in sorted(heights.items()))]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y1 < dense - 0.01 - 1e-12:
            return x0 + (x1 - x0) * (y0 - (dense - 0.01)) / (y0 - y1)
    return points[-1][0]


def tuned(records: list[Record]) -> list[dict[str, Any]]:
    """The lines of tuned.csv, in any order."""
    names = ("dataset", "architecture", "granularity", "match", "method", "finetune_epochs")
    cells: dict[tuple[str, ...], dict[str, list[Record]]] = defaultdict(lambda: {"default": [], "tuned": []})
    for r in records:
        if r["criterion"] and r["ablation"] == "none" and r["status"] != "unsupported":
            cells[tuple(r[name] for name in names)][r["tuning"]].append(r)
    lines = []
    for cell, found in cells.items():
        if not found["tuned"]:
            continue
        said = json.loads(found["tuned"][0]["hyperparameters"])
        search = said.pop("tuning")
        before, after = mean_area(found["default"]), mean_area(found["tuned"])
        lines.append({
            **dict(zip(names, cell, strict=True)), "finetune_epochs": int(cell[-1]), "trials": search["trials"],
            "tuning_epochs": search["epochs"], "validation_default": search["validation"]["default"],
            "validation_tuned": search["validation"]["tuned"], "area_default": before, "area_tuned": after,
            "gain": None if before is None else after - before, "seeds": len({r["seed"] for r in found["tuned"]}), "hyperparameters": said,
        })  # fmt: skip
    return lines


def mean_area(rows: list[Record]) -> float | None:
    curves: dict[str, Curve] = defaultdict(dict)
    for row in rows:
        curves[row["seed"]][float(row["sparsity"])] = accuracy(row)
    return mean([area(curve) for curve in curves.values()])
