"""Reads the tensors of a PyTorch checkpoint without PyTorch and without running anything that the file says.

The format is the one `torch.save` wrote before version 1.6 (a zip archive came after): five pickles (a magic number,
the format's version, facts about the machine, the object, the keys of its storages), then each storage as a
little-endian count of elements followed by the elements. Source: `torch/serialization.py`, `_legacy_save`.

A pickle is a program: it may call whatever `find_class` hands out. Here that is four names, each replaced by an object
of ours that only records what it was called with. What belongs here: this format. What a tensor's name means belongs
to the network that reads it.
"""

import dataclasses
import io
import math
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bloodcell.errors import InputError

MAX_BYTES = 1 << 30  # far above any backbone here; the file is read into memory whole
MAX_RANK = 8
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict, in the file's order, as arrays of their own memory.

    Args:
      path: a file written by `torch.save(module.state_dict(), path)` with PyTorch below 1.6; float32 and int64 tensors.

    Raises:
      InputError: the file is missing, too large, damaged, or holds anything but tensors.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: expected a PyTorch file of at most {MAX_BYTES} bytes, received {size}")
        stream = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: expected a readable PyTorch file, received: {error.strerror}") from None
    try:
        return _read(stream)
    except Exception as error:  # a damaged pickle raises whatever its broken opcodes lead to
        raise InputError(f"{path}: expected a PyTorch state dict of plain tensors (format before 1.6), "
                         f"received a damaged or another file ({error or type(error).__name__})") from None


@dataclasses.dataclass(frozen=True)
class _Storage:
    """What a persistent id names: a flat array that follows later in the file."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Sealed:
    """Base of the objects a pickle gets to hold: no attributes to set, and state given to them is refused."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("state for an object that takes none")


class _StorageType(_Sealed):
    """Stands for `torch.FloatStorage` and its like; it cannot be called."""

    __slots__ = ("dtype",)
    dtype: np.dtype

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)


class _RebuildTensor(_Sealed):
    """Stands for `torch._utils._rebuild_tensor_v2`; checks every number before it is believed."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_gradient_and_hooks: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("tensor without a storage")
        if not (_sizes(shape) and _sizes(strides) and _sizes((offset,)) and len(shape) == len(strides) <= MAX_RANK):
            raise pickle.UnpicklingError("tensor with an impossible shape")
        elements = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        # The first bound also stops a stride of 0 from unfolding a small storage into a huge array.
        if elements > storage.count or (elements and last >= storage.count):
            raise pickle.UnpicklingError("tensor reaches beyond its storage")
        return _Tensor(storage, offset, shape, strides)


class _OrderedDict(dict):
    """Stands for `collections.OrderedDict`; the `_metadata` that PyTorch attaches is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignores attributes: they would shadow methods."""


def _sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value <= MAX_BYTES for value in values)


class _Unpickler(pickle.Unpickler):
    """Knows the given globals and the storages' persistent ids, and nothing else."""

    def __init__(self, stream: io.BytesIO, known: dict[tuple[str, str], Any]) -> None:
        super().__init__(stream)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:120])
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (self._known and isinstance(pid, tuple) and len(pid) == 6 and pid[0] == "storage" and pid[5] is None
                and isinstance(pid[1], _StorageType) and isinstance(pid[2], str) and _sizes(pid[4:5])):
            raise pickle.UnpicklingError("a persistent id that is no storage")
        return _Storage(pid[2], pid[1].dtype, pid[4])


def _read(stream: io.BytesIO) -> dict[str, np.ndarray]:
    header = [_Unpickler(stream, {}).load() for _ in range(3)]
    if header[:2] != [_MAGIC, _VERSION] or header[2].get("little_endian") is not True:
        raise ValueError("another magic number, version or byte order")
    state = _Unpickler(stream, {  # made afresh for each file: nothing a file does to them can outlive it
        ("collections", "OrderedDict"): _OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
        ("torch", "FloatStorage"): _StorageType("<f4"),
        ("torch", "LongStorage"): _StorageType("<i8"),
    }).load()
    keys = _Unpickler(stream, {}).load()
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, _Tensor)
                                              for name, value in state.items()):
        raise ValueError("something else than named tensors")
    declared: dict[str, _Storage] = {}
    for tensor in state.values():
        if declared.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise ValueError("one storage declared in two ways")
    if not isinstance(keys, list) or len(keys) != len(declared) or set(keys) != set(declared):
        raise ValueError("the list of storages does not match the tensors")
    arrays = {key: _read_storage(stream, declared[key]) for key in keys}
    if stream.read(1):
        raise ValueError("bytes left over at the end")
    return {name: _view(arrays[tensor.storage.key], tensor) for name, tensor in state.items()}


def _read_storage(stream: io.BytesIO, storage: _Storage) -> np.ndarray:
    count = int.from_bytes(stream.read(8), "little", signed=True)
    if count != storage.count:
        raise ValueError(f"a storage of {count} elements where {storage.count} were declared")
    data = stream.read(count * storage.dtype.itemsize)
    if len(data) != count * storage.dtype.itemsize:
        raise ValueError("it ends too early")
    return np.frombuffer(data, storage.dtype)


def _view(array: np.ndarray, tensor: _Tensor) -> np.ndarray:
    strides = tuple(stride * array.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(array[tensor.offset:], tensor.shape, strides, writeable=False)
    return np.array(view, order="C")  # a copy, so that no view outlives the file's bytes
