"""Examples of a split: raw, on the device or on the host, and standardised batch by batch on the device.

No standardised copy of the data exists. Raw examples are on the device if they fit there comfortably. Otherwise they stay on the host,
in memory or memory-mapped, and threads read the next batches ahead of use.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.data.ahead import computed
from bench.data.picture import memory

DEVICE_SHARE = 0.5  # the largest fraction of a GPU's free memory for raw examples
HOST_SHARE = 0.25  # memory-mapped examples of a larger fraction of the host's memory are read ahead: the system cannot keep all of them
READERS = 2  # threads
AHEAD = 4  # batches


@dataclass(frozen=True)
class Split:
    """Some of the examples of a data set.

    Attributes:
        raw: raw examples, those of other splits may be among them: images uint8 or float32 (m, channels, height, width), or features
            float32 (m, features).
        index: the rows of `raw` that are the examples of this split, int64 (n,), on the device of `raw`.
        targets: their class labels, int64 (n,), on the split's device.
        mean, std: what standardises them, float32, (channels, 1, 1) or (features,), on the split's device.
        mapped: whether `raw` is a memory-mapped file.
    """

    raw: Tensor
    index: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor
    mapped: bool = False

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor) -> "Split":
        """All of these inputs, used as they are."""
        mean, std = (torch.tensor(number, device=inputs.device) for number in (0.0, 1.0))
        return cls(inputs, torch.arange(len(inputs), device=inputs.device), targets, mean, std)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def device(self) -> torch.device:
        """The device of the standardised inputs and the targets."""
        return self.mean.device

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.raw.shape[1:])

    def at(self, order: Tensor) -> "Split":
        """The examples at some positions, int64 (n,) on the CPU, in this order. The raw examples are not copied."""
        index, targets = (tensor.index_select(0, order.to(tensor.device)) for tensor in (self.index, self.targets))
        return replace(self, index=index, targets=targets)

    def shuffled(self, seed: int, most: int | None = None) -> "Split":
        """The examples in a random order, which `seed` decides; only the first `most`, if given. The raw examples are not copied."""
        return self.at(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:most])

    def read(self, count: int | None = None) -> Tensor:
        """The standardised inputs of the first `count` examples, or of all, in one tensor: (x - mean) / std, float32 (n, *shape)."""
        return self._standardised(self.raw.index_select(0, self.index[:count]).to(self.device))

    def batches(self, sizes: int | Sequence[int]) -> Iterator[Tensor]:
        """The standardised inputs of all examples in order, in batches of one size or of several sizes."""
        chunks = torch.split(self.index, sizes)  # type: ignore[arg-type]
        for raw in self._read_ahead(chunks) if self._slow else (self.raw.index_select(0, rows) for rows in chunks):
            yield self._standardised(raw)

    def placed(self, raw: Tensor, device: torch.device) -> "Split":
        """The split on a device.

        Args:
            raw: its raw examples, where they are to stay.
            device: for targets and standardised inputs.
        """
        others = {name: getattr(self, name).to(device) for name in ("targets", "mean", "std")}
        return replace(self, raw=raw, index=self.index.to(raw.device), mapped=self.mapped and raw is self.raw, **others)

    def _standardised(self, raw: Tensor) -> Tensor:
        """`raw` is changed if it is float32."""
        return raw.float().sub_(self.mean).div_(self.std)

    @property
    def _slow(self) -> bool:
        """Whether reading a batch takes long enough to be done ahead: from another device, or perhaps from a disk."""
        return self.raw.device != self.device or (self.mapped and self.raw.nbytes > HOST_SHARE * memory())

    def _read_ahead(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        pinned = self.device.type == "cuda"  # so that copies to the GPU do not wait

        def empty(rows: Tensor) -> Tensor:
            return torch.empty((len(rows), *self.input_shape), dtype=self.raw.dtype, pin_memory=pinned)

        def read(task: tuple[Tensor, Tensor]) -> Tensor:
            rows, batch = task
            return torch.index_select(self.raw, 0, rows, out=batch)

        # The consumer's thread allocates: memory that one thread allocates and another frees is reused badly.
        for batch in computed(read, ((rows, empty(rows)) for rows in chunks), READERS, AHEAD):
            yield batch.to(self.device, non_blocking=pinned)


def on_device(splits: Sequence[Split], device: torch.device) -> list[Split]:
    """Splits on a device; their raw examples too, if all of them fit into `DEVICE_SHARE` of its free memory.

    Args:
        splits: several may share raw examples, which are moved once.
        device: the device.
    """
    raws = {id(split.raw): split.raw for split in splits}
    if device.type != "cuda" or sum(raw.nbytes for raw in raws.values()) <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        raws = {key: raw.to(device) for key, raw in raws.items()}
    return [split.placed(raws[id(split.raw)], device) for split in splits]
