"""Splits and batches against plain computations on whole float tensors; memory-mapped data; reading ahead; the memory that it takes."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from bench.data import Batches, Dataset, Split, load, sources, split
from bench.data.ahead import computed
from methods import derive
from tests.bench.data.pictures import images


def raw_images(n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def plain_epoch(
    x: Tensor, y: Tensor, size: int, seed: int, epoch: int, shuffle: bool, augment: tuple[str, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Independent: each image of the whole float tensor is padded, cut out and mirrored by itself."""

    def generator(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(seed, purpose, str(epoch)))

    n = len(x)
    order = torch.randperm(n, generator=generator("order")) if shuffle else torch.arange(n)
    pad = max(1, min(x.shape[2:]) // 8) if "crop" in augment else 0
    offsets = torch.randint(2 * pad + 1, (n, 2), generator=generator("crop"))
    flips = torch.randint(2, (n,), generator=generator("flip")) if "flip" in augment else torch.zeros(n)
    made = []
    for k, row in enumerate(order.tolist()):
        (top, left), (height, width) = offsets[k].tolist(), x.shape[2:]
        image = functional.pad(x[row], [pad] * 4)[:, top : top + height, left : left + width]
        made.append((image.flip(2) if flips[k] else image, y[row]))
    starts = list(range(0, n, size))
    if n % size == 1 and n > 1:
        del starts[-1]
    ends = [*starts[1:], n]
    return [(torch.stack([m[0] for m in made[a:b]]), torch.stack([m[1] for m in made[a:b]])) for a, b in zip(starts, ends, strict=True)]


def same(batches: Iterator[tuple[Tensor, Tensor]], wanted: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in zip(batches, wanted, strict=True))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 40), size=st.integers(2, 17), shuffle=st.booleans(), ahead=st.booleans(), channels=st.sampled_from((1, 3)),
    augment=st.sampled_from(((), ("crop",), ("flip",), ("crop", "flip"))),
)  # fmt: skip
def test_batches_are_those_of_the_whole_float_tensor(
    n: int, size: int, shuffle: bool, ahead: bool, channels: int, augment: tuple[str, ...]
) -> None:
    raw, y = raw_images(2 * n, channels, 9, 8), torch.arange(n)
    index = torch.randperm(2 * n, generator=torch.Generator().manual_seed(3))[:n]
    mean, std = torch.linspace(90, 120, channels).view(-1, 1, 1), torch.linspace(30, 70, channels).view(-1, 1, 1)
    whole = (raw[index].float() - mean) / std
    part = Split(raw, index, y, mean, std, mapped=ahead)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "memory", lambda: 0)
        assert part._slow == ahead
        batches = Batches(part, size, seed=n, shuffle=shuffle, augment=augment)
        for epoch in range(2):
            assert same(iter(batches), plain_epoch(whole, y, size, n, epoch, shuffle, augment))
        assert torch.equal(torch.cat(list(part.batches(size))), whole)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5))
    for most in (None, n // 2):
        chosen = part.shuffled(5, most)
        assert torch.equal(chosen.read(), whole[order[:most]])
        assert torch.equal(chosen.targets, y[order[:most]])
        assert chosen.raw.data_ptr() == raw.data_ptr(), "nothing is copied"


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_a_loaded_data_set_is_the_standardised_one_to_the_bit(name: str) -> None:
    """Independent: the raw data are split by scikit-learn, and standardised as whole tensors."""
    from sklearn.model_selection import train_test_split

    raw = sources.read(name, None, None)
    kept, held = train_test_split(np.arange(len(raw.train_targets)), test_size=0.15, random_state=0, stratify=raw.train_targets.numpy())
    limited = kept[train_test_split(np.arange(len(kept)), test_size=100, random_state=0, stratify=raw.train_targets[kept].numpy())[1]]
    for limit, rows in ((None, kept), (100, limited)):
        found = load(name, None, train_limit=limit)
        for part, inputs in (
            (found.train, raw.train_inputs[rows]),
            (found.validation, raw.train_inputs[held]),
            (found.test, raw.test_inputs),
        ):
            assert torch.equal(part.read(), (inputs.float() - found.mean) / found.std)
        train = raw.train_inputs[rows].double()
        axes = (0, 2, 3) if train.ndim == 4 else (0,)
        torch.testing.assert_close(found.mean.flatten(), train.mean(axes).float())
        assert found.train.raw.data_ptr() == found.validation.raw.data_ptr(), "one copy of the data"
        batches = Batches(found.train.shuffled(1, 60), 16, shuffle=False)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:60]
        assert torch.equal(torch.cat([x for x, _ in batches]), ((raw.train_inputs[rows].float() - found.mean) / found.std)[order])


