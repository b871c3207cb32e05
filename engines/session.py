"""The session interface: one network on one device, named arrays in, named arrays out."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, RuntimeUnavailableError

_name_of = lru_cache(operator.attrgetter("name"))
"""numpy's name of a type, cached because numpy computes it at each call."""

Arrays = dict[str, NDArray[Any]]
"""Arrays by their names in the network."""


@dataclass(frozen=True)
class ArraySpec:
    """An input or an output of a network.

    Attributes:
        name: its name in the network.
        dtype: numpy's name of its type, such as `uint8`.
        shape: its length along each axis, None if variable. Axis 0 is the batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        """In readable form: `crops uint8 [N, 256, 256, 3]`."""
        free = ("N", *"?" * len(self.shape))
        lengths = (free[axis] if length is None else str(length) for axis, length in enumerate(self.shape))
        return f"{self.name} {self.dtype} [{', '.join(lengths)}]"

    def fits(self, other: ArraySpec) -> bool:
        """Whether one array can match both specs: equal names and types, and equal lengths where both are fixed."""
        return (self.name, self.dtype, len(self.shape)) == (other.name, other.dtype, len(other.shape)) and all(
            None in pair or pair[0] == pair[1] for pair in zip(self.shape, other.shape, strict=True)
        )

    def check(self, array: NDArray[Any]) -> None:
        """Refuse an array of another type or shape.

        Raises:
            GeometryError: says what was expected and what was received.
        """
        lengths = array.shape
        if (
            _name_of(array.dtype) != self.dtype
            or len(lengths) != len(self.shape)
            or any(wanted not in (None, length) for wanted, length in zip(self.shape, lengths, strict=True))
        ):
            raise GeometryError(f"expected {self}, received {array.dtype} {list(array.shape)}")


@dataclass(frozen=True)
class SessionDescription:
    """The description of a session in results and reports.

    Attributes:
        name: the library: `openvino`, `onnxruntime`, `torch`, `tensorrt`, ...
        version: the library's version.
        device: the device's name, e.g. `CPU`.
        precision: `fp32`, `bf16`, ...: the type in which the convolutions actually compute; `int8+fp32` for a mixture.
        threads: number of threads.
        crops: where crops are made: `cpu`, or `gpu` by a kernel of this project.
    """

    name: str
    version: str
    device: str
    precision: str
    threads: int
    crops: str = "cpu"

    def __str__(self) -> str:
        """One readable line."""
        around = ", crops on the GPU" if self.crops == "gpu" else ""
        return f"{self.name} {self.version} ({self.precision} on {self.device}, {self.threads} threads{around})"


class Session(Protocol):
    """One network on one device. Any thread may call it; it runs one call at a time."""

    @property
    def inputs(self) -> tuple[ArraySpec, ...]:
        """The inputs of `run`."""
        ...

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """The outputs of `run`."""
        ...

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs by name, each in its own memory; item i of each belongs to item i of the inputs.

        Args:
            arrays: every input by its name, with at least one item along axis 0 and the same number in each.

        Raises:
            GeometryError: the arrays are not those of `inputs`.
            ModelError: the library could not run the network.
            RuntimeUnavailableError: the session is closed.
        """
        ...

    def describe(self) -> SessionDescription:
        """What runs the network."""
        ...

    def close(self) -> None:
        """Free its resources after a run in progress has ended; calling it again does nothing."""
        ...


@runtime_checkable
class TicketSession(Session, Protocol):
    """A session with several batches in flight: submitting a batch and collecting its outputs are two calls.

    Attributes:
        slots: number of batches that may be in flight.
        limit: largest number of items in a batch.
    """

    @property
    def slots(self) -> int:
        """Number of batches that may be in flight."""
        ...

    @property
    def limit(self) -> int:
        """Largest number of items in a batch."""
        ...

    def submit(self, arrays: Mapping[str, NDArray[Any]]) -> Any:  # noqa: ANN401 - the session's own ticket
        """Submit one batch; returns a ticket for `collect` before the batch is done. Waits while every slot is occupied.

        Args:
            arrays: as for `run`, at most `limit` items. They may be changed after this has returned.

        Raises:
            As for `run`.
        """
        ...

    def collect(self, ticket: Any) -> Arrays:  # noqa: ANN401
        """Wait for the outputs of a batch. Every ticket must be collected: until then it occupies a slot.

        Raises:
            ModelError: the library could not run the network.
            RuntimeUnavailableError: the session is closed, or the ticket was collected before.
        """
        ...


ORIGINS = ArraySpec("origins", "uint8", (None, 96))
"""The input of a `FrameSession` instead of its usual inputs: for each crop its frame and its position in the frame."""


class HeldFrame(Protocol):
    """A frame on a session's GPU, held while crops of it are needed."""

    def origins(self, crop_from_image: Sequence[NDArray[np.float64]]) -> NDArray[np.uint8]:
        """The ORIGINS for `run`, for crops of this frame.

        Args:
            crop_from_image: for each crop the affine 2x3 from the frame's px to the crop's.

        Raises:
            GeometryError: a matrix cannot be inverted.
            RuntimeUnavailableError: the GPU failed.
        """
        ...


@runtime_checkable
class FrameSession(Session, Protocol):
    """A session that can make the crops of a pose network itself, on the GPU, so that only the frame is uploaded."""

    @property
    def takes_frames(self) -> bool:
        """Whether it makes crops, on this machine and with this network."""
        ...

    def hold(self, picture: Any) -> AbstractContextManager[HeldFrame]:  # noqa: ANN401
        """Hold a frame on its GPU; all runs with crops of it must have ended when the context is left.

        Args:
            picture: uint8 [H, W, 3] BGR, which may not change meanwhile; or an `engines.kernels.blocks.DeviceFrame`.
        """
        ...


def check_given(arrays: Mapping[str, NDArray[Any]], session: Session) -> int:
    """Refuse arrays that a session does not take; ORIGINS are allowed if it makes crops. Returns the number of items.

    Raises:
        GeometryError: says what was expected and what was received.
    """
    frames = arrays.keys() == {ORIGINS.name} and isinstance(session, FrameSession) and session.takes_frames
    return check_arrays(arrays, (ORIGINS,) if frames else session.inputs)


def check_arrays(arrays: Mapping[str, NDArray[Any]], specs: tuple[ArraySpec, ...]) -> int:
    """Refuse arrays that are not those of a session's `inputs`. Returns the number of items.

    Raises:
        GeometryError: says what was expected and what was received.
    """
    if arrays.keys() != {spec.name for spec in specs}:
        raise GeometryError(
            f"expected arrays named {', '.join(spec.name for spec in specs)}, received {', '.join(arrays) or 'none'}"
        )
    for spec in specs:
        spec.check(arrays[spec.name])
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise GeometryError(
            f"expected one item or more along axis 0, as many in each array, received {', '.join(map(str, sorted(counts)))}"
        )
    return counts.pop()


MIN_MOST_THREADS = 64
"""This number of threads is allowed on any machine: somewhat more threads than cores do no harm."""


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads with which a library would fail or take minutes to start; None leaves it to the library.

    Raises:
        RuntimeUnavailableError: says how many are allowed.
    """
    most = max(MIN_MOST_THREADS, usable_cores())
    if threads is not None and not 1 <= threads <= most:
        raise RuntimeUnavailableError(
            f"expected 1 to {most} threads, received {threads}: this machine has {usable_cores()} cores to run them on"
        )
