"""OpenVINO on the CPU: the default on x86-64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import ModelError, RuntimeUnavailableError
from convnextpose.variants import INPUT_SIZE
from engines.runtime import ModelInfo, RuntimeDescription
from engines.runtimes.base import LockedRuntime, Outputs

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoRuntime(LockedRuntime):
    """Runs an exported model's bytes in OpenVINO.

    The precision is always explicit: left to itself, OpenVINO takes BF16 where the CPU has it. What follows the last
    convolution stays in FP32 in any case.
    """

    def __init__(self, onnx: bytes, model: ModelInfo, *, threads: int | None = None, precision: str = "fp32") -> None:
        import openvino

        core = openvino.Core()
        capabilities = {str(c).lower() for c in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")}
        able = [p for p in _HINTS if p in capabilities]
        if precision not in able:
            # Asked for one that the CPU lacks, OpenVINO would silently take another.
            raise RuntimeUnavailableError(
                f"expected a precision that OpenVINO has on this CPU ({', '.join(able)}), received {precision!r}"
            )
        settings: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # Pinned threads of two processes share their first cores while others idle; alone they gain nothing.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            network = core.read_model(onnx)
            any_batch = core.compile_model(network, "CPU", settings)
            # A fixed shape is some percent faster than a free one, and one person is the usual case.
            network.reshape([1, INPUT_SIZE, INPUT_SIZE, 3])
            self._one = core.compile_model(network, "CPU", settings).create_infer_request()
            self._any = any_batch.create_infer_request()
            super().__init__(
                model,
                RuntimeDescription(
                    "openvino",
                    openvino.__version__.split("-")[0],
                    "CPU",
                    "int8" if model.precision == "int8" else precision,
                    int(any_batch.get_property("INFERENCE_NUM_THREADS")),
                ),
            )
        except (RuntimeError, KeyError) as error:
            raise ModelError(f"OpenVINO cannot run model {model.name}: {_last_line(error)}") from error

    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        request = self._one if len(crops) == 1 else self._any
        outputs = request.infer({"crops": crops}, share_inputs=True)
        return outputs["joints"], outputs["scores"]

    def _release(self) -> None:
        del self._one, self._any


def _last_line(error: Exception) -> str:
    """The line that says what is wrong: OpenVINO puts the places in its source before it."""
    return str(error).strip().splitlines()[-1]
