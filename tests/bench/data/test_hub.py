"""Data sets by names of timm, from local files only; nothing is downloaded."""

import builtins
from pathlib import Path
from typing import Any

import pytest

from bench import data
from bench.spec.errors import UserError
from tests.bench.data.pictures import images, raw


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_image_folder_through_timm(tmp_path: Path, held_out: str) -> None:
    root = images(tmp_path, "train", held_out)
    found = data.load("timm:torch/image_folder", root)
    assert (found.classes, found.input_shape) == (2, (1, 4, 5))
    assert found.test.targets.tolist() == [0] * 12 + [1] * 12
    assert raw(found, found.test)[:, 0, 0, 0].tolist() == [*range(12), *range(10, 22)]


def test_faults_of_timm_names_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"write timm:SOURCE/NAME, with one of the sources torch, hfds \(did you mean 'torch'\?\)"):
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
    with pytest.raises(UserError, match="train and test must have the same classes"):
        data.load("timm:torch/image_folder", tmp_path)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = images(tmp_path, "train", "test")
    (root / "test" / "cat" / "00.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"dataset 'timm:torch/image_folder': .*/test/cat/00\.png cannot be read as an image: "):
        data.load("timm:torch/image_folder", root)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *more: Any, **options: Any) -> Any:
        if name == "datasets":
            raise ImportError
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"'hf:mnist' needs the package datasets: pip install 'razorbench\[hf\]'"):
        data.load("hf:mnist", None)
