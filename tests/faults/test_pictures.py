"""A stranger's images and archives cannot make this machine run or unpickle anything, whatever kind of data set reads them."""

import importlib
import io
import marshal
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from bench import data
from bench.spec.errors import UserError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%touch executed) (w) file\nshowpage\n%%EOF\n"
HOSTILE = {
    "EPS": EPS,
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "PDF": b"%PDF-1.4\n1 0 obj\n",
    "PSD": b"8BPS\0\1" + bytes(40),
    "ZIP": b"PK\x03\x04" + bytes(40),
}  # by the format that the refusal names


class Executed(BaseException):
    """Raised in place of what must not happen. Not an `Exception`, so that nothing handles it."""


class Bomb:
    """An object whose pickle would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


BOMB = pickle.dumps(Bomb())


def _refused(what: str) -> Callable[..., Any]:
    def raise_(*_: Any, **__: Any) -> Any:
        raise Executed(what)

    return raise_


class _Unpickler(pickle.Unpickler):
    """Every global that a pickle names is refused. `torch.load(weights_only=True)` does not use this class."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise Executed("pickle.Unpickler")


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unpickler and every start of a process raises. Libraries are imported before, because some of them do such things then."""
    for module in ("sklearn.datasets", "torchvision.datasets", "timm.data", *(["datasets"] if find_spec("datasets") else [])):
        importlib.import_module(module)
    for module, names in (
        (pickle, ("load", "loads")),
        (joblib, ("load",)),
        (subprocess, ("Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput")),
        (os, ("system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "_exit", "execv", "execve", "execvp", "execvpe")),
        (EpsImagePlugin, ("Ghostscript",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, _refused(f"{module.__name__}.{name}"))
    monkeypatch.setattr(pickle, "Unpickler", _Unpickler)
    load, read, loads = torch.load, np.load, marshal.loads

    def importing(content: Any) -> Any:  # Python itself reads compiled modules by `marshal`
        return loads(content) if sys._getframe(1).f_code.co_filename.startswith("<frozen importlib") else _refused("marshal.loads")()

    def weights_only(*given: Any, **options: Any) -> Any:
        return load(*given, **options) if options.get("weights_only") else _refused("torch.load")()

    def arrays_only(*given: Any, **options: Any) -> Any:
        return _refused("numpy.load")() if options.get("allow_pickle") else read(*given, **options)

    monkeypatch.setattr(marshal, "load", _refused("marshal.load"))
    monkeypatch.setattr(marshal, "loads", importing)
    monkeypatch.setattr(torch, "load", weights_only)
    monkeypatch.setattr(np, "load", arrays_only)


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def folders(root: Path, spoiled: bytes | None, name: str = "03.png") -> Path:
    """Two classes of 12 images in train and test, and one file with other content, if any."""
    for part in ("train", "test"):
        for label in range(2):
            (root / part / f"c{label}").mkdir(parents=True)
            for k in range(12):
                (root / part / f"c{label}" / f"{k:02}.png").write_bytes(png(100 * label + k))
    if spoiled is not None:
        (root / "train" / "c0" / name).write_bytes(spoiled)
    return root


def in_folders(root: Path, spoiled: bytes | None) -> tuple[str, Path | None]:
    return f"folder:{folders(root, spoiled)}", None


def in_archives(root: Path, spoiled: bytes | None) -> tuple[str, Path | None]:
    folders(root, spoiled)
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            archive.add(root / part, part)
        (root / f"_{part}_tarinfos.pickle").write_bytes(BOMB)  # what timm's reader of archives would unpickle
    return f"tar:{root}", None


def through_timm(root: Path, spoiled: bytes | None) -> tuple[str, Path | None]:
    return "timm:torch/image_folder", folders(root, spoiled)


def through_hugging_face(root: Path, spoiled: bytes | None) -> tuple[str, Path | None]:
    pytest.importorskip("datasets")
    return f"hf:{folders(root, spoiled)}", None


def embedded(root: Path, spoiled: bytes | None) -> tuple[str, Path | None]:
    """Images inside Parquet files, of which one column is not used and would be decoded by the package."""
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "more": [datasets.Image()]}
    root.mkdir(exist_ok=True)
    for part in ("train", "test"):
        content = [png(k) if k or spoiled is None or part == "test" else spoiled for k in range(24)]
        pictures = [{"bytes": one, "path": None} for one in content]
        columns = {"image": pictures, "label": [k % 2 for k in range(24)], "more": [[{"bytes": EPS, "path": None}]] * 24}
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(root / f"{part}.parquet")
    return f"hf:{root}", None


KINDS = [in_folders, in_archives, through_timm, through_hugging_face, embedded]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("make", KINDS)
def test_nothing_is_unpickled_or_started(make: Callable[..., tuple[str, Path | None]], tmp_path: Path, armed: None) -> None:
    name, root = make(tmp_path / "set", None)
    found = data.load(name, root, cache=tmp_path / "cache")
    assert (found.classes, len(found.train) + len(found.validation), len(found.test)) == (2, 24, 24)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("make", KINDS)
def test_another_format_under_the_name_of_an_image_is_refused(
    make: Callable[..., tuple[str, Path | None]], kind: str, tmp_path: Path, armed: None
) -> None:
    name, root = make(tmp_path / "set", HOSTILE[kind])
    with pytest.raises(UserError, match=f"its content is {kind}, not one of PNG, JPEG, BMP, WEBP, TIFF, GIF, PPM$") as error:
        data.load(name, root, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert make is embedded or "03.png" in str(error.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_embedded_data_need_no_pickle(name: str, armed: None) -> None:
    assert data.load(name, None).classes in (2, 10)


def numbers(shape: tuple[int, ...]) -> bytes:
    """An IDX file as MNIST's."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + (np.arange(np.prod(shape)) % 10).astype(np.uint8).tobytes()


