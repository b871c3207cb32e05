"""The real Triton serves what `convnextpose triton` writes. Slow; it needs the server, which `make .venv/triton` installs.

The server is that of the wheel `nvidia-pytriton`, which has only the Python backend: the configuration for ONNX is used as far
as possible, and serves with a Python model instead of that backend.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from convnextpose import weights
from engines.opening import open_served_model
from engines.triton import write_repository

pytestmark = pytest.mark.slow

FOLDER = Path(sys.prefix) / "triton"

MODEL = """
import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            crops = triton.get_input_tensor_by_name(request, "crops").as_numpy()
            joints = np.zeros((len(crops), 18, 3), np.float32)
            joints[:, 0] = crops[:, 0, 0]
            joints[:, 1, 0] = crops.reshape(len(crops), -1).sum(1, dtype=np.float64)
            scores = np.full((len(crops), 18), 0.5, np.float32)
            tensors = [triton.Tensor("joints", joints), triton.Tensor("scores", scores)]
            answers.append(triton.InferenceResponse(tensors))
        return answers
"""
"""A pose network whose results identify the crop."""


class Server:
    """The real server with a repository, on a free port."""

    def __init__(self, repository, scratch):
        parts = FOLDER / "pytriton" / "tritonserver"
        backends = scratch / "backends"
        shutil.copytree(parts / "backends", backends)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = shutil.copy(parts / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        Path(stub).chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        libraries = [FOLDER / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        binary = shutil.copy(parts / "bin" / "tritonserver", scratch / "tritonserver")
        Path(binary).chmod(0o755)
        self.log = scratch / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    binary,
                    f"--model-repository={repository}",
                    f"--backend-directory={backends}",
                    "--http-address=127.0.0.1",
                    f"--http-port={self.port}",
                    "--allow-grpc=false",
                    "--allow-metrics=false",
                    "--exit-on-error=false",
                ],
                cwd=FOLDER,  # where the backend's Python looks first; it ignores PYTHONPATH, and needs NumPy 1
                env=os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "PYTHONHOME": sys.base_prefix},
                stdout=log,
                stderr=log,
            )

    def ask(self, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def __enter__(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.ask("/v2/health/live")
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.__exit__()
        pytest.fail(f"the server does not answer: {self.log.read_text()[-2000:]}")

    def __exit__(self, *error):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def state(self, name):
        (found,) = (m for m in json.loads(self.ask("/v2/repository/index", b"{}")) if m["name"] == name)
        return found


@pytest.fixture
def repository(tmp_path):
    if not (FOLDER / "pytriton").is_dir():
        pytest.skip("Triton is not installed: `make .venv/triton`")
    return write_repository(weights.load("xs").onnx, tmp_path / "models").folder


def test_it_takes_the_configuration_and_misses_only_the_backend(repository, tmp_path):
    with Server(repository.parent, tmp_path) as server:
        state = server.state("xs")
    assert state["state"] == "UNAVAILABLE" and "unable to find backend library for backend 'onnxruntime'" in state["reason"]


def test_it_serves_the_configuration_with_another_backend(repository, tmp_path):
    config = repository / "config.pbtxt"
    text = config.read_text()
    for line in ('platform: "onnxruntime_onnx"', 'backend: "onnxruntime"'):
        assert line in text
    config.write_text(text.replace('platform: "onnxruntime_onnx"\n', "").replace('"onnxruntime"', '"python"'))
    (repository / "1" / "model.onnx").unlink()
    (repository / "1" / "model.py").write_text(MODEL)
    crops = np.random.default_rng(0).integers(0, 256, (37, 256, 256, 3), np.uint8)
    with Server(repository.parent, tmp_path) as server:
        state = server.state("xs")
        assert state["state"] == "READY", f"{state}: {server.log.read_text()[-2000:]}"
        with open_served_model(f"triton://127.0.0.1:{server.port}/xs") as served:
            assert str(served.describe()).startswith("triton 2.51.0 ")
            for count in (1, 3, 16, 37):
                found = served.run(crops[:count])
                assert np.array_equal(found.joints[:, 0], crops[:count, 0, 0])
                assert np.array_equal(found.joints[:, 1, 0], crops[:count].reshape(count, -1).sum(1).astype(np.float32))
                assert (found.scores == 0.5).all()
        batches = json.loads(server.ask("/v2/models/xs/stats"))["model_stats"][0]["batch_stats"]
    assert {batch["batch_size"] for batch in batches} >= {1, 3, 5, 16}
