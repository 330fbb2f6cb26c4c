"""Datasets and batches: splits, standardisation, fingerprints, a user's own images, the errors' wording."""

import gc
import gzip
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from bench.data import Batches, Dataset, Split, decoded, load, sources
from bench.data import batches as made
from bench.data import dataset as data
from bench.data import picture as picture_of_file
from bench.data.files import digest
from bench.data.statistics import statistics
from bench.spec.errors import UserError
from methods import derive

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def rows(split: Split) -> set[bytes]:
    return {example.numpy().tobytes() for example in split.read()}


# --- the splits


@pytest.mark.parametrize(
    ("name", "shape", "classes", "total"),
    [("digits", (1, 8, 8), 10, 1797), ("breast_cancer", (30,), 2, 569)],
)
def test_splits_are_disjoint_stratified_and_whole(name: str, shape: tuple[int, ...], classes: int, total: int) -> None:
    dataset = load(name, None)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert (dataset.input_shape, dataset.classes) == (shape, classes)
    assert sum(map(len, splits)) == total
    assert len(set.union(*map(rows, splits))) == total
    whole = torch.cat([split.targets for split in splits]).bincount() / total
    for split in splits:
        assert split.read().dtype == torch.float32
        assert split.targets.dtype == torch.int64
        assert split.read().shape == (len(split), *shape)
        torch.testing.assert_close(split.targets.bincount() / len(split), whole, atol=0.01, rtol=0)


def test_the_split_seed_moves_validation_but_never_test() -> None:
    first, same, other = load("digits", None), load("digits", None), load("digits", None, split_seed=1)
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert torch.equal(first.test.targets, other.test.targets)
    assert not torch.equal(first.validation.targets, other.validation.targets)


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_standardisation_comes_from_the_train_split_only(name: str) -> None:
    dataset = load(name, None)
    axes = (0, 2, 3) if len(dataset.input_shape) == 3 else (0,)
    mean, std = dataset.train.read().mean(axes), dataset.train.read().std(axes, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-5, rtol=0)
    assert dataset.validation.read().mean(axes).abs().max() > 1e-4
    assert dataset.test.read().mean(axes).abs().max() > 1e-4


@pytest.mark.parametrize("inputs", [torch.full((5, 2, 3, 3), 7, dtype=torch.uint8), torch.full((5, 2), 0.1, dtype=torch.float64)])
def test_a_constant_is_centred_not_divided_by_zero(inputs: Tensor) -> None:
    mean, std = statistics(inputs, torch.arange(len(inputs)))[:2]
    assert torch.equal(std, torch.ones_like(std))
    torch.testing.assert_close((inputs.float() - mean) / std, torch.zeros(inputs.shape))


