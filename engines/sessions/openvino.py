"""OpenVINO on the CPU: the default on x86-64."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from convnextpose.errors import RuntimeUnavailableError
from engines.session import Arrays, ArraySpec, SessionDescription
from engines.sessions.base import LockedSession, cannot_run

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

_RUN_TYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
"""OpenVINO's names of precisions, and ours."""

ONE_BY_ONE = 2
"""Largest batch that runs in the network for one item, one item after the other: two take as long there as together, and the
network for any number is compiled (0.2 to 0.4 s) only for larger batches."""

FAILURES = (RuntimeError, KeyError)
"""The exceptions that OpenVINO raises for a network that it cannot run."""


class OpenVinoSession(LockedSession):
    """Runs an ONNX file's bytes in OpenVINO.

    The precision is always explicit: left to itself, OpenVINO takes BF16 where the CPU has it. Convolutions between INT8
    quantisation nodes compute in INT8 in any case; the precision is that of the rest. Softmax and the like stay in FP32.

    One item has a network of its own, compiled for that fixed shape: it takes 13 to 28 % less time than one of any batch. Two
    items run in it one after the other. Each network is compiled when it is first needed.

    Args:
        onnx: the file.
        name: what error messages call the network.
        threads: number of threads; None leaves it to OpenVINO.
        precision: `fp32`, or `bf16` or `fp16` where the CPU has them.

    Raises:
        ModelError: the file is not one that OpenVINO can run.
        RuntimeUnavailableError: the CPU does not have the precision.
    """

    def __init__(self, onnx: bytes, name: str, *, threads: int | None = None, precision: str = "fp32") -> None:
        import openvino

        able = cpu_precisions()
        if precision not in able:
            # If the CPU lacks the requested one, OpenVINO would silently use another.
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
        self._settings = settings
        try:
            self._network = _core().read_model(onnx)
            inputs, outputs = (tuple(map(_spec, ports)) for ports in (self._network.inputs, self._network.outputs))
            self._splits = all(spec.shape[:1] == (None,) and None not in spec.shape[1:] for spec in inputs)
            compiled = self._compile(alone=self._splits)
            description = SessionDescription(
                "openvino",
                openvino.__version__.split("-")[0],
                "CPU",
                _run_precision(compiled) or precision,
                int(compiled.get_property("INFERENCE_NUM_THREADS")),
            )
            self._requests = {self._splits: compiled.create_infer_request()}
        except FAILURES as error:
            raise cannot_run("openvino", name, error) from error
        super().__init__(name, inputs, outputs, description, FAILURES)

    def _compile(self, *, alone: bool) -> Any:  # noqa: ANN401 - OpenVINO has no types
        """The network for one item, or for any number."""
        network = self._network
        if alone:
            network = network.clone()
            network.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in network.inputs})
        return _core().compile_model(network, "CPU", self._settings)

    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        alone = self._splits and count <= ONE_BY_ONE
        if alone not in self._requests:
            self._requests[alone] = self._compile(alone=alone).create_infer_request()
        parts = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(count)] if alone else [arrays]
        outputs = [self._requests[alone].infer(part, share_inputs=True) for part in parts]
        names = [spec.name for spec in self._outputs]
        return {name: np.concatenate([output[name] for output in outputs]) for name in names}

    def _release(self) -> None:
        self._requests.clear()
        del self._network


@cache
def _core_of(process: int) -> Any:  # noqa: ANN401
    import openvino

    return openvino.Core()


def _core() -> Any:  # noqa: ANN401
    """OpenVINO's core, one for the whole process, which is never deleted.

    On CPUs with AMX each core gives the thread that makes it a stack for signals, and takes it away when it is deleted. If two
    are not deleted in the reverse order, freed memory remains, and the next signal, such as Ctrl-C, is a segmentation fault
    (OpenVINO 2026.4.1). A forked process has none of the core's threads, and so needs a core of its own.
    """
    return _core_of(os.getpid())


@cache
def cpu_precisions() -> tuple[str, ...]:
    """The precisions that OpenVINO has on this CPU, of `fp32`, `bf16` and `fp16`."""
    capabilities = {str(c).lower() for c in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")}
    return tuple(precision for precision in _HINTS if precision in capabilities)


def _spec(port: Any) -> ArraySpec:  # noqa: ANN401
    shape = tuple(None if length.is_dynamic else int(length.get_length()) for length in port.partial_shape)
    return ArraySpec(port.any_name, np.dtype(port.element_type.to_dtype()).name, shape)


def _run_precision(compiled: Any) -> str:  # noqa: ANN401
    """The types in which the convolutions of a compiled network compute, most frequent first; empty if OpenVINO does not
    report them."""
    types: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        told = layer.get_rt_info()
        if "layerType" in told and told["layerType"].astype(str) == "Convolution":
            kind = told["runtimePrecision"].astype(str)
            types[_RUN_TYPES.get(kind, kind)] += 1
    return "+".join(kind for kind, _ in types.most_common())
