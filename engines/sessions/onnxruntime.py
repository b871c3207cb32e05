"""ONNX Runtime on the CPU: the default where the CPU is not an x86-64."""

from __future__ import annotations

import numpy as np

from engines.session import Arrays, ArraySpec, SessionDescription, usable_cores
from engines.sessions.base import LockedSession, cannot_run, require_fp32

_TYPES = {"float": "float32", "float16": "float16", "double": "float64", "bool": "bool"}
"""ONNX Runtime's names of types that differ from numpy's; those of integers are the same."""


class OnnxRuntimeSession(LockedSession):
    """Runs an ONNX file's bytes in ONNX Runtime, FP32.

    Args:
        onnx: the file.
        name: what error messages call the network.
        threads: number of threads; None for one on each core.
        precision: `fp32`.

    Raises:
        ModelError: the file is not one that ONNX Runtime can run.
        RuntimeUnavailableError: the precision is another.
    """

    def __init__(self, onnx: bytes, name: str, *, threads: int | None = None, precision: str = "fp32") -> None:
        require_fp32("onnxruntime", precision)
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 3
        # The library's errors share no base class of their own.
        failures = (
            errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented,
            errors.RuntimeException, ValueError,
        )  # fmt: skip
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except failures as error:
            raise cannot_run("onnxruntime", name, error) from error
        inputs, outputs = (
            tuple(_spec(node.name, node.type, node.shape) for node in nodes)
            for nodes in (self._session.get_inputs(), self._session.get_outputs())
        )
        version, used = onnxruntime.__version__, options.intra_op_num_threads
        super().__init__(name, inputs, outputs, SessionDescription("onnxruntime", version, "CPU", "fp32", used), failures)

    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        names = [spec.name for spec in self._outputs]
        return dict(zip(names, self._session.run(names, arrays), strict=True))

    def _release(self) -> None:
        del self._session


def _spec(name: str, kind: str, shape: list[int | str | None]) -> ArraySpec:
    """The specification for ONNX Runtime's `tensor(float)` and a shape in which free axes have names."""
    kind = kind.removeprefix("tensor(").removesuffix(")")
    lengths = tuple(length if isinstance(length, int) else None for length in shape)
    return ArraySpec(name, np.dtype(_TYPES.get(kind, kind)).name, lengths)
