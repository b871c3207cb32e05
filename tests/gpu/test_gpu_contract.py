"""The laws of engines in sessions on this GPU, the same as on a simulated GPU in memory."""

import numpy as np
import pytest

from engines.parity import noise_crops
from engines.pose import Predictions
from engines.sessions.engine_file import open_engine
from tests.engines.tensorrt_contract import EngineUnderTest, TensorRTContract
from tests.engines.test_tensorrt_session import Opened


@pytest.fixture(scope="module")
def engine(gpu, xs_engine):
    def opened():
        session = open_engine(xs_engine.path)
        return Opened(session, session.manifest.model)

    def free_bytes():
        with gpu.current():
            return gpu.free_bytes()

    crops = noise_crops(24, seed=5)
    with opened() as model:
        found = [model.run(crop[None]) for crop in crops]
    alone = Predictions(np.concatenate([f.joints for f in found]), np.concatenate([f.scores for f in found]))
    return EngineUnderTest(opened, crops, alone, 1.0, 5.0, 0.02, free_bytes)


class TestOnThisGpu(TensorRTContract):
    pass
