"""Parses the pickles of torch.save without executing them: a small interpreter that builds data and calls nothing.

Python's `pickle` calls the functions that a file names. Even with an allow-list, allowed calls may fill the memory or never
end. This parser makes only dictionaries, lists, numbers and text, and descriptions of tensors: where their numbers are, which
are read only when they are needed. A file that names anything else is refused, with that name in the message.

The operations are documented in Python's module `pickletools`; the meaning of the names is in PyTorch's
`torch/_utils.py` and `torch/storage.py`.
"""

from __future__ import annotations

import functools
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convnextpose.files import LimitError, show

MAX_OPERATIONS = 200_000
"""Largest number of operations in a pickle. The largest variant's with Adam's moments has 17,663."""

MAX_DIMENSIONS = 32
"""Largest number of dimensions of a tensor: NumPy's limit before its version 2."""


class ForbiddenGlobalError(ValueError):
    """A pickle names something that is not data: `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"asks for {name}")
        self.name = name


@dataclass(frozen=True)
class Global:
    """Something that a pickle names: a type or a function."""

    module: str
    name: str

    def __str__(self) -> str:
        """Its qualified name in Python."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class OddTensor:
    """A tensor that is not a plain block of numbers.

    Attributes:
        kind: its kind, from the name of the function that would rebuild it: `sparse_tensor`, `nested_tensor`, `qtensor`.
    """

    kind: str


