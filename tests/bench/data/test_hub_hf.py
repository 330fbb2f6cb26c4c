"""Data sets through the package `datasets`, from local files only; skipped where the package is not installed."""

from pathlib import Path

import pytest
from PIL import Image

from bench import data
from bench.spec.errors import UserError
from tests.bench.data.pictures import images, raw

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


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


@pytest.mark.parametrize("name", ["hf:pandas", "timm:hfds/pandas", "hf:csv"])
def test_a_reader_of_the_package_is_not_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`datasets.load_dataset("pandas")` reads files of the working folder, which may be pickles."""
    monkeypatch.chdir(tmp_path)
    which = name.rpartition(":")[2].rpartition("/")[2]
    with pytest.raises(UserError, match=f"'{which}' is neither OWNER/NAME on the Hugging Face Hub nor a folder$"):
        data.load(name, None, cache=tmp_path / "cache")
    images(tmp_path / which, "train", "test")
    assert data.load(name, None, cache=tmp_path / "cache").classes == 2, "a folder of this name is read as a folder"


def test_several_labels_are_not_guessed(tmp_path: Path) -> None:
    labels = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"img": datasets.Image(), "fine": labels, "coarse": labels})
    made = datasets.Dataset.from_dict({"img": [Image.new("L", (2, 2))], "fine": [0], "coarse": [1]}, features=features)
    (tmp_path / "two").mkdir()
    for part in ("train", "test"):
        made.to_parquet(tmp_path / "two" / f"{part}.parquet")
    with pytest.raises(UserError, match=r"has several columns with labels: fine, coarse \(type ClassLabel\)"):
        data.load(f"hf:{tmp_path}/two", None, cache=tmp_path / "cache")


def test_links_that_repeat_images_are_refused(tmp_path: Path) -> None:
    root = images(tmp_path / "pets", "train", "test")
    link = root / "train" / "cat" / "up"
    link.symlink_to("..")
    with pytest.raises(UserError, match=r"/train/cat/up and .*/train are the same folder: remove the link"):
        data.load(f"hf:{root}", None, cache=tmp_path / "cache")
    link.unlink()
    (root / "test" / "cat" / "00.png").unlink()
    (root / "test" / "cat" / "00.png").symlink_to(root / "train" / "cat" / "00.png")
    with pytest.raises(UserError, match=r"/test/cat/00\.png and .*/train/cat/00\.png are the same file"):
        data.load(f"hf:{root}", None, cache=tmp_path / "cache")
