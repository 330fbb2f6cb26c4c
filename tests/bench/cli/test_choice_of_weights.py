"""Suites that choose the weights that are pruned, and the precision of training, through the command line."""

from collections.abc import Callable
from pathlib import Path

from bench.storage.results_csv import read_rows

Bench = Callable[..., tuple[int, str, str]]
OPTIONS = ("--suite", "chosen.toml", "--seeds", "0", "--workers", "1", "--output", "out")


def suite(tiny: Path, more: str) -> None:
    """The tiny suite with further keys, as chosen.toml."""
    (tiny / "chosen.toml").write_text(more + "\n" + (tiny / "tiny.toml").read_text())


def test_excluded_weights_are_neither_counted_nor_cut(tiny: Path, bench: Bench) -> None:
    suite(tiny, 'exclude = ["5.*"]')
    code, _, _ = bench("run", *OPTIONS, "--datasets", "digits", "--architectures", "mlp", "--methods", "magnitude,synflow,obd")
    assert code == 0
    rows = read_rows(Path("out/results.csv"))
    assert {row.status for row in rows} == {"ok"}
    assert {row.prunable_weights for row in rows} == {64 * 100 + 100 * 100}
    for row in rows:
        if row.criterion:
            assert row.kept_weights == 16400 - round(row.sparsity * 16400)
            assert (row.flops_kept or 0) >= 2 * 100 * 10


def test_a_pattern_that_matches_nothing_is_one_line(tiny: Path, bench: Bench) -> None:
    suite(tiny, 'exclude = ["head.*"]')
    code, _, error = bench("run", *OPTIONS, "--datasets", "digits", "--architectures", "mlp", "--methods", "magnitude")
    assert code == 2
    assert "architecture 'mlp': exclude='head.*' matches no prunable weight; there are 1.weight, 3.weight, 5.weight" in " ".join(
        error.split()
    )


def test_autocast_trains_another_network_that_does_as_well(tiny: Path, bench: Bench) -> None:
    """Five seeds of each: the means differ by less than the 95 % interval of their difference."""
    seeds = ("--seeds", "0,1,2,3,4", "--epochs", "6", "--sparsities", "0.8")
    found = {}
    for precision in ("full", "bfloat16"):
        suite(tiny, f'precision = "{precision}"')
        arguments = [*OPTIONS[:2], *OPTIONS[4:], *seeds, "--datasets", "digits", "--architectures", "lenet5", "--methods", "magnitude"]
        assert bench("run", *arguments)[0] == 0
        rows = [row for row in read_rows(Path("out/results.csv")) if row.criterion and not row.finetune_epochs]
        found[precision] = [row.accuracy or 0.0 for row in sorted(rows, key=lambda row: row.seed)]
    full, half = found["full"], found["bfloat16"]
    assert full != half
    differences = [a - b for a, b in zip(full, half, strict=True)]
    mean = sum(differences) / 5
    deviation = (sum((d - mean) ** 2 for d in differences) / 4) ** 0.5
    assert abs(mean) <= 2.776 * deviation / 5**0.5 + 0.01, (full, half)  # t of 4 degrees of freedom; one point for equal rows
