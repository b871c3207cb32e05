"""What all runtimes share: one caller at a time, checked crops, checked predictions of the first crop, a close."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, ModelError, RuntimeUnavailableError
from convnextpose.variants import INPUT_SIZE
from engines.runtime import ModelInfo, Predictions, Runtime, RuntimeDescription, check_crops, check_first

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]


class LockedRuntime(ABC):
    """A `Runtime` whose `run` any thread may call: a lock lets one in at a time.

    A subclass's constructor calls this one's last: it runs a black crop, which warms the library up and shows that the
    model keeps the contract.

    Raises:
        ModelError: it does not.
    """

    def __init__(self, model: ModelInfo, description: RuntimeDescription) -> None:
        self._model = model
        self._description = description
        self._lock = threading.Lock()
        self._open = True
        try:
            first = self.run(np.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8))
        except GeometryError as error:
            raise ModelError(f"model {model.name} breaks the contract: {error}") from error
        check_first(model, first)

    @property
    def model(self) -> ModelInfo:
        """The model that it runs."""
        return self._model

    def run(self, crops: NDArray[np.uint8]) -> Predictions:
        """Crops [N, 256, 256, 3] uint8 BGR to predictions; N may be 0.

        Raises:
            GeometryError: the crops have another shape or type.
            RuntimeUnavailableError: the runtime is closed.
        """
        check_crops(crops)
        if len(crops) == 0:
            joint_count = len(self._model.joint_set)
            return Predictions(np.zeros((0, joint_count, 3), np.float32), np.zeros((0, joint_count), np.float32))
        with self._lock:
            if not self._open:
                raise RuntimeUnavailableError(f"runtime {self._description.name} is closed; open it again to run crops")
            return Predictions(*self._infer(np.ascontiguousarray(crops)))

    def describe(self) -> RuntimeDescription:
        """What runs the model."""
        return self._description

    def close(self) -> None:
        """Give back what it holds, once a run in progress has ended; calling it again does nothing."""
        with self._lock:
            if self._open:
                self._open = False
                self._release()

    def __enter__(self) -> Runtime:
        """The runtime itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()

    @abstractmethod
    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        """Joints and scores of one or more contiguous crops, in arrays of their own."""

    @abstractmethod
    def _release(self) -> None:
        """Drop the library's objects."""


def require_fp32(runtime: str, precision: str) -> None:
    """Refuse a precision that a runtime for FP32 only was asked for.

    Raises:
        RuntimeUnavailableError: saying which runtime has others.
    """
    if precision != "fp32":
        raise RuntimeUnavailableError(
            f"expected precision fp32 for the runtime {runtime}, received {precision!r}; openvino has others"
        )
