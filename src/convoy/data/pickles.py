"""Reads a pickle of tensors, arrays and plain values that somebody else may have written.

A pickle is a program. Two things are done before it runs: its size is limited, and its instructions
are looked through for those that take far more memory than they have bytes. Then only what such
values are made of can be called, in versions of our own: torch's and numpy's trust their arguments.
"""

import gzip
import io
import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convoy.data import nesting
from convoy.data.instructions import Excessive, look_through

MOST_BYTES = 1 << 30  # of a file's content, and of each of its tensors
_STORAGE_BEGINS = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch's legacy magic number
# The three that torch writes first, the same on every machine that this runs on.
_STORAGE_HEADS = _STORAGE_BEGINS + b"".join(
    pickle.dumps(value, protocol=2)
    for value in (
        1001,
        {
            "protocol_version": 1001,
            "little_endian": True,
            "type_sizes": {"short": 2, "int": 4, "long": 4},
        },
    )
)

# What no builder has a reason to name, and who wants to take over a machine has.
_DANGEROUS = frozenset(
    "os posix nt sys subprocess shutil socket pty runpy importlib code codeop commands ctypes "
    "webbrowser pickle _pickle marshal shelve".split()
)
_DANGEROUS_BUILTINS = frozenset(
    "eval exec execfile compile open __import__ getattr setattr delattr globals locals vars input "
    "breakpoint".split()
)


class Refused(Exception):
    """What a pickle asks for that values do not need, and that no batch could be made of."""


class UnknownClass(Refused):
    """A class that somebody's builder may use; to make one is to run its code."""


class Malicious(Refused):
    """What can only be meant to run code."""


class TooLarge(Exception):
    """More than `MOST_BYTES`."""


def decompress(content: bytes) -> bytes:
    """As gzip.decompress, up to `MOST_BYTES`. Raises TooLarge, EOFError, OSError, zlib.error."""
    stream = zlib.decompressobj(wbits=31)
    stored = stream.decompress(content, MOST_BYTES + 1)
    if stream.eof and stream.unused_data:  # several members
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            stored = file.read(MOST_BYTES + 1)
    elif not stream.eof and len(stored) <= MOST_BYTES:
        raise EOFError("the compressed data ends too early")
    if len(stored) > MOST_BYTES:
        raise TooLarge
    return stored


def load(content: bytes) -> Any:
    """The values in `content`; parameters and tensors of a GPU come as plain tensors of the CPU.

    Raises Refused for what values do not need, and of a damaged pickle one of pickle's or torch's
    many exceptions, or MemoryError.
    """
    return _plain(_load_next(content, 0, _Unpickler)[0], _Count())


