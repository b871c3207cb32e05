"""Another library's arrays on the GPU are read after they are ready, by any protocol; on a simulated GPU."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import GeometryError
from engines.tensorrt.foreign import adopt
from tests.engines.memory_gpu import CROP_BYTES
from tests.engines.test_tensorrt_session import CROPS, DEVICES, JOINTS, SCORES, Bench

WAYS = ("dlpack", "interface with a stream", "interface without a stream", "interface that is there already")


class Foreign:
    """An array of a library that makes it on its own stream, as late as possible."""

    def __init__(self, bench, crops, offset=0):
        driver = self.driver = bench.driver
        with bench.device.current():
            self.stream = driver.cuStreamCreate(1)[1]
            self.block = driver.cuMemAlloc(crops.nbytes + offset)[1]
        self.address, self.shape = self.block + offset, crops.shape
        with bench.device.current():
            data = crops.tobytes()
            driver.give(self.stream, lambda: driver.write(self.address, data))
        self.waits = []

    def memory(self):
        return np.ctypeslib.as_array((ctypes.c_uint8 * int(np.prod(self.shape))).from_address(self.address)).reshape(self.shape)

    def free(self, bench):
        with bench.device.current():
            self.driver.cuStreamSynchronize(self.stream)
            self.driver.cuMemFree(self.block)
            self.driver.cuStreamDestroy(self.stream)


class ByDlpack(Foreign):
    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream):
        self.waits.append(stream)
        if stream != -1:
            event = self.driver.cuEventCreate(0)[1]
            self.driver.cuEventRecord(event, self.stream)
            self.driver.cuStreamWaitEvent(stream, event, 0)
            self.driver.cuEventDestroy(event)
        return self.memory().__dlpack__()


class ByInterface(Foreign):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.extra = {}

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": "|u1", "data": (self.address, False), "version": 3, **self.extra}


def foreign(bench, way, crops, offset=0):
    if way == "dlpack":
        return ByDlpack(bench, crops, offset)
    made = ByInterface(bench, crops, offset)
    if way.endswith("with a stream"):
        made.extra = {"stream": made.stream}
    elif way.endswith("already"):
        with bench.device.current():
            bench.driver.cuStreamSynchronize(made.stream)
        made.extra = {"stream": None}
    return made


@given(
    way=st.sampled_from(WAYS),
    binding=st.sampled_from(sorted(DEVICES)),
    first=st.integers(0, 4),
    count=st.integers(1, 18),
    offset=st.sampled_from([0, 1, 255]),
    seed=st.integers(0, 999),
)
def test_crops_on_the_gpu_give_what_crops_of_the_host_give(way, binding, first, count, offset, seed):
    """Whoever made them, on any stream, at any address; graphs run them all."""
    if binding == "pycuda" and way == "dlpack":
        binding = "cuda-python"  # pycuda's streams do not have the stand-in's numbers
    bench = Bench(binding, seed=seed)
    with bench.open() as runtime:
        crops = foreign(bench, way, CROPS[first : first + count], offset)
        found = runtime._session.run({"crops": crops})
        assert np.array_equal(found["joints"], JOINTS[first : first + count])
        assert np.array_equal(found["scores"], SCORES[first : first + count])
        assert runtime.times.replayed == (runtime.times.batches if binding == "cuda-python" else 0)
        crops.free(bench)
    bench.check()


def test_ten_rotating_buffers_are_all_run_by_the_same_graph():
    bench = Bench()
    with bench.open() as runtime:
        buffers = [foreign(bench, "dlpack", CROPS[index : index + 4]) for index in range(10)]
        captures = bench.driver.captures
        for index, buffer in enumerate(buffers):
            ticket = runtime.submit({"crops": buffer})
            assert np.array_equal(runtime.collect(ticket)["joints"], JOINTS[index : index + 4])
            assert runtime.times.replayed == 1
            assert len(buffer.waits) == 2 and buffer.waits[0] == -1
            buffer.free(bench)
        assert bench.driver.captures == captures
    bench.check()


def test_torch_and_its_capsules_are_read_as_they_are():
    torch = pytest.importorskip("torch")

    class OnGpu:
        """A tensor that claims to be on the GPU; its capsule is torch's own."""

        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack_device__(self):
            return 2, 0

        def __dlpack__(self, *, stream):
            return self.tensor.__dlpack__()

    tensor = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    found = adopt(OnGpu(tensor[1:]), "x")
    assert (found.dtype, found.shape, found.address) == (np.float32, (1, 3, 4), tensor.data_ptr() + 48)
    assert (found[0:1].address, len(found[1:1])) == (found.address, 0)
    with pytest.raises(GeometryError, match=r"expected x contiguous, received strides \[12, 1, 4\]"):
        adopt(OnGpu(tensor.transpose(1, 2)), "x")
    with pytest.raises(GeometryError, match="expected x of a type that numpy has"):
        adopt(OnGpu(tensor.to(torch.bfloat16)), "x")
    assert np.array_equal(adopt(tensor, "x"), tensor.numpy())  # torch's on the host


def test_wrong_arrays_are_told():
    bench = Bench()
    with bench.open() as runtime:
        short = foreign(bench, "dlpack", CROPS[:2, :128])
        with pytest.raises(GeometryError, match=r"expected crops uint8 \[N, 256, 256, 3\], received uint8 \[2, 128, 256, 3\]"):
            runtime._session.run({"crops": short})
        with pytest.raises(GeometryError, match="as an array of numpy, or on the GPU"):
            runtime._session.run({"crops": [1, 2]})
        other = foreign(bench, "dlpack", CROPS[:1])
        other.__class__ = type("Second", (ByDlpack,), {"__dlpack_device__": lambda self: (2, 1)})
        with pytest.raises(GeometryError, match="on the first GPU, received device 1"):
            runtime._session.run({"crops": other})
        strided = foreign(bench, "interface that is there already", CROPS[:2])
        strided.extra = {"strides": (2 * CROP_BYTES, 768, 3, 1)}
        with pytest.raises(GeometryError, match="contiguous"):
            runtime._session.run({"crops": strided})
        for made in (short, other, strided):
            made.free(bench)
    bench.check()
