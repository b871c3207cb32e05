"""A typed graph computed exactly as its types say, on the CPU: it shows a GPU's precision without a GPU.

On most CPUs OpenVINO and ONNX Runtime only store an FP16 graph in FP16 and compute in FP32, so neither rounding nor overflows
show. Here every node's result is rounded to its type, and the sums of a convolution are FP32, as on tensor cores.

On a GPU (`device="cuda"`) convolutions compute in their own types, with the sums of its tensor cores. This shows whether the
assumption about these sums is right. Only an engine shows how TensorRT runs the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import ModelError, ParityError
from engines.graph import layer_name, specs_of
from engines.session import Arrays, SessionDescription
from engines.sessions.base import LockedSession

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]

BATCH = 4
"""Number of items that are computed at once: all results of a batch are kept in memory."""


class TypedSession(LockedSession):
    """Runs an ONNX file's bytes in ONNX's reference evaluator, with its slow operators replaced.

    Args:
        onnx: the file.
        name: what error messages call the network.
        precision: the name of the file's types.
        device: torch's name of the device, `cpu` or `cuda`.

    Raises:
        ModelError: the file is damaged.
        ParityError: a layer's values leave the range of its type; names it. `run` raises it.
    """

    def __init__(self, onnx: bytes, name: str, *, precision: str, device: str = "cpu") -> None:
        import onnx as library
        import torch
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from onnx.reference import ReferenceEvaluator

        try:
            model = library.load_from_string(onnx)
            self._evaluator: Any = ReferenceEvaluator(model, new_ops=_fast_operators(device))
        except DecodeError as error:
            raise ModelError(f"expected an ONNX model, but {name} is damaged: {error}") from error
        inputs, outputs = specs_of(model.graph.input), specs_of(model.graph.output)
        description = SessionDescription("onnx", library.__version__, device.upper(), precision, torch.get_num_threads())
        super().__init__(name, inputs, outputs, description)

    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        names = [spec.name for spec in self._outputs]
        # Values that do not fit their type become infinite, and the next convolution reports it.
        with np.errstate(over="ignore", invalid="ignore"):
            batches = [
                self._evaluator.run(names, {name: array[begin : begin + BATCH] for name, array in arrays.items()})
                for begin in range(0, count, BATCH)
            ]
        return {name: np.concatenate([batch[index] for batch in batches]) for index, name in enumerate(names)}

    def _release(self) -> None:
        del self._evaluator


def _fast_operators(device: str) -> list[Any]:
    """Operators that are too slow in ONNX's reference, as far as our graphs use them; they compute in FP32, then round."""
    import torch
    from onnx.reference.op_run import OpRun
    from torch.nn import functional

    def tensor(array: Array) -> Tensor:
        return torch.tensor(array, device=device).float()

    def factor(array: Array) -> Tensor:
        """A factor of a convolution: in its own type on a GPU."""
        return tensor(array) if device == "cpu" else torch.tensor(array, device=device)

    def rounded(result: Tensor, like: Array) -> Tensor:
        return result.half() if like.dtype == np.float16 else result

    # The evaluator finds an operator by its class's name and passes it every attribute that it has.
    class Conv(OpRun):
        op_domain = ""

        def _run(self, x: Array, weight: Array, bias: Array | None = None, **attributes: Any) -> tuple[Array]:  # noqa: ANN401
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                sums = functional.conv2d(
                    factor(x),
                    factor(weight),
                    None if bias is None else factor(bias),
                    stride=tuple(attributes["strides"]),
                    padding=tuple(attributes["pads"][:2]),
                    dilation=tuple(attributes["dilations"]),
                    groups=attributes["group"],
                )
                result = rounded(sums, x)
            if not torch.isfinite(result).all():
                layer = layer_name(self.onnx_node.input[1])
                raise ParityError(
                    f"expected values within the range of {x.dtype} (up to {np.finfo(x.dtype).max:g}), but {layer} or its "
                    "input exceeds it: keep this model in FP32"
                )
            return (result.cpu().numpy(),)

    class Resize(OpRun):
        op_domain = ""

        def _run(self, x: Array, _region: Array | None, factors: Array, **_: Any) -> tuple[Array]:  # noqa: ANN401
            with torch.inference_mode():
                scale = tuple(float(factor) for factor in factors[2:])
                result = functional.interpolate(tensor(x), scale_factor=scale, mode="bilinear", align_corners=True)
                return (rounded(result, x).cpu().numpy(),)

    class Relu(OpRun):
        op_domain = ""

        def _run(self, x: Array, **_: Any) -> tuple[Array]:  # noqa: ANN401
            with torch.inference_mode():
                return (torch.relu(torch.tensor(x)).numpy(),)

    class QuantizeLinear(OpRun):
        op_domain = ""

        def _run(self, x: Array, scale: Array, zero_point: Array, **_: Any) -> tuple[Array]:  # noqa: ANN401
            steps = torch.round(tensor(x) / tensor(scale)).cpu().numpy() + zero_point
            limits = np.iinfo(zero_point.dtype)
            return (np.clip(steps, limits.min, limits.max).astype(zero_point.dtype),)

    class DequantizeLinear(OpRun):
        op_domain = ""

        def _run(self, x: Array, scale: Array, zero_point: Array, *, axis: int, **_: Any) -> tuple[Array]:  # noqa: ANN401
            shape = [-1 if along == axis else 1 for along in range(x.ndim)] if scale.ndim else []
            steps = x.astype(np.float32) - zero_point.reshape(shape)
            return (rounded(tensor(steps) * tensor(scale.reshape(shape)), scale).cpu().numpy(),)

    return [Conv, Resize, Relu, QuantizeLinear, DequantizeLinear]
