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
"""numpy's name for a type, which it makes anew each time that it is asked."""

Arrays = dict[str, NDArray[Any]]
"""Arrays by the names that the network gives them."""


@dataclass(frozen=True)
class ArraySpec:
    """An input or an output of a network.

    Attributes:
        name: what the network calls it.
        dtype: numpy's name for its type, such as `uint8`.
        shape: its length along each axis, None where that is free. Along axis 0 lie the items of a batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        """For people: `crops uint8 [N, 256, 256, 3]`."""
        free = ("N", *"?" * len(self.shape))
        lengths = (free[axis] if length is None else str(length) for axis, length in enumerate(self.shape))
        return f"{self.name} {self.dtype} [{', '.join(lengths)}]"

    def fits(self, other: ArraySpec) -> bool:
        """Whether one array can follow both: the names and types are the same, and so is each length that both fix."""
        return (self.name, self.dtype, len(self.shape)) == (other.name, other.dtype, len(other.shape)) and all(
            None in pair or pair[0] == pair[1] for pair in zip(self.shape, other.shape, strict=True)
        )

    def check(self, array: NDArray[Any]) -> None:
        """Refuse an array of another type or shape.

        Raises:
            GeometryError: saying what was expected and what came.
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
    """What runs a network, as results and reports record it.

    Attributes:
        name: the library: `openvino`, `onnxruntime`, `torch`, `tensorrt`, ...
        version: the library's version.
        device: the device's name, e.g. `CPU`.
        precision: `fp32`, `bf16`, ...: what the convolutions really compute in; `int8+fp32` where some compute in each.
        threads: how many threads it computes on.
        crops: where crops are made of frames: `cpu`, or `gpu` for a kernel of this project beside the network.
    """

    name: str
    version: str
    device: str
    precision: str
    threads: int
    crops: str = "cpu"

    def __str__(self) -> str:
        """One line for people."""
        around = ", crops on the GPU" if self.crops == "gpu" else ""
        return f"{self.name} {self.version} ({self.precision} on {self.device}, {self.threads} threads{around})"


class Session(Protocol):
    """One network on one device. Any thread may call it; it runs one call at a time."""

    @property
    def inputs(self) -> tuple[ArraySpec, ...]:
        """What `run` takes."""
        ...

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """What `run` gives."""
        ...

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs by name, each in memory of its own; item i of each is of item i of the inputs.

        Args:
            arrays: every input by its name, one item or more along axis 0, as many in each.

        Raises:
            GeometryError: the arrays are not those of `inputs`.
            ModelError: the library failed at running the network.
            RuntimeUnavailableError: the session is closed.
        """
        ...

    def describe(self) -> SessionDescription:
        """What runs the network."""
        ...

    def close(self) -> None:
        """Give back what it holds, once a run in progress has ended; calling it again does nothing."""
        ...


@runtime_checkable
class TicketSession(Session, Protocol):
    """A session that has several batches in flight: what is given to it and what comes of it are two calls.

    Attributes:
        slots: how many batches may be in flight.
        limit: the most items in one.
    """

    @property
    def slots(self) -> int:
        """How many batches may be in flight."""
        ...

    @property
    def limit(self) -> int:
        """The most items in one."""
        ...

    def submit(self, arrays: Mapping[str, NDArray[Any]]) -> Any:  # noqa: ANN401 - the session's own ticket
        """Give it one batch; returns a ticket for `collect` before the batch is done. Waits while every slot is taken.

        Args:
            arrays: as for `run`, `limit` items at most. They may be changed once this has returned.

        Raises:
            As `run` does.
        """
        ...

    def collect(self, ticket: Any) -> Arrays:  # noqa: ANN401
        """The outputs of a batch, once they are there. Every ticket is to be collected: until then it holds a slot.

        Raises:
            ModelError: the library failed at running the network.
            RuntimeUnavailableError: the session is closed, or the ticket was collected before.
        """
        ...


ORIGINS = ArraySpec("origins", "uint8", (None, 96))
"""What a `FrameSession` takes in place of its inputs: for each crop which frame it is of, and where in it."""


class HeldFrame(Protocol):
    """A frame on a session's GPU, for as long as its crops are wanted."""

    def origins(self, crop_from_image: Sequence[NDArray[np.float64]]) -> NDArray[np.uint8]:
        """What `run` takes as ORIGINS for crops of this frame.

        Args:
            crop_from_image: for each crop the affine 2x3 that takes the frame's px to the crop's.

        Raises:
            GeometryError: a matrix cannot be inverted.
            RuntimeUnavailableError: the GPU failed.
        """
        ...


@runtime_checkable
class FrameSession(Session, Protocol):
    """A session that may make the crops of a pose network itself, where the frame is, so that only the frame goes there."""

    @property
    def takes_frames(self) -> bool:
        """Whether it does, here and with this network."""
        ...

    def hold(self, picture: Any) -> AbstractContextManager[HeldFrame]:  # noqa: ANN401
        """A frame on its GPU; all runs with crops of it must have ended when the context is left.

        Args:
            picture: uint8 [H, W, 3] BGR, which may not change meanwhile; or an `engines.kernels.blocks.DeviceFrame`.
        """
        ...


def check_given(arrays: Mapping[str, NDArray[Any]], session: Session) -> int:
    """Refuse arrays that a session does not take, in place of its inputs ORIGINS too if it makes crops; their items' number.

    Raises:
        GeometryError: saying what was expected and what came.
    """
    frames = arrays.keys() == {ORIGINS.name} and isinstance(session, FrameSession) and session.takes_frames
    return check_arrays(arrays, (ORIGINS,) if frames else session.inputs)


def check_arrays(arrays: Mapping[str, NDArray[Any]], specs: tuple[ArraySpec, ...]) -> int:
    """Refuse arrays that are not those of a session's `inputs`; the number of items in them.

    Raises:
        GeometryError: saying what was expected and what came.
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
"""As many threads may be asked for on any machine: some more than cores do no harm."""


def usable_cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that a library would fail at, or take minutes to start; None is its own choice.

    Raises:
        RuntimeUnavailableError: saying how many there may be.
    """
    most = max(MIN_MOST_THREADS, usable_cores())
    if threads is not None and not 1 <= threads <= most:
        raise RuntimeUnavailableError(
            f"expected 1 to {most} threads, received {threads}: this machine has {usable_cores()} cores to run them on"
        )