def test_changing_a_batch_changes_no_data() -> None:
    part = Split.of(torch.rand(8, 3), torch.arange(8))
    before = part.read()
    for _ in range(2):
        for x, y in Batches(part, 4, shuffle=False):
            x.zero_()
            y.zero_()
    part.read().zero_()
    assert torch.equal(part.read(), before)
    assert part.targets.tolist() == [*range(8)]


def test_memory_mapped_images_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "data", "train", "test")
    found = load(f"folder:{tmp_path / 'data'}", None, cache=tmp_path / "cache")
    assert all(part.mapped for part in (found.train, found.validation, found.test))
    assert found.nbytes == sum(part.index.nbytes + part.targets.nbytes for part in (found.train, found.validation, found.test))

    def copied(part: Split) -> Split:
        return Split(part.raw.clone(), part.index, part.targets, part.mean, part.std)

    monkeypatch.setattr(split, "memory", lambda: 0)
    for part in (found.train, found.validation, found.test):
        assert part._slow
        assert not copied(part)._slow
        for _ in range(2):
            pairs = zip(Batches(part, 7, augment=("crop",)), Batches(copied(part), 7, augment=("crop",)), strict=True)
            assert all(torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in pairs)
    assert found.to("cpu").train.mapped


def test_small_data_in_memory_are_read_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "computed", lambda *_: pytest.fail("a thread was started"))
    assert sum(len(y) for _, y in Batches(load("digits", None).train, 100)) == 1221


# --- reading ahead


def test_results_come_in_order_and_no_more_than_a_few_ahead() -> None:
    started: list[int] = []
    for k, result in enumerate(computed(lambda n: started.append(n) or -n, range(50), threads=3, ahead=5)):
        assert result == -k
        assert len(started) <= k + 5


def test_an_error_of_the_reader_reaches_the_reader_of_batches() -> None:
    def read(n: int) -> int:
        if n == 7:
            raise OSError("disk")
        return n

    seen: list[int] = []
    with pytest.raises(OSError, match="disk"):
        seen.extend(computed(read, range(50), threads=2, ahead=4))
    assert seen == [*range(7)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_iteration_that_is_abandoned_ends_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "memory", lambda: 0)
    raw = raw_images(64, 1, 4, 4)
    part = Split(raw, torch.arange(64), torch.arange(64), torch.zeros(1, 1, 1), torch.ones(1, 1, 1), mapped=True)
    batches = iter(Batches(part, 4))
    next(batches)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    del batches
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_index_outside_the_data_is_an_error_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "memory", lambda: 0)
    raw = raw_images(8, 1, 4, 4)
    part = Split(raw, torch.tensor([0, 1, 2, 99]), torch.arange(4), torch.zeros(1, 1, 1), torch.ones(1, 1, 1), mapped=True)
    batches = part.batches(2)
    next(batches)
    with pytest.raises(IndexError):
        next(batches)


# --- placement


class Free:
    """A GPU with so much free memory, for `on_device`; tensors stay on the CPU."""

    def __init__(self, patch: pytest.MonkeyPatch, free: int) -> None:
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        self.moved: list[int] = []
        move = Tensor.to

        def to(tensor: Tensor, *where: object, **options: object) -> Tensor:
            if where and getattr(where[0], "type", None) == "cuda":
                self.moved.append(tensor.nbytes)
                return tensor
            return move(tensor, *where, **options)  # type: ignore[call-overload,no-any-return]

        patch.setattr(Tensor, "to", to)