def _load_next(content: bytes, begin: int, unpickler: type[pickle.Unpickler]) -> tuple[Any, int]:
    """The value of the pickle that begins at `begin`, and where it ends."""
    try:
        end = look_through(content, begin)
    except Excessive as excessive:
        raise Refused(str(excessive)) from None
    return unpickler(io.BytesIO(content[begin:end])).load(), end


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _Call(_ALLOWED[module, name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise _refusal(module.split(".")[0], name)(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("an object from outside of the file")


def _refusal(package: str, name: str) -> type[Refused]:
    if package in ("builtins", "__builtin__"):
        return Malicious if name in _DANGEROUS_BUILTINS else Refused
    if package in _DANGEROUS:
        return Malicious
    return Refused if package in ("torch", "numpy") else UnknownClass


class _Call:
    """What a pickle may call, and do nothing else with: it could change a function or a class."""

    __slots__ = ("_function",)
    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Malicious("a change of what it calls")

    def __setstate__(self, state: Any) -> None:
        raise Malicious("a change of what it calls")


class _Own:
    """Stands for an object of torch or numpy while a pickle is read."""

    def __setstate__(self, state: Any) -> None:
        raise Malicious("a change of a tensor's parts")


class _Storage(_Own):
    """A tensor's memory, as torch.save writes a storage: in the legacy format, which tensors are
    pickled in, or as an archive."""

    def __init__(self, content: Any) -> None:
        if not isinstance(content, bytes):
            raise Refused("a storage that is not bytes")
        legacy = content.startswith(_STORAGE_BEGINS)
        held, memory = (_legacy_storage if legacy else _archived_storage)(content)
        if len(memory) != held.count * held.dtype.itemsize:
            raise EOFError("a storage ends too early")
        self.dtype = held.dtype
        values = torch.frombuffer(memory, dtype=torch.uint8) if memory else torch.empty(0)
        self.bytes = values.untyped_storage()


def _legacy_storage(content: bytes) -> tuple["_Header", bytearray]:
    """Five pickles, the number of elements, and these."""
    end = len(_STORAGE_HEADS) if content.startswith(_STORAGE_HEADS) else _heads_end(content)
    held, end = _load_next(content, end, _HeaderUnpickler)
    keys, end = _load_next(content, end, _HeaderUnpickler)
    if not isinstance(held, _Header) or keys != [held.key]:
        raise Malicious("a storage that holds more than numbers")
    begin = end + 8
    return held, bytearray(memoryview(content)[begin : begin + held.count * held.dtype.itemsize])


def _heads_end(content: bytes) -> int:
    """The end of the first three: a magic number, the format's, and the writer's machine."""
    end, system = 0, None
    for _ in range(3):
        system, end = _load_next(content, end, _HeaderUnpickler)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("a storage of another byte order")
    return end


def _archived_storage(content: bytes) -> tuple["_Header", bytearray]:
    """A zip archive of a pickle and the elements. It is never compressed: it would be a bomb."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in files.values()):
                raise Malicious("a compressed storage")
            held, _ = _load_next(archive.read(files["data.pkl"]), 0, _HeaderUnpickler)
            if not isinstance(held, _Header):
                raise Malicious("a storage that holds more than numbers")
            if "byteorder" in files and archive.read(files["byteorder"]) != b"little":
                raise ValueError("a storage of another byte order")
            return held, bytearray(archive.read(files[f"data/{held.key}"]))
    except zipfile.BadZipFile as error:
        raise ValueError("a storage is damaged") from error


class _Header:
    def __init__(self, dtype: torch.dtype, key: Any, count: Any) -> None:
        self.dtype, self.key, self.count = dtype, key, count


class _HeaderUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return torch.uint8
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, type) and issubclass(found, torch.storage._LegacyStorage):
            return found._dtype
        raise Malicious(f"{module}.{name}, from within a storage")

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view not in ([], [None]):
            raise Refused("a storage within another")
        if type(count) is not int or count < 0:
            raise ValueError("a storage of no length")
        return _Header(dtype, key, count)


class _Tensor(_Own):
    def __init__(self, values: Tensor) -> None:
        self.values = values


def _tensor(
    storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any, dtype: Any = None
) -> _Tensor:
    """As torch._utils._rebuild_tensor_v2: (…, requires_grad, backward_hooks, metadata)."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or not all(type(number) is int for number in numbers):
        raise Refused("a tensor of something else than a storage and numbers")
    dtype = dtype or storage.dtype
    if min(numbers) < 0 or len(size) != len(stride):
        raise ValueError("a tensor's size and stride do not go together")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (last + 1) * dtype.itemsize > storage.bytes.nbytes():
        raise ValueError("a tensor is larger than its storage")
    if count * dtype.itemsize > MOST_BYTES:
        raise TooLarge
    metadata = rest[2] if len(rest) > 2 and rest[2] is not None else {}
    if not isinstance(metadata, dict) or not metadata.keys() <= {"conj", "neg"}:
        raise Refused("a tensor with attributes of its own")
    tensor = torch.empty(0, dtype=dtype).set_(storage.bytes, offset, tuple(size), tuple(stride))
    tensor = tensor.conj() if metadata.get("conj") else tensor
    return _Tensor(torch._neg_view(tensor) if metadata.get("neg") else tensor)


def _tensor_of_dtype(
    storage: _Storage,
    offset: int,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> _Tensor:
    """As torch._utils._rebuild_tensor_v3, for dtypes without a storage type of their own."""
    if not isinstance(dtype, torch.dtype):
        raise Refused("a tensor without a dtype")
    return _tensor(storage, offset, size, stride, grad, hooks, metadata, dtype=dtype)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    return data


class _Dtype(_Own):
    """A numpy dtype, from what numpy.dtype is called with and its state."""

    def __init__(self, name: str, align: Any = False, copy: Any = False) -> None:
        self._name, self._order = name, "="

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    def get(self) -> np.dtype:
        if not isinstance(self._name, str) or self._order not in tuple("<>=|"):
            raise Refused("an unknown numpy dtype")
        dtype = np.dtype(self._name)
        if dtype.kind not in "biufcUS":
            raise Refused(f"a numpy array of {dtype}")
        return dtype.newbyteorder(">") if self._order == ">" else dtype


class _Array(_Own):
    """A numpy array: made empty, then given its state."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.values = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)):
        raise Refused("a numpy array of objects")
    kind = dtype.get()
    if kind.itemsize * math.prod(shape) != len(raw):
        raise ValueError("a numpy array's shape and content do not go together")
    # Tensors cannot be made of another byte order, and a batch's memory is written to.
    values = np.frombuffer(bytearray(raw), kind).reshape(shape, order="F" if order == "F" else "C")
    return values.astype(kind.newbyteorder("="), copy=False)


def _scalar(dtype: Any, raw: Any) -> Any:
    value: Any = _array(raw, dtype, (), "C")[()]
    if isinstance(value, str):
        return str(value)
    return bytes(value) if isinstance(value, bytes) else value


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}
for _package in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _Array
    _ALLOWED[f"{_package}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _array


class _Count:
    """How many values there are: the same list within lists can be millions of them."""

    def __init__(self) -> None:
        self.values = 0


def _plain(value: Any, count: _Count, depth: int = 0) -> Any:
    """`value` with numpy's arrays in place of ours, and every container a new one."""
    count.values += 1
    if depth > nesting.MOST_DEPTH or count.values > 10 * nesting.MOST_LEAVES:
        raise Refused("more values, or deeper in one another, than a sample has")
    if isinstance(value, (_Array, _Tensor)):
        if value.values is None:
            raise ValueError("a numpy array without content")
        return value.values
    if type(value) in (dict, OrderedDict):
        items = type(value).items(value)
        return type(value)((key, _plain(child, count, depth + 1)) for key, child in items)
    if type(value) in (list, tuple):
        return type(value)(_plain(child, count, depth + 1) for child in value)
    if isinstance(value, (_Own, _Call)):
        raise Refused("a part of a tensor by itself")
    return value
