"""Image folders as people have them: every file is read as viewers show it, or named and refused."""

import itertools
import os
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench import UserError
from bench.data import decoded as stored
from bench.data import images, picture
from tests.bench.data.pictures import decode

Save = Callable[[Path, int, int], None]  # (folder, class, number)


def made(root: Path, save: Save, classes: tuple[str, ...] = ("a", "b"), count: int = 2) -> Path:
    """`count` images of each class in train and test."""
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                save(root / part / name, label, number)
    return root


def decoded(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return decode("folder:x", [root / "train", root / "test"], "a folder per class")


def plain(folder: Path, label: int, number: int) -> None:
    Image.fromarray(np.full((4, 6, 3), 100 * label + number, np.uint8)).save(folder / f"{number}.png")


@pytest.mark.parametrize("ending", [e.removeprefix(".") for e in images.ENDINGS] + ["JPG", "Png"])
def test_every_usual_format_is_read(tmp_path: Path, ending: str) -> None:
    kind = {"jfif": "JPEG", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM"}.get(ending)

    def save(folder: Path, label: int, number: int) -> None:
        Image.fromarray(np.full((8, 8, 3), 80 + 40 * label, np.uint8)).save(folder / f"{number}.{ending if number % 2 else 'png'}", kind)

    train, labels, test, _ = decoded(made(tmp_path, save, count=4))
    assert (len(train), len(test)) == (8, 8)
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert (train.float().mean((1, 2, 3)) - torch.tensor([80.0] * 4 + [120.0] * 4)).abs().max() <= 2  # JPEG is not exact


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 1, 257, 300], [30000, 31000, 65534, 65535]], np.uint16)

    def save(folder: Path, label: int, number: int) -> None:
        Image.fromarray(values).save(folder / f"{number}.{'png' if number else 'tif'}")

    train = decoded(made(tmp_path, save))[0]
    assert all(torch.equal(image[0], torch.tensor([[0, 0, 1, 1], [117, 121, 255, 255]], dtype=torch.uint8)) for image in train)


