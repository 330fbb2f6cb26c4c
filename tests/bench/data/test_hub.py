"""Data sets by names of timm and Hugging Face, from local files only; nothing is downloaded or unpickled."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench import data
from bench.spec.errors import UserError


def images(root: Path, *parts: str, classes: tuple[str, ...] = ("cat", "dog"), size: tuple[int, int] = (5, 4)) -> Path:
    """Grey images, 12 for each class and part; the second one of test has another size."""
    for part in parts:
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for k in range(12):
                shape = (9, 9) if part != "train" and k == 1 else size
                Image.new("L", shape, 10 * number + k).save(root / part / name / f"{k:02}.png")
    return root


def raw(found: data.Dataset, split: data.Split) -> torch.Tensor:
    return (split.inputs * found.std + found.mean).round()


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_image_folder_through_timm(tmp_path: Path, held_out: str) -> None:
    root = images(tmp_path, "train", held_out)
    found = data.load("timm:torch/image_folder", root)
    assert (found.classes, found.input_shape) == (2, (1, 4, 5))
    assert found.test.targets.tolist() == [0] * 12 + [1] * 12
    assert raw(found, found.test)[:, 0, 0, 0].tolist() == [*range(12), *range(10, 22)]


def test_faults_of_timm_names_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"write timm:SOURCE/NAME, with one of the sources torch, hfds, wds, tfds \(did you mean 'torch'\?\)"
    ):
        data.load("timm:toch/cifar10", tmp_path)
    with pytest.raises(UserError, match="for images in folders write folder:PATH"):
        data.load("timm:cifar10", tmp_path)
    with pytest.raises(UserError, match=r"'timm:torch/qmnist' needs a directory: pass --data-root DIR"):
        data.load("timm:torch/qmnist", None)
    with pytest.raises(UserError, match="has no folder test or validation"):
        data.load("timm:torch/image_folder", images(tmp_path, "train"))
    with pytest.raises(UserError, match="cannot be opened: train: Unknown torchvision dataset nothing") as error:
        data.load("timm:torch/nothing", tmp_path)
    assert "\n" not in str(error.value)
    images(tmp_path, "test", classes=("dog", "zebra"))
    with pytest.raises(UserError, match="train and test do not have the same classes"):
        data.load("timm:torch/image_folder", tmp_path)


def test_an_image_that_cannot_be_read_is_named_by_its_part(tmp_path: Path) -> None:
    root = images(tmp_path, "train", "test")
    (root / "test" / "cat" / "00.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="dataset 'timm:torch/image_folder': test cannot be read: "):
        data.load("timm:torch/image_folder", root)


datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_a_folder_of_images_through_hugging_face(tmp_path: Path) -> None:
    root = images(tmp_path / "pets", "train", "validation")
    for name, where in ((f"hf:{root}", None), ("hf:pets", tmp_path)):
        found = data.load(name, where, cache=tmp_path / "cache")
        assert (found.classes, found.input_shape) == (2, (1, 4, 5))
        assert len(found.train) + len(found.validation) == 24
        assert sorted(raw(found, found.test)[:, 0, 0, 0].tolist()) == sorted([*range(12), *range(10, 22)])
        for value, target in zip(raw(found, found.test)[:, 0, 0, 0], found.test.targets, strict=True):
            assert target == (value >= 12) or 10 <= value <= 11


def test_a_validation_split_next_to_test_is_used(tmp_path: Path) -> None:
    root = images(tmp_path / "pets", "train", "validation", "test")
    found = data.load(f"hf:{root}", None, cache=tmp_path / "cache")
    assert (len(found.train), len(found.validation), len(found.test)) == (24, 24, 24)


def test_timm_reads_hugging_face_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "pets", "train", "test")
    monkeypatch.chdir(tmp_path)
    found = data.load("timm:hfds/pets", tmp_path / "cache")
    assert raw(found, found.test)[:, 0, 0, 0].sort().values.tolist() == sorted([*range(12), *range(10, 22)])


def test_faults_of_hugging_face_names_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = images(tmp_path / "pets", "train")
    with pytest.raises(UserError, match="has the splits train; needed are train, and test or validation"):
        data.load(f"hf:{root}", None, cache=tmp_path / "cache")
    with pytest.raises(UserError, match="'hf:nobody/made-this' cannot be loaded: ") as error:
        data.load("hf:nobody/made-this", None, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)
    (tmp_path / "text").mkdir()
    for part in ("train", "test"):
        (tmp_path / "text" / f"{part}.csv").write_text("a,label\n1,0\n")
    with pytest.raises(UserError, match=r"has no column with images \(type Image\); load it by a function of your own: FILE\.py:NAME"):
        data.load(f"hf:{tmp_path}/text", None, cache=tmp_path / "cache")


def test_several_labels_are_not_guessed(tmp_path: Path) -> None:
    labels = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"img": datasets.Image(), "fine": labels, "coarse": labels})
    made = datasets.Dataset.from_dict({"img": [Image.new("L", (2, 2))], "fine": [0], "coarse": [1]}, features=features)
    (tmp_path / "two").mkdir()
    for part in ("train", "test"):
        made.to_parquet(tmp_path / "two" / f"{part}.parquet")
    with pytest.raises(UserError, match=r"has several columns with labels: fine, coarse \(type ClassLabel\)"):
        data.load(f"hf:{tmp_path}/two", None, cache=tmp_path / "cache")


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *more: Any, **options: Any) -> Any:
        if name == "datasets":
            raise ImportError
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"'hf:mnist' needs the package datasets: pip install 'razorbench\[hf\]'"):
        data.load("hf:mnist", None)
