"""The runtime's laws, on a simulated GPU."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import EngineError, ModelError, RuntimeUnavailableError
from engines.parity import noise_crops
from engines.sessions import tensorrt as tensorrt_session
from engines.sessions.tensorrt import TensorRTSession
from engines.tensorrt.device_cuda import CudaDevice
from engines.tensorrt.device_pycuda import PycudaDevice
from engines.tensorrt.engine import LOW_MEMORY, read_layers
from engines.tensorrt.module import Library
from tests.engines.manifests import Opened, manifest_of
from tests.engines.memory_gpu import Driver, pycuda_driver
from tests.engines.memory_tensorrt import FAMILIES, engine_bytes, predict, tensorrt_module

CROPS = noise_crops(24, seed=3)
JOINTS, SCORES = predict(CROPS)

DEVICES = {
    "cuda-python": lambda driver: CudaDevice(driver, "cuda-python in memory"),
    "pycuda": lambda driver: PycudaDevice(pycuda_driver(driver), "pycuda in memory"),
}


class Bench:
    """A simulated GPU with a TensorRT, and models that are opened there."""

    def __init__(self, binding="cuda-python", family="10", memory=1 << 30, seed=0, *, refusals=0):
        self.driver = Driver(memory, seed=seed)
        self.device = DEVICES[binding](self.driver)
        module = tensorrt_module(self.driver, family, refusals=refusals)
        self.library = Library(module.__name__, module.__version__, module)

    # Kernels around an engine have their own file: `test_frames.py`.
    def open(self, *, cache=None, **spec):
        data = engine_bytes(**spec)
        here = manifest_of(data, library=self.library.name, library_version=self.library.version)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensorrt_session, "engine_kernels", lambda *_: None)
            return Opened(TensorRTSession(data, here, self.library, self.device, cache=cache), here.model)

    def check(self):
        """Check that nothing happened that would fail on a real GPU, and that everything is freed."""
        assert self.driver.violations == []
        assert self.driver.live == len(self.driver.engines) == 0


def assert_is(found, first, count):
    assert np.array_equal(found.joints, JOINTS[first : first + count])
    assert np.array_equal(found.scores, SCORES[first : first + count])


def give(runtime, first, count):
    return runtime.submit({"crops": CROPS[first : first + count]})


def take(runtime, ticket, first, count):
    found = runtime.collect(ticket)
    assert np.array_equal(found["joints"], JOINTS[first : first + count])
    assert np.array_equal(found["scores"], SCORES[first : first + count])


PROFILES = [(1, 1), (2, 4), (5, 8)]


@given(
    binding=st.sampled_from(sorted(DEVICES)),
    family=st.sampled_from(FAMILIES),
    batch=st.one_of(st.integers(1, 3).flatmap(lambda few: st.tuples(st.just(few), st.integers(few, 8))), st.none()),
    runs=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), max_size=5),
    seed=st.integers(0, 2**32),
)
def test_any_number_of_crops_gives_what_each_crop_gives(binding, family, batch, runs, seed):
    """The law of splitting, for any previous runs: batches, padding, profiles, graphs and slots change nothing."""
    bench = Bench(binding, family, seed=seed)
    profiles = PROFILES if batch is None and family != "8" else [batch or (1, 8)]
    with bench.open(profiles=profiles) as runtime:
        for count, first in runs:
            assert_is(runtime.run(CROPS[first : first + count]), first, count)
    bench.check()


@pytest.mark.parametrize("family", ["10", "rtx"])
@pytest.mark.parametrize("profiles", [[(1, 8)], PROFILES])
def test_all_that_running_needs_is_there_once_it_is_open(family, profiles):
    """After opening, no memory, context, graph or shape is made or changed, and a graph runs every batch."""
    bench = Bench(family=family)
    with bench.open(profiles=profiles) as runtime:
        assert (runtime.buckets, runtime.slots, runtime.limit) == ((1, 2, 4, 8), 3, 8)
        driver, module = bench.driver, bench.library.module
        captures, live, compilations = driver.captures, driver.live, module.compilations
        allocations = driver.allocations
        assert captures == 3 * 4
        launches = driver.launches
        for count in (*range(1, 9), 8, 1, 20, 3):
            assert_is(runtime.run(CROPS[:count]), 0, count)
            assert runtime.times.replayed == runtime.times.batches
        assert driver.launches - launches == 11 + 3
        assert (driver.captures, driver.live, driver.allocations) == (captures, live, allocations)
        assert module.compilations == compilations
    bench.check()


@pytest.mark.parametrize(
    ("fewest", "most", "buckets"), [(1, 1, (1,)), (1, 6, (1, 2, 4, 6)), (4, 4, (4,)), (3, 16, (4, 8, 16)), (3, 3, (3,))]
)
def test_the_batch_sizes_that_run_are_powers_of_two_and_the_largest(fewest, most, buckets):
    bench = Bench()
    with bench.open(fewest=fewest, most=most) as runtime:
        assert runtime.buckets == buckets
    bench.check()


def test_with_one_context_in_all_there_is_one_slot_without_graphs():
    bench = Bench(family="8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime = bench.open()
    with runtime:
        assert runtime.slots == 1
        for count in (8, 8, 3, 1, 8):
            assert_is(runtime.run(CROPS[:count]), 0, count)
            assert runtime.times.replayed == 0
        assert "one execution context" in runtime.unrecorded[8]
    bench.check()


def test_a_capture_that_fails_is_tried_again():
    bench = Bench(refusals=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bench.open() as runtime:
            assert runtime.unrecorded == {}
            runtime.run(CROPS[:1])
            assert runtime.times.replayed == 1
    bench.check()


def test_work_that_cannot_be_recorded_runs_all_the_same_and_that_is_told():
    bench = Bench(refusals=10**6)
    with pytest.warns(RuntimeWarning, match="batches of 1, 2, 4, 8 run without a CUDA graph.*cannot run the engine") as told:
        runtime = bench.open()
    assert len(told) == 1
    with runtime:
        assert set(runtime.unrecorded) == {1, 2, 4, 8}
        for count in (2, 9):
            assert_is(runtime.run(CROPS[:count]), 0, count)
            assert runtime.times.replayed == 0
    bench.check()


def test_a_binding_without_graphs_goes_without():
    bench = Bench("pycuda")
    with bench.open() as runtime:
        for _ in range(4):
            assert_is(runtime.run(CROPS[:2]), 0, 2)
        assert not runtime.has_graphs
        assert runtime.times.replayed == 0
    assert bench.driver.captures == 0
    bench.check()


def test_more_crops_than_the_engine_takes_are_in_flight_together():
    bench = Bench()
    with bench.open(most=4) as runtime:
        for _ in range(3):
            assert_is(runtime.run(CROPS[:19]), 0, 19)
            assert runtime.times.batches == 5
        times = runtime.times
        assert times.host_ms > 0
        assert times.gpu_ms == pytest.approx(times.copy_in_ms + times.inference_ms + times.copy_out_ms)
        assert min(times.copy_in_ms, times.inference_ms, times.copy_out_ms) > 0
    bench.check()


# Memory.

ITEM = 256 * 256 * 3 + 18 * 16


def test_memory_for_fewer_slots_takes_fewer_slots_and_keeps_the_batch():
    bench = Bench(memory=2 * 8 * ITEM + 2 * 8 * 10**6 + 10**6)
    with pytest.warns(RuntimeWarning, match="for 3 batches of 8 items in flight: going on with 2 of 8") as told:
        runtime = bench.open(activations=10**6)
    assert len(told) == 1
    with runtime, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (runtime.slots, runtime.limit) == (2, 8)
        for _ in range(3):
            assert_is(runtime.run(CROPS[:20]), 0, 20)
        assert runtime.memory().held == 2 * 8 * (ITEM + 10**6)
    bench.check()


@given(
    memory=st.integers(2_000_000, 12_000_000),
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_whatever_memory_there_is_the_results_are_right_or_it_is_told(memory, counts, seed):
    bench = Bench(memory=memory, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with bench.open(most=16, activations=500_000) as runtime:
            assert runtime.limit in (1, 2, 4, 8, 16)
            for count in counts:
                assert_is(runtime.run(CROPS[:count]), 0, count)
    bench.check()


def test_a_failure_while_little_memory_is_free_is_one_of_memory_whatever_its_words():
    """CUDA and the libraries below TensorRT have many names for it; here the error says invalid handle."""
    bench = Bench(memory=LOW_MEMORY // 2)
    bench.library.module.failures = 1
    with pytest.warns(RuntimeWarning, match="going on with 3 of 4"):
        runtime = bench.open()
    with runtime:
        assert_is(runtime.run(CROPS[:20]), 0, 20)
    bench.check()


def test_a_failure_while_much_memory_is_free_is_none_of_memory():
    bench = Bench()
    bench.library.module.failures = 1
    with pytest.raises(EngineError, match=r"tensorrt 10\.3\.0 cannot run the engine: it printed the reason above"):
        bench.open()
    bench.check()


def test_too_little_memory_for_the_smallest_batch_is_an_error():
    bench = Bench(memory=100_000)
    with pytest.raises(RuntimeUnavailableError, match=r"too little free memory for a batch of 1: .*OUT_OF_MEMORY"):
        bench.open()
    bench.check()


def test_a_run_that_fails_leaves_the_runtime_usable():
    bench = Bench(refusals=10**6)  # without graphs TensorRT is called for each batch
    with pytest.warns(RuntimeWarning, match="without a CUDA graph"):
        runtime = bench.open(most=4)
    with runtime:
        bench.library.module.failures = 1
        with pytest.raises(EngineError, match="cannot run the engine"):
            runtime.run(CROPS[:7])
        bench.library.module.failures = 1
        with pytest.raises(EngineError, match="cannot run the engine"):
            give(runtime, 0, 2)
        assert_is(runtime.run(CROPS[9:10]), 9, 1)
        tickets = [(give(runtime, first, 2), first, 2) for first in range(3)]
        for ticket in tickets:
            take(runtime, *ticket)
    bench.check()


# The kernels that TensorRT for RTX compiles.


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "tiny.engine.kernels"


def test_kernels_are_compiled_when_it_is_opened_and_kept_beside_the_engine(kept):
    first = Bench(family="rtx")
    with first.open(cache=kept) as runtime:
        assert first.library.module.compilations == 4
        assert kept.exists()
        runtime.run(CROPS[:7])
        assert first.library.module.compilations == 4
    second, written = Bench(family="rtx"), kept.stat().st_mtime_ns
    with second.open(cache=kept) as runtime:
        assert_is(runtime.run(CROPS[:7]), 0, 7)
    assert second.library.module.compilations == 0
    assert kept.stat().st_mtime_ns == written
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty", "version"])
def test_kernels_that_are_of_no_use_are_thrown_away_and_that_is_told(kept, damage):
    with Bench(family="rtx").open(cache=kept):
        pass
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    kept.write_bytes({"cut": whole[:-1], "flipped": flipped, "other": b"hello", "empty": b"", "version": whole}[damage])
    bench = Bench(family="rtx")
    if damage == "version":
        bench.library.module.__version__ = "1.8.0"
        bench.library = Library("tensorrt_rtx", "1.8.0", bench.library.module)
    with pytest.warns(RuntimeWarning, match=r"tiny\.engine\.kernels .*discarded.*compiled again") as told:
        runtime = bench.open(cache=kept)
    assert len(told) == 1
    with runtime:
        assert bench.library.module.compilations == 4
    if damage != "version":
        assert kept.read_bytes() == whole


def test_kernels_that_cannot_be_kept_cost_a_warning(tmp_path):
    bench = Bench(family="rtx")
    with pytest.warns(RuntimeWarning, match="kernels are not saved"):
        runtime = bench.open(cache=tmp_path / "none" / "x.kernels")
    with runtime:
        assert_is(runtime.run(CROPS[:1]), 0, 1)
    bench.check()


def test_full_tensorrt_keeps_no_kernels(kept):
    with Bench().open(cache=kept):
        assert not kept.exists()


# Life and death.


@pytest.mark.parametrize("binding", sorted(DEVICES))
def test_a_hundred_opened_and_closed_leave_nothing(binding):
    bench = Bench(binding)
    for _ in range(100):
        runtime = bench.open(most=2)
        runtime.close()
        runtime.close()
        assert bench.driver.live == 0
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        runtime.run(CROPS[:1])
    assert bench.driver.violations == []


@pytest.mark.parametrize("binding", sorted(DEVICES))
def test_any_thread_may_run_and_close(binding):
    """The GPU is current only where it is used: this thread and the workers have no context of their own."""
    bench = Bench(binding)
    runtimes = [bench.open(most=4), bench.open(most=3)]
    start = threading.Barrier(4)

    def work(index):
        start.wait()
        for turn in range(10):
            count = 1 + (index * 3 + turn) % 7
            assert_is(runtimes[index % 2].run(CROPS[index : index + count]), index, count)
        assert bench.driver.contexts == []

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for runtime in runtimes:
        closer = threading.Thread(target=runtime.close)
        closer.start()
        closer.join()
    assert bench.driver.contexts == []
    bench.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"library": "tensorrt_rtx"},
            "library: the engine was built by tensorrt_rtx, this machine has tensorrt; .*convnextpose build",
        ),
        ({"library_version": "10.13.3"}, "library_version: .*10.13.3, this machine has 10.3.0; .*convnextpose build"),
        ({"compute_capabilities": ("12.0",)}, "compute_capability: .* 12.0, this machine's GPU has 8.9; .*convnextpose build"),
        ({"gpu_name": "NVIDIA L4"}, "gpu_name: the engine is for NVIDIA L4, this machine has GPU in memory"),
        ({"engine_bytes": 5}, "expected an engine of 5 bytes"),
        ({"engine_sha256": "f" * 64}, "expected an engine with SHA-256 ffffffffffff"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_before_it_is_loaded(changes, message):
    bench, data = Bench(), engine_bytes()
    with pytest.raises(EngineError, match=message):
        TensorRTSession(data, manifest_of(data, **changes), bench.library, bench.device)
    assert not hasattr(bench.library.module, "engine")
    bench.check()


def test_bytes_that_tensorrt_does_not_take_are_an_error(capsys):
    bench, data = Bench(), b"not an engine"
    with pytest.raises(
        EngineError, match=r"tensorrt 10.3.0 cannot load the engine: it printed the reason above; .*convnextpose build"
    ):
        TensorRTSession(data, manifest_of(data), bench.library, bench.device)
    assert "Magic tag does not match" in capsys.readouterr().err
    bench.check()


@pytest.mark.parametrize("spec", [{"joint_count": 21}, {"crops_type": "HALF"}])
def test_an_engine_with_other_tensors_is_refused(spec):
    bench = Bench()
    with pytest.raises(ModelError, match=r"expected crops uint8 \[N, 256, 256, 3\].*of model tiny"):
        bench.open(**spec)
    bench.check()


def test_it_tells_what_it_runs():
    bench = Bench()
    with bench.open() as runtime:
        description = runtime.describe()
        assert (description.name, description.version) == ("tensorrt", "10.3.0")
        assert (description.device, description.precision) == ("GPU in memory", "fp16")
        assert runtime.binding == "cuda-python in memory"
        stem, tail = runtime.layers()
        assert (stem.name, stem.kind, stem.inputs, stem.outputs) == ("stem", "Convolution", ("Half",), ("Float",))
        assert (tail.name, tail.inputs) == ("tail", ())
        memory = runtime.memory()
        assert memory.activations == 8000
        assert memory.held == 3 * 8 * (ITEM + 1000)
        assert memory.free == bench.driver.memory - memory.held


def test_layers_without_types_are_names():
    assert [layer.name for layer in read_layers('{"Layers": ["a", "b"], "Bindings": []}')] == ["a", "b"]