def png(rows: list[list[tuple[int, ...]]], bits: int, colour: int) -> bytes:
    """A PNG written by hand: colour type 2 is RGB, 4 grey with alpha, 6 RGB with alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, colour, 0, 0, 0)
    body = b"".join(b"\0" + b"".join(struct.pack(">H" if bits == 16 else ">B", v) for pixel in row for v in pixel) for row in rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    data = png([[(65535, 0, 257 * 100), (257 * 7, 257 * 8, 257 * 9)]], 16, 2)
    train = decoded(made(tmp_path, lambda folder, label, number: (folder / f"{number}.png").write_bytes(data)))[0]  # type: ignore[arg-type,return-value]
    assert train[0].permute(1, 2, 0).tolist() == [[[255, 0, 100], [7, 8, 9]]]


@pytest.mark.parametrize(
    ("pixels", "colour", "seen"),
    [
        ([(10, 20, 30, 0), (10, 20, 30, 255), (10, 20, 30, 128)], 6, [[255, 255, 255], [10, 20, 30], [132, 137, 142]]),
        ([(10, 0), (10, 255), (10, 128)], 4, [[255], [10], [132]]),
    ],
)
def test_transparent_pixels_are_white_as_viewers_show_them(
    tmp_path: Path, pixels: list[tuple[int, ...]], colour: int, seen: list[list[int]]
) -> None:
    data = png([pixels], 8, colour)
    train = decoded(made(tmp_path, lambda folder, label, number: (folder / f"{number}.png").write_bytes(data)))[0]  # type: ignore[arg-type,return-value]
    assert (train[0].permute(1, 2, 0).int()[0] - torch.tensor(seen)).abs().max() <= 1


def test_a_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    def save(folder: Path, label: int, number: int) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        image.save(folder / f"{number}.png", transparency=0)

    assert decoded(made(tmp_path, save))[0][0].permute(1, 2, 0).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize(
    ("tag", "shape", "bright"), [(1, (8, 16), "left"), (3, (8, 16), "right"), (6, (16, 8), "top"), (8, (16, 8), "bottom")]
)
def test_photographs_are_turned_as_their_tag_says(tmp_path: Path, tag: int, shape: tuple[int, int], bright: str) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x112] = tag

    train = decoded(made(tmp_path, lambda folder, *_: Image.fromarray(pixels).save(folder / "0.jpg", exif=exif, quality=100), count=1))[0]
    assert train.shape[2:] == shape
    image = train[0, 0].float()
    halves = {
        "left": image[:, : shape[1] // 2],
        "right": image[:, shape[1] // 2 :],
        "top": image[: shape[0] // 2],
        "bottom": image[shape[0] // 2 :],
    }
    assert max(halves, key=lambda side: float(halves[side].mean())) == bright


def test_the_class_is_the_first_folder(tmp_path: Path) -> None:
    def save(folder: Path, label: int, number: int) -> None:
        inner = folder / ("2023" if number % 2 else "2024") / "more"
        inner.mkdir(parents=True, exist_ok=True)
        plain(inner if number else folder, label, number)

    root = made(tmp_path, save, count=3)
    train, labels, _, test_labels = decoded(root)
    assert labels.tolist() == test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(train[labels == 1].flatten(1)[:, 0].tolist()) == [100, 101, 102]
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            archive.add(root / part, arcname=f"./some/where/{part}")
    packed = decode("tar:x", [root / "train.tar", root / "test.tar"], "")
    assert all(torch.equal(a, b) for a, b in zip(packed, decoded(root), strict=True))


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    train, labels, _, _ = decoded(made(tmp_path, plain, ("10", "2", "1"), count=1))
    assert [(int(v), int(k)) for v, k in zip(train.flatten(1)[:, 0], labels, strict=True)] == [(200, 0), (100, 1), (0, 2)]


@pytest.mark.parametrize(
    "name", ["Thumbs.db", ".DS_Store", "._0.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "README.md", "labels.csv"]
)
@pytest.mark.parametrize("place", ["train", "train/a"])
def test_litter_and_notes_are_left_out(tmp_path: Path, place: str, name: str) -> None:
    root = made(tmp_path, plain)
    wanted = decoded(root)
    file = root / place / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"nothing")
    assert all(torch.equal(a, b) for a, b in zip(decoded(root), wanted, strict=True))


def test_names_of_any_bytes(tmp_path: Path) -> None:
    root = made(tmp_path, plain)
    image = (root / "train/a/0.png").read_bytes()
    (root / "train/a/Bild ä 日本.png").write_bytes(image)
    Path(os.fsdecode(os.fsencode(root / "train/a") + b"/\xff\xfe.png")).write_bytes(image)
    assert len(decoded(root)[0]) == 6


def animated(root: Path, ending: str) -> None:
    frames = [Image.fromarray(np.full((4, 6, 3), v, np.uint8)) for v in (0, 200)]
    frames[0].save(root / f"train/a/9.{ending}", save_all=True, append_images=frames[1:])


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: animated(root, "gif"), "9.gif cannot be read as an image: it has 2 frames"),
    (lambda root: animated(root, "webp"), "9.webp cannot be read as an image: it has 2 frames"),
    (lambda root: animated(root, "tif"), "9.tif cannot be read as an image: it has 2 frames"),
    (
        lambda root: Image.fromarray(np.full((4, 6), 70000, np.int32)).save(root / "train/a/9.tif"),
        "9.tif cannot be read as an image: its values have more than 16 bits",
    ),
    (
        lambda root: Image.fromarray(np.full((4, 6), 0.5, np.float32)).save(root / "train/a/9.tif"),
        "9.tif cannot be read as an image: its values are floating-point numbers",
    ),
    (lambda root: (root / "train/a/9.heic").write_bytes(b"x"), "train/a/9.heic is not one of the images that are read (png, jpg, "),
    (lambda root: (root / "train/a/noending").write_bytes(b"x"), "train/a/noending is not one of the images that are read"),
    (lambda root: (root / "test/b/0.png").write_bytes(b""), "test/b/0.png cannot be read as an image"),
    (lambda root: plain(root / "train", 0, 0), "has images outside the class folders, e.g. "),
    (lambda root: (root / "test/a").rename(root / "test/A"), "only one of them has A, a"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_everything_else_is_named_and_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    root = made(tmp_path, plain)
    spoil(root)
    with pytest.raises(UserError) as error:
        decoded(root)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_are_opened_as_images_only(tmp_path: Path) -> None:
    """Pillow would hand a file of PostScript to Ghostscript, which runs it."""
    root = made(tmp_path, plain)
    (root / "train/a/3.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UserError, match=r"3\.png cannot be read as an image: its content is EPS, not one of PNG, JPEG, BMP, "):
        decoded(root)


def labels_of(root: Path) -> list[int]:
    return decoded(root)[1].tolist()


def test_links_to_folders_above_are_not_followed_for_ever(tmp_path: Path) -> None:
    root = made(tmp_path, plain)
    (root / "train/a/loop").symlink_to(root / "train/a")
    (root / "train/a/up").symlink_to(root / "train")
    (root / "train/b/up").symlink_to("..")
    (root / "train/self").symlink_to(".")
    assert labels_of(root) == [0, 0, 1, 1]


def test_a_file_that_is_reached_twice_is_read_once(tmp_path: Path) -> None:
    root = made(tmp_path, plain)
    (root / "train/a/linked.png").symlink_to(root / "train/a/0.png")
    os.link(root / "train/b/0.png", root / "train/b/hard.png")
    made(tmp_path / "more", plain)
    for name in ("x", "y"):
        (root / "train/b" / name).symlink_to(tmp_path / "more" / "train" / "b")
    assert labels_of(root) == [0, 0, 1, 1, 1, 1]


def two_classes_by_file(root: Path) -> None:
    (root / "train/b/linked.png").symlink_to(root / "train/a/0.png")


def two_classes_by_folder(root: Path) -> None:
    (root / "train/b/other").symlink_to(root / "train/a")


def both_parts(root: Path) -> None:
    (root / "test/a/0.png").unlink()
    (root / "test/a/0.png").symlink_to(root / "train/a/1.png")


@pytest.mark.parametrize(
    ("link", "said"),
    [
        (two_classes_by_file, "/train/b/linked.png and .*/train/a/0.png are the same file, but in two classes"),
        (two_classes_by_folder, "/train/b/other and .*/train/a are the same folder, but in two classes"),
        (both_parts, "/test/a/0.png of test and .*/train/a/1.png of train are the same file"),
    ],
)
def test_a_file_in_two_classes_or_in_train_and_test_is_refused(tmp_path: Path, link: Callable[[Path], None], said: str) -> None:
    link(made(tmp_path, plain))
    with pytest.raises(UserError, match=said):
        decoded(tmp_path)


def archived(root: Path, add: Callable[[tarfile.TarFile, Path], None]) -> list[Path]:
    """train.tar and test.tar of two classes; `add` adds more members to train."""
    made(root / "files", plain)
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            for file in sorted((root / "files" / part).rglob("*.png")):
                archive.add(file, file.relative_to(root / "files" / part).as_posix())
            if part == "train":
                add(archive, root / "files" / part)
    return [root / "train.tar", root / "test.tar"]


def linked(kind: bytes, target: str) -> Callable[[tarfile.TarFile, Path], None]:
    def add(archive: tarfile.TarFile, folder: Path) -> None:
        member = tarfile.TarInfo("a/z.png")
        member.type, member.linkname = kind, target
        archive.addfile(member)

    return add


@pytest.mark.parametrize(("kind", "target"), [(tarfile.SYMTYPE, "1.png"), (tarfile.LNKTYPE, "a/1.png")])
def test_a_file_that_is_linked_in_an_archive_is_read_once(tmp_path: Path, kind: bytes, target: str) -> None:
    _, labels, _, _ = decode("tar:x", archived(tmp_path, linked(kind, target)), "")
    assert labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("kind", "target"), [(tarfile.SYMTYPE, "../.store/x"), (tarfile.LNKTYPE, ".store/x")])
def test_links_in_an_archive_are_the_files_that_they_point_to(tmp_path: Path, kind: bytes, target: str) -> None:
    def add(archive: tarfile.TarFile, folder: Path) -> None:
        archive.add(folder / "b" / "1.png", ".store/x")
        linked(kind, target)(archive, folder)

    train, labels, _, _ = decode("tar:x", archived(tmp_path, add), "")
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(train[2], train[4])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_of_an_archive_to_another_class_or_to_themselves_are_refused(tmp_path: Path, kind: bytes) -> None:
    target = {tarfile.SYMTYPE: "../b/1.png", tarfile.LNKTYPE: "b/1.png"}[kind]
    with pytest.raises(UserError, match="are the same file, but in two classes"):
        decode("tar:x", archived(tmp_path / "1", linked(kind, target)), "")
    target = {tarfile.SYMTYPE: "z.png", tarfile.LNKTYPE: "a/z.png"}[kind]
    with pytest.raises(UserError, match=r"a/z\.png cannot be read as an image: it is a link to .*, which is not a file in the archive"):
        decode("tar:x", archived(tmp_path / "2", linked(kind, target)), "")


def test_an_empty_class_is_said(tmp_path: Path) -> None:
    root = made(tmp_path, plain)
    (root / "test" / "c").mkdir()
    with pytest.raises(UserError, match=r"the class folder .*/test/c has no images"):
        decoded(root)

    def add(archive: tarfile.TarFile, folder: Path) -> None:
        member = tarfile.TarInfo("c")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)

    with pytest.raises(UserError, match=r"the class folder .*/train\.tar/c has no images"):
        decode("tar:x", archived(tmp_path / "packed", add), "")


def test_links_out_of_an_archive_and_paths_with_dots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a/z.png cannot be read as an image: it is a link to /etc/passwd, which is not a file in"):
        decode("tar:x", archived(tmp_path / "1", linked(tarfile.SYMTYPE, "/etc/passwd")), "")
    dots = archived(tmp_path / "2", lambda archive, folder: archive.add(folder / "a" / "0.png", "a/../b/9.png"))
    with pytest.raises(UserError, match=r"train.tar: the path a/../b/9.png contains '..'"):
        decode("tar:x", dots, "")


def test_the_last_version_of_a_file_in_an_archive_counts(tmp_path: Path) -> None:
    parts = archived(tmp_path, lambda archive, folder: archive.add(folder / "b" / "1.png", "a/0.png"))
    train, labels, _, _ = decode("tar:x", parts, "")
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(train[0], train[3])


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    made(tmp_path, plain)
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe.png cannot be read as an image: it is not a file"):
        decoded(tmp_path)


def test_a_transparent_value_of_sixteen_bits_is_white(tmp_path: Path) -> None:
    def save(folder: Path, label: int, number: int) -> None:
        Image.fromarray(np.array([[257, 1000], [30000, 257]], np.uint16)).save(folder / f"{number}.png", transparency=257)

    assert decoded(made(tmp_path, save))[0][0, 0].tolist() == [[255, 4], [117, 255]]


def test_threads_keep_the_order_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_rgb, delays = picture.decode_rgb, itertools.cycle([0.02, 0.0, 0.01, 0.0, 0.0])

    def slow(stream: IO[bytes]) -> Any:
        time.sleep(next(delays))
        return decode_rgb(stream)

    monkeypatch.setattr(picture, "decode_rgb", slow)
    monkeypatch.setattr(stored, "THREADS", 4)
    train, labels, test, _ = decoded(made(tmp_path, plain, count=20))
    for found in (train, test):
        assert found[:, 0, 0, 0].tolist() == [100 * label + number for label in range(2) for number in range(20)]
    assert labels.tolist() == [0] * 20 + [1] * 20


@pytest.mark.parametrize("colourful", [None, "train/a/0.png", "test/b/1.png"])
def test_images_are_grey_only_if_all_are(tmp_path: Path, colourful: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "BLOCK", 1)  # one image at a time
    root = made(tmp_path, plain, count=3)
    if colourful is not None:
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[2, 3, 1] = 1
        Image.fromarray(pixels).save(root / colourful)
    train, _, test, _ = decoded(root)
    assert train.shape == test.shape == (6, 3 if colourful else 1, 4, 6)
    for found, part in ((train, "train"), (test, "test")):
        for image, file in zip(found, [root / part / c / f"{k}.png" for c in "ab" for k in range(3)], strict=True):
            wanted = np.asarray(Image.open(file)).transpose(2, 0, 1)
            assert torch.equal(image.expand(3, -1, -1), torch.from_numpy(wanted.copy()))


def test_an_archive_that_claims_a_file_of_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made(tmp_path, plain)
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            archive.add(root / part, arcname=".")
    monkeypatch.setattr(images, "LARGEST", 50)
    with pytest.raises(UserError, match=r"train\.tar: .*png cannot be read as an image: it has 0\.0 GB"):
        decode("tar:x", [root / "train.tar", root / "test.tar"], "")
