"""A manifest for any engine, and a pose model with the additional methods of its session."""

from dataclasses import replace

from convnextpose.skeleton import JOINT_SETS
from convnextpose.variants import Variant
from engines.manifest import BatchRange, EngineManifest
from engines.parity import LIMITS, Differences, ParityReport
from engines.pose import ModelInfo, PoseModel
from engines.session import SessionDescription
from tests.engines.memory_tensorrt import sha256


def manifest_of(data, **changes):
    nothing = SessionDescription("onnx", "1", "CPU", "fp16", 1)
    zero = Differences(0.0, 0.0, 0.0)
    made = EngineManifest(
        model=ModelInfo("tiny", Variant.XS, JOINT_SETS["human36m"], "0" * 64, True, "fp16"),
        onnx_sha256="1" * 64,
        target="rtx40",
        batch=BatchRange(),
        options={},
        excluded_layers=(),
        graph_parity=ParityReport("tiny", "0" * 64, nothing, nothing, 1, LIMITS["fp16"], zero, zero, 0.0, ()),
        command="convnextpose build xs --target rtx40",
        engine_sha256=sha256(data),
        engine_bytes=len(data),
        library="tensorrt",
        library_version="10.3.0",
        compute_capabilities=("8.9",),
        gpu_name=None,
        driver=None,
        engine_parity=None,
    )
    return replace(made, **changes)


class Opened(PoseModel):
    """A pose model with its session's methods that other sessions do not have."""

    def __getattr__(self, name):
        return getattr(self._session, name)
