"""One small model, exported once: XS with random weights and batch norms that are not the identity."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Torch's threads wait for each other, which takes long if another program uses one of the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint():
    from convnextpose.checkpoint import verify_state
    from convnextpose.network import random_state
    from convnextpose.variants import Variant

    return verify_state(random_state(Variant.XS), source="xs-random")


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    """The report of its export; the file is at `exported.path`."""
    from engines.export import export

    return export(checkpoint, tmp_path_factory.mktemp("exported") / "tiny.onnx", name="tiny", random=True)


@pytest.fixture(scope="session")
def onnx_bytes(exported):
    return exported.path.read_bytes()


@pytest.fixture(scope="session")
def crops():
    from engines.parity import noise_crops

    result = noise_crops(5, seed=1)
    result[1] = np.arange(256, dtype=np.uint8)[:, None]  # a ramp, which shows mixed-up channels or axes
    return result


@pytest.fixture(scope="session", params=["torch", "onnxruntime", "openvino"])
def runtime(request, checkpoint, onnx_bytes):
    pytest.importorskip(request.param)
    from engines.opening import open_pose_model

    with open_pose_model(checkpoint if request.param == "torch" else onnx_bytes, request.param, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def build_alone():
    """Build a bundle's engine for an RTX 40 in a process without torch and without libraries that make or run ONNX files."""

    def build(bundle, out):
        code = (
            "import sys\n"
            "for name in ('torch', 'onnx', 'onnxruntime', 'openvino', 'safetensors'): sys.modules[name] = None\n"
            "from engines.build import build\n"
            "from engines.build_request import BuildRequest\n"
            "from engines.targets import find_target\n"
            "from pathlib import Path\n"
            f"request = BuildRequest({str(bundle)!r}, Path({str(out)!r}), targets=(find_target('8.9'),))\n"
            "report = build(request, lambda step: None)\n"
            "assert not report.failures, report.failures\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    return build
