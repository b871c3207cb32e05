"""Tests that need a GPU, marked `gpu`. Without one they are skipped with the reason, or fail if `--require-gpu` is given."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from convnextpose import weights
from convnextpose.errors import RuntimeUnavailableError
from convnextpose.variants import Variant


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="fail, rather than skip, where there is no GPU")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; `make test-gpu` runs these")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def gpu(request):
    """The GPU, through the first installed binding."""
    from engines.tensorrt.gpu import open_device

    try:
        return open_device()
    except RuntimeUnavailableError as error:
        if request.config.getoption("--require-gpu", default=False):
            pytest.fail(f"--require-gpu was given: {error}", pytrace=False)
        pytest.skip(f"needs a GPU: {error}")


@dataclass(frozen=True)
class Built:
    """An engine for this GPU, and the checkpoint that it was made from."""

    path: Path
    checkpoint: object


@pytest.fixture(scope="session")
def builds(tmp_path_factory, pytestconfig):
    """A function that builds an engine for this GPU once, with a variant's default weights or, without any, random ones."""
    torch = pytest.importorskip("torch", reason="building needs torch")
    pytest.importorskip("onnx", reason="building needs onnx")
    from convnextpose.checkpoint import verify
    from convnextpose.network import random_state
    from engines.build import build
    from engines.build_request import BuildRequest
    from engines.manifest import BatchRange
    from engines.targets import find_target
    from engines.tensorrt.builder import BuildOptions

    folder, made = tmp_path_factory.mktemp("engines"), {}

    def source_of(variant):
        if variant.name.lower() in weights.names():
            return weights.load(variant.name.lower()).safetensors
        path = folder / f"random-{variant.name.lower()}.pth"
        if not path.exists():
            torch.save({"network": dict(random_state(variant))}, path)
        return path

    def build_one(variant=Variant.XS, precision="fp16", most=8):
        key = variant, precision, most
        if key not in made:
            source = source_of(variant)
            request = BuildRequest(
                source=str(source),
                out=folder / str(most),
                precisions=(precision,),
                targets=(find_target("this"),),
                options=BuildOptions(BatchRange(1, 1, most)),
            )
            try:
                (result,) = build(request, lambda step: None)
            except RuntimeUnavailableError as error:
                if "does not build for compute capability" not in str(error):
                    raise
                if pytestconfig.getoption("--require-gpu", default=False):
                    pytest.fail(f"--require-gpu was given: {error}", pytrace=False)
                pytest.skip(f"no engine for this GPU: {error}")
            made[key] = Built(result.path, verify(source))
        return made[key]

    return build_one


@pytest.fixture(scope="session")
def xs_engine(builds):
    return builds()
