"""Arrays of other libraries on the GPU, such as torch's and CuPy's: where their items are, and when they are complete.

`__dlpack__(stream=...)` is used first: with it the library that made an array lets our stream wait for its own stream.
`__cuda_array_interface__` can name a stream to wait for, from its version 3. If it names none, the whole GPU is synchronised.

Sources: the DLPack protocol (https://dmlc.github.io/dlpack/latest/python_spec.html, dlpack.h) and Numba's description of the
CUDA array interface.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError
from engines.tensorrt.device import Device

_ON_CPU, _ON_GPU, _MANAGED = 1, 2, 13
"""DLPack's kinds of device."""

_NO_WAITING = -1
"""DLPack's stream for a caller that handles the waiting itself."""

_KINDS = {0: "int", 1: "uint", 2: "float"}
"""DLPack's codes of types, and numpy's names for them."""


class _DLTensor(ctypes.Structure):
    """The start of the content of a capsule named `dltensor`."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class DeviceArray:
    """A contiguous array on the GPU that belongs to another library.

    Attributes:
        dtype: its type.
        shape: its shape, items along axis 0.
        address: its start.
    """

    def __init__(self, source: Any, dtype: np.dtype[Any], shape: tuple[int, ...], address: int, owner: Any) -> None:  # noqa: ANN401
        self._source, self._owner = source, owner
        self.dtype, self.shape, self.address = dtype, shape, address

    def __len__(self) -> int:
        """The number of its items."""
        return self.shape[0]

    def __getitem__(self, items: slice) -> DeviceArray:
        """A slice of contiguous items, in place."""
        begin, end, step = items.indices(len(self))
        assert step == 1
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        shape = (max(end - begin, 0), *self.shape[1:])
        return DeviceArray(self._source, self.dtype, shape, self.address + begin * size, self._owner)

    @property
    def size(self) -> int:
        """Its size, bytes."""
        return self.dtype.itemsize * math.prod(self.shape)

    def wait(self, device: Device, stream: Any) -> None:  # noqa: ANN401 - a stream of the device
        """Let a stream's next work wait until the array is complete."""
        if hasattr(self._source, "__dlpack__"):
            self._source.__dlpack__(stream=stream.handle)  # called only to make the stream wait
            return
        interface = self._source.__cuda_array_interface__
        if "stream" not in interface:
            device.synchronize()
        elif interface["stream"] is not None:
            stream.wait_for(int(interface["stream"]))


def adopt(array: Any, name: str) -> NDArray[Any] | DeviceArray:  # noqa: ANN401
    """Convert an array of any library: to numpy's if it is on the host, to ours if it is on the GPU.

    Args:
        array: a numpy array, or one that has `__dlpack__` or `__cuda_array_interface__`.
        name: its name in error messages.

    Raises:
        GeometryError: it is none of these, not contiguous, of a type that numpy lacks, or not on the first GPU.
    """
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        kind, ordinal = (int(part) for part in array.__dlpack_device__())
        if kind == _ON_CPU:
            return np.from_dlpack(array)
        if kind not in (_ON_GPU, _MANAGED) or ordinal != 0:
            raise GeometryError(
                f"expected {name} in the host's memory or on the first GPU, received device {ordinal} of DLPack's kind {kind}: "
                "choose the GPU with CUDA_VISIBLE_DEVICES"
            )
        return _from_capsule(array, array.__dlpack__(stream=_NO_WAITING), name)
    if hasattr(array, "__cuda_array_interface__"):
        interface = array.__cuda_array_interface__
        dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
        strides = interface.get("strides")
        wanted = tuple(dtype.itemsize * step for step in _steps(shape))
        _check(shape, strides, wanted, name)
        return DeviceArray(array, dtype, shape, int(interface["data"][0]), array)
    raise GeometryError(f"expected {name} as an array of numpy, or on the GPU as one of torch or CuPy, received {type(array)}")


def _from_capsule(source: Any, capsule: Any, name: str) -> DeviceArray:  # noqa: ANN401
    """The array of a capsule, which is never consumed: the library that made it frees the tensor with the capsule."""
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(read(capsule, b"dltensor"))
    if tensor.code not in _KINDS or tensor.lanes != 1:
        raise GeometryError(
            f"expected {name} of a type that numpy has, received DLPack's code {tensor.code}, {tensor.bits} bits"
        )
    dtype, shape = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits}"), tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    _check(shape, strides, _steps(shape), name)
    return DeviceArray(source, dtype, shape, (tensor.data or 0) + tensor.byte_offset, capsule)


def _steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous array, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _check(shape: tuple[int, ...], strides: tuple[int, ...] | None, wanted: tuple[int, ...], name: str) -> None:
    if strides is not None and any(
        given != step for given, step, length in zip(strides, wanted, shape, strict=True) if length > 1
    ):
        raise GeometryError(f"expected {name} contiguous, received strides {list(strides)}: copy it first")
