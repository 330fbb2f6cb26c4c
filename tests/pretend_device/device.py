"""A device for tests that is not the CPU: tensors on `pretend` wrap tensors on the CPU, and mistakes with devices raise as on CUDA.

PyTorch lets Python code be the backend of one more kind of device ("PrivateUse1"). Here each operation on `PretendTensor`s runs the
same operation on the wrapped tensors. It raises a RuntimeError, as CUDA does, if

- tensors of both devices meet, except for a number (a tensor without dimensions), an index, and a copy;
- random numbers on the device are drawn from a generator of the CPU, or the reverse;
- memory of the device is read as if it was on the CPU (numpy, pickle).
"""

import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
calls: dict[str, int] = {}  # operation -> how often it ran on the device

_every, _single = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")  # kept alive: they hold what is registered

# Operations that take tensors of both devices on CUDA.
_COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_copy_from_and_resize"}
_INDEXED = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
    "aten::_unsafe_index_put",
}


class PretendTensor(Tensor):
    """A tensor on the device; `raw` is the tensor on the CPU with its numbers and its memory layout."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "PretendTensor":
        made: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.raw = raw
        module.count(made)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        """The tensor without its gradient. Assigning to it replaces the numbers."""
        return Tensor.data.__get__(self)  # type: ignore[attr-defined,no-any-return]

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, PretendTensor):
            raise RuntimeError(f"incompatible tensor type: {new.device} cannot be the data of a tensor on {NAME}:0")
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.raw = new.raw

    def tolist(self) -> Any:
        """The numbers; torch does not offer this for subclasses."""
        return self.raw.tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"PretendTensor({self.raw!r})"


class _Module:
    """What `torch.cuda` is for CUDA."""

    def __init__(self) -> None:
        self.allocated = self.peak = 0  # bytes
        self.users: dict[int, int] = {}  # address of a storage -> number of tensors in it

    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    synchronize = staticmethod(lambda device=None: None)
    get_device_name = staticmethod(lambda device=None: "a tensor on the CPU")
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])

    def memory_allocated(self, device: object = None) -> int:
        """Bytes of the tensors that are alive."""
        return self.allocated

    def max_memory_allocated(self, device: object = None) -> int:
        """The largest number of bytes since the last reset."""
        return self.peak

    def reset_peak_memory_stats(self, device: object = None) -> None:
        """Start the count of the peak again."""
        self.peak = self.allocated

    def count(self, tensor: "PretendTensor") -> None:
        """Count the memory of a tensor until the last tensor in it is freed."""
        storage = tensor.raw.untyped_storage()
        where, size = storage.data_ptr(), storage.nbytes()
        self.users[where] = self.users.get(where, 0) + 1
        if self.users[where] == 1:
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        weakref.finalize(tensor, self._release, where, size)

    def _release(self, where: int, size: int) -> None:
        self.users[where] -= 1
        if not self.users[where]:
            del self.users[where]
            self.allocated -= size


module = _Module()


@functools.cache
def register() -> torch.device:
    """Make the device known to this process. It stays known until the process ends."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    _every.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    # `torch.tensor(..., device=...)` uses these with the dispatch to Python switched off, where the fallback is not found.
    aten = torch.ops.aten
    for op in (aten.copy_.default, aten.empty_strided.default, aten.empty.memory_format):
        _single.impl(op, functools.partial(lambda op, *args, **kwargs: _run(op, args, kwargs), op), "PrivateUse1")
    return torch.device(NAME, 0)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the wrapped tensors."""
    name = func._schema.name
    calls[name] = calls.get(name, 0) + 1
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [a for a in flat if isinstance(a, Tensor)]
    here = [t for t in tensors if isinstance(t, PretendTensor)]
    asked = kwargs.get("device")
    _refuse_mixed(name, tensors, here)
    on_device = bool(here) if asked is None else torch.device(asked).type == NAME
    _refuse_generator(name, flat, on_device)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
        flat, spec = pytree.tree_flatten((args, kwargs))
    raw_args, raw_kwargs = pytree.tree_unflatten([a.raw if isinstance(a, PretendTensor) else a for a in flat], spec)
    before = [(t, t.raw.size(), t.raw.stride()) for t in here]
    result = func(*raw_args, **raw_kwargs)
    for tensor, size, stride in before:
        if (tensor.raw.size(), tensor.raw.stride()) != (size, stride):
            Tensor.data.__set__(tensor, PretendTensor(tensor.raw))  # type: ignore[attr-defined]
    if name == "aten::copy_":
        return args[0]
    by_raw = {id(t.raw): t for t in here}
    return pytree.tree_map_only(Tensor, lambda t: by_raw[id(t)] if id(t) in by_raw else PretendTensor(t) if on_device else t, result)


def _refuse_mixed(name: str, tensors: list[Tensor], here: list[PretendTensor]) -> None:
    if not here or name in _COPIES:
        return
    others = [t for t in tensors if not isinstance(t, PretendTensor) and t.dim() > 0]
    if name in _INDEXED and isinstance(tensors[0], PretendTensor):
        others = [t for t in others if t.dtype not in (torch.int64, torch.bool, torch.int32, torch.uint8)]
    if others:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {NAME}:0 and {others[0].device}")


def _refuse_generator(name: str, flat: list[Any], on_device: bool) -> None:
    for argument in flat:
        if isinstance(argument, torch.Generator) and (argument.device.type == NAME) != on_device:
            wanted = NAME if on_device else "cpu"
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{argument.device.type}' ({name})")
