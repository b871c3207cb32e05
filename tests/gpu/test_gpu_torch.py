"""PyTorch on the GPU, the baseline for engines. Needs no TensorRT."""

import pytest

from convnextpose import weights
from convnextpose.checkpoint import verify
from engines.opening import open_pose_model, pose_reference
from engines.parity import LIMITS, compare, noise_crops
from engines.pose import PoseModel
from engines.sessions.torch import TorchGpuSession


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pytorch_on_the_gpu_agrees_with_pytorch_on_the_cpu(precision):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch was built without CUDA")
    checkpoint = verify(weights.load("xs").safetensors)
    with open_pose_model(checkpoint, "torch") as reference:
        session = TorchGpuSession(pose_reference(checkpoint, precision), "xs", precision=precision)
        with PoseModel(session, reference.info) as fast:
            for _ in range(2):
                compare(reference, fast, noise_crops(4), LIMITS["fp16"]).check()
