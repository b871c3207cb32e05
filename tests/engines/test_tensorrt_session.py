"""The runtime's laws, on a GPU in memory; and what a machine without a GPU says of a real engine."""

import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import EngineError, ModelError, RuntimeUnavailableError
from convnextpose.skeleton import JOINT_SETS
from convnextpose.variants import Variant
from engines import manifest as manifests
from engines.manifest import BatchRange, EngineManifest
from engines.parity import LIMITS, Differences, ParityReport, noise_crops
from engines.pose import ModelInfo, PoseModel
from engines.session import SessionDescription
from engines.sessions import tensorrt as tensorrt_session
from engines.sessions.tensorrt import CONTEXTS, TensorRTSession, open_engine, read_layers
from engines.tensorrt.device_cuda import CudaDevice
from engines.tensorrt.device_pycuda import PycudaDevice
from engines.tensorrt.gpu import binding_installed
from engines.tensorrt.module import Library, load_library
from tests.engines.memory_gpu import FAMILIES, Driver, engine_bytes, predict, pycuda_driver, sha256, tensorrt_module

CROPS = noise_crops(24, seed=3)
JOINTS, SCORES = predict(CROPS)

DEVICES = {
    "cuda-python": lambda driver: CudaDevice(driver, "cuda-python in memory"),
    "pycuda": lambda driver: PycudaDevice(pycuda_driver(driver), "pycuda in memory"),
}


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
    """A pose model, and what its session tells beyond any session."""

    def __getattr__(self, name):
        return getattr(self._session, name)


class Bench:
    """A GPU in memory with a TensorRT on it, and models that are opened there."""

    def __init__(self, binding="cuda-python", family="10", memory=1 << 30, seed=0, *, records=True):
        self.driver = Driver(memory, seed=seed)
        self.device = DEVICES[binding](self.driver)
        module = tensorrt_module(self.driver, family, records=records)
        self.library = Library(module.__name__, module.__version__, module)

    def open(self, **spec):
        data = engine_bytes(**spec)
        here = manifest_of(data, library=self.library.name, library_version=self.library.version)
        return Opened(TensorRTSession(data, here, self.library, self.device), here.model)

    def check(self):
        """Nothing happened that a real GPU would not forgive, and everything is given back."""
        assert self.driver.violations == []
        assert self.driver.live == len(self.driver.engines) == 0


def assert_is(found, first, count):
    assert np.array_equal(found.joints, JOINTS[first : first + count])
    assert np.array_equal(found.scores, SCORES[first : first + count])


@given(
    binding=st.sampled_from(sorted(DEVICES)),
    family=st.sampled_from(FAMILIES),
    fewest=st.integers(1, 3),
    more=st.integers(0, 5),
    runs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=6),
    seed=st.integers(0, 2**32),
)
def test_any_number_of_crops_gives_what_each_crop_gives(binding, family, fewest, more, runs, seed):
    """The law of splitting, whatever was run before: batches, padding, graphs and the buffer sets change nothing."""
    bench = Bench(binding, family, seed=seed)
    with bench.open(fewest=fewest, most=fewest + more) as runtime:
        for count, first in runs:
            assert_is(runtime.run(CROPS[first : first + count]), first, count)
    bench.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_recurs_is_recorded_once_and_launched(family):
    bench = Bench(family=family)
    with bench.open() as runtime:  # opening it runs one crop
        for turn in range(6):
            assert_is(runtime.run(CROPS[:1]), 0, 1)
            assert (runtime.times.batches, runtime.times.replayed) == (1, 1), turn
        assert (bench.driver.captures, bench.driver.launches) == (1, 6)
        for _ in range(3):
            assert_is(runtime.run(CROPS[:4]), 0, 4)
        assert bench.driver.captures == 2
        assert runtime.times.replayed == 1
    bench.check()


def test_with_one_context_in_all_another_batch_size_takes_it_over():
    bench = Bench(family="8")
    with bench.open() as runtime:
        for _ in range(2):
            replayed = []
            for count in (8, 8, 8, 3, 3):
                assert_is(runtime.run(CROPS[:count]), 0, count)
                replayed.append(runtime.times.replayed)
            assert replayed == [0, 1, 1, 0, 1]
    bench.check()


def test_graphs_of_two_sizes_stand_side_by_side():
    bench = Bench()
    with bench.open() as runtime:
        runtime.run(CROPS[:8])  # the largest first: buffers that grow take their graphs with them
        for count in (1, 1, 8):
            runtime.run(CROPS[:count])
        for count in (8, 1, 8, 1):
            assert_is(runtime.run(CROPS[:count]), 0, count)
            assert runtime.times.replayed == 1
        assert bench.driver.captures == 2
    bench.check()


def test_there_is_an_end_to_how_many_graphs_are_kept():
    bench = Bench()
    with bench.open(most=16) as runtime:
        runtime.run(CROPS[:16])
        for _ in range(3):
            for count in range(1, 17):
                assert_is(runtime.run(CROPS[:count]), 0, count)
            assert len(bench.driver._graphs) <= CONTEXTS
    bench.check()


