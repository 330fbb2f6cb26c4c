"""Networks as files: what is stored comes back, is counted and removed. tests/faults/test_checkpoints.py damages them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.storage import checkpoints
from bench.storage.checkpoints import Networks
from methods import Posterior


@pytest.fixture
def networks(tmp_path: Path) -> Networks:
    checkpoints._intact.clear()
    checkpoints._told.clear()
    return Networks(tmp_path / "networks")


def save(networks: Networks, key: str, **facts: object) -> None:
    state = {"a.weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(4)}
    factors = {"a.weight": (torch.full((1, 2, 2), 2.0), torch.full((1, 3, 3), 3.0))}
    posterior = Posterior({"a.weight": torch.tensor(5.0)}, 7, 0.5, {"a.weight": torch.full((2, 3), 6.0)}, factors, (-1.5, -1.0))
    networks.save(key, state, posterior, dict(facts))


def test_every_part_comes_back_in_its_place(networks: Networks) -> None:
    save(networks, "k", accuracy=0.25)
    state, posterior, facts = networks.load("k")
    assert facts == networks.facts("k") == {"accuracy": 0.25}
    assert set(state) == {"a.weight", "steps"}
    assert state["a.weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (state["steps"].dtype, int(state["steps"])) == (torch.int64, 4)
    assert (posterior.samples, posterior.temperature, posterior.marginal_likelihood) == (7, 0.5, (-1.5, -1.0))
    assert float(posterior.prior["a.weight"]) == 5.0
    assert posterior.curvature["a.weight"].tolist() == [[6.0] * 3] * 2
    outer, inner = posterior.factors["a.weight"]
    assert outer.tolist() == [[[2.0] * 2] * 2]
    assert inner.tolist() == [[[3.0] * 3] * 3]


def test_headers_of_any_length_are_read(networks: Networks) -> None:
    """The header is padded to a multiple of eight bytes: nothing may depend on the padding."""
    for k in range(9):
        save(networks, f"k{k}", text="x" * k)
        assert networks.facts(f"k{k}") == {"text": "x" * k}


def test_a_file_is_read_once_until_it_changes(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    save(networks, "k", accuracy=0.25)
    reads, read = [], Networks._read
    monkeypatch.setattr(Networks, "_read", lambda self, key, version: reads.append(key) or read(self, key, version))
    assert networks.has("k")
    assert networks.facts("k") == {"accuracy": 0.25}
    assert Networks(networks.folder).has("k")
    assert reads == ["k"]
    save(networks, "k", accuracy=0.75)
    assert networks.facts("k") == {"accuracy": 0.75}
    assert reads == ["k", "k"]
    networks.path("k").unlink()
    assert not networks.has("k")


def test_networks_are_counted_with_their_bytes(networks: Networks) -> None:
    assert networks.size() == (0, 0)
    save(networks, "a")
    save(networks, "b", text="longer" * 50)
    (networks.folder / "a.failed").write_text("not counted")
    (networks.folder / "c.safetensors").mkdir()
    paths = [networks.folder / "a.safetensors", networks.folder / "b.safetensors"]
    assert networks.size() == (2, sum(len(path.read_bytes()) for path in paths))


def test_all_that_belongs_to_a_key_is_removed_and_nothing_else(networks: Networks) -> None:
    for key in "ab":
        save(networks, key)
        networks.fail(key, "x")
        (networks.folder / f"{key}.damaged").write_text("x")
    networks.remove(["a", "z"])
    assert sorted(path.name for path in networks.folder.iterdir()) == ["b.damaged", "b.failed", "b.safetensors"]


@pytest.mark.parametrize("kind", ["safetensors", "failed", "damaged"])
def test_everything_is_cleared_whatever_is_left_of_a_network(networks: Networks, kind: str) -> None:
    networks.folder.mkdir()
    (networks.folder / f"a.{kind}").write_text("x")
    (networks.folder / "other.txt").write_text("x")
    networks.clear()
    assert [path.name for path in networks.folder.iterdir()] == ["other.txt"]


def test_errors_are_kept_in_any_letters(networks: Networks) -> None:
    networks.fail("a", "the loss is NaN: \u00e4\n\udcff")
    assert networks.failed("a") == "the loss is NaN: \u00e4\n\\udcff"
    assert networks.failed("b") == ""


@pytest.mark.parametrize("first", [save, lambda networks, key: networks.fail(key, "x")], ids=["save", "fail"])
def test_a_folder_that_cannot_be_written_is_said_once(
    networks: Networks, capfd: pytest.CaptureFixture[str], first: Callable[[Networks, str], None]
) -> None:
    networks.folder.write_text("a file")
    first(networks, "a")
    said = capfd.readouterr().err
    assert said.startswith(f"warning: trained networks cannot be stored in '{networks.folder}' (")
    assert said.endswith("): each job trains those that it needs\n")
    assert said.count("\n") == 1
    save(networks, "b")
    networks.fail("b", "x")
    assert capfd.readouterr().err == ""
    assert not networks.has("a")


def test_a_second_damaged_file_takes_the_place_of_the_first(networks: Networks) -> None:
    (networks.folder / "a.damaged" / "inner").mkdir(parents=True)
    networks.path("a").write_bytes(b"damaged")
    assert not networks.has("a")
    assert (networks.folder / "a.damaged").read_bytes() == b"damaged"


def test_a_file_under_another_key_is_another_network(networks: Networks, capfd: pytest.CaptureFixture[str]) -> None:
    save(networks, "a")
    networks.path("a").rename(networks.path("b"))
    with pytest.raises(FileNotFoundError):
        networks.load("b")
    assert "(it is another network)" in capfd.readouterr().err


def test_the_digest_is_of_names_types_shapes_and_bytes() -> None:
    """Each of these differs in one of them only."""
    plain = torch.arange(6, dtype=torch.int32)
    tensors = [
        {"a": plain}, {"b": plain}, {"a": plain.view(2, 3)}, {"a": plain.view(3, 2)}, {"a": plain.view(torch.float32)},
        {"a": plain.flip(0)}, {"a": plain[:3], "b": plain[3:]}, {"a": plain, "b": plain[:0]},
    ]  # fmt: skip
    found = {checkpoints._digest({"key": "k"}, each) for each in tensors}
    found |= {checkpoints._digest(metadata, {"a": plain}) for metadata in ({}, {"key": "l"}, {"key": "k", "facts": json.dumps({})})}
    assert len(found) == 11
    assert checkpoints._digest({"x": "1", "y": "2"}, {"a": plain, "b": plain}) == checkpoints._digest(
        {"y": "2", "x": "1"}, {"b": plain, "a": plain}
    )
