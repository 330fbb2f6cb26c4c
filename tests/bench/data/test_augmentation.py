"""What the steps of training see: targets and mixtures by hand, RandAugment's range, streams that do not move each other."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.data import Batches, Dataset, Split, check_augmentation, load, training_batches
from bench.data.statistics import statistics
from bench.spec.errors import UserError
from bench.spec.protocol import Protocol

PROTOCOL = Protocol(
    epochs=1, batch_size=8, optimizer="sgd", lr_scale=1.0, augment=(), finetune_lr_scale=0.1, validation=0.1, split_seed=0
)  # fmt: skip


def images(n: int = 20, channels: int = 3, side: int = 8, classes: int = 4) -> Dataset:
    """Random uint8 images, standardised."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(256, (n, channels, side, side), generator=generator).float()
    mean, std = raw.mean((0, 2, 3))[:, None, None], raw.std((0, 2, 3))[:, None, None]
    split = Split.of((raw - mean) / std, torch.arange(n) % classes)
    return Dataset("own", classes, (channels, side, side), split, split, split, "", mean, std, (0.0, 255.0))


def read(dataset: Dataset, seed: int = 1, epochs: int = 1, **changes: Any) -> list[tuple[Tensor, Tensor]]:
    batches = training_batches(dataset, replace(PROTOCOL, **changes), seed)
    return [batch for _ in range(epochs) for batch in batches]


def pixels(dataset: Dataset, inputs: Tensor) -> Tensor:
    return (inputs * dataset.std + dataset.mean) / 255


def test_without_any_of_it_batches_are_the_plain_ones() -> None:
    dataset = images()
    made = training_batches(dataset, replace(PROTOCOL, augment=("crop", "flip")), 1)
    assert type(made) is Batches
    assert (made.augment, made.seed, made.shuffle, made.batch_size) == (("crop", "flip"), 1, True, 8)


# --- label smoothing


def test_smoothing_gives_the_targets_of_its_formula() -> None:
    dataset = images()
    for (x, y), (plain, labels) in zip(read(dataset, label_smoothing=0.2), read(dataset), strict=True):
        assert torch.equal(x, plain)
        assert y.dtype == torch.float32
        for row, label in zip(y, labels, strict=True):
            assert row.tolist() == pytest.approx([0.8 + 0.05 if k == label else 0.05 for k in range(4)])


# --- mixup


def test_mixup_of_two_samples_is_the_mixture_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """λ = 0.3: each sample is 0.3 of itself and 0.7 of the other one, inputs and targets alike."""
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor([0.3]))
    split = Split.of(torch.tensor([[1.0, 2.0], [5.0, -2.0]]), torch.tensor([0, 2]))
    dataset = Dataset("table", 3, (2,), split, split, split, "", torch.zeros(2), torch.ones(2))
    ((x, y),) = read(dataset, mixup=1.0)
    order = torch.argsort(y[:, 2])  # the batch is shuffled: the sample with more of class 0 first
    first, second = (1, 0) if y[0, 0] < y[1, 0] else (0, 1)
    assert order.tolist() == [first, second]
    assert y[first].tolist() == pytest.approx([0.7, 0.0, 0.3])
    assert x[first].tolist() == pytest.approx([0.3 * 5 + 0.7 * 1, 0.3 * -2 + 0.7 * 2])
    assert y[second].tolist() == pytest.approx([0.3, 0.0, 0.7])
    ((_, soft),) = read(dataset, mixup=1.0, label_smoothing=0.3)
    assert soft[first].tolist() == pytest.approx([0.7 * 0.7 + 0.1, 0.1, 0.7 * 0.3 + 0.1])


def test_mixup_draws_one_weight_per_batch_from_its_beta_distribution() -> None:
    dataset = images(n=800)
    weights = torch.cat([_weights(y, labels) for (_, y), (_, labels) in zip(*(read(dataset, mixup=m) for m in (0.5, 0.0)), strict=True)])
    assert len(weights) == 100
    assert len(weights.unique()) == 100
    # Beta(α, α): mean 1/2, variance 1 / (4 (2 α + 1)); within four standard errors of 100 draws.
    assert abs(float(weights.mean()) - 0.5) < 4 * 0.354 / 10
    assert abs(float(weights.var()) - 0.125) < 0.05


def _weights(mixed: Tensor, labels: Tensor) -> Tensor:
    """λ of a batch, from the targets of samples that were mixed with another class."""
    apart = labels != labels.roll(1)
    found = mixed[apart, labels[apart]]
    assert torch.allclose(found, found[0].expand_as(found))
    assert torch.allclose(mixed.sum(1), torch.ones(len(mixed)))
    return found[:1]