def test_moments_of_images_are_those_of_their_pixels() -> None:
    images = torch.randint(256, (50, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = statistics(images, torch.arange(len(images)))[:2]
    torch.testing.assert_close(mean.flatten(), images.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(std.flatten(), images.double().std((0, 2, 3), correction=0).float())


def test_train_limit_keeps_a_stratified_part_of_train_alone() -> None:
    whole, part = load("digits", None), load("digits", None, train_limit=200)
    assert len(part.train) == 200
    assert part.train.targets.bincount().min() >= 19
    assert torch.equal(part.validation.targets, whole.validation.targets)
    assert part.train.read().mean().abs() < 1e-5
    assert load("digits", None, train_limit=10**6).fingerprint == whole.fingerprint


def test_a_test_split_that_raises_can_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def sealed(self: Dataset) -> Split:
        raise AssertionError("test data were read")

    monkeypatch.setattr(Dataset, "test", property(sealed))
    dataset = load("digits", None).to("cpu")
    with pytest.raises(AssertionError, match="were read"):
        _ = dataset.test


def test_the_fingerprint_sees_one_changed_byte_and_the_shape() -> None:
    tensor = torch.zeros(2, 6)
    changed = tensor.clone()
    changed[1, 5] = 1e-30
    assert len({digest([each]) for each in (tensor, changed, tensor.view(3, 4), tensor.double())}) == 4


# --- batches


def numbered(n: int, side: int = 8) -> Split:
    """Images that hold their own number in every pixel, plus a column ramp."""
    ramp = torch.linspace(0, 0.5, side).expand(n, 1, side, side)
    return Split.of(torch.arange(n).view(-1, 1, 1, 1) + ramp, torch.arange(n))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 70), size=st.integers(1, 40), shuffle=st.booleans())
def test_an_epoch_holds_every_example_once_in_no_batch_of_one(n: int, size: int, shuffle: bool) -> None:
    batches = Batches(numbered(n, 2), size, seed=3, shuffle=shuffle)
    targets = [targets for _, targets in batches]
    assert batches.samples == n
    assert len(batches) == len(targets)
    assert sorted(torch.cat(targets).tolist()) == list(range(n))
    if n > 1 and size > 1:
        assert min(map(len, targets)) > 1
    if not shuffle:
        assert torch.cat(targets).tolist() == list(range(n))


def test_equal_seeds_give_equal_sequences_of_different_epochs() -> None:
    def epochs(seed: int) -> list[list[int]]:
        batches = Batches(numbered(30), 7, seed=seed)
        return [[int(target) for _, targets in batches for target in targets] for _ in range(3)]

    first, same, other = epochs(5), epochs(5), epochs(6)
    assert first == same
    assert len({tuple(epoch) for epoch in first + other}) == 6


def test_an_epoch_broken_off_or_resumed_does_not_change_the_next() -> None:
    whole, broken, resumed = (Batches(numbered(30), 7, seed=1, augment=("crop",)) for _ in range(3))
    _ = list(whole), next(iter(broken))
    resumed.epoch = 1
    expected = [inputs for inputs, _ in whole]
    for batches in (broken, resumed):
        assert all(torch.equal(inputs, same) for (inputs, _), same in zip(batches, expected, strict=True))


def test_augmentation_and_order_draw_from_separate_streams_and_leave_the_data_alone() -> None:
    split = numbered(40)
    before = split.read().clone()
    plain = list(Batches(split, 8, seed=2))
    crop, flip, both = (list(Batches(split, 8, seed=2, augment=augment)) for augment in [("crop",), ("flip",), ("crop", "flip")])
    for augmented in (crop, flip, both):
        assert all(torch.equal(a[1], p[1]) for a, p in zip(augmented, plain, strict=True))
        assert any(not torch.equal(a[0], p[0]) for a, p in zip(augmented, plain, strict=True))
    assert torch.equal(split.read(), before)
    flipped = 0
    for (inputs, _), (originals, _) in zip(flip, plain, strict=True):
        for image, original in zip(inputs, originals, strict=True):
            assert torch.equal(image, original) or torch.equal(image, original.flip(2))
            flipped += int(not torch.equal(image, original))
    assert 8 < flipped < 32


def test_each_use_of_randomness_has_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, ...]] = []

    def recorded(seed: int, *purpose: str) -> int:
        used.append(purpose)
        return derive(seed, *purpose)

    monkeypatch.setattr(made, "derive", recorded)
    _ = list(Batches(numbered(4), 2, augment=("crop", "flip")))
    assert sorted(used) == [("crop", "0"), ("flip", "0"), ("order", "0")]


