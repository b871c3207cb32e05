"""Times of runs become percentiles, and PyTorch on the GPU computes what PyTorch on the CPU does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import RuntimeUnavailableError
from engines.parity import LIMITS, noise_crops
from engines.timing import Percentiles, RunTimes, measure


class Counting:
    """Its n-th run takes n ms on the host; every third run is without a graph."""

    def __init__(self, log, name):
        self.log, self.name, self.runs = log, name, 0

    @property
    def times(self):
        return RunTimes(float(self.runs), 0.25, self.runs / 2, 0.25, batches=1, replayed=int(self.runs % 3 != 0))

    def run(self, arrays):
        self.runs += 1
        self.log.append((self.name, len(arrays["crops"])))


def test_sessions_take_turns_and_the_first_runs_are_not_counted():
    log = []
    slow, fast = measure({"slow": Counting(log, "slow"), "fast": Counting(log, "fast")}, noise_crops(2), rounds=9, warm_up=3)
    assert log == [("slow", 2), ("fast", 2)] * 12
    assert (slow.runtime, fast.runtime, slow.crops, slow.rounds) == ("slow", "fast", 2, 9)
    assert slow.host.p50 == 8  # the median of 4 to 12
    assert slow.gpu.p50 == pytest.approx(4.5)
    assert slow.inference.p50 == 4
    assert slow.crops_per_s == pytest.approx(1e3 * 2 * 9 / sum(range(4, 13)))
    assert slow.replayed == 6


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_so_many_of_a_hundred_are_no_longer(times):
    found = Percentiles.of(times)
    assert min(times) <= found.p50 <= found.p95 <= found.p99 <= max(times)
    for share, value in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        assert np.mean(np.array(times) <= value * (1 + 1e-9)) >= share - 1 / len(times)


@pytest.mark.parametrize(
    ("network", "precision"), [("pose_reference", "fp32"), ("pose_reference", "fp16"), ("pose_baseline", "fp16")]
)
def test_the_network_for_the_gpu_computes_what_the_reference_does(network, precision, checkpoint, crops):
    """The same types and the same tail; here the CPU computes them as a GPU would."""
    torch = pytest.importorskip("torch")
    from engines import opening

    with opening.open_pose_model(checkpoint, "torch", threads=1) as reference:
        expected = reference.run(crops[:2])
    with torch.inference_mode():
        joints, scores = getattr(opening, network)(checkpoint, precision).module(torch.from_numpy(crops[:2]))
    assert joints.dtype == scores.dtype == torch.float32
    limits = LIMITS[precision]
    difference = np.abs(joints.numpy() - expected.joints)
    assert difference[..., :2].max() <= limits.max_px
    assert difference[..., 2].max() <= limits.max_mm
    assert np.abs(scores.numpy() - expected.scores).max() <= limits.max_score


@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("fp32", False), *(pytest.param("fp16", compiled, marks=pytest.mark.slow) for compiled in (False, True))],
)
def test_the_baseline_computes_what_the_reference_does(precision, compiled, checkpoint, crops):
    """Folded, channels last, each number of crops prepared once: on the CPU everything except the GPU's graphs."""
    pytest.importorskip("torch")
    from engines.opening import open_pose_model, pose_baseline
    from engines.sessions.torch import TorchGpuSession

    with open_pose_model(checkpoint, "torch", threads=1) as reference:
        expected = reference.run(crops[:3])
    network = pose_baseline(checkpoint, precision)
    session = TorchGpuSession(network, "xs", precision=precision, compiled=compiled, device="cpu")
    first = session.run({"crops": crops[:1]})
    kept = first["joints"].copy()
    limits = LIMITS[precision]
    for found, count in ((first, 1), (session.run({"crops": crops[1:3]}), 2), (session.run({"crops": crops[2:3]}), 1)):
        assert session.times.host_ms >= session.times.inference_ms > 0
        assert found["joints"].dtype == found["scores"].dtype == np.float32
        assert len(found["joints"]) == count
    assert np.array_equal(first["joints"], kept)
    again = session.run({"crops": crops[1:3]})
    difference = np.abs(again["joints"] - expected.joints[1:3])
    assert difference[..., :2].max() <= limits.max_px
    assert difference[..., 2].max() <= limits.max_mm
    assert np.abs(again["scores"] - expected.scores[1:3]).max() <= limits.max_score
    session.close()
    with pytest.raises(RuntimeUnavailableError, match="is closed"):
        session.run({"crops": crops[:1]})


def test_without_a_gpu_it_is_one_sentence(checkpoint):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: tests/gpu runs the reference there")
    from engines.opening import pose_reference
    from engines.sessions.torch import TorchGpuSession

    with pytest.raises(RuntimeUnavailableError, match=r"torch finds no GPU: torch .* was built (without|for) CUDA"):
        TorchGpuSession(pose_reference(checkpoint, "fp16"), "xs", precision="fp16")