# --- RandAugment


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_leaves_the_range_of_pixels_and_changes_images(channels: int) -> None:
    dataset = images(n=64, channels=channels)
    changed = 0
    for (x, y), (plain, labels) in zip(*(read(dataset, epochs=4, augment=a) for a in (("randaugment",), ())), strict=True):
        found = pixels(dataset, x)
        assert float(found.min()) > -1e-5
        assert float(found.max()) < 1 + 1e-5
        assert torch.equal(y, labels)
        assert x.shape == plain.shape
        changed += not torch.allclose(x, plain, atol=1e-4)
    assert changed > 16, "of 32 batches"


def test_randaugment_undoes_and_redoes_the_standardisation(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms import v2

    seen: list[Tensor] = []
    monkeypatch.setattr(v2.RandAugment, "forward", lambda self, x: seen.append(x.clone()) or x)
    dataset = images()
    randomly = read(dataset, augment=("randaugment",))
    for (x, _), (plain, _), given in zip(randomly, read(dataset), seen, strict=True):
        assert torch.allclose(x, plain, atol=1e-5)
        assert torch.allclose(given * 255, plain * dataset.std + dataset.mean, atol=1e-3)


def test_what_comes_in_from_outside_has_the_mean_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms import v2

    shift = (lambda bins, height, width: torch.full((bins,), 3.0), False)
    monkeypatch.setattr(v2.RandAugment, "_AUGMENTATION_SPACE", {"TranslateX": shift})
    for x, _ in read(images(), augment=("randaugment",)):
        assert x[..., :6].abs().max() < 1e-5, "two operations, three columns each: zero is the mean of standardised images"
        assert x[..., 6:].abs().max() > 1


# --- streams


EVERYTHING: dict[str, Any] = {"augment": ("crop", "flip", "randaugment"), "mixup": 0.4, "label_smoothing": 0.1}


def test_the_same_seed_repeats_and_another_epoch_or_seed_does_not() -> None:
    dataset = images()
    once, again, other = (torch.cat([x for x, _ in read(dataset, seed, epochs=2, **EVERYTHING)]) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once[:20], once[20:])
    assert not torch.equal(once, other)


def test_no_transform_moves_another_stream() -> None:
    """The order of the examples, the crops, the draws of RandAugment, and torch's global generator are the same with and without it."""
    dataset = images(n=64)
    with_mixup = read(dataset, augment=("randaugment",), mixup=1e9)  # λ = 1/2
    without = read(dataset, augment=("randaugment",))
    for (x, y), (plain, labels) in zip(with_mixup, without, strict=True):
        assert torch.allclose(x, (plain + plain.roll(1, 0)) / 2, atol=1e-3)
        assert torch.allclose(y[range(len(y)), labels] + y[range(len(y)), labels.roll(1)], 1.0 + (labels == labels.roll(1)).float())
    smoothed = read(dataset, augment=("crop", "flip"), label_smoothing=0.1)
    for (x, y), (plain, labels) in zip(smoothed, read(dataset, augment=("crop", "flip")), strict=True):
        assert torch.equal(x, plain)
        assert torch.equal(y.argmax(1), labels)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    read(dataset, **EVERYTHING)
    assert torch.equal(torch.rand(3), wanted)


def test_the_length_and_the_shapes_are_those_of_the_plain_batches() -> None:
    made = training_batches(images(n=17), replace(PROTOCOL, **EVERYTHING), 0)
    assert (len(made), made.samples, made.input_shape) == (2, 17, (3, 8, 8))
    assert [(len(x), tuple(y.shape)) for x, y in made] == [(8, (8, 4)), (9, (9, 4))]


# --- what is refused


def test_data_that_do_not_fit_an_augmentation_are_refused_in_one_line() -> None:
    table = Dataset("table", 2, (5,), *[Split.of(torch.zeros(4, 5), torch.zeros(4).long())] * 3, "", torch.zeros(5), torch.ones(5))
    for dataset, augment, message in (
        (table, ("flip",), "'flip' needs images, not tabular data: dataset 'table' has none"),
        (table, ("randaugment",), "'randaugment' needs images, not tabular data"),
        (replace(images(), pixel_range=None), ("randaugment",), "needs images in uint8 or floats in [0, 1]: those of dataset 'own' are"),
        (images(channels=4), ("randaugment",), "needs 1 (grey) or 3 (RGB) channels: dataset 'own' has 4"),
    ):
        with pytest.raises(UserError) as error:
            training_batches(dataset, replace(PROTOCOL, augment=augment), 0)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    check_augmentation(replace(images(), pixel_range=None), ("crop", "flip"))


def test_the_range_of_pixels_is_known_for_uint8_and_for_floats_between_0_and_1() -> None:
    assert load("digits", None).pixel_range == (0.0, 16.0)
    assert load("breast_cancer", None).pixel_range is None
    ramp = torch.linspace(0, 1, 12).view(1, 3, 2, 2)
    ranges = [statistics(images, torch.arange(len(images)))[2] for images in (ramp, ramp / 2, ramp - 0.5, 2 * ramp)]
    assert ranges == [(0.0, 1.0), (0.0, 1.0), None, None]
    assert statistics(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.arange(2))[2] == (0.0, 1.0)
