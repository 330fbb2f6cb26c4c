"""Rows and networks come back as they went in; what is damaged or out of reach is said in one line."""

import dataclasses
from pathlib import Path

import pytest
import torch

from bench.checkpoints import Networks
from bench.results import read_rows, write_rows
from bench.spec import COLUMNS, Row, UserError
from bench.store import Store
from methods import Posterior


def row(**changes: object) -> Row:
    values = {
        "suite": "s", "dataset": "d", "architecture": "a", "granularity": "weight", "match": "weights", "method": "m", "criterion": "c",
        "training": "map", "stage": "after", "tuning": "default", "ablation": "none", "sparsity": 0.9, "seed": 0, "epochs": 3,
        "finetune_epochs": 0, "status": "ok", "accuracy": 1 / 3, "nll": 1e-300, "kept_weights": 10**12,
    }  # fmt: skip
    return Row(**(values | changes))  # type: ignore[arg-type]


def test_rows_come_back_and_are_replaced(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/deep/er/store.db")
    many = {f"{i:064d}": row(seed=i) for i in range(1200)}
    store.put(many)
    assert store.get(many) == many
    store.put({f"{7:064d}": row(status="failed", error="x")})
    assert store.get([f"{7:064d}", "absent"]) == {f"{7:064d}": row(status="failed", error="x")}
    assert Store(f"sqlite:///{tmp_path}/deep/er/store.db").get(many).keys() == many.keys()


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/no/store.db", "postgresql://nobody@127.0.0.1:1/x", "magic://x"])
def test_an_unreachable_store_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match="cannot open the store") as error:
        Store(url)
    assert "\n" not in str(error.value)


def test_a_network_survives_with_its_posterior(tmp_path: Path) -> None:
    networks = Networks(tmp_path / "networks")
    state = {"w": torch.randn(2, 3), "bn.num_batches_tracked": torch.tensor(4)}
    factors = {"layer.w": (torch.rand(1, 2, 2), torch.rand(1, 3, 3))}
    posterior = Posterior({"w": torch.tensor(2.0)}, 100, 0.5, {"w": torch.rand(2, 3)}, factors, (-3.5, -1.25))
    assert not networks.has("k")
    networks.save("k", state, posterior, {"train_seconds": 1.5})
    loaded, again, facts = networks.load("k")
    assert networks.has("k")
    assert all(torch.equal(loaded[n], t) for n, t in state.items())
    assert torch.equal(again.precision("w"), posterior.precision("w"))
    assert again.factors.keys() == factors.keys()
    assert all(torch.equal(a, b) for a, b in zip(again.factors["layer.w"], factors["layer.w"], strict=True))
    assert (again.samples, again.temperature, again.marginal_likelihood) == (100, 0.5, (-3.5, -1.25))
    assert facts == {"train_seconds": 1.5}
    assert [p.name for p in networks.folder.iterdir()] == ["k.safetensors"], "no partial file is left"


def test_csv_floats_read_back_exactly(tmp_path: Path) -> None:
    rows = [row(seed=2, accuracy=0.1 + 0.2, error='a "quoted", text'), row(seed=1, accuracy=None, top5=1e-17)]
    write_rows(rows, tmp_path / "out" / "results.csv")
    text = (tmp_path / "out" / "results.csv").read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert read_rows(tmp_path / "out" / "results.csv") == [rows[1], rows[0]], "sorted by identity"
    write_rows(reversed(rows), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == text, "the order of rows coming in does not matter"


def test_a_csv_with_another_header_or_a_wrong_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="header"):
        read_rows(tmp_path / "x.csv")
    write_rows([row()], tmp_path / "y.csv")
    (tmp_path / "y.csv").write_text((tmp_path / "y.csv").read_text().replace("0.9", "often"))
    with pytest.raises(ValueError, match="line 2"):
        read_rows(tmp_path / "y.csv")


def test_rows_hold_plain_values_only() -> None:
    assert all(v is None or isinstance(v, (str, int, float)) for v in dataclasses.asdict(row()).values())


def test_a_relative_file_is_the_same_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies are opened by this address, in other processes and later in this one."""
    monkeypatch.chdir(tmp_path)
    assert Store("sqlite:///here/store.db").url == f"sqlite:///{tmp_path}/here/store.db"
