"""Cards: planning opens no data if they are known, and a card is not used once anything that decides it has changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import data
from bench.data import cards, dataset, decoded, sources, statistics
from tests.bench.data.pictures import images
from tests.bench.data.test_dataset import fake_mnist, pack, tree

FOLDER = data.Options()


def closed(*_: Any, **__: Any) -> Any:
    raise AssertionError("the data were opened")


def embedded(root: Path) -> tuple[str, Path | None]:
    return "digits", None


def folders(root: Path) -> tuple[str, Path | None]:
    return f"folder:{tree(root / 'set')}", None


def archives(root: Path) -> tuple[str, Path | None]:
    return f"tar:{pack(tree(root / 'set'))}", None


def torchvision(root: Path) -> tuple[str, Path | None]:
    return "mnist", fake_mnist(root / "MNIST" / "raw")


def timm(root: Path) -> tuple[str, Path | None]:
    return "timm:torch/image_folder", images(root / "set", "train", "validation")


@pytest.mark.parametrize("make", [embedded, folders, archives, torchvision, timm])
def test_a_card_has_the_facts_and_opens_nothing(
    make: Callable[[Path], tuple[str, Path | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name, root), cache = make(tmp_path), tmp_path / "cache"
    assert data.known_card(name, root, cache, FOLDER) is None
    loaded = data.load(name, root, cache=cache)
    monkeypatch.setattr(sources, "read", closed)
    found = data.known_card(name, root, cache, FOLDER)
    assert found is not None
    assert (found.name, found.classes, found.input_shape) == (name, loaded.classes, loaded.input_shape)
    assert (found.train, found.validation, found.test) == (len(loaded.train), len(loaded.validation), len(loaded.test))
    assert (found.fingerprint, found.pixel_range) == (loaded.fingerprint, loaded.pixel_range)
    assert found == data.card_of(loaded)
    for other in (data.Options(0.2), data.Options(split_seed=1), data.Options(train_limit=9), data.Options(moments=((0.5,), (0.5,)))):
        assert data.known_card(name, root, cache, other) is None


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (folders, "set/train/cat/3.png"),
        (archives, "set/test.tar"),
        (torchvision, "MNIST/raw/t10k-labels-idx1-ubyte"),
        (timm, "set/train/dog/03.png"),
    ],
)
@pytest.mark.parametrize("change", ["time", "size"])
def test_a_changed_file_makes_a_card_stale(make: Callable[[Path], tuple[str, Path | None]], file: str, change: str, tmp_path: Path) -> None:
    (name, root), cache = make(tmp_path), tmp_path / "cache"
    data.load(name, root, cache=cache)
    assert data.known_card(name, root, cache, FOLDER) is not None
    path = tmp_path / file
    stat = path.stat()
    if change == "size":
        path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (change == "time")))
    assert data.known_card(name, root, cache, FOLDER) is None


def test_a_new_image_or_another_release_makes_a_card_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, root), cache = folders(tmp_path), tmp_path / "cache"
    data.load(name, root, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "DECODING", decoded.DECODING + 1)
        assert data.known_card(name, root, cache, FOLDER) is None
    for what, value in (("version", lambda package: "0"), ("source_hash", lambda *_: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(cards.importlib.metadata if what == "version" else cards.methods, what, value)
            assert data.known_card("digits", None, cache, FOLDER) is None
            assert data.known_card(name, root, cache, FOLDER) is None
    assert data.known_card(name, root, cache, FOLDER) is not None
    (tmp_path / "set" / "train" / "cat" / "new.png").write_bytes((tmp_path / "set" / "train" / "cat" / "0.png").read_bytes())
    assert data.known_card(name, root, cache, FOLDER) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "list", "field", "type", "unknown", "moments", "bytes", "deep"])
def test_a_damaged_card_is_written_again(damage: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    loaded = data.load("digits", None, cache=cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    values = json.loads(whole)
    changed: dict[str, Any] = {
        "list": [1], "field": {k: v for k, v in values.items() if k != "test"}, "type": values | {"classes": "10"},
        "unknown": values | {"more": 1}, "moments": values | {"mean": [1.0, 2.0]},
    }  # fmt: skip
    file.write_bytes(
        {"cut": whole[:-9], "empty": b"", "bytes": b"\xff\xfe", "deep": b"[" * 100_000}.get(
            damage, json.dumps(changed.get(damage)).encode()
        )
    )
    assert data.known_card("digits", None, cache, FOLDER) is None
    assert data.load("digits", None, cache=cache).fingerprint == loaded.fingerprint
    assert file.read_bytes() == whole


def test_without_a_cache_that_can_be_written_there_is_no_card(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (None, tmp_path / "file"):
        assert data.load("digits", None, cache=cache).classes == 10
        assert data.known_card("digits", None, cache, FOLDER) is None


def test_data_whose_files_are_not_known_have_no_card(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\ndef load():\n    part = (torch.arange(80.0).view(40, 2), torch.arange(40) % 2)\n    return part, part\n"
    )
    data.load(f"{tmp_path}/mine.py:load", None, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    for name in (f"{tmp_path}/mine.py:load", "hf:owner/name", "timm:torch/cifar10"):
        assert sources.stamp(name, tmp_path) is None


def test_the_moments_of_mapped_images_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, _), cache = folders(tmp_path), tmp_path / "cache"
    first = data.load(name, None, cache=cache)
    (card,) = cache.glob("card-*.json")
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "statistics", closed)
        again = data.load(name, None, cache=cache)
        assert (again.fingerprint, again.pixel_range) == (first.fingerprint, first.pixel_range)
        assert again.mean.equal(first.mean)
        assert again.std.equal(first.std)
        assert again.train.read().equal(first.train.read())
    values = json.loads(card.read_text())
    card.write_text(json.dumps(values | {"mean": [1.0, 2.0, 3.0]}))  # does not fit its fingerprint
    assert data.load(name, None, cache=cache).mean.equal(first.mean)
    assert json.loads(card.read_text()) == values


def test_the_fingerprint_changes_with_the_data_the_split_and_the_moments(tmp_path: Path) -> None:
    name = f"folder:{tree(tmp_path)}"
    variants: list[dict[str, Any]] = [
        {}, {"split_seed": 1}, {"train_limit": 9}, {"validation": 0.3}, {"moments": ([0.5] * 3, [0.5] * 3)},
    ]  # fmt: skip
    found = [data.load(name, None, **options).fingerprint for options in variants]
    file = tmp_path / "test" / "cat" / "0.png"
    file.write_bytes((tmp_path / "test" / "cat" / "1.png").read_bytes())
    found.append(data.load(name, None).fingerprint)
    assert len(set(found)) == 6


def test_blocks_do_not_change_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    raw = torch.randint(200, (50, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:33]
    whole = statistics.statistics(raw, index)
    monkeypatch.setattr(statistics, "BLOCK", 130)
    mean, std, pixels = statistics.statistics(raw, index)
    assert mean.equal(whole[0])
    assert std.equal(whole[1])
    assert pixels == whole[2] == (0.0, float(raw[index].max()))
    torch.testing.assert_close(mean.flatten(), raw[index].double().mean((0, 2, 3)).float())
    torch.testing.assert_close(std.flatten(), raw[index].double().std((0, 2, 3), correction=0).float())