def test_work_that_cannot_be_recorded_runs_all_the_same():
    bench = Bench(records=False)
    with bench.open() as runtime:
        for _ in range(4):
            assert_is(runtime.run(CROPS[:2]), 0, 2)
            assert runtime.times.replayed == 0
    assert bench.driver.captures <= 2
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


def test_more_crops_than_the_engine_takes_are_in_flight_in_two_sets():
    bench = Bench()
    with bench.open(most=4) as runtime:
        small = runtime.memory().held
        for _ in range(3):
            assert_is(runtime.run(CROPS[:19]), 0, 19)
            assert runtime.times.batches == 5
        assert runtime.memory().held > small
        times = runtime.times
        assert times.host_ms > 0
        assert times.gpu_ms == pytest.approx(times.copy_in_ms + times.inference_ms + times.copy_out_ms)
        assert min(times.copy_in_ms, times.inference_ms, times.copy_out_ms) > 0
    bench.check()


def test_small_runs_need_one_set():
    bench = Bench()
    with bench.open() as runtime:
        runtime.run(CROPS[:8])
        held = runtime.memory().held
        assert held == 8 * (256 * 256 * 3 + 18 * 12 + 18 * 4 + 1000)
    bench.check()


def test_a_batch_that_is_too_large_for_the_memory_is_halved_and_that_is_said_once():
    fits_four = 4 * (256 * 256 * 3 + 18 * 16) + 7 * 10**6  # in one buffer set: two of them have no place
    bench = Bench(memory=fits_four)
    with bench.open(most=16, activations=10**6) as runtime:
        with pytest.warns(RuntimeWarning, match="does not suffice for 16 items at once: going on with 4") as told:
            assert_is(runtime.run(CROPS[:20]), 0, 20)
        assert len(told) == 1
        assert runtime.limit == 4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                assert_is(runtime.run(CROPS[:20]), 0, 20)
                assert_is(runtime.run(CROPS[:1]), 0, 1)
    bench.check()


def test_without_memory_for_a_second_set_the_first_keeps_its_size():
    crops = 8 * (256 * 256 * 3 + 18 * 16)
    bench = Bench(memory=crops + 9 * 10**6)
    with bench.open(most=8, activations=10**6) as runtime:
        assert_is(runtime.run(CROPS[:10]), 0, 10)
        assert runtime.limit == 8
        assert_is(runtime.run(CROPS[:8]), 0, 8)
        assert runtime.times.batches == 1
    bench.check()


