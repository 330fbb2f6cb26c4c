"""Data sets of the user's own: every form that is read, moments and splits by hand, and each fault in one line that names the part."""

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from bench import data
from bench.data import own
from bench.spec import own_file
from bench.spec.errors import UserError

pytestmark = pytest.mark.usefixtures("clean_registry")
GIVEN: dict[str, Any] = {}  # what `load` of the test's file returns
LABELS = torch.arange(40) % 4
GREY = torch.arange(40 * 6, dtype=torch.uint8).reshape(40, 1, 2, 3)
COLOUR = torch.randint(0, 256, (40, 3, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Examples(Dataset[Any]):
    """A torch Dataset of any list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., data.Dataset]:
    """Load a data set whose `load` returns what is given."""
    (tmp_path / "my_data.py").write_text("from tests.bench.data import test_own\n\ndef load():\n    return test_own.GIVEN['parts']\n")

    def load(parts: Any, **options: Any) -> data.Dataset:
        GIVEN["parts"] = parts
        return data.load(f"{tmp_path}/my_data.py:load", None, **options)

    return load


def pictures(images: Tensor) -> list[Any]:
    arrays = images.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]


def with_labels(inputs: Any) -> Examples:
    return Examples(list(zip(inputs, LABELS.tolist(), strict=True)))


def raw(split: data.Split, dataset: data.Dataset) -> Tensor:
    return split.read() * dataset.std + dataset.mean


def every(dataset: data.Dataset) -> Tensor:
    """The raw inputs of all training and validation examples, in the order of their bytes."""
    found = torch.cat([raw(dataset.train, dataset), raw(dataset.validation, dataset)]).round()
    return torch.stack(sorted(found, key=lambda t: t.flatten().tolist()))


def in_order(images: Tensor) -> Tensor:
    return torch.stack(sorted(images.float(), key=lambda t: t.flatten().tolist()))


@pytest.mark.parametrize(
    ("form", "images"),
    [
        (lambda: (GREY, LABELS), GREY),
        (lambda: (GREY.numpy(), LABELS.numpy().astype(np.int16)), GREY),
        (lambda: [COLOUR.numpy(), LABELS.tolist()], COLOUR),
        (lambda: TensorDataset(COLOUR, LABELS), COLOUR),
        (lambda: with_labels(list(COLOUR)), COLOUR),
        (lambda: with_labels(list(GREY[:, 0])), GREY),
        (lambda: with_labels(list(COLOUR.permute(0, 2, 3, 1).numpy())), COLOUR),
        (lambda: with_labels(list(GREY[:, 0].numpy())), GREY),
        (lambda: with_labels(pictures(GREY)), GREY),
        (lambda: with_labels(pictures(COLOUR)), COLOUR),
        (lambda: Examples([(x, y) for x, y in zip(COLOUR, LABELS, strict=True)]), COLOUR),
        (lambda: Examples([[x, np.int64(y)] for x, y in zip(COLOUR, LABELS, strict=True)]), COLOUR),
    ],
)
def test_every_form_gives_the_same_examples(loaded: Callable[..., data.Dataset], form: Callable[[], Any], images: Tensor) -> None:
    found = loaded((form(), form()))
    assert (found.classes, found.input_shape) == (4, tuple(images.shape[1:]))
    assert torch.equal(raw(found.test, found).round(), images.float())
    assert torch.equal(found.test.targets, LABELS)
    assert torch.equal(every(found), in_order(images))
    assert len(found.validation) == 6  # 15 % of 40
    assert found.fingerprint == loaded((form(), form())).fingerprint


def test_moments_of_float_images_are_those_of_each_channel_over_the_training_examples(loaded: Callable[..., data.Dataset]) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 2, 3, 3, generator=generator) * torch.tensor([1.0, 50.0]).view(1, 2, 1, 1) + 7
    found = loaded(((images[:30], LABELS[:30]), (images[10:20], LABELS[10:20]), (images[30:], LABELS[30:])))
    assert len(found.train) == 30, "a validation split that is given is used"
    assert torch.equal(found.validation.targets, LABELS[10:20])
    for c in range(2):
        values = np.sort(images[:30, c].double().numpy().ravel())
        mean = values.sum() / 270
        deviation = np.sqrt(((values - mean) ** 2).sum() / 270)
        assert found.mean[c].item() == pytest.approx(mean, rel=1e-6)
        assert found.std[c].item() == pytest.approx(deviation, rel=1e-6)
        wanted = (images[30:, c].double().numpy() - mean) / deviation
        np.testing.assert_allclose(found.test.read()[:, c].numpy(), wanted, atol=1e-5)
    assert found.train.read().dtype == torch.float32
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = loaded(
            {"train": (images[:30], LABELS[:30]), "validation": (images[10:20], LABELS[10:20]), "test": (images[30:], LABELS[30:])}
        )
    finally:
        torch.set_num_threads(before)
    assert again.fingerprint == found.fingerprint, "threads do not matter, nor whether the parts are a dict or a tuple"


def test_rows_of_features_are_standardised_by_feature(loaded: Callable[..., data.Dataset]) -> None:
    rows = np.random.default_rng(0).normal([0, 100], [1, 3], (40, 2))
    found = loaded(((rows, LABELS), (rows, LABELS), (rows, LABELS)))
    np.testing.assert_allclose(found.train.read().numpy(), (rows - rows.mean(0)) / rows.std(0), atol=1e-5)
    assert found.input_shape == (2,)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


class Broken(Examples):
    def __getitem__(self, index: int) -> Any:
        raise OSError("disk")


NAN = torch.zeros(40, 1, 2, 3).index_fill_(0, torch.tensor([7]), float("nan"))
GOOD = (GREY, LABELS)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (GOOD[:1], "returned 1 values; it must return (train, test), (train, validation, test), or a dict with these names"),
        (None, "returned a NoneType; it must return"),
        ({"train": GOOD, "tset": GOOD}, "unknown part 'tset' (did you mean 'test'?); it must return"),
        ({"train": GOOD}, "the part 'test' is missing; it must return"),
        ((GOOD, 3), "test is a int; it must be a torch Dataset, or a pair (inputs, labels)"),
        ((GOOD, Endless()), "test is an IterableDataset; a Dataset with a length and examples by index is needed"),
        ((GOOD, Broken([1])), "test: example 0 raised OSError: disk"),
        ((GOOD, Examples([])), "test is empty"),
        ((GOOD, (GREY[:0], LABELS[:0])), "test is empty"),
        (((GREY, LABELS[:39]), GOOD), "train: there are 40 inputs and 39 labels"),
        ((GOOD, (GREY, LABELS.float())), "test: the labels are float32; they must be integers"),
        ((GOOD, (GREY, LABELS > 1)), "test: the labels are bool; they must be integers"),
        ((GOOD, (GREY, torch.eye(40))), "test: the labels have shape (40, 40); they must be one integer for each example, (n,)"),
        ((GOOD, (GREY, list("ab" * 20))), "test: the labels are a list, not a tensor or an array"),
        ((GOOD, with_labels(GREY.float() / 0)), "test: example 0 has values that are NaN or infinite"),
        ((GOOD, Examples([(GREY[0], 1.0)])), "test: example 0: its label is 1.0, not an integer"),
        ((GOOD, Examples([(GREY[0], True)])), "test: example 0: its label is True, not an integer"),
        ((GOOD, Examples([GREY[0, 0, 0]])), "test: example 0 is a Tensor of shape (3,), not a pair of an input and a label"),
        ((GOOD, Examples([(np.array(["x"]), 1)])), "test: example 0 is an array of <U1, not of numbers"),
        ((GOOD, Examples([("x", 1)])), "test: example 0 is a str, not a PIL image"),
        (
            (with_labels([*GREY[:39], GREY[0, :, :1]]), GOOD),
            "train: example 39 is uint8 (1, 1, 3), the first one is uint8 (1, 2, 3); all inputs",
        ),
        ((with_labels([*pictures(COLOUR)[:39], Image.new("RGB", (9, 9))]), GOOD), "train: example 39 is uint8 (3, 9, 9), the first one is"),
        ((GOOD, (COLOUR, LABELS)), "test has inputs of uint8 (3, 2, 3), train of uint8 (1, 2, 3)"),
        ((GOOD, (GREY.float(), LABELS)), "test has inputs of float32 (1, 2, 3), train of uint8 (1, 2, 3)"),
        (((NAN, LABELS), GOOD), "train: example 7 has values that are NaN or infinite"),
        (((GREY.long(), LABELS), GOOD), "train: the inputs are int64; they must be uint8 images or floating-point numbers"),
        (
            ((GREY[:, 0], LABELS), GOOD),
            "of shape (40, 2, 3), not images (n, channels, height, width) or floating-point rows (n, features); add the",
        ),
        (
            ((torch.zeros(40, 8, 8, 3), LABELS), GOOD),
            "train: inputs of shape (40, 8, 8, 3) have their channels last; images are (n, channels,",
        ),
        (((torch.zeros(40, 8, 8, 1), LABELS), GOOD), "train: inputs of shape (40, 8, 8, 1) have their channels last"),
        (((torch.zeros(40, 8, 8, 4), LABELS), GOOD), "train: inputs of shape (40, 8, 8, 4) have their channels last"),
        (((GREY, LABELS - 1), GOOD), "train has the label -1; labels are 0 to classes - 1"),
        (((GREY, LABELS + (LABELS > 1)), GOOD), "train has labels up to 4, but no example with the label 2"),
        (((GREY, LABELS.clamp(max=2)), GOOD), "test has the label 3, which no example of train has"),
        ((GOOD, (GREY, LABELS + 1), GOOD), "validation has the label 4, which no example of train has"),
        (((GREY, LABELS * 0), (GREY, LABELS * 0)), "has only one class; at least two are needed"),
    ],
)
def test_a_fault_is_one_line_that_names_the_part(loaded: Callable[..., data.Dataset], tmp_path: Path, parts: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        loaded(parts)
    assert said in str(error.value)
    assert str(error.value).startswith(f"dataset '{tmp_path}/my_data.py:load'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "root", "said"),
    [
        ("def load(root): raise ValueError(str(root))", "/data", "the function raised ValueError: /data"),
        ("def load(root): pass", None, "needs a folder: pass --data-root DIR"),
        ("def load(root=None): raise ValueError(str(root))", None, "the function raised ValueError: None"),
        ("def load(size): pass", None, "its parameter 'size' has no default; only `root`, the --data-root, is offered"),
        ("def loads(): pass", None, "has no function 'load' (did you mean 'loads'?)"),
    ],
)
def test_the_function_may_take_the_data_root(tmp_path: Path, text: str, root: str | None, said: str) -> None:
    (tmp_path / "my_data.py").write_text(text)
    with pytest.raises(UserError) as error:
        own.read(f"{tmp_path}/my_data.py:load", None if root is None else Path(root))
    assert said in str(error.value)


def test_it_has_a_description_and_a_version(tmp_path: Path) -> None:
    name = f"{tmp_path}/my_data.py:load"
    (tmp_path / "my_data.py").write_text("def load():\n    '''Mine.'''\n")
    before = own.version(name)
    assert data.describe(name) == "Mine"
    (tmp_path / "my_data.py").write_text("def load():\n    '''Mine.'''\n    return 1\n")
    assert own.version(name) not in ("", before)
    assert own.version("digits") == own.version("folder:x") == ""


def test_an_entry_point_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_points.py").write_text(
        "import torch\n\ndef load():\n    '''Noise.'''\n    part = (torch.rand(40, 3, generator=torch.Generator().manual_seed(0)),"
        " torch.arange(40) % 2)\n    return part, part\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = {name: EntryPoint(name, "own_points:load", own_file.GROUPS["dataset"]) for name in ("noise", "digits")}
    monkeypatch.setattr(own_file, "_entries", lambda kind: points if kind == "dataset" else {})
    assert data.load("noise", None).input_shape == (3,)
    assert own.version("noise")
    with pytest.raises(UserError, match="'digits' names two data sets: one of razorbench, and an entry point"):
        data.describe("digits")
