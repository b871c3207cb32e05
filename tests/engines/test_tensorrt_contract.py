"""The laws of engines in sessions on a simulated GPU, for every binding and every family of TensorRT."""

import pytest

from engines.pose import Predictions
from tests.engines.memory_tensorrt import FAMILIES
from tests.engines.tensorrt_contract import EngineUnderTest, TensorRTContract
from tests.engines.test_tensorrt_session import CROPS, DEVICES, JOINTS, SCORES, Bench


@pytest.fixture(params=[(binding, family) for binding in sorted(DEVICES) for family in FAMILIES], ids="-".join)
def engine(request):
    bench = Bench(*request.param)
    yield EngineUnderTest(
        bench.open, CROPS, Predictions(JOINTS, SCORES), 0, 0, 0, lambda: bench.driver.memory - bench.driver.live
    )
    bench.check()


class TestAboveAGpuInMemory(TensorRTContract):
    pass
