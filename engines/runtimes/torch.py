"""The reference: the network in PyTorch as the authors define it, nothing folded, FP32 up to the logits, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import decode_bins, normalise
from engines.runtime import ModelInfo, RuntimeDescription
from engines.runtimes.base import LockedRuntime, Outputs, require_fp32

if TYPE_CHECKING:
    from convnextpose.checkpoint import VerifiedCheckpoint


class TorchRuntime(LockedRuntime):
    """Runs a verified checkpoint with the official preprocessing; what every other runtime is measured against."""

    def __init__(
        self, checkpoint: VerifiedCheckpoint, model: ModelInfo, *, threads: int | None = None, precision: str = "fp32"
    ) -> None:
        require_fp32("torch", precision)
        import torch

        from convnextpose.network import build_network

        self._network = build_network(checkpoint)
        if threads is not None:
            torch.set_num_threads(threads)  # torch has one number of threads for the whole process
        super().__init__(model, RuntimeDescription("torch", torch.__version__, "CPU", precision, torch.get_num_threads()))

    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        import torch

        from convnextpose.network import joint_scores, soft_argmax

        with torch.inference_mode():
            logits = self._network.logits(torch.from_numpy(normalise(crops)))
            bins, scores = soft_argmax(logits).numpy(), joint_scores(logits).numpy()
        return decode_bins(bins, self._model.variant).astype(np.float32), scores

    def _release(self) -> None:
        del self._network