def test_a_crop_is_a_window_of_the_padded_image_on_every_channel() -> None:
    images = torch.rand(6, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    draws = torch.tensor([[0, 0, 0], [2, 4, 0], [4, 1, 1], [2, 2, 0], [2, 2, 1], [3, 0, 1]])
    padded = torch.nn.functional.pad(images, [2] * 4)
    results = made._window(images, 2, draws)
    for image, (row, column, flip), result in zip(padded, draws.tolist(), results, strict=True):
        window = image[:, row : row + 9, column : column + 7]
        assert torch.equal(result, window.flip(2) if flip else window)


def test_padding_is_an_eighth_of_the_side() -> None:
    for side, pad in [(4, 1), (8, 1), (28, 3), (32, 4)]:
        assert Batches(numbered(4, side), 2, augment=("crop",))._draw("0")[0] == pad


def test_batches_refuse_what_they_cannot_do() -> None:
    with pytest.raises(UserError, match=r"flop.*crop, flip.*flip") as unknown:
        Batches(numbered(4), 2, augment=("flop",))
    with pytest.raises(UserError, match="needs images") as tabular:
        Batches(Split.of(torch.zeros(4, 3), torch.zeros(4).long()), 2, augment=("flip",))
    with pytest.raises(UserError, match="batch size 0") as empty:
        Batches(numbered(4), 0)
    for error in (unknown, tabular, empty):
        message(error)


def test_derived_seeds_are_fixed_apart_and_fit_a_generator() -> None:
    assert derive(0, "order", "0") == derive(0, "order", "0")
    seeds = {derive(seed, *purpose) for seed in range(9) for purpose in [(), ("a",), ("b",), ("a", "b"), ("ab",)]}
    assert len(seeds) == 45
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(2**63 - 1)


# --- a user's own images


def picture(label: int, number: int, size: tuple[int, int] = (10, 8), grey: bool = False) -> Image.Image:
    """An image of (width, height) whose brightness tells its class, with noise that tells its number."""
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    noise = np.random.default_rng((label, number)).integers(0, 60, shape)
    return Image.fromarray((noise + 90 * label).astype(np.uint8))


def tree(root: Path, grey: bool = False) -> Path:
    """12 training and 4 test images of cats and of dogs, as folders under `root`."""
    for part, count, shift in (("train", 12, 0), ("test", 4, 1000)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(label, number + shift, grey=grey).save(folder / f"{number}.png")
    return root


def pack(root: Path) -> Path:
    """The same images as train.tar and test.tar."""
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            archive.add(root / part, arcname=part)
    return root


def test_folder_and_tar_read_the_same_images(tmp_path: Path) -> None:
    pack(tree(tmp_path))
    folder, tar = load(f"folder:{tmp_path}", None), load(f"tar:{tmp_path}", None)
    assert folder.input_shape == (3, 8, 10)
    assert folder.classes == 2
    assert (len(folder.train), len(folder.validation), len(folder.test)) == (20, 4, 8)
    assert folder.fingerprint == tar.fingerprint
    for split in (folder.train, folder.validation, folder.test):  # the brighter class is the second, dog
        brightness = split.read().mean((1, 2, 3))
        assert brightness[split.targets == 1].min() > brightness[split.targets == 0].max()


def test_grey_images_have_one_channel_and_odd_sizes_become_the_first(tmp_path: Path) -> None:
    tree(tmp_path, grey=True)
    picture(1, 7, (30, 20), grey=True).save(tmp_path / "test" / "dog" / "3.png")
    assert load(f"folder:{tmp_path}", None).input_shape == (1, 8, 10)
    picture(1, 7).save(tmp_path / "test" / "dog" / "3.png")
    assert load(f"folder:{tmp_path}", None).input_shape == (3, 8, 10)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_are_decoded_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, cache = f"{kind}:{pack(tree(tmp_path / 'data'))}", tmp_path / "cache"
    first = load(name, None, cache=cache)
    (stored,) = cache.glob("*.safetensors")

    def refuse(*args: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(picture_of_file, "decode_rgb", refuse)
        assert load(name, None, cache=cache).fingerprint == first.fingerprint
    for changed in ("data/train.tar", "data/train/cat/0.png"):
        stat = (tmp_path / changed).stat()
        os.utime(tmp_path / changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert load(name, None, cache=cache).fingerprint == first.fingerprint
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert stored in cache.iterdir()


def test_a_folder_may_lie_in_the_data_root(tmp_path: Path) -> None:
    tree(tmp_path / "mine")
    assert len(load("folder:mine", tmp_path).train) > 0
    with pytest.raises(UserError, match=r"folder:yours.*train is missing"):
        load("folder:yours", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "byte", "empty", "other"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    name, cache = f"folder:{tree(tmp_path / 'data')}", tmp_path / "cache"
    first = load(name, None, cache=cache)
    (stored,) = cache.glob("*.safetensors")
    files, whole, pixels = set(cache.iterdir()), stored.read_bytes(), first.train.read()
    if damage == "other":
        save_file({"x": torch.zeros(1)}, stored)
    else:
        at = len(whole) - 100
        bitten = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        stored.write_bytes({"cut": whole[:-50], "byte": bitten, "empty": b""}[damage])
    again = load(name, None, cache=cache)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.read(), pixels)
    assert stored.read_bytes() == whole
    assert set(cache.iterdir()) == files


def test_the_digest_of_decoded_images_is_compared_only_if_the_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, cache = f"folder:{tree(tmp_path / 'data')}", tmp_path / "cache"
    first = load(name, None, cache=cache)
    (stored,) = cache.glob("*.safetensors")
    hashed: list[int] = []
    monkeypatch.setattr(decoded, "digest", lambda tensors: hashed.append(1) or digest(tensors))
    assert load(name, None, cache=cache).fingerprint == first.fingerprint
    assert hashed == []
    os.utime(stored, ns=(0, 10**18))
    for _ in range(2):
        assert load(name, None, cache=cache).fingerprint == first.fingerprint
    assert hashed == [1], "compared once for the new time"


def test_an_unwritable_cache_is_said(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be stored in") as error:
        load(f"folder:{tmp_path / 'data'}", None, cache=tmp_path / "file")
    message(error)


def spoil_all(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()


def spoil_empty(root: Path) -> None:
    spoil_all(root)
    (root / "train").mkdir()
    (root / "test").mkdir()


def spoil_classes(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "wolf")


def spoil_flat(root: Path) -> None:
    for part in ("train", "test"):
        picture(0, 0).save(root / part / "stray.png")


def spoil_image(root: Path) -> None:
    (root / "train" / "cat" / "5.png").write_bytes(b"not a picture")


def spoil_png(root: Path) -> None:
    file = root / "train" / "cat" / "5.png"
    file.write_bytes(file.read_bytes()[:60])


def spoil_link(root: Path) -> None:
    (root / "train" / "cat" / "link.png").symlink_to(root / "gone.png")


def spoil_class(root: Path) -> None:
    for part in ("train", "test"):
        for file in (root / part / "dog").iterdir():
            file.unlink()


def spoil_all_but_one(root: Path) -> None:
    for part in ("train", "test"):
        shutil.rmtree(root / part / "dog")


def spoil_count(root: Path) -> None:
    for number in range(1, 12):
        (root / "train" / "dog" / f"{number}.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_all, "train is missing.*one sub-folder per class"),
        (spoil_empty, "no images"),
        (spoil_classes, "must have the same classes.*dog, wolf"),
        (spoil_flat, "outside the class folders"),
        (spoil_image, "5.png cannot be read as an image"),
        (spoil_png, "5.png cannot be read as an image"),
        (spoil_link, "link.png"),
        (spoil_class, "the class folder .*/train/dog has no images"),
        (spoil_all_but_one, "only one class"),
        (spoil_count, "too few examples to split off 0.15"),
    ],
)
def test_a_wrong_folder_is_said_in_one_line(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(tree(tmp_path))
    with pytest.raises(UserError, match=said) as error:
        load(f"folder:{tmp_path}", None, cache=tmp_path / "cache")
    assert str(tmp_path) in message(error)


def test_a_wrong_archive_is_said_in_one_line(tmp_path: Path) -> None:
    name = f"tar:{tmp_path}"
    with pytest.raises(UserError, match=r"train.tar is missing") as missing:
        load(name, None)
    for part in ("train", "test"):
        (tmp_path / f"{part}.tar").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="no images") as broken:
        load(name, None)
    for part in ("train", "test"):
        tarfile.open(tmp_path / f"{part}.tar", "w").close()
    with pytest.raises(UserError, match="no images") as empty:
        load(name, None)
    for error in (missing, broken, empty):
        message(error)


# --- torchvision


def idx(array: Pixels) -> bytes:
    """An array of bytes in MNIST's own format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def fake_mnist(raw: Path) -> Path:
    """100 training and 20 test examples where torchvision looks for them; the directory above."""
    raw.mkdir(parents=True)
    for part, count in (("train", 100), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28)).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    return raw.parent.parent


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_torchvision_layout_is_read_in_place(tmp_path: Path, name: str, folder: str) -> None:
    root = fake_mnist(tmp_path / folder / "raw")
    before = sorted(path.stat().st_mtime_ns for path in root.rglob("*"))
    dataset = load(name, root)
    assert (dataset.input_shape, dataset.classes) == ((1, 28, 28), 10)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (85, 15, 20)
    assert dataset.test.targets.tolist() == [*range(10)] * 2
    assert sorted(path.stat().st_mtime_ns for path in root.rglob("*")) == before


class FakeCifar:
    """CIFAR's shape of answer: height, width, channels; a list of labels."""

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        count = 50 if train else 20
        self.data = np.zeros((count, 32, 32, 3), np.uint8)
        self.data[..., 2] = np.arange(count)[:, None, None]
        self.targets = [number % 5 for number in range(count)]


class FakeSvhn:
    """SVHN's: channels first, an array called labels."""

    def __init__(self, root: Path, split: str, download: bool) -> None:
        inner = FakeCifar(root, split == "train", download)
        self.data, self.labels = inner.data.transpose(0, 3, 1, 2), np.array(inner.targets)


@pytest.mark.parametrize(("name", "cls", "fake"), [("cifar10", "CIFAR10", FakeCifar), ("svhn", "SVHN", FakeSvhn)])
def test_colour_becomes_channels_first(name: str, cls: str, fake: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"torchvision.datasets.{cls}", fake)
    dataset = load(name, Path())
    assert dataset.input_shape == (3, 32, 32)
    assert dataset.classes == 5
    assert not dataset.test.read()[:, :2].any()  # the empty channels
    assert torch.equal(dataset.test.read()[:, 2, 0, 0].argsort(), torch.arange(20))


def offline(*args: object, **kwargs: object) -> None:
    raise URLError("no route\nto host")


def test_without_data_or_network_one_line_and_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", offline)
    for name in ("mnist", "cifar10", "svhn"):
        with pytest.raises(UserError, match=f"{name}.*{tmp_path}.*cannot be downloaded.*--data-root") as error:
            load(name, tmp_path / "nowhere")
        message(error)
    with pytest.raises(UserError, match="--data-root"):
        load("mnist", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [0, 1000])
def test_a_file_cut_short_is_fetched_again_or_said(tmp_path: Path, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "MNIST" / "raw"
    root = fake_mnist(raw)
    contents = {path.name: path.read_bytes() for path in raw.iterdir()}
    file = raw / "train-images-idx3-ubyte"
    whole = contents[file.name]
    file.write_bytes(whole[:left])
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match="missing or incomplete") as error:
        load("mnist", root)
    message(error)

    def fetch(url: str, download_root: str, filename: str, md5: str) -> None:
        unpacked = filename.removesuffix(".gz")
        (Path(download_root) / filename).write_bytes(gzip.compress(contents[unpacked]))
        (Path(download_root) / unpacked).write_bytes(contents[unpacked])

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    assert len(load("mnist", root).train) == 85
    assert file.read_bytes() == whole
    assert {path.name for path in raw.iterdir()} == contents.keys()  # neither archives nor partial files


# --- names


def test_every_name_has_a_line_and_an_unknown_one_a_suggestion() -> None:
    assert {"digits", "breast_cancer", "mnist", "cifar100", "folder:PATH", "tar:PATH"} < set(data.names())
    assert all(data.describe(name) and "\n" not in data.describe(name) for name in data.names())
    assert data.describe("folder:anywhere") == data.describe("folder:PATH")
    for wrong in ("digit", "mnist:raw", "zip:PATH"):
        with pytest.raises(UserError, match=r"unknown dataset.*breast_cancer") as error:
            load(wrong, None)
        message(error)
    with pytest.raises(UserError, match="digits'"):
        load("digit", None)
    for share in (1.0, -0.1):
        with pytest.raises(UserError, match="validation share"):
            load("digits", None, validation=share)


def test_without_validation_all_training_examples_are_left() -> None:
    raw = sources.read("digits", None, None)
    dataset = load("digits", None, validation=0)
    assert len(dataset.train) == len(raw.train_inputs)
    assert len(dataset.validation) == 0
    assert torch.equal(dataset.train.targets, raw.train_targets)


def test_given_moments_standardise_pixels_of_0_to_1() -> None:
    raw, dataset = sources.read("digits", None, None), load("digits", None, validation=0, moments=([0.25], [0.5]))
    wanted = (raw.train_inputs.double() / 255 - 0.25) / 0.5
    torch.testing.assert_close(dataset.train.read().double(), wanted, rtol=1e-6, atol=1e-6)
    assert (dataset.mean.flatten().tolist(), dataset.std.flatten().tolist()) == ([63.75], [127.5])
    assert dataset.fingerprint != load("digits", None, validation=0).fingerprint
    rows = load("breast_cancer", None, moments=([1.0] * 30, [2.0] * 30))
    torch.testing.assert_close(rows.test.read() * 2 + 1, sources.read("breast_cancer", None, None).test_inputs.float())
    grey = load("digits", None, validation=0, moments=([0.15, 0.25, 0.35], [0.4, 0.5, 0.6]))
    torch.testing.assert_close(grey.train.read(), dataset.train.read())
    with pytest.raises(UserError, match="has 1 channels, but mean and std have 2 numbers"):
        load("digits", None, moments=([0.5] * 2, [0.5] * 2))


def test_a_budget_of_samples_is_the_start_of_the_shuffled_split() -> None:
    train = load("digits", None).train
    assert torch.equal(train.shuffled(3, 20).targets, train.shuffled(3).targets[:20])


@pytest.mark.skipif("RAZORBENCH_DATA" not in os.environ, reason="RAZORBENCH_DATA names no directory of real data")
def test_the_real_mnist() -> None:
    dataset = load("mnist", Path(os.environ["RAZORBENCH_DATA"]))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (51_000, 9_000, 10_000)
    assert dataset.test.targets[:5].tolist() == [7, 2, 1, 0, 4]


def test_the_archives_are_closed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    gc.collect()
    recwarn.clear()  # what other tests have left open
    load(f"tar:{pack(tree(tmp_path))}", None)
    gc.collect()
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_a_name_that_cannot_be_written_to_a_table_is_refused(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    tree(Path(folder))
    for name in (f"folder:{folder}", "folder:a\nb"):
        with pytest.raises(UserError, match="the name of a dataset has characters that cannot be printed: 'folder:") as error:
            load(name, None)
        assert str(error.value).isprintable()


def test_loops_of_links_do_not_hang_the_cache(tmp_path: Path) -> None:
    wanted = load(f"folder:{tree(tmp_path / 'x')}", None).fingerprint
    for name in ("cat", "dog"):
        for k in range(3):
            (tmp_path / "x" / "train" / name / f"up{k}").symlink_to("..")
    assert load(f"folder:{tmp_path / 'x'}", None, cache=tmp_path / "cache").fingerprint == wanted
