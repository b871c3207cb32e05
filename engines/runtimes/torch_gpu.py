"""PyTorch on the GPU: the network as the authors define it, in FP16 up to the logits, replayed as CUDA graphs.

What an engine's speed is compared with. Like an engine it takes crops from the host and computes everything else on the GPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import RGB_MEAN, RGB_STD, crop_from_bins
from convnextpose.errors import RuntimeUnavailableError
from convnextpose.variants import INPUT_SIZE
from engines.runtime import ModelInfo, RuntimeDescription
from engines.runtimes.base import LockedRuntime, Outputs
from engines.timing import RunTimes

if TYPE_CHECKING:
    from torch import Tensor

    from convnextpose.checkpoint import VerifiedCheckpoint

WARM_UP = 3
"""Runs before a graph is recorded: torch chooses its kernels in them."""

_TYPES = {"fp16": "float16", "fp32": "float32"}


class GpuNetwork:
    """Crops to joints and scores on one device.

    Args:
        checkpoint: the model.
        device: torch's name for the device; `cpu` computes the same, slowly.
        precision: `fp16` or `fp32`: what the network computes in; what follows its logits is FP32.
    """

    def __init__(self, checkpoint: VerifiedCheckpoint, device: str, precision: str) -> None:
        import torch

        from convnextpose.network import build_network

        self._type = getattr(torch, _TYPES[precision])
        network = build_network(checkpoint).to(device, self._type)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Made here: a graph cannot copy from the host's ordinary memory.
        constants = (RGB_MEAN, RGB_STD, *crop_from_bins(checkpoint.variant).T)
        self._mean, self._std, self._factor, self._offset = (
            torch.tensor(np.asarray(values, np.float32), device=device) for values in constants
        )

    def __call__(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Crops uint8 [N, 256, 256, 3] BGR to joints [N, J, 3] and scores [N, J], as the contract has them."""
        import torch

        from convnextpose.network import joint_scores, soft_argmax

        with torch.inference_mode():
            normal = (crops.flip(-1).float() / 255 - self._mean) / self._std
            # The crops' memory has the channels last already.
            logits = self._network.logits(normal.permute(0, 3, 1, 2).to(self._type)).float()
            return soft_argmax(logits) * self._factor + self._offset, joint_scores(logits)


@dataclass
class _Recorded:
    """A batch size's graph and the memory that it works on."""

    graph: Any
    crops: Tensor
    results: tuple[Tensor, Tensor]
    pinned_crops: Tensor
    pinned_results: tuple[Tensor, Tensor]


class TorchGpuRuntime(LockedRuntime):
    """Runs a verified checkpoint on the first GPU, with a CUDA graph for each batch size.

    Raises:
        RuntimeUnavailableError: torch is not installed, was built without CUDA, or finds no GPU.
    """

    def __init__(self, checkpoint: VerifiedCheckpoint, model: ModelInfo, *, precision: str = "fp16") -> None:
        try:
            import torch
        except ImportError as error:
            raise RuntimeUnavailableError(f"the torch reference needs torch: {error}; install torch with CUDA") from error
        if precision not in _TYPES:
            raise RuntimeUnavailableError(f"expected precision fp16 or fp32 for torch on the GPU, received {precision!r}")
        if not torch.cuda.is_available():
            built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
            raise RuntimeUnavailableError(f"torch finds no GPU: torch {torch.__version__} {built}; look at `nvidia-smi`")
        self._compute = GpuNetwork(checkpoint, "cuda", precision)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]  # type: ignore[no-untyped-call]
        self._recorded: dict[int, _Recorded] = {}
        self._times = RunTimes(0.0, 0.0, 0.0, 0.0, 0, 0)
        name = torch.cuda.get_device_name()
        super().__init__(model, RuntimeDescription("torch", torch.__version__, name, precision, 1))

    @property
    def times(self) -> RunTimes:
        """How long the latest run took."""
        return self._times

    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        import torch

        if len(crops) not in self._recorded:
            self._recorded[len(crops)] = self._record(len(crops))
        begun, recorded = time.perf_counter_ns(), self._recorded[len(crops)]
        first, second, third, fourth = self._events
        recorded.pinned_crops.numpy()[:] = crops
        with torch.cuda.stream(self._stream):
            first.record()
            recorded.crops.copy_(recorded.pinned_crops, non_blocking=True)
            second.record()
            recorded.graph.replay()
            third.record()
            for pinned, result in zip(recorded.pinned_results, recorded.results, strict=True):
                pinned.copy_(result, non_blocking=True)
            fourth.record()
        self._stream.synchronize()
        joints, scores = (pinned.numpy().copy() for pinned in recorded.pinned_results)
        spans = (first.elapsed_time(second), second.elapsed_time(third), third.elapsed_time(fourth))
        self._times = RunTimes((time.perf_counter_ns() - begun) / 1e6, *spans, batches=1, replayed=1)
        return joints, scores

    def _record(self, count: int) -> _Recorded:
        import torch

        crops = torch.zeros((count, INPUT_SIZE, INPUT_SIZE, 3), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                self._compute(crops)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            joints, scores = self._compute(crops)
        pinned_joints, pinned_scores = (torch.empty(result.shape, pin_memory=True) for result in (joints, scores))
        return _Recorded(
            graph,
            crops,
            (joints, scores),
            torch.empty(crops.shape, dtype=torch.uint8, pin_memory=True),
            (pinned_joints, pinned_scores),
        )

    def _release(self) -> None:
        self._recorded.clear()
        del self._compute
