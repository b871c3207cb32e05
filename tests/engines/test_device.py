"""The two bindings behind one Protocol, on a simulated GPU; and the sentence for a machine without a GPU."""

import importlib.metadata
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from convnextpose.errors import DeviceError, DeviceMemoryError, PoseError, RuntimeUnavailableError
from engines.tensorrt import device as devices
from engines.tensorrt.device_cuda import CudaDevice
from engines.tensorrt.device_pycuda import PycudaDevice
from engines.tensorrt.gpu import BINDINGS, binding_installed, open_device
from tests.engines.memory_gpu import Driver, pycuda_driver

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def driver():
    return Driver(memory=1_000_000)


@pytest.fixture(params=BINDINGS)
def device(request, driver):
    if request.param == "cuda-python":
        return CudaDevice(driver, "cuda-python in memory")
    return PycudaDevice(pycuda_driver(driver), "pycuda in memory")


def test_it_tells_which_gpu_it_is(device):
    assert (device.gpu.name, device.gpu.compute_capability, device.gpu.driver) == ("GPU in memory", "8.9", "CUDA 13.1")


def test_it_tells_its_figures(device):
    figures = device.figures()
    assert (figures.multiprocessors, figures.clock_mhz) == (128, 2520)
    assert figures.memory_gb_s == pytest.approx(1008, rel=1e-3)  # an RTX 4090's data sheet


def test_the_real_binding_has_the_attributes_of_the_figures():
    kinds = pytest.importorskip("cuda.bindings.driver").CUdevice_attribute
    for name, number in vars(Driver.CUdevice_attribute).items():
        if name.startswith("CU_"):
            assert int(getattr(kinds, name)) == number


@pytest.mark.parametrize(
    ("masked", "copied", "told"),
    [
        ("NVIDIA Jetson AGX Orin\0", "other", "Orin (NVIDIA Jetson AGX Orin)"),
        ("", "NVIDIA Jetson Orin Nano\n", "Orin (NVIDIA Jetson Orin Nano)"),
        (None, "NVIDIA Jetson Orin Nano\0", "Orin (NVIDIA Jetson Orin Nano)"),
        (None, None, "Orin"),
    ],
)
def test_a_board_is_known_in_a_container_too(masked, copied, told, tmp_path, monkeypatch):
    paths = []
    for index, text in enumerate((masked, copied)):
        paths.append(tmp_path / str(index))
        if text is not None:
            paths[-1].write_text(text)
    monkeypatch.setattr(devices, "BOARDS", paths)
    assert devices.board_name("Orin") == told


def test_what_is_copied_in_within_and_out_is_the_same(device, driver):
    values = np.arange(1000, dtype=np.uint32).view(np.uint8)
    with device.current():
        before, after, stream = device.pin(values.nbytes), device.pin(values.nbytes), device.stream()
        here, there = device.allocate(values.nbytes), device.allocate(values.nbytes)
        assert here.address % 256 == there.address % 256 == 0
        before.array[:] = values
        device.copy_in(here.address, before.array, stream)
        device.copy_within(there.address, here.address, values.nbytes, stream)
        device.copy_out(after.array, there.address, stream)
        stream.synchronize()
        assert np.array_equal(after.array, values)
        for owned in (before, after, here, there, stream):
            owned.free()
            owned.free()
    assert driver.live == 0
    assert driver.violations == []


def test_events_take_the_time_between(device, driver):
    with device.current():
        stream, first, second = device.stream(), device.event(), device.event()
        first.record(stream)
        second.record(stream)
        stream.synchronize()
        assert second.milliseconds_since(first) > 0
        for owned in (stream, first, second):
            owned.free()
    assert driver.live == 0


def test_memory_that_is_not_there_is_an_error_of_its_own(device, driver):
    with device.current():
        held = device.allocate(600_000)
        assert device.free_bytes() == 400_000
        with pytest.raises(DeviceMemoryError, match="allocate 600,000 bytes on the GPU") as told:
            device.allocate(600_000)
        assert isinstance(told.value, MemoryError)
        assert isinstance(told.value, PoseError)
        held.free()
        device.allocate(600_000).free()
    assert driver.live == 0


