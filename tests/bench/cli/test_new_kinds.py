"""Trainings, granularities and metrics of plug-ins: new, check, run; and metrics that `check` must catch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import api, data
from bench.execution import environment
from bench.execution.executors import Inline
from bench.planning.metric_checks import metric_findings
from bench.planning.templates import TEMPLATES
from bench.storage.results_csv import read_rows
from bench.trial import metrics
from bench.trial.metrics import Outputs
from bench.trial.workbench import Workbench

Bench = Callable[..., tuple[int, str, str]]
RUN = ("run", "--suite", "tiny.toml", "--seeds", "0", "--sparsities", "0.5,0.9", "--finetune-epochs", "0", "--output", "out")


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs in this process."""
    monkeypatch.setattr(environment, "open_executor", lambda *_: Inline())
    monkeypatch.setattr(Inline, "close", lambda self: None, raising=False)


@pytest.mark.parametrize(
    ("kind", "options", "clause"),
    [
        ("training", ("--methods", "magnitude@mine"), "the training loss decreases"),
        ("granularity", ("--granularity", "mine", "--methods", "magnitude"), "check raises for a mask of the wrong sparsity"),
        ("metric", ("--methods", "magnitude"), "does not depend on the order of the samples"),
    ],
)
def test_a_template_passes_its_check_and_runs(tiny: Path, bench: Bench, kind: str, options: tuple[str, ...], clause: str) -> None:
    code, out, _ = bench("new", "mine", "--kind", kind)
    assert (code, "python -m bench check mine.py" in out) == (0, True)
    code, out, _ = bench("check", "mine.py")
    assert code == 0
    assert f"{kind} mine" in out
    assert f"ok    {clause}" in out
    code, _, err = bench(*RUN, "--plugin", "mine.py", *options)
    assert code == 0, err
    rows = [r for r in read_rows(Path("out/results.csv")) if r.criterion]
    assert {(r.status, r.sparsity) for r in rows} == {("ok", 0.5), ("ok", 0.9)}
    if kind == "training":
        assert {r.training for r in rows} == {"mine"}
    if kind == "granularity":
        assert {r.granularity for r in rows} == {"mine"}


def test_values_of_a_metric_are_in_rows_and_leaderboard(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench("new", "confidence", "--kind", "metric")
    seen: list[float] = []
    measure = Workbench.measure

    def watched(self: Workbench, network: metrics.Any) -> metrics.Any:
        """Independent: the mean over test samples, one at a time, of the largest softmax probability."""
        split, model = data.load("breast_cancer", None).test, network.problem.model.eval()
        with torch.no_grad():
            exps = [[float(v) for v in model(x[None])[0].double().exp()] for x in split.read()]
        seen.append(sum(max(e) / sum(e) for e in exps) / len(exps))
        return measure(self, network)

    monkeypatch.setattr(Workbench, "measure", watched)
    code, out, _ = bench(*RUN, "--plugin", "confidence.py", "--methods", "magnitude")
    assert code == 0
    rows = list(read_rows(Path("out/results.csv")))
    shown = [json.loads(r.plugin_metrics)["confidence"] for r in rows]
    assert sorted(shown) == pytest.approx(sorted(seen), rel=1e-5)
    board = api.leaderboard(rows)
    first, second = (v for v, r in zip(shown, rows, strict=True) if r.criterion)
    assert board["area_confidence"].tolist() == pytest.approx([(first + second) / 2])
    assert "confidence" in out
    listed = bench("list", "metrics", "--plugin", "confidence.py")[1]
    assert "accuracy" in listed
    assert "confidence" in listed


def test_an_edited_metric_is_computed_again(tiny: Path, bench: Bench) -> None:
    file = Path("mine.py")
    values = []
    for number in (1, 2, 2):
        file.write_text(f"import bench\n\n\n@bench.metric\ndef mine(outputs):\n    return {number} * len(outputs.targets)\n")
        code, _, err = bench(*RUN, "--plugin", "mine.py", "--methods", "magnitude")
        assert code == 0, err
        values.append({json.loads(r.plugin_metrics)["mine"] for r in read_rows(Path("out/results.csv"))})
    assert values == [{114.0}, {228.0}, {228.0}]
    file.write_text("import bench\n\n\n@bench.metric\ndef other(outputs):\n    return None\n")
    bench(*RUN, "--plugin", "mine.py", "--methods", "magnitude")
    assert {r.plugin_metrics for r in read_rows(Path("out/results.csv"))} == {'{"other": null}'}


def test_a_wrong_metric_fails_its_rows_only(tiny: Path, bench: Bench) -> None:
    Path("mine.py").write_text("import bench\n\n\n@bench.metric\ndef mine(outputs):\n    return outputs.logits\n")
    bench(*RUN, "--plugin", "mine.py", "--methods", "magnitude")
    rows = list(read_rows(Path("out/results.csv")))
    assert {r.status for r in rows} == {"failed"}
    assert all("metric 'mine' returned a Tensor, not a number or None" in r.error for r in rows)


@pytest.mark.parametrize("name", ["accuracy", "flops"])
def test_a_metric_with_the_name_of_a_column_is_refused(tiny: Path, bench: Bench, name: str) -> None:
    Path("mine.py").write_text(f"import bench\n\n\n@bench.metric\ndef {name}(outputs):\n    return 0.0\n")
    code, out, err = bench(*RUN, "--plugin", "mine.py", "--methods", "magnitude")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"there already is a column or metric '{name}'" in err
    assert bench("new", name, "--kind", "metric")[0] == 2


def first_label(outputs: Outputs) -> float:
    return float(outputs.targets[0])


def in_place(outputs: Outputs) -> float:
    return float(outputs.logits.abs_().mean())


def infinite(outputs: Outputs) -> float:
    return float(outputs.logits.exp().mean())


def listed(outputs: Outputs) -> list[float]:
    return outputs.probabilities.amax(1).tolist()


def needs_two(outputs: Outputs) -> float:
    return float(outputs.probabilities[1].amax())


@pytest.mark.parametrize(
    ("metric", "clause", "said"),
    [
        (first_label, "does not depend on the order of the samples", "in another order"),
        (in_place, "does not change the outputs", "changed logits in place"),
        (infinite, "returns a finite number or None", "returned inf, for certain predictions"),
        (listed, "returns a finite number or None", "returned a list"),
        (needs_two, "returns a finite number or None", "IndexError"),
    ],
)
def test_check_catches_wrong_metrics(metric: metrics.Metric, clause: str, said: str) -> None:
    broken = {f.clause: f.error for f in metric_findings("m", metric) if f.error}
    assert said in broken[clause]


def test_check_passes_the_harness_own_metrics() -> None:
    for name, metric in metrics.METRICS.items():
        assert [f.error for f in metric_findings(name, metric) if f.error] == [], name


def test_the_help_of_new_names_every_kind(bench: Bench) -> None:
    code, out, _ = bench("new", "--help")
    assert code == 0
    assert [kind for kind in TEMPLATES if kind not in out] == []
