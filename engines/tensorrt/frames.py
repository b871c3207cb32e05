"""Frames on the GPU, and the kernel that makes crops of them: a picture is uploaded once, however many crops it has.

All uploads use one stream. A batch waits for the uploads before it on the GPU, so no host thread has to wait.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import DeviceError, EngineError, GeometryError, RuntimeUnavailableError
from engines.kernels.blocks import LOGITS, DeviceFrame, TailShape, crop_origins
from engines.kernels.program import Kernels
from engines.manifest import EngineModel
from engines.pose import CROPS, ModelInfo
from engines.tensorrt.device import Device
from engines.tensorrt.device_cuda import CudaDevice
from engines.tensorrt.engine import Engine


@dataclass(frozen=True)
class EngineKernels:
    """Our kernels that run before and after an engine.

    Attributes:
        kernels: the crop kernel and the tail, for this GPU.
        uploads: the stream that uploads frames.
        tail: the volumes of an engine that ends at its logits; None for one that computes joints and scores itself.
    """

    kernels: Kernels
    uploads: Any
    tail: TailShape | None

    def free(self) -> None:
        """Free both; within the device's `current()`, when nothing uses them any more."""
        self.kernels.free()
        self.uploads.free()


def engine_kernels(engine: Engine, model: EngineModel, device: Device) -> EngineKernels | None:
    """The kernels around a pose engine, within the device's `current()`; None for other networks.

    Also None if they are not available, with a RuntimeWarning that says why: crops are then made on the CPU.

    Raises:
        EngineError: the engine's logits do not match this model.
        RuntimeUnavailableError: it ends at its logits, and the kernels are not available.
    """
    if not isinstance(model, ModelInfo) or tuple(tensor.spec for tensor in engine.inputs) != (CROPS,):
        return None
    tail = None
    if [tensor.name for tensor in engine.outputs] == [LOGITS]:
        (logits,) = engine.outputs
        tail = TailShape.of(model.variant, len(model.joint_set))
        wanted = "float16", (tail.joint_count * tail.depth, tail.height, tail.width)
        if (logits.dtype, logits.item_shape) != wanted:
            raise EngineError(
                f"expected logits {wanted[0]} {list(wanted[1])} of a model {model.variant.name}, received {logits.dtype} "
                f"{list(logits.item_shape)}; build the engine again"
            )
    try:
        if not isinstance(device, CudaDevice):
            raise RuntimeUnavailableError(f"the kernels need cuda-python, but the GPU is driven through {device.binding}")
        return EngineKernels(Kernels(device), device.stream(), tail)
    except (RuntimeUnavailableError, DeviceError) as error:
        if tail is not None:
            raise RuntimeUnavailableError(
                f"{error}; this engine was built with --tail-kernel and needs its kernel: fix this, or build it without"
            ) from error
        warnings.warn(f"crops are made on the CPU: {error}", RuntimeWarning, stacklevel=5)
        return None


@dataclass(eq=False)
class _Memory:
    """Memory for a picture, on the GPU and pinned on the host."""

    device: Any
    pinned: Any


class FrameOnGpu:
    """A `HeldFrame`: a frame that is kept while crops of it are needed. A picture is uploaded when the first of them is
    needed."""

    def __init__(self, frames: Frames, picture: NDArray[np.uint8] | DeviceFrame) -> None:
        self._frames = frames
        self._picture: NDArray[np.uint8] | None = None if isinstance(picture, DeviceFrame) else picture
        self._there = picture if isinstance(picture, DeviceFrame) else None
        self.memory: _Memory | None = None

    def origins(self, crop_from_image: Sequence[NDArray[np.float64]]) -> NDArray[np.uint8]:
        """The `origins` for a session's `run`, uint8 [N, 96]: for each crop the frame and a matrix.

        Args:
            crop_from_image: for each crop the affine 2x3 from the frame's px to the crop's.

        Raises:
            GeometryError: a matrix cannot be inverted, or the frame is not a picture.
            RuntimeUnavailableError: CUDA failed, or the GPU has too little memory.
        """
        if self._there is None:
            assert self._picture is not None
            self.memory, self._there = self._frames.upload(self._picture)
        return crop_origins(self._there, crop_from_image)


class Frames:
    """The frames of a session, with memory for those held at a time, which is allocated when first needed and reused.

    Args:
        device: the GPU.
        stream: the stream for uploads.
    """

    def __init__(self, device: Device, stream: Any) -> None:  # noqa: ANN401
        self._device, self._stream = device, stream
        self._lock = threading.Lock()
        self._free: list[_Memory] = []
        self._held: list[_Memory] = []
        self._open = True

    @property
    def held_bytes(self) -> int:
        """GPU memory that it has allocated, bytes."""
        with self._lock:
            return sum(int(memory.device.size) for memory in (*self._free, *self._held))

    @contextmanager
    def hold(self, picture: NDArray[np.uint8] | DeviceFrame) -> Iterator[FrameOnGpu]:
        """Hold a frame while crops of it are needed: every batch with its crops must have ended when the context is left.

        Args:
            picture: uint8 [H, W, 3] BGR, which may not change meanwhile; or a frame on the GPU.
        """
        held = FrameOnGpu(self, picture)
        try:
            yield held
        except BaseException:
            # A batch may continue after its caller has gone, and still read the frame.
            with self._device.current(), suppress(DeviceError):  # its caller learns of the error
                self._device.synchronize()
            raise
        finally:
            if held.memory is not None:
                self._give_back(held.memory)

    def upload(self, image: NDArray[np.uint8]) -> tuple[_Memory, DeviceFrame]:
        """Queue the upload of a picture."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise GeometryError(f"expected a BGR picture uint8 [H, W, 3], received {image.dtype} {list(image.shape)}")
        height, width = image.shape[:2]
        with self._device.current():
            memory = self._take(image.nbytes)
            pinned = memory.pinned.array[: image.nbytes]
            pinned.reshape(image.shape)[:] = image
            self._device.copy_in(memory.device.address, pinned, self._stream)
        return memory, DeviceFrame((memory.device.address,), (3 * width,), width, height)

    def close(self) -> None:
        """Free the memory; within the device's `current()`. A frame that is still held frees its own when it is released."""
        with self._lock:
            self._open = False
            while self._free:
                _drop(self._free.pop())

    def _take(self, size: int) -> _Memory:
        """Memory for a picture: the smallest free block that is large enough, or else a new one that replaces a smaller
        one."""
        with self._lock:
            fits = [memory for memory in self._free if memory.device.size >= size]
            found = min(fits, key=lambda memory: memory.device.size) if fits else None
            if found is not None:
                self._free.remove(found)
            else:
                if self._free:
                    _drop(self._free.pop())
                room = self._device.allocate(size)
                try:
                    found = _Memory(room, self._device.pin(size))
                except BaseException:
                    room.free()
                    raise
            self._held.append(found)
            return found

    def _give_back(self, memory: _Memory) -> None:
        with self._lock:
            self._held.remove(memory)
            if self._open:
                self._free.append(memory)
                return
        with self._device.current():
            _drop(memory)


def _drop(memory: _Memory) -> None:
    memory.device.free()
    memory.pinned.free()
