"""Mean, standard deviation and range of the raw training examples, read in blocks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.spec.errors import UserError

BLOCK = 2**22  # bytes of examples that are read at a time
Range = tuple[float, float]


def statistics(raw: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Range | None]:
    """Mean, standard deviation and range of examples.

    Args:
        raw: images uint8 or float (n, c, h, w), or features float (n, f); uint8 may be memory-mapped.
        index: the rows of `raw` that count, int64.

    Returns:
        Mean and standard deviation, float32, per channel (c, 1, 1) or feature (f,); the deviation of a constant is set to 1. And the
        smallest and largest possible value: 0 and the largest one that occurs for uint8, (0, 1) for floats between them; None for other
        data.
    """
    if raw.dtype == torch.uint8:
        # Computed from counts, so that the number of threads cannot change the result and the fingerprint.
        counts = _counts(raw, index)
        weights = counts.double() / counts.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64)
        mean = weights @ levels
        std = (weights * (levels - mean[:, None]).square()).sum(1).sqrt()
        mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        pixels: Range | None = (0.0, max(float(counts.any(0).nonzero().max()), 1.0))
    else:
        inputs = raw.index_select(0, index)
        if inputs.ndim == 4:
            # By numpy, which uses one thread, for the same reason.
            channels = [channel.double().numpy() for channel in inputs.unbind(1)]
            mean, std = (torch.tensor([getattr(c, which)() for c in channels]).view(-1, 1, 1) for which in ("mean", "std"))
        else:
            mean, std = inputs.double().mean(0), inputs.double().std(0, correction=0)
        pixels = (0.0, 1.0) if inputs.ndim == 4 and float(inputs.min()) >= 0.0 and float(inputs.max()) <= 1.0 else None
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    return mean.float(), std.float(), pixels


def _counts(raw: Tensor, index: Tensor) -> Tensor:
    """How often each value occurs in each channel of images uint8: int64 (c, 256)."""
    counts = torch.zeros(raw.shape[1], 256, dtype=torch.int64)
    for block in blocks(raw, index.sort().values):
        counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in block.unbind(1)])
    return counts


def blocks(raw: Tensor, index: Tensor) -> Iterator[Tensor]:
    """The rows of a tensor at `index`, in blocks of about `BLOCK` bytes."""
    size = max(1, BLOCK // max(1, raw[:1].nbytes))
    for rows in index.split(size):
        yield raw.index_select(0, rows)


def given(name: str, moments: tuple[Sequence[float], Sequence[float]], raw: Tensor) -> tuple[Tensor, Tensor]:
    """Given mean and standard deviation in the units of the raw examples, (c, 1, 1) or (f,).

    Grey images get the mean of three numbers: networks for colours see them in all three channels.

    Args:
        name: name of the data set, for messages.
        moments: mean and standard deviation of each channel or feature, of pixels in [0, 1] for images in bytes.
        raw: as in `statistics`.

    Raises:
        UserError: there is another number of channels or features.
    """
    channels, images = raw.shape[1], raw.dim() == 4
    if images and channels == 1:
        moments = tuple([sum(numbers) / len(numbers)] if len(numbers) == 3 else numbers for numbers in moments)  # type: ignore[assignment]
    for numbers in moments:
        if len(numbers) != channels:
            said = "channels" if images else "features"
            raise UserError(f"dataset {name!r} has {channels} {said}, but mean and std have {len(numbers)} numbers")
    scale = 255.0 if raw.dtype == torch.uint8 else 1.0
    mean, std = (torch.tensor(numbers, dtype=torch.float32).mul(scale) for numbers in moments)
    return (mean.view(-1, 1, 1), std.view(-1, 1, 1)) if images else (mean, std)
