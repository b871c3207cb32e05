"""The kernels' own source, compiled by a C++ compiler, and a simulated GPU in memory that loads and launches it."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from engines.kernels.program import CROP, TAIL, source
from engines.tensorrt.device_cuda import CudaDevice
from tests.engines.memory_gpu import Driver, _needs_context

HEADER = Path(__file__).parent / "cuda_on_cpu.h"


@functools.cache
def compiled(kernel):
    """A function that runs a kernel: grid, block, and the address of its arguments' addresses."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("the kernels' source is compiled with g++ or clang++, and neither is here")
    folder = Path(tempfile.mkdtemp(prefix="kernels-"))
    unit, library = folder / f"{kernel}.cpp", folder / f"{kernel}.so"
    run = 'extern "C" void run(const unsigned* grid, const unsigned* block, void** arguments)'
    unit.write_text(f'#include "{HEADER}"\n{source(kernel)}\n{run} {{ launch({kernel}, grid, block, arguments); }}\n')
    # No contraction of products and sums, as in NVRTC's options for the crops.
    options = [
        "-std=c++17",
        "-O2",
        "-U_FORTIFY_SOURCE",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
        "-Werror",
    ]
    done = subprocess.run([compiler, *options, "-o", library, unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    shutil.rmtree(folder)
    three = ctypes.c_uint * 3
    return lambda grid, block, arguments: loaded.run(three(*grid), three(*block), ctypes.c_void_p(arguments))


class KernelDriver(Driver):
    """The simulated GPU, which also loads and launches the kernels. Their arguments are copied when they are launched.

    Attributes:
        modules: loaded code that is not freed.
        kernels, uploads: numbers of kernel launches and of copies to the GPU, outside of captures.
    """

    SIZES = {CROP: (8, 8), TAIL: (8, 8, 8, 8, 8, 36)}  # noqa: RUF012
    """Sizes of the kernels' arguments, bytes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.modules = {}
        self.kernels = self.uploads = 0

    def cuMemcpyHtoDAsync(self, target, source, size, stream):  # noqa: N802
        self.uploads += not self.records(stream)
        return super().cuMemcpyHtoDAsync(target, source, size, stream)

    @_needs_context
    def cuModuleLoadData(self, image):  # noqa: N802
        name = next(self._names)
        self.modules[name] = image
        return name

    @_needs_context
    def cuModuleUnload(self, module):  # noqa: N802
        self._drop(self.modules, module)

    @_needs_context
    def cuModuleGetFunction(self, module, name):  # noqa: N802
        return name.decode()

    @_needs_context
    def cuMemsetD8Async(self, address, value, size, stream):  # noqa: N802
        self.give(stream, lambda: self.write(address, bytes([value]) * size))

    @_needs_context
    def cuLaunchKernel(self, kernel, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):  # noqa: N802
        addresses = (ctypes.c_uint64 * len(self.SIZES[kernel])).from_address(arguments)
        copies = [
            ctypes.create_string_buffer(ctypes.string_at(at, n), n) for at, n in zip(addresses, self.SIZES[kernel], strict=True)
        ]
        run = compiled(kernel)
        self.kernels += not self.records(stream)

        def work():
            pointers = (ctypes.c_uint64 * len(copies))(*map(ctypes.addressof, copies))
            run((gx, gy, gz), (bx, by, bz), ctypes.addressof(pointers))

        self.give(stream, work)


def cpu_device(driver=None):
    """A `CudaDevice` on that driver."""
    return CudaDevice(driver or KernelDriver(), "cuda-python in memory")


def on_device(device, array):
    """Memory of the device with the array's bytes."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    block, pinned, stream = device.allocate(max(flat.size, 1)), device.pin(max(flat.size, 1)), device.stream()
    pinned.array[: flat.size] = flat
    device.copy_in(block.address, pinned.array, stream)
    stream.synchronize()
    pinned.free()
    stream.free()
    return block


def from_device(device, block, like):
    """The bytes of a block as an array of the shape and type of another."""
    pinned, stream = device.pin(like.nbytes), device.stream()
    device.copy_out(pinned.array, block.address, stream)
    stream.synchronize()
    found = pinned.array.copy().view(like.dtype).reshape(like.shape)
    pinned.free()
    stream.free()
    return found
