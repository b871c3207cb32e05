"""ONNX Runtime on the CPU: the default where the CPU is not an x86-64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import ModelError
from engines.runtime import ModelInfo, RuntimeDescription, usable_cores
from engines.runtimes.base import LockedRuntime, Outputs, require_fp32


class OnnxRuntime(LockedRuntime):
    """Runs an exported model's bytes in ONNX Runtime, FP32."""

    def __init__(self, onnx: bytes, model: ModelInfo, *, threads: int | None = None, precision: str = "fp32") -> None:
        require_fp32("onnxruntime", precision)
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 3
        # The library's errors share no base class of their own.
        broken = (
            errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented,
            errors.RuntimeException, ValueError,
        )  # fmt: skip
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
            super().__init__(
                model,
                RuntimeDescription("onnxruntime", onnxruntime.__version__, "CPU", "fp32", options.intra_op_num_threads),
            )
        except ModelError:
            raise
        except broken as error:
            raise ModelError(f"ONNX Runtime cannot run model {model.name}: {_first_line(error)}") from error

    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        joints, scores = self._session.run(["joints", "scores"], {"crops": crops})
        return joints, scores

    def _release(self) -> None:
        del self._session


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
