"""The base class of sessions: one caller at a time, checked arrays, one kind of error, a close."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import ModelError, PoseError, RuntimeUnavailableError
from engines.session import Arrays, ArraySpec, SessionDescription, check_arrays


class LockedSession(ABC):
    """A `Session` that any thread may call: a lock lets one in at a time.

    Args:
        name: what error messages call the network.
        inputs, outputs: the specifications of its inputs and outputs.
        description: what runs it.
        failures: the errors that the library raises if a network cannot be run; they become ModelErrors.
    """

    def __init__(
        self,
        name: str,
        inputs: tuple[ArraySpec, ...],
        outputs: tuple[ArraySpec, ...],
        description: SessionDescription,
        failures: tuple[type[Exception], ...] = (),
    ) -> None:
        self._name = name
        self._inputs, self._outputs = inputs, outputs
        self._description = description
        self._failures = failures
        self._lock = threading.Lock()
        self._open = True

    @property
    def inputs(self) -> tuple[ArraySpec, ...]:
        """The inputs of `run`."""
        return self._inputs

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """The outputs of `run`."""
        return self._outputs

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs by name, each in memory of its own; item i of each is of item i of the inputs.

        Args:
            arrays: every input by its name, one item or more along axis 0, as many in each.

        Raises:
            GeometryError: the arrays are not those of `inputs`.
            ModelError: the library could not run the network.
            RuntimeUnavailableError: the session is closed.
        """
        count = check_arrays(arrays, self._inputs)
        with self._lock:
            self._check_open()
            try:
                return self._infer({name: np.ascontiguousarray(array) for name, array in arrays.items()}, count)
            except PoseError:
                raise
            except self._failures as error:
                raise cannot_run(self._description.name, self._name, error) from error

    def describe(self) -> SessionDescription:
        """What runs the network."""
        return self._description

    def close(self) -> None:
        """Free its resources after a run in progress has ended; calling it again does nothing."""
        with self._lock:
            if self._open:
                self._open = False
                self._release()

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeUnavailableError(f"the session of {self._name} is closed; open it again to run it")

    @abstractmethod
    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        """The outputs, in arrays of their own, for contiguous inputs of `count` items, at least one."""

    @abstractmethod
    def _release(self) -> None:
        """Drop the library's objects."""


def cannot_run(library: str, name: str, error: Exception) -> ModelError:
    """The error for a network that a library cannot run, with the relevant line of the library's message."""
    # In ONNX Runtime's message it is the first line, in OpenVINO's the last, after places in its source.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ModelError(f"{library} cannot run {name}: {lines[-1 if library == 'openvino' else 0]}")


def require_fp32(library: str, precision: str) -> None:
    """Refuse other precisions for a library that supports only FP32.

    Raises:
        RuntimeUnavailableError: names a library with other precisions.
    """
    if precision != "fp32":
        raise RuntimeUnavailableError(
            f"expected precision fp32 for the runtime {library}, received {precision!r}; openvino has others"
        )