@given(
    memory=st.integers(2_000_000, 12_000_000),
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_whatever_memory_there_is_the_results_are_right_or_it_is_told(memory, counts, seed):
    bench = Bench(memory=memory, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with bench.open(most=16, activations=500_000) as runtime:
            for count in counts:
                assert_is(runtime.run(CROPS[:count]), 0, count)
    bench.check()


def test_memory_that_ends_while_an_inference_begins_is_treated_alike():
    bench = Bench()
    with bench.open() as runtime:
        bench.library.module.engine().out_of_memory = 1
        with pytest.warns(RuntimeWarning, match="going on with 4"):
            assert_is(runtime.run(CROPS[:20]), 0, 20)
    bench.check()


def test_too_little_memory_for_the_smallest_batch_is_an_error():
    bench = Bench(memory=100_000)
    with pytest.raises(RuntimeUnavailableError, match=r"does not suffice for a batch of 1: .*OUT_OF_MEMORY"):
        bench.open()
    bench.check()


def test_a_run_that_fails_leaves_the_runtime_usable():
    bench = Bench()
    with bench.open(most=4) as runtime:
        spec = bench.library.module.engine().spec
        runtime.run(CROPS[:12])
        spec["fewest"] = 4  # what TensorRT takes now differs from what it said
        with pytest.raises(EngineError, match="does not take 3 items: shape"):
            runtime.run(CROPS[:7])
        spec["fewest"] = 1
        assert_is(runtime.run(CROPS[9:10]), 9, 1)
        assert_is(runtime.run(CROPS[5:17]), 5, 12)
    bench.check()


def test_memory_for_one_set_is_enough():
    for most in (1, 4):
        bench = Bench(memory=2_000_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with bench.open(most=most, activations=400_000) as runtime:
                for _ in range(2):
                    assert_is(runtime.run(CROPS[:6]), 0, 6)
                assert runtime.limit == min(most, 2)
        bench.check()


@pytest.mark.parametrize("binding", sorted(DEVICES))
def test_a_thousand_opened_and_closed_leave_nothing(binding):
    bench = Bench(binding)
    for _ in range(1000):
        runtime = bench.open(most=2)
        runtime.close()
        runtime.close()
        assert bench.driver.live == 0
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        runtime.run(CROPS[:1])
    assert bench.driver.violations == []


@pytest.mark.parametrize("binding", sorted(DEVICES))
def test_any_thread_may_run_and_close(binding):
    """The GPU is current where it is used, and nowhere else: this thread and the workers have no context of their own."""
    bench = Bench(binding)
    runtimes, failures = [bench.open(most=4), bench.open(most=3)], []
    start = threading.Barrier(4)

    def work(index):
        try:
            start.wait()
            for turn in range(10):
                count = 1 + (index * 3 + turn) % 7
                assert_is(runtimes[index % 2].run(CROPS[index : index + count]), index, count)
            assert bench.driver.contexts == []
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
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
            "library: the engine is of tensorrt_rtx, this machine's is tensorrt; .*convnextpose build",
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


def test_bytes_that_tensorrt_does_not_take_are_an_error_with_its_words():
    bench, data = Bench(), b"not an engine"
    with pytest.raises(
        EngineError, match=r"tensorrt 10.3.0 cannot load the engine: Magic tag does not match; .*convnextpose build"
    ):
        TensorRTSession(data, manifest_of(data), bench.library, bench.device)
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
        assert memory.free == bench.driver.memory - memory.held


def test_layers_without_types_are_names():
    assert [layer.name for layer in read_layers('{"Layers": ["a", "b"], "Bindings": []}')] == ["a", "b"]


# Real engines, on a machine without a GPU.


@pytest.fixture(scope="module")
def real_engine(exported, tmp_path_factory):
    """An engine that TensorRT-RTX built of XS with random weights, with its manifest."""
    pytest.importorskip("tensorrt_rtx", reason="building an engine without a GPU needs TensorRT-RTX")
    from engines.precision import to_fp16
    from engines.tensorrt.builder import build_engine

    library = load_library("tensorrt_rtx")
    built = build_engine(to_fp16(exported.path.read_bytes()), library, "8.9")
    path = tmp_path_factory.mktemp("engines") / "tiny.engine"
    path.write_bytes(built.data)
    made = manifest_of(
        built.data, library=library.name, library_version=library.version, compute_capabilities=built.compute_capabilities
    )
    manifests.path_of(path).write_text(made.to_json())
    return path


@pytest.fixture
def copied(real_engine, tmp_path):
    path = tmp_path / "mine.engine"
    path.write_bytes(real_engine.read_bytes())
    manifests.path_of(path).write_bytes(manifests.path_of(real_engine).read_bytes())
    return path


def test_a_real_engine_without_a_gpu_is_told_in_a_sentence(real_engine, no_gpu):
    if not binding_installed("cuda-python"):
        pytest.skip("cuda-python is not installed")
    with pytest.raises(RuntimeUnavailableError, match=r"no NVIDIA driver was found|finds no GPU") as told:
        open_engine(real_engine)
    assert "\n" not in str(told.value)


def test_tensorrt_itself_says_why_it_does_not_load_an_engine_without_a_gpu(real_engine, no_gpu):
    """The runtime above a GPU in memory, with the real library: what comes of its refusal."""
    data, found = real_engine.read_bytes(), manifests.load(real_engine)
    device = CudaDevice(Driver(), "cuda-python in memory")
    with pytest.raises((EngineError, RuntimeUnavailableError), match=r"(?i)cuda|driver") as told:
        TensorRTSession(data, found, load_library("tensorrt_rtx"), device)
    assert "\n" not in str(told.value)


def test_a_truncated_engine_is_told_before_the_gpu_is_asked(copied):
    copied.write_bytes(copied.read_bytes()[:-100])
    with pytest.raises(
        EngineError, match=r"mine\.engine: expected an engine of .* cut short or replaced; .*convnextpose build"
    ):
        open_engine(copied)


def test_a_changed_engine_is_told(copied):
    data = bytearray(copied.read_bytes())
    data[len(data) // 2] ^= 1
    copied.write_bytes(data)
    with pytest.raises(EngineError, match=r"expected an engine with SHA-256 .* convnextpose build|changed or replaced"):
        open_engine(copied)


def test_an_edited_manifest_is_told(copied):
    path = manifests.path_of(copied)
    path.write_text(path.read_text().replace('"8.9"', '"9.0"'))
    with pytest.raises(EngineError, match="manifest was edited"):
        open_engine(copied)


@pytest.mark.parametrize("missing", ["engine", "manifest"])
def test_half_an_engine_is_told(copied, missing):
    (copied if missing == "engine" else manifests.path_of(copied)).unlink()
    with pytest.raises(EngineError, match=f"expected (an|the) {missing}.*there is no such file"):
        open_engine(copied)


def test_an_engine_of_a_library_that_is_not_here_names_the_library(copied, monkeypatch):
    found = manifests.load(copied)
    manifests.path_of(copied).write_text(replace(found, library="tensorrt").to_json())
    monkeypatch.setattr(tensorrt_session, "open_device", lambda binding: CudaDevice(Driver(), "in memory"))
    if load_or_none("tensorrt"):
        pytest.skip("both families are here")
    with pytest.raises(EngineError, match="library: the engine is of tensorrt, this machine's is tensorrt_rtx"):
        open_engine(copied)


def load_or_none(name):
    try:
        return load_library(name)
    except RuntimeUnavailableError:
        return None


def test_paths_are_paths(copied):
    with pytest.raises(EngineError, match=r"expected an engine at .*nowhere\.engine"):
        open_engine(Path("nowhere.engine"))
