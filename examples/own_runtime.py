"""Run the network in another library: python examples/own_runtime.py CLIP

A runtime is a class that runs a network, and an entry in the registry. Then every part of the project can use it by its name.
This one is ONNX Runtime with all its providers on this machine, the fastest first: CUDA, DirectML, CoreML, ...
"""

from __future__ import annotations

import sys

import convnextpose
from engines.session import Arrays, ArraySpec, SessionDescription
from engines.sessions.base import LockedSession
from engines.sessions.registry import EXPORTED, RUNTIMES, Runtime


class AnyDevice(LockedSession):
    """Runs an ONNX file's bytes in ONNX Runtime; the base class checks the arrays, and allows one caller at a time."""

    def __init__(self, onnx: bytes, name: str, *, threads: int | None = None, precision: str = "fp32") -> None:
        import onnxruntime  # imported only when used: other runtimes do not need it

        here = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]  # not a device
        self._ort = onnxruntime.InferenceSession(onnx, providers=here)
        told = SessionDescription("any-device", onnxruntime.__version__, self._ort.get_providers()[0], precision, threads or 1)
        super().__init__(name, _specs(self._ort.get_inputs()), _specs(self._ort.get_outputs()), told)

    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._ort.run(names, arrays), strict=True))

    def _release(self) -> None:
        del self._ort


def _specs(nodes: list) -> tuple[ArraySpec, ...]:
    kinds = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    return tuple(ArraySpec(n.name, kinds[n.type], tuple(d if isinstance(d, int) else None for d in n.shape)) for n in nodes)


def main(clip: str) -> None:
    """Register the runtime, run a clip in it, and print what it ran on."""
    RUNTIMES["any-device"] = Runtime("any-device", EXPORTED, AnyDevice, (("onnxruntime", "onnxruntime"),))
    with convnextpose.open_pipeline(convnextpose.RunConfig(clip, runtime="any-device")) as pipeline:
        poses = sum(len(posed.poses) for posed in pipeline)
        print(f"{poses} poses in {pipeline.header.runtime}")


if __name__ == "__main__":
    main(sys.argv[1])