def test_it_is_current_only_within(device, driver):
    with device.current(), device.current():
        assert len(driver.contexts) == 2
    assert driver.contexts == []
    with pytest.raises(DeviceError, match="INVALID_CONTEXT"):
        device.allocate(1)
    with pytest.raises(ZeroDivisionError), device.current():
        raise ZeroDivisionError
    assert driver.contexts == []


def test_a_graph_does_its_work_when_launched_and_only_then(driver):
    device, done = CudaDevice(driver, ""), []
    with device.current():
        stream = device.stream()
        graph = device.capture(stream, lambda: driver.give(stream.handle, lambda: done.append(1)))
        stream.synchronize()
        assert done == []
        for launches in (1, 2):
            graph.launch(stream)
            stream.synchronize()
            assert len(done) == launches
        graph.free()
        graph.free()
        stream.free()
    assert driver.live == 0


def test_work_that_fails_while_it_is_recorded_leaves_the_stream_as_it_was(driver):
    device, done = CudaDevice(driver, ""), []
    with device.current():
        stream = device.stream()

        def work():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            device.capture(stream, work)
        assert not driver.records(stream.handle)
        driver.give(stream.handle, lambda: done.append(1))
        stream.synchronize()
        assert done == [1]
        stream.free()
    assert driver.live == 0


def test_a_binding_without_graphs_says_so(driver):
    device = PycudaDevice(pycuda_driver(driver), "pycuda 2026.1")
    assert not device.has_graphs
    with device.current(), pytest.raises(DeviceError, match=r"pycuda 2026\.1 has no CUDA graphs"):
        device.capture(device.stream(), list)


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_driver_without_a_gpu_is_one_sentence(binding):
    nothing = Driver(devices=0)
    with pytest.raises(RuntimeUnavailableError, match="finds no GPU: look at `nvidia-smi`"):
        if binding == "cuda-python":
            CudaDevice(nothing, "")
        else:
            PycudaDevice(pycuda_driver(nothing), "")


def test_no_driver_is_one_sentence_of_the_real_binding():
    """The installed cuda-python: with a driver this opens the GPU, without one it says what is missing."""
    if not binding_installed("cuda-python"):
        pytest.skip("cuda-python is not installed")
    try:
        device = open_device("cuda-python")
    except RuntimeUnavailableError as error:
        assert str(error) in (devices.NO_DRIVER, devices.NO_GPU)
    else:
        assert device.binding == f"cuda-python {importlib.metadata.version('cuda-bindings')}"


def test_pycuda_without_a_driver_is_the_same_sentence(monkeypatch):
    def find(name, *_):
        if name == "pycuda.driver":
            raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")
        return None

    package = types.ModuleType("pycuda")
    package.__path__ = []
    package.__spec__ = importlib.machinery.ModuleSpec("pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [types.SimpleNamespace(find_spec=find), *sys.meta_path])
    with pytest.raises(RuntimeUnavailableError) as told:
        open_device("pycuda")
    assert str(told.value) == devices.NO_DRIVER


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("cuda-python", "cuda-python is installed; pip install cuda-python"),
        ("pycuda", "pycuda is installed; pip install pycuda"),
        ("auto", "neither cuda-python nor pycuda is installed; pip install cuda-python"),
        ("opencl", "expected binding auto, cuda-python, pycuda, received 'opencl'"),
    ],
)
def test_a_missing_binding_is_told_with_what_installs_it(binding, message):
    code = (
        "import sys\n"
        "for name in ('cuda', 'cuda.bindings', 'pycuda'): sys.modules[name] = None\n"
        "from convnextpose.errors import RuntimeUnavailableError\n"
        "from engines.tensorrt.gpu import open_device\n"
        f"try: open_device({binding!r})\n"
        "except RuntimeUnavailableError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert message in result.stdout
