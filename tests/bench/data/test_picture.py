"""One image: every mode that Pillow knows is read as viewers show it or refused, large ones are bounded, damaged ones are one line."""

import io
import random
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from bench import UserError
from bench.data import decoded, examples, picture
from tests.bench.data.pictures import decode

GREY = np.array([[0, 10, 200], [255, 90, 30]], np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    stream.seek(0)
    return stream


def with_alpha(mode: str) -> Image.Image:
    """Grey pixels of which the first is transparent and the second half transparent."""
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[0, :2] = 0, 128
    image = Image.fromarray(np.dstack([GREY, alpha]))
    return image if mode == "LA" else image.convert(mode)


BLACK_WHITE = np.where(GREY > 127, 255, 0)
READ = {
    "L": (Image.fromarray(GREY), "PNG", GREY),
    "1": (Image.fromarray(GREY > 127), "PNG", BLACK_WHITE),
    "1 of TIFF": (Image.fromarray(GREY > 127), "TIFF", BLACK_WHITE),
    "P": (Image.fromarray(GREY).convert("P"), "PNG", GREY),
    "P of GIF": (Image.fromarray(GREY).convert("P"), "GIF", GREY),
    "RGB": (Image.fromarray(GREY).convert("RGB"), "BMP", GREY),
    "CMYK": (Image.fromarray(GREY).convert("RGB").convert("CMYK"), "TIFF", GREY),
    "I;16": (Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", GREY),
    "I;16 of TIFF": (Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF", GREY),
    "I;16 of PGM": (Image.fromarray(GREY.astype(np.uint16) * 257), "PPM", GREY),
    "LA": (with_alpha("LA"), "PNG", np.array([[255, 132, 200], [255, 90, 30]])),
    "RGBA": (with_alpha("RGBA"), "PNG", np.array([[255, 132, 200], [255, 90, 30]])),
    "RGBA of WEBP": (with_alpha("RGBA"), "WEBP", np.array([[255, 132, 200], [255, 90, 30]])),
}


@pytest.mark.parametrize("name", READ)
def test_every_mode_is_read_as_viewers_show_it(name: str) -> None:
    image, kind, wanted = READ[name]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = picture.read_rgb(saved(image, kind, **options))
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - wanted[:, :, None]).max() <= 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((3, 4), 200, np.int32), "more than 16 bits"),  # small values too: nobody can tell their scale
        (np.full((3, 4), 0.5, np.float32), "floating-point numbers"),
    ],
)
def test_values_of_an_unknown_scale_are_refused(values: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        picture.read_rgb(saved(Image.fromarray(values), "TIFF"))


def test_a_first_image_that_is_too_large_is_refused_before_disk_space_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(50):
                Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / part / name / f"{k + 1}.png")
    Image.new("RGB", (3000, 2000), (1, 2, 3)).save(tmp_path / "train" / "a" / "0.png")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 10**9))
    parts = [tmp_path / "train", tmp_path / "test"]
    wanted = (
        r"dataset 'x', first image .*/train/a/0\.png: 201 images of 3000 x 2000 pixels need 3\.6 GB of disk space, but 3\.0 GB are"
        r" available; all images are scaled to the size of the first one: make that one smaller$"
    )  # 201 * 3000 * 2000 * 3 bytes
    (tmp_path / "cache").mkdir()
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(UserError, match=wanted):
            decoded.decode("x", parts, "", cache)
    assert not list((tmp_path / "cache").iterdir())
    Image.new("L", (3000, 2000), 1).save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(UserError, match=r"need 4\.8 GB of disk space"):  # a second file with one channel may follow
        decode("x", parts, "")


def test_examples_of_any_source_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "memory", lambda: 100_000)
    given = ((Image.new("L", (100, 100)), 0) for _ in range(100))
    with pytest.raises(UserError, match=r"the part: 2 images of 100 x 100 pixels need 0\.0 GB"):
        examples.stacked("the part", given, fit=True)


def test_the_memory_of_this_machine_is_known() -> None:
    assert 10**8 < picture.memory() < 10**15


def test_a_decompression_bomb_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ValueError, match="decompression bomb") as error:
        picture.read_rgb(content)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)  # below twice this number Pillow only warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture.read_rgb(content).size == (100, 100)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damaged_images_are_read_or_refused_in_one_line(kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    whole = saved(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)), kind, **options).getvalue()
    draw = random.Random(kind)
    for _ in range(300):
        content = bytearray(whole[: draw.choice((len(whole), draw.randrange(len(whole))))])
        for _ in range(draw.choice((0, 1, 4))):
            if content:
                content[draw.randrange(min(len(content), 200))] = draw.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = "read"
            try:
                assert picture.read_rgb(io.BytesIO(bytes(content))).mode == "RGB"
            except ValueError as error:
                said = str(error)
        assert said
        assert "\n" not in said


def test_truncated_images_name_the_file(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(GREY).save(tmp_path / part / name / "0.png")
    file = tmp_path / "test" / "b" / "0.png"
    file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(UserError, match=r"/test/b/0\.png cannot be read as an image: ") as error:
        decode("x", [tmp_path / "train", tmp_path / "test"], "")
    assert "\n" not in str(error.value)


def test_equal_names_but_for_zeros_or_case_have_one_order(tmp_path: Path) -> None:
    names = ["1", "01", "a", "A", "2"]
    for part in ("train", "test"):
        for value, name in enumerate(names):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (2, 2), 40 * value).save(tmp_path / part / name / "0.png")
    train: Tensor = decode("x", [tmp_path / "train", tmp_path / "test"], "")[0]
    assert [names[int(image.flatten()[0]) // 40] for image in train] == ["01", "1", "2", "A", "a"]
