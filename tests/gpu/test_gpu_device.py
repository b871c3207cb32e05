"""The device layer on a real GPU, with each installed binding."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from convnextpose.errors import DeviceMemoryError
from engines.tensorrt.device import LEGACY_STREAM
from engines.tensorrt.gpu import BINDINGS, binding_installed, open_device

SIZE = 1 << 20


@pytest.fixture(params=BINDINGS)
def device(request):
    if not binding_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    return open_device(request.param)


def through_the_gpu(device, values):
    """Bytes after they were copied to, within and from the GPU."""
    with device.current():
        before, after, stream = device.pin(values.nbytes), device.pin(values.nbytes), device.stream()
        here, there = device.allocate(values.nbytes), device.allocate(values.nbytes)
        before.array[:] = values
        stream.wait_for(LEGACY_STREAM)
        device.copy_in(here.address, before.array, stream)
        device.copy_within(there.address, here.address, values.nbytes, stream)
        device.copy_out(after.array, there.address, stream)
        stream.synchronize()
        result = after.array.copy()
        for owned in (before, after, stream, here, there):
            owned.free()
    return result


def test_it_is_an_nvidia_gpu(device):
    assert device.gpu.name
    major, minor = map(int, device.gpu.compute_capability.split("."))
    assert (major, minor) >= (5, 0)
    assert device.gpu.driver.startswith("CUDA ")


def test_bytes_survive(device):
    values = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    assert np.array_equal(through_the_gpu(device, values), values)


def test_addresses_are_aligned(device):
    with device.current():
        blocks = [device.allocate(size) for size in (1, 100, 257, SIZE)]
        assert all(block.address % 256 == 0 for block in blocks)
        for block in blocks:
            block.free()


def test_events_measure(device):
    with device.current():
        block, pinned, stream = device.allocate(SIZE), device.pin(SIZE), device.stream()
        first, second = device.event(), device.event()
        first.record(stream)
        device.copy_in(block.address, pinned.array, stream)
        second.record(stream)
        stream.synchronize()
        assert 0 < second.milliseconds_since(first) < 1000
        for owned in (block, pinned, stream, first, second):
            owned.free()


def test_a_graph_does_its_work_each_time_it_is_launched(device):
    if not device.has_graphs:
        pytest.skip(f"{device.binding} has no graphs")
    with device.current():
        before, after, stream = device.pin(SIZE), device.pin(SIZE), device.stream()
        here, there = device.allocate(SIZE), device.allocate(SIZE)
        graph = device.capture(stream, lambda: device.copy_within(there.address, here.address, SIZE, stream))
        for value in (1, 2):
            before.array[:] = value
            device.copy_in(here.address, before.array, stream)
            graph.launch(stream)
            device.copy_out(after.array, there.address, stream)
            stream.synchronize()
            assert (after.array == value).all()
        for owned in (graph, before, after, stream, here, there):
            owned.free()


def test_too_much_memory_is_an_error_of_its_own(device):
    with device.current():
        with pytest.raises(DeviceMemoryError):
            device.allocate(device.free_bytes() + (1 << 34))
        device.allocate(SIZE).free()


def test_a_thousand_of_everything_leave_no_trace(device):
    def once():
        with device.current():
            owned = [device.allocate(SIZE), device.pin(SIZE), device.stream(), device.event()]
            if device.has_graphs:
                stream, block = owned[2], owned[0]
                copy = lambda: device.copy_within(block.address, block.address + SIZE // 2, SIZE // 2, stream)  # noqa: E731
                owned.append(device.capture(stream, copy))
            for thing in reversed(owned):
                thing.free()

    once()
    with device.current():
        before = device.free_bytes()
    for _ in range(1000):
        once()
    with device.current():
        assert before - device.free_bytes() < 16 << 20


def test_threads_may_share_it(device):
    def work(seed):
        values = np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)
        for _ in range(20):
            assert np.array_equal(through_the_gpu(device, values), values)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