@pytest.mark.parametrize("name", ["mnist", "timm:torch/mnist"])
def test_files_of_mnist_need_no_pickle(name: str, tmp_path: Path, armed: None) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(numbers((120, 28, 28)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(numbers((120,)))
    assert data.load(name, tmp_path).classes == 10


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
@pytest.mark.parametrize("through", ["", "timm:torch/"])
def test_pickles_of_cifar_with_another_digest_are_not_read(
    through: str, name: str, folder: str, tmp_path: Path, armed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", _offline)
    (tmp_path / folder).mkdir()
    for file in ("data_batch_1", "test_batch", "batches.meta", "train", "test", "meta"):
        (tmp_path / folder / file).write_bytes(BOMB)
    with pytest.raises(UserError, match=r"is missing or incomplete|not found or corrupted"):
        data.load(through + name, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "timm:torch/mnist", "timm:torch/qmnist", "timm:torch/imagenet"])
def test_saved_tensors_are_read_as_tensors_only(name: str, tmp_path: Path, armed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision reads MNIST's older files `processed/*.pt`, and ImageNet's `meta.bin`, by `torch.load`."""
    monkeypatch.setattr(urllib.request, "urlopen", _offline)
    for where in ("MNIST/processed/training.pt", "MNIST/processed/test.pt", "QMNIST/processed/training.pt", "meta.bin"):
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where).write_bytes(BOMB)
    with pytest.raises(UserError):
        data.load(name, tmp_path)
    assert not Path("executed").exists()


def test_sources_that_run_commands_of_a_data_set_are_refused(tmp_path: Path, armed: None) -> None:
    """A webdataset may name its files `pipe:COMMAND`; TensorFlow Datasets imports the classes that a file names."""
    (tmp_path / "_info.json").write_text('{"splits": {"train": {"filenames": ["pipe:touch executed"], "num_samples": 1}}}')
    for source in ("wds", "tfds", "hfids"):
        with pytest.raises(UserError, match="with one of the sources torch, hfds"):
            data.load(f"timm:{source}/x", tmp_path)


def test_a_decoded_cache_of_a_stranger_is_not_trusted(tmp_path: Path, armed: None) -> None:
    name, _ = in_folders(tmp_path / "set", None)
    wanted = data.load(name, None, cache=tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.safetensors")
    stored.write_bytes(BOMB)
    assert data.load(name, None, cache=tmp_path / "cache").fingerprint == wanted.fingerprint


def _offline(*_: Any, **__: Any) -> None:
    raise OSError("no network")


def test_the_fixture_notices_what_it_is_for(armed: None, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(EPS)
    with Image.open(tmp_path / "x.png") as image, pytest.raises(Executed, match="Ghostscript"):
        image.load()
    for start in (lambda: subprocess.run(["true"]), lambda: os.system("true"), lambda: pickle.loads(b""), lambda: marshal.loads(b"")):
        with pytest.raises(Executed):
            start()
    with pytest.raises(Executed):
        torch.load(tmp_path / "x.png", weights_only=False)
    with pytest.raises(Executed):
        np.load(tmp_path / "x.png", allow_pickle=True)
