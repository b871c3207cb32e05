"""Frames on the GPU, and the kernel that makes crops of them: a picture is uploaded once, however many crops it has.

All uploads use one stream. A batch waits, on the GPU, for the uploads before it, so no thread of the host has to.
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
class Around:
    """What of our own runs around an engine.

    Attributes:
        kernels: the crop kernel and the tail, for this GPU.
        uploads: the stream that brings frames.
        tail: the volumes, of an engine that ends at its logits; None for one that gives joints and scores itself.
    """

    kernels: Kernels
    uploads: Any
    tail: TailShape | None

    def free(self) -> None:
        """Give both back; within the device's `current()`, once nothing uses them."""
        self.kernels.free()
        self.uploads.free()


def kernels_around(engine: Engine, model: EngineModel, device: Device) -> Around | None:
    """The kernels around a pose engine, within the device's `current()`; None for other networks.

    None, and a RuntimeWarning that says why, where they cannot be had: crops are then made on the CPU.

    Raises:
        EngineError: the engine ends at logits that are not this model's.
        RuntimeUnavailableError: it ends at its logits, and the kernels cannot be had.
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
            raise RuntimeUnavailableError(f"the kernels need cuda-python, the GPU is driven by {device.binding}")
        return Around(Kernels(device), device.stream(), tail)
    except (RuntimeUnavailableError, DeviceError) as error:
        if tail is not None:
            raise RuntimeUnavailableError(
                f"{error}; this engine ends at its logits, which a kernel reads: or build it without --tail-kernel"
            ) from error
        warnings.warn(f"crops are made on the CPU: {error}", RuntimeWarning, stacklevel=5)
        return None


@dataclass(eq=False)
class _Memory:
    """Room for a picture, on the GPU and in the host's pinned memory."""

    device: Any
    pinned: Any


class FrameOnGpu:
    """A `HeldFrame`: a frame as long as crops of it are wanted; a picture goes to the GPU when the first of them are."""

    def __init__(self, frames: Frames, picture: NDArray[np.uint8] | DeviceFrame) -> None:
        self._frames = frames
        self._picture: NDArray[np.uint8] | None = None if isinstance(picture, DeviceFrame) else picture
        self._there = picture if isinstance(picture, DeviceFrame) else None
        self.memory: _Memory | None = None

    def origins(self, crop_from_image: Sequence[NDArray[np.float64]]) -> NDArray[np.uint8]:
        """What a session's `run` takes as `origins`, uint8 [N, 96]: for each crop the frame and a matrix.

        Args:
            crop_from_image: for each crop the affine 2x3 that takes the frame's px to the crop's.

        Raises:
            GeometryError: a matrix cannot be inverted, or it is no picture.
            RuntimeUnavailableError: CUDA failed, or its memory does not suffice.
        """
        if self._there is None:
            assert self._picture is not None
            self.memory, self._there = self._frames.upload(self._picture)
        return crop_origins(self._there, crop_from_image)


class Frames:
    """The frames of a session: memory for as many as are held at a time, made when it is first needed and used again.

    Args:
        device: the GPU.
        stream: what uploads.
    """

    def __init__(self, device: Device, stream: Any) -> None:  # noqa: ANN401
        self._device, self._stream = device, stream
        self._lock = threading.Lock()
        self._free: list[_Memory] = []
        self._held: list[_Memory] = []
        self._open = True

    @property
    def held_bytes(self) -> int:
        """What it has of the GPU's memory."""
        with self._lock:
            return sum(int(memory.device.size) for memory in (*self._free, *self._held))

    @contextmanager
    def hold(self, picture: NDArray[np.uint8] | DeviceFrame) -> Iterator[FrameOnGpu]:
        """A frame, as long as crops of it are wanted: every batch with one of them must have ended by then.

        Args:
            picture: uint8 [H, W, 3] BGR, which may not change meanwhile; or a frame on the GPU.
        """
        held = FrameOnGpu(self, picture)
        try:
            yield held
        except BaseException:
            # A batch may go on without who asked for it, and read the frame still.
            with self._device.current(), suppress(DeviceError):  # whoever asked for it is told of it
                self._device.synchronize()
            raise
        finally:
            if held.memory is not None:
                self._give_back(held.memory)

    def upload(self, image: NDArray[np.uint8]) -> tuple[_Memory, DeviceFrame]:
        """Let the stream bring a picture to the GPU."""
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
        """Give the memory back; within the device's `current()`. A frame that is still held gives its own back at its end."""
        with self._lock:
            self._open = False
            while self._free:
                _drop(self._free.pop())

    def _take(self, size: int) -> _Memory:
        """Room for a picture: of what is free the smallest that suffices, or else new, in the place of one that does not."""
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