@pytest.mark.parametrize(("free", "fits"), [(2_000_000, True), (200_000, False)])
def test_raw_examples_go_to_a_device_only_if_they_fit_and_once(free: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load("digits", None)
    size = found.train.raw.nbytes + found.test.raw.nbytes
    assert size == 1797 * 64
    assert (size <= free / 2) == fits
    gpu = Free(monkeypatch, free)
    found.to("cuda")
    assert [n for n in gpu.moved if n in (found.train.raw.nbytes, found.test.raw.nbytes)] == (
        [found.train.raw.nbytes, found.test.raw.nbytes] if fits else []
    )


@pytest.mark.parametrize("augment", [(), ("crop", "flip")])
def test_examples_on_the_host_make_batches_on_the_device(augment: tuple[str, ...]) -> None:
    """The device "meta" has no values, but mixing it with tensors of the CPU is an error, as for a GPU."""
    raw, device = raw_images(9, 3, 8, 8), torch.device("meta")
    host = Split(raw, torch.arange(9), torch.arange(9), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    part = host.placed(raw, device)
    assert (part.raw.device.type, part.index.device.type, part.device, part.targets.device) == ("cpu", "cpu", device, device)
    assert part._slow
    found = [(x.device, tuple(x.shape), x.dtype, y.device, len(y)) for x, y in Batches(part.shuffled(0), 4, augment=augment)]
    assert found == [(device, (n, 3, 8, 8), torch.float32, device, n) for n in (4, 5)]
    assert part.read(2).device == device
    assert [len(x) for x in part.batches(5)] == [5, 4]
    moved = host.placed(raw.to(device), device)
    assert not moved._slow
    assert [x.device for x, _ in Batches(moved.shuffled(0), 4, augment=augment)] == [device] * 2


# --- memory


READING = """
import sys
from pathlib import Path
import torch
from bench.data import Batches, load, split

def anonymous() -> int:
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

torch.set_num_threads(1)
load("digits", None)  # imports
before = peak = anonymous()
found = load("folder:" + sys.argv[1] + "/data", None, cache=Path(sys.argv[1]) / "cache", validation=0.2)
peak = max(peak, anonymous())
for split.HOST_SHARE, slow in ((1e9, False), (0.0, True)):  # directly, and ahead
    assert found.train._slow == slow
    for x, y in Batches(found.train, 64, augment=("crop", "flip")):
        peak = max(peak, anonymous())
    for x in found.validation.batches(100):
        peak = max(peak, anonymous())
print(found.train.raw.nbytes, peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is not known here")
def test_images_of_400_megabytes_are_read_with_less_memory(tmp_path: Path) -> None:
    name = f"folder:{images(tmp_path / 'data', 'train', 'test')}"
    load(name, None, cache=tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.safetensors")
    for file in (tmp_path / "cache").glob("*.json"):
        file.unlink()
    _write_many(stored, 32_500, 100)
    ran = subprocess.run(
        [sys.executable, "-c", READING, str(tmp_path)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(split.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    size, used = map(int, ran.stdout.split())
    assert size == 32_500 * 3 * 64 * 64
    assert used < 130e6


def _write_many(file: Path, train: int, test: int) -> None:
    """A decoded file of colour images 64x64 of two classes, in the place of another one."""
    from types import SimpleNamespace

    from bench.data import decoded

    counts = {"train": [None] * train, "test": [None] * test}
    labels = {f"{part}_targets": torch.arange(len(n)) % 2 for part, n in counts.items()}
    block = np.random.default_rng(0).integers(0, 256, (100, 3, 64, 64), dtype=np.uint8)
    decoded._save(file, SimpleNamespace(**counts, **labels), (3, 64, 64), (block for _ in range((train + test) // 100)))  # type: ignore[arg-type]
    decoded._sign(file)


def test_a_data_set_has_no_whole_float_tensor() -> None:
    found: Dataset = load("digits", None)
    assert found.train.raw.dtype == torch.uint8
    assert found.nbytes < 1797 * 64 + 3 * 1797 * 16
