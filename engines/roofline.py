"""The roofline: how fast a GPU could run a network at best, from the work in the ONNX graph and the GPU's peak rates.

No run is faster than its multiply-adds at the tensor cores' peak rate, or than its bytes at the memory's. There are two
numbers of bytes: weights, crops and results once, which every run moves; and the bytes if, in addition, each convolution reads
its input from memory and writes its result there. The truth is between the two, depending on the caches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from convnextpose.errors import ModelError
from engines.onnx_parser import parse_onnx
from engines.onnx_shapes import Shapes

FP16_PER_CYCLE = {"7.5": 512, "8.0": 1024, "8.6": 512, "8.7": 1024, "8.9": 512, "9.0": 2048, "10.0": 4096, "12.0": 512}
"""Dense FP16 multiply-adds of one multiprocessor's tensor cores in a cycle, by compute capability, with sums in FP16 where that
is faster. From the peaks in NVIDIA's data sheets: T4, A100, RTX 3090, AGX Orin, RTX 4090, H100 SXM, B200, RTX 5090."""

_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_SPEED = {"fp32": 0.125, "fp16": 1.0, "int8": 2.0}
"""Speed of each precision relative to FP16's peak. FP32 is without TF32: the multiprocessors' 128 ordinary multiply-adds, about
an eighth."""


@dataclass(frozen=True)
class GpuFigures:
    """A GPU's figures, from its driver.

    Attributes:
        multiprocessors: their number.
        clock_mhz: their highest clock, MHz.
        memory_gb_s: peak memory bandwidth, GB/s; None if the driver does not report it, as on a Jetson.
        cache_bytes: size of its second-level cache, bytes.
    """

    multiprocessors: int
    clock_mhz: float
    memory_gb_s: float | None
    cache_bytes: int

    @classmethod
    def of(cls, multiprocessors: int, clock_khz: int, memory_khz: int, bus_bits: int, cache_bytes: int) -> GpuFigures:
        """From the driver's attributes. Memory transfers data twice per cycle."""
        moved = 2 * memory_khz * 1e3 * bus_bits / 8 / 1e9
        return cls(multiprocessors, clock_khz / 1e3, moved or None, cache_bytes)


@dataclass(frozen=True)
class Work:
    """A network's work for one crop.

    Attributes:
        multiply_adds: of all convolutions except the depthwise ones.
        depthwise: multiply-adds of the depthwise ones, which tensor cores do not compute.
        weights: number of weights; a batch moves them once.
        ends: size of the crop and of its results, bytes.
        between: number of values that the convolutions read and write.
    """

    multiply_adds: int
    depthwise: int
    weights: int
    ends: int
    between: int


@dataclass(frozen=True)
class Floor:
    """The lower bounds of a batch's time, ms; None if a figure is unknown.

    Attributes:
        compute_ms: the multiply-adds at the tensor cores' peak.
        once_ms: moving weights, crops and results through memory once.
        through_memory_ms: also moving every convolution's input and result.
    """

    compute_ms: float | None
    once_ms: float | None
    through_memory_ms: float | None


def count_work(onnx: bytes, source: str) -> Work:
    """The work of an exported pose model, for one crop.

    Raises:
        ModelError: it cannot be read, or a convolution's size is unknown.
    """
    model = parse_onnx(onnx, source)
    shapes = Shapes(
        {name: None if kind.shape is None else tuple(size or 1 for size in kind.shape) for name, kind in model.inputs.items()},
        {name: (constant.shape, constant.values) for name, constant in model.constants.items()},
    )
    tensor_cores = depthwise = weights = between = 0
    for node in model.nodes:
        (result, *_) = shapes.run(node.operator, node.inputs, node.outputs, node.attributes)
        if node.operator != "Conv":
            continue
        read, weight = shapes.of(node.inputs[0]), shapes.of(node.inputs[1])
        if result is None or read is None or weight is None:
            raise ModelError(f"expected convolutions of known size, {source} has one of unknown size")
        group = node.attributes.get("group", 1)
        done = math.prod(result) * math.prod(weight[1:])
        tensor_cores, depthwise = (tensor_cores + done, depthwise) if group == 1 else (tensor_cores, depthwise + done)
        weights += math.prod(weight)
        between += math.prod(read) + math.prod(result)
    ends = sum(
        math.prod(shapes.of(name) or ()) * (1 if name in model.inputs else 4) for name in (*model.inputs, *model.outputs)
    )
    return Work(tensor_cores, depthwise, weights, ends, between)


def floor(work: Work, figures: GpuFigures, compute_capability: str, precision: str, crops: int) -> Floor:
    """The lower bounds of a batch's time.

    Args:
        work: the work of one crop.
        figures: the GPU's figures.
        compute_capability: the GPU's, such as `8.9`.
        precision: `fp32`, `fp16` or `int8`; for INT8 as if every convolution were in INT8.
        crops: number of crops in the batch.
    """
    per_cycle = FP16_PER_CYCLE.get(compute_capability)
    compute = None
    if per_cycle is not None:
        rate = per_cycle * _SPEED[precision] * figures.multiprocessors * figures.clock_mhz * 1e6
        compute = crops * work.multiply_adds / rate * 1e3
    if figures.memory_gb_s is None:
        return Floor(compute, None, None)
    once = work.weights * _WEIGHT_BYTES[precision] + crops * work.ends
    through = once + crops * work.between * _WEIGHT_BYTES[precision]
    return Floor(compute, *(moved / figures.memory_gb_s / 1e6 for moved in (once, through)))