class Storage:
    """The memory of the numbers of one or more tensors.

    Args:
        dtype: NumPy's name of the numbers' type, or a name that NumPy lacks, such as `bfloat16`; None for bytes.
        size: its size, bytes.
        read: returns the bytes.
    """

    def __init__(self, dtype: str | None, size: int, read: Callable[[], bytes | memoryview]) -> None:
        self.dtype = dtype
        self.size = size
        self._read = read

    @functools.cached_property
    def data(self) -> bytes | memoryview:
        """The bytes; ValueError if there are fewer than `size`."""
        data = self._read()
        if len(data) < self.size:
            raise ValueError(f"{len(data)} of {self.size} bytes")
        return data


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose numbers are still in its file.

    Attributes:
        storage: the memory with its numbers.
        dtype: NumPy's name of their type, or a name that NumPy lacks, such as `bfloat16`.
        shape: its shape.
        strides: distance from one number to the next along each dimension, in numbers.
        offset: position of its first number in the storage, in numbers.
        big_endian: whether the most significant byte comes first.
    """

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    big_endian: bool = False

    def __post_init__(self) -> None:
        """Check that it lies within its storage.

        Raises:
            ValueError: it does not, or its shape is not valid.
        """
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(self.shape)} dimensions and {len(self.strides)} strides")
        numbers = (*self.shape, *self.strides, self.offset)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("a tensor's shape is not of whole numbers")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and (last + 1) * self.item_size > self.storage.size:
            raise ValueError("a tensor that reaches past its numbers")

    @property
    def item_size(self) -> int:
        """Size of one number, bytes."""
        return ITEM_SIZES[self.dtype]

    def numpy(self) -> NDArray[Any]:
        """A copy of its numbers; float32 for `bfloat16`.

        Raises:
            ValueError: NumPy has no such type, or the file is damaged.
        """
        stored = "uint16" if self.dtype == "bfloat16" else self.dtype
        if stored not in _NUMPY_TYPES:
            raise ValueError(f"numbers of type {self.dtype}")
        dtype = np.dtype(stored).newbyteorder(">" if self.big_endian else "<")
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        strides = tuple(stride * self.item_size for stride in self.strides)
        view: NDArray[Any] = np.ndarray(self.shape, dtype, self.storage.data, self.offset * self.item_size, strides)
        array = view.astype(dtype.newbyteorder("="))
        return (array.astype(np.uint32) << 16).view(np.float32) if self.dtype == "bfloat16" else array


_NUMPY_TYPES = {
    "float64": 8, "float32": 4, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip

ITEM_SIZES = _NUMPY_TYPES | {
    "bfloat16": 2, "complex32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1, "qint8": 1, "quint8": 1, "qint32": 4,
}  # fmt: skip
"""Size of a number of each type, bytes."""

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128", "UntypedStorage": None,
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
}  # fmt: skip

_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")

_REBUILD = re.compile(r"_rebuild_(?:device_)?(\w+?)(?:_v\d)?")

_PLAIN = {
    "torch.Size", "torch.device", "torch.nn.parameter.Parameter", "torch.Tensor", "torch._tensor.Tensor",
    "torch.serialization._get_layout", "torch.per_tensor_affine", "torch.per_channel_affine", "torch.strided",
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "_codecs.encode",
    "collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set",
    "torch._tensor._rebuild_from_type_v2",
}  # fmt: skip
"""The other names that a pickle may use: data, or functions that make data from data."""


def storage_type(named: object) -> str | None:
    """The type of a storage's numbers, None for bytes.

    Raises:
        ValueError: it is not a type of storage.
    """
    if not (isinstance(named, Global) and named.module in _STORAGE_MODULES and named.name in _STORAGES):
        raise ValueError("a tensor without a storage")
    return _STORAGES[named.name]


def read_pickle(stream: BinaryIO, storage: Callable[[tuple[Any, ...]], object], *, big_endian: bool = False) -> object:
    """Read the data of one pickle; the stream is then positioned after it.

    Args:
        stream: a stream with the pickle.
        storage: returns the `Storage` for data that is stored outside the pickle, from the tuple that describes it.
        big_endian: whether the numbers of tensors have their most significant byte first.

    Raises:
        ForbiddenGlobalError: it names something that is not data.
        ValueError: it is damaged.
        LimitError: it is far too long.
    """
    return _Machine(storage, big_endian).run(stream)


class _Machine:
    """The interpreter's state: the stack, the marks and the memo."""

    def __init__(self, storage: Callable[[tuple[Any, ...]], object], big_endian: bool) -> None:
        self._storage = storage
        self._big_endian = big_endian
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._kept: dict[int, Any] = {}
        self._left = MAX_OPERATIONS

    def run(self, stream: BinaryIO) -> object:
        try:
            for operation, argument, _ in pickletools.genops(stream):
                self._spend(1)
                self._step(operation.name, argument)
            return self._stack.pop()
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError("a pickle whose operations do not fit each other") from error

    def _spend(self, count: int) -> None:
        """Count operations and the items that they copy, as a list may be used often and is copied each time."""
        self._left -= count
        if self._left < 0:
            raise LimitError(
                f"expected a checkpoint of some hundred tensors, received a pickle of over {MAX_OPERATIONS:,} operations"
            )

    def _step(self, name: str, argument: Any) -> None:  # noqa: ANN401 (one branch for each kind of operation)
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            stack.append(argument)
        elif name in ("PROTO", "FRAME", "STOP"):
            pass
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "POP":
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._kept[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._kept[len(self._kept)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._kept[argument])
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = [stack.pop() for _ in range(count)]
            stack.append(tuple(reversed(items)))
        elif name in ("LIST", "FROZENSET"):
            stack.append(self._since_mark())
        elif name == "DICT":
            items = self._since_mark()
            stack.append({})
            self._set(items)
        elif name == "APPEND":
            item = stack.pop()
            self._top(list).append(item)
        elif name in ("APPENDS", "ADDITEMS"):
            more = self._since_mark()
            self._top(list).extend(more)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set([key, value])
        elif name == "SETITEMS":
            self._set(self._since_mark())
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(_find(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_find(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._made(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _NumpyType):
                stack[-1].set_order(state)
            # Otherwise attributes of a dictionary, such as `_metadata`: nothing here reads them, and none may hide its methods.
        elif name == "BINPERSID":
            told = stack.pop()
            if not isinstance(told, tuple):
                raise ValueError("a tensor without a storage")
            stack.append(self._storage(told))
        else:
            raise ValueError(f"an operation that no checkpoint has ({name})")

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type[Any]) -> Any:  # noqa: ANN401
        if not isinstance(self._stack[-1], kind):
            raise ValueError("a pickle whose operations do not fit each other")
        return self._stack[-1]

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _made(self, function: object, arguments: object) -> object:
        """The result of one of the known functions for some data."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("a pickle that calls data")
        name = str(function)
        if name in ("collections.OrderedDict", "collections.Counter"):
            (items,) = arguments or ((),)
            self._spend(len(items))
            return _dictionary(items)
        if name in ("builtins.set", "__builtin__.set", "torch.Size"):
            (items,) = arguments
            self._spend(len(items))
            return tuple(items) if name == "torch.Size" else list(items)
        if name == "_codecs.encode":
            text, encoding = arguments
            self._spend(len(text))
            if encoding not in ("latin1", "latin-1"):
                raise ValueError("text in an unknown encoding")
            return text.encode("latin-1")
        if name == "numpy.dtype":
            return _NumpyType(arguments[0])
        if name.endswith("core.multiarray.scalar"):
            kind, data = arguments
            return kind.number(data)
        if name == "torch._tensor._rebuild_from_type_v2":
            inner, _, inner_arguments, _ = arguments
            if not isinstance(inner, Global) or not inner.name.startswith("_rebuild_") or inner == function:
                raise ValueError("a tensor inside itself")
            return self._made(inner, inner_arguments)
        if function.name.startswith("_rebuild_"):
            return self._tensor(function.name, arguments)
        if name in ("torch.device", "torch.serialization._get_layout"):
            return name  # the device does not matter: numbers are read to the CPU
        raise ForbiddenGlobalError(show(name))

    def _tensor(self, function: str, arguments: tuple[Any, ...]) -> object:
        if function in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return arguments[0]
        if function not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            kind = _REBUILD.fullmatch(function)
            return OddTensor(kind[1] if kind else "tensor")
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without a storage")
        dtype = storage.dtype
        if function == "_rebuild_tensor_v3":
            named = arguments[6]
            dtype = named.name if isinstance(named, Global) and named.name in ITEM_SIZES else None
        if dtype is None:
            raise ValueError("a tensor of an unknown type")
        self._spend(len(shape) + len(strides))
        return StoredTensor(storage, dtype, tuple(shape), tuple(strides), offset, self._big_endian)


def _find(module: object, name: object) -> Global:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("a pickle whose operations do not fit each other")
    found = Global(module, name)
    if (
        str(found) in _PLAIN
        or (module in _STORAGE_MODULES and name in _STORAGES)
        or (module == "torch" and name in ITEM_SIZES)
        or (module.split(".")[0] == "torch" and name.startswith("_rebuild_"))
    ):
        return found
    raise ForbiddenGlobalError(show(str(found)))


def _key(key: object) -> object:
    """Check a dictionary's key. Tuples are refused: hashing deeply nested ones would overflow the stack or never end."""
    if key is None or isinstance(key, (str, int, float, bytes)):
        return key
    raise ValueError(f"a dictionary whose key is a {type(key).__name__}")


def _dictionary(items: Any) -> dict[Any, Any]:  # noqa: ANN401 (a dictionary, or a list of pairs)
    return {_key(key): value for key, value in (items.items() if isinstance(items, Mapping) else items)}


@dataclass
class _NumpyType:
    """NumPy's type of one number."""

    code: str
    order: str = "<"

    def __post_init__(self) -> None:
        if not isinstance(self.code, str) or not re.fullmatch(r"[biufc]\d{1,2}", self.code):
            raise ValueError("a NumPy scalar that is no number")

    def set_order(self, state: object) -> None:
        """Set the byte order from the state that NumPy saves; in place, as later scalars refer to the same type again."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"

    def number(self, data: object) -> object:
        if not isinstance(data, bytes):
            raise ValueError("a NumPy scalar without its bytes")
        return np.frombuffer(data, self.order + self.code, 1)[0].item()


_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}

_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
