"""Granularities through the harness: what rows say of smaller networks and of patterns, and what does not go together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.execution import environment
from bench.execution.executors import Inline
from bench.planning import catalogue
from bench.ranking import leaderboard
from bench.storage.results_csv import read_rows
from bench.trial import cost
from bench.trial.network import Network
from bench.trial.workbench import Workbench
from bench.trial.workbench import cost as workbench_cost

Bench = Callable[..., tuple[int, str, str]]
OPTIONS = ("--suite", "tiny.toml", "--seeds", "0", "--workers", "1", "--output", "out")
LENET = ("--datasets", "digits", "--architectures", "lenet5")


@pytest.fixture(params=["weights", "parameters", "flops"])
def match(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_channels_are_gone_at_the_share_asked_for(tiny: Path, bench: Bench, match: str) -> None:
    methods = "magnitude,spam,snip,magnitude_gradual,magnitude_iterative,woodfisher,snip_iterative"
    code, _, _ = bench("run", *OPTIONS, *LENET, "--methods", methods, "--granularity", "channel", "--match", match, "--sparsities", "0.5")
    assert code == 0
    rows = [row for row in read_rows(Path("out/results.csv")) if row.criterion]
    assert len(rows) == 14
    for row in rows:
        assert (row.status, row.error, row.granularity, row.match, row.sparsity) == ("ok", "", "channel", match, 0.5)
        assert row.sparsity_reached == 1 - (row.kept_weights or 0) / (row.prunable_weights or 1)
        reached = {
            "weights": row.sparsity_reached,
            "parameters": 1 - (row.parameters_kept or 0) / (row.parameters or 1),
            "flops": 1 - (row.flops_kept or 0) / (row.flops or 1),
        }
        assert row.match_reached == pytest.approx(reached[match], abs=1e-12)
        assert reached[match] == pytest.approx(0.5, abs=0.06)  # a channel of the first layer has a tenth of the FLOPs
        assert (row.parameters_kept or 0) < 0.75 * (row.parameters or 0)
        assert row.layers_collapsed == 0
        assert row.latency_ms is not None
        assert row.dense_latency_ms is not None
        assert row.effective_sparsity is not None
        assert row.effective_sparsity >= (row.sparsity_reached or 0) - 1e-12
    dense = [row for row in read_rows(Path("out/results.csv")) if not row.criterion]
    assert {row.sparsity_reached for row in dense} == {0.0}
    suffix = ", channel" if match == "weights" else f", channel, equal {match}"
    assert set(leaderboard.leaderboard(rows)["track"]) == {
        f"one-shot after training{suffix}", f"one-shot at initialisation{suffix}", f"one-shot while training{suffix}",
        f"fine-tuned 1 epochs{suffix}",
    }  # fmt: skip


@pytest.mark.parametrize(("pruned", "status"), [(7.2, "ok"), (9.6, "failed")])
def test_a_latency_that_is_missed_is_a_failed_row(
    tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, pruned: float, status: str
) -> None:
    """Asked for 30 % less; the timings are made up: 28 % less, and 4 % less."""
    monkeypatch.setattr(cost, "latency", lambda models, *_, **__: [10.0, pruned])
    monkeypatch.setattr(workbench_cost, "cost", lambda *_: lambda model: sum(p.numel() for p in model.parameters()))
    monkeypatch.setattr(environment, "open_executor", lambda *_: Inline())
    monkeypatch.setattr(Inline, "close", lambda self: None, raising=False)
    options = ("--granularity", "channel", "--match", "latency", "--sparsities", "0.3", "--finetune-epochs", "0", "--methods", "magnitude")
    bench("run", *OPTIONS, *options)
    (row,) = [row for row in read_rows(Path("out/results.csv")) if row.criterion]
    assert row.status == status
    if status == "ok":
        assert row.match_reached == pytest.approx(0.28)
    else:
        assert "the latency was to be 30 % lower, but is 4 % lower" in row.error


def test_a_pattern_has_one_sparsity_and_counts_layers_that_stay_dense(tiny: Path, bench: Bench) -> None:
    code, _, _ = bench("run", *OPTIONS, *LENET, "--methods", "magnitude,snip,magnitude_gradual,synflow", "--granularity", "2:4")
    assert code == 0
    rows = [row for row in read_rows(Path("out/results.csv")) if row.criterion]
    assert len(rows) == 8
    for row in rows:
        assert (row.status, row.sparsity, row.granularity) == ("ok", 0.5, "2:4")
        assert 0.3 < (row.sparsity_reached or 0) < 0.5, "the first convolution sees one channel, and stays dense"
        assert row.latency_ms is not None, "that of a dense network, on a device without sparse kernels"


def test_a_network_without_fitting_layers_is_unsupported(tiny: Path, bench: Bench) -> None:
    code, _, _ = bench("run", *OPTIONS, "--methods", "magnitude", "--granularity", "1:7")
    assert code == 0
    rows = [row for row in read_rows(Path("out/results.csv")) if row.criterion]
    assert {(row.status, row.error) for row in rows} == {("unsupported", "no layer has a multiple of 7 inputs")}


def test_granularities_share_dense_networks_and_nothing_else(tiny: Path, bench: Bench) -> None:
    bench("run", *OPTIONS, "--methods", "magnitude")
    networks = sorted(Path(".bench/networks").iterdir())
    bench("run", *OPTIONS, "--methods", "magnitude", "--granularity", "channel")
    assert sorted(Path(".bench/networks").iterdir()) == networks
    assert {row.granularity for row in read_rows(Path("out/results.csv"))} == {"channel"}
    bench("run", *OPTIONS, "--methods", "magnitude")
    assert {row.granularity for row in read_rows(Path("out/results.csv"))} == {"weight"}


def test_channels_are_tuned_and_compared(tiny: Path, bench: Bench) -> None:
    options = ("--suite", "tiny.toml", "--granularity", "channel", "--sparsities", "0.5", "--finetune-epochs", "0", "--trials", "2")
    code, _, _ = bench("run", *options, "--methods", "magnitude,random", "--workers", "1", "--output", "out")
    assert code == 0
    assert {row.tuning for row in read_rows(Path("out/results.csv"))} == {"default", "tuned"}
    code, out, _ = bench("compare", "magnitude", "random", *options)
    assert code == 0
    assert "one-shot after training, channel: area, magnitude - random" in out
    assert "one-shot after training, channel, tuned: area, magnitude - random" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--granularity", "chanel"], "did you mean 'channel'"),
        (["--granularity", "4:2"], "n must be smaller than m"),
        (["--granularity", "channel(ranking=layers)"], "ranking='layers' is not one of global, layer"),
        (["--granularity", "channel(floor=2)"], "floor=2 is not a number in [0, 1]"),
        (["--granularity", "channel(ratios=fc1)"], "ratios: 'fc1' must be a pattern of layers and a fraction in [0, 1)"),
        (
            ["--methods", "magnitude,fpgm"],
            "method 'fpgm': 'fpgm' is defined for granularity 'channel', not 'weight'",
        ),
        (
            ["--methods", "slimming", "--granularity", "2:4"],
            "'bn_scale' is defined for granularity 'channel', not '2:4'",
        ),
        (["--granularity", "2:4", "--sparsities", "0.9"], "--sparsities does not apply: granularity '2:4' has the fixed sparsity 0.5"),
        (["--match", "flops"], "--match flops needs --granularity channel"),
        (["--match", "flop", "--granularity", "channel"], "unknown --match 'flop' (did you mean 'flops'?)"),
        (["--granularity", "channel", "--ablate", "shuffle"], "--ablate shuffle permutes single weights"),
    ],
)
def test_what_does_not_go_together_is_one_line(tiny: Path, bench: Bench, arguments: list[str], said: str) -> None:
    code, out, err = bench("run", "--suite", "tiny.toml", *([] if "--methods" in arguments else ["--methods", "magnitude"]), *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_all_leaves_out_what_is_not_defined_for_the_granularity() -> None:
    only = {"filter_norm", "fpgm", "bn_scale", "taylor", "slimming", "group_lasso"}
    chosen = {granularity: {m.name for m in catalogue.select_methods("all", granularity)} for granularity in ("weight", "2:4", "channel")}
    single = {"wanda"}
    assert chosen["channel"] - chosen["weight"] == only
    assert chosen["weight"] == chosen["2:4"] == (chosen["channel"] - only) | single
    assert "fpgm@spam" in {m.name for m in catalogue.select_methods("all@spam", "channel(floor=0.1)")}
    assert "fpgm@spam" not in {m.name for m in catalogue.select_methods("all@spam", "weight")}
    assert "taylor(form=sum_abs)" in {m.name for m in catalogue.select_methods("taylor(form=sum_abs)", "weight")}


def test_the_list_says_where_a_method_is_defined(bench: Bench) -> None:
    code, out, _ = bench("list", "methods")
    assert code == 0
    assert "granularity channel only" in next(line for line in out.splitlines() if line.split()[:1] == ["fpgm"])
    assert "only" not in next(line for line in out.splitlines() if line.split()[:1] == ["obd"])


def test_channels_are_cut_within_limits_and_by_methods_of_their_own(tiny: Path, bench: Bench) -> None:
    granularity = "channel(floor=0.1,round_to=4,ratios=conv*:0.25)"
    methods = "fpgm,taylor,filter_norm,bn_scale"
    code, _, _ = bench("run", *OPTIONS, *LENET, "--methods", methods, "--granularity", granularity, "--sparsities", "0.5")
    assert code == 0
    rows = [row for row in read_rows(Path("out/results.csv")) if row.criterion]
    assert {row.granularity for row in rows} == {granularity}
    assert {row.method: row.status for row in rows} == dict.fromkeys(methods.split(","), "ok") | {"bn_scale": "unsupported"}
    assert {row.error for row in rows if row.method == "bn_scale"} == {"it has no batch norm with a scale"}
    assert all(row.sparsity_reached == pytest.approx(0.5, abs=0.03) for row in rows if row.status == "ok")


def test_a_search_takes_no_latencies(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str] = []
    smaller, latency = Workbench.smaller, cost.latency

    def watched(self: Workbench, network: Network) -> Network:
        splits.append(self.job.split)
        return smaller(self, network)

    def timed(*arguments: Any, **named: Any) -> list[float]:
        assert splits[-1] == "test"
        return latency(*arguments, **named)

    monkeypatch.setattr(Workbench, "smaller", watched)
    monkeypatch.setattr(cost, "latency", timed)
    monkeypatch.setattr(environment, "open_executor", lambda *_: Inline())
    monkeypatch.setattr(Inline, "close", lambda self: None, raising=False)
    options = ("--granularity", "channel", "--sparsities", "0.5", "--finetune-epochs", "0", "--trials", "2", "--methods", "magnitude")
    bench("run", *OPTIONS, *options)
    assert set(splits) == {"validation", "test"}
    assert {row.status for row in read_rows(Path("out/results.csv"))} == {"ok"}
