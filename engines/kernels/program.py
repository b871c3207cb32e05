"""The kernels, compiled by NVRTC for the local GPU and launched through cuda-python, inside a stream's capture or outside.

NVRTC is a library of CUDA: torch for CUDA, the CUDA toolkit and the wheel `nvidia-cuda-nvrtc` contain it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import DeviceError, RuntimeUnavailableError
from convnextpose.variants import INPUT_SIZE
from engines.kernels.blocks import TailShape
from engines.tensorrt.device_cuda import CudaDevice

CROP, TAIL = "crop", "tail"
"""The kernels; the source of each is the file of its name."""

_OPTIONS = {CROP: ("--fmad=false",)}
"""NVRTC's options besides the GPU. Crops are limited by memory bandwidth, so rounding like a CPU costs nothing."""

CROP_THREADS = (INPUT_SIZE // 4, 2, 1)
TAIL_THREADS = (256, 1, 1)


def source(kernel: str) -> str:
    """The CUDA C++ of a kernel."""
    return resources.files("engines.kernels").joinpath(f"{kernel}.cu").read_text(encoding="utf-8")


def compile_kernel(kernel: str, compute_capability: str, text: str | None = None) -> bytes:
    """Compile a kernel for GPUs of a compute capability such as `8.9`, without a GPU; to PTX if NVRTC is older than the GPU.

    Args:
        kernel: its name.
        compute_capability: that of the GPUs.
        text: its source; None for the file with its name.

    Raises:
        RuntimeUnavailableError: cuda-python or NVRTC is missing.
        DeviceError: NVRTC cannot compile the source; names the first error.
    """
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        (known,) = _checked(nvrtc.nvrtcGetSupportedArchs(), "list the GPUs that it supports")
    except (ImportError, RuntimeError) as error:  # DynamicLibNotFoundError: the library is loaded at the first call
        raise RuntimeUnavailableError(
            f"the kernels need NVRTC, which does not load: {str(error).splitlines()[0]}; pip install nvidia-cuda-nvrtc"
        ) from error
    wanted = int(compute_capability.replace(".", ""))
    native = wanted in known
    below = max((number for number in known if number <= wanted), default=min(known))
    target = f"--gpu-architecture={'sm' if native else 'compute'}_{wanted if native else below}"
    options = [option.encode() for option in ("--std=c++17", target, *_OPTIONS.get(kernel, ()))]
    text = source(kernel) if text is None else text
    (program,) = _checked(nvrtc.nvrtcCreateProgram(text.encode(), f"{kernel}.cu".encode(), 0, [], []), "create a program")
    try:
        if int(nvrtc.nvrtcCompileProgram(program, len(options), options)[0]) != 0:
            (size,) = _checked(nvrtc.nvrtcGetProgramLogSize(program), "report its errors")
            log = b" " * size
            _checked(nvrtc.nvrtcGetProgramLog(program, log), "report its errors")
            lines = [line for line in log.decode(errors="replace").splitlines() if "error" in line] or ["it does not say why"]
            raise DeviceError(f"NVRTC cannot compile the kernel {kernel} for {compute_capability}: {lines[0]}")
        read_size, read = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if native else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        (size,) = _checked(read_size(program), "report the code's size")
        code = b" " * size
        _checked(read(program, code), "return the code")
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _checked(result: tuple[Any, ...], purpose: str) -> tuple[Any, ...]:
    code, *values = result
    if int(code) != 0:
        raise DeviceError(f"NVRTC could not {purpose}: {code.name}")
    return tuple(values)


class Kernels:
    """The kernels on a GPU. All its methods are called within the device's `current()`.

    A launch queues work on a stream and returns; nothing is allocated, so that a CUDA graph can capture it. Memory that is
    passed by address must stay valid until the work is done, or for the life of the graph.

    Args:
        device: the GPU, driven by cuda-python.
        sources: kernels and their CUDA C++; None for the project's.

    Raises:
        RuntimeUnavailableError: NVRTC is missing.
        DeviceError: NVRTC or the driver rejects the kernels.
    """

    def __init__(self, device: CudaDevice, sources: Mapping[str, str | None] | None = None) -> None:
        self._device = device
        self._modules: list[Any] = []
        self._functions: dict[str, Any] = {}
        try:
            for kernel, text in (sources or {CROP: None, TAIL: None}).items():
                code = np.frombuffer(compile_kernel(kernel, device.gpu.compute_capability, text), np.uint8)
                self._modules.append(device.call("cuModuleLoadData", f"load the kernel {kernel}", code.ctypes.data))
                self._functions[kernel] = device.call(
                    "cuModuleGetFunction", f"find the kernel {kernel}", self._modules[-1], kernel.encode()
                )
        except BaseException:
            self.free()
            raise

    def crop(self, origins: int, crops: int, count: int, stream: Any) -> None:  # noqa: ANN401 - a stream of the device
        """Queue the making of crops on a stream.

        Args:
            origins: address of ORIGIN [count], a multiple of 8: the result of `blocks.crop_origins`, on the GPU.
            crops: address of uint8 [count, 256, 256, 3] BGR, a multiple of 4. A crop whose origin is all zeros is not changed.
            count: number of crops, at least one.
            stream: what does the work.
        """
        grid = (1, INPUT_SIZE // CROP_THREADS[1], count)
        self.launch(CROP, grid, CROP_THREADS, stream, _pointers(origins, crops))

    def tail(
        self,
        shape: TailShape,
        logits: int,
        joints: int,
        scores: int,
        workspace: int,
        most: int,
        stream: Any,  # noqa: ANN401
        *,
        count: int | None = None,
    ) -> None:
        """Queue the conversion of FP16 logits to joints and scores on a stream.

        Args:
            shape: the volumes.
            logits: address of float16 [count, J * D, H, W], a multiple of 16.
            joints, scores: addresses of float32 [count, J, 3] (x px, y px in the crop, z mm from the pelvis) and [count, J].
            workspace: address of `shape.workspace(most)` bytes, which `clear` has cleared once; used by one stream at a time.
            most: number of crops that the workspace was made for.
            stream: what does the work.
            count: number of crops, if fewer than `most`.
        """
        arrived = workspace + shape.arrived_offset(most)
        grid = (shape.splits, shape.joint_count * (most if count is None else count), 1)
        arguments = [*_pointers(logits, joints, scores, workspace, arrived), shape.parameters()]
        self.launch(TAIL, grid, TAIL_THREADS, stream, arguments)

    def clear(self, address: int, size: int, stream: Any) -> None:  # noqa: ANN401
        """Queue setting `size` bytes to zero on a stream."""
        self._device.call("cuMemsetD8Async", "clear memory", address, 0, size, stream.raw)

    def free(self) -> None:
        """Unload the code; calling it again does nothing. No work or graph may still use it."""
        while self._modules:
            self._device.call("cuModuleUnload", "unload a kernel", self._modules.pop())

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        stream: Any,  # noqa: ANN401
        arguments: list[NDArray[Any]],
    ) -> None:
        """Queue a kernel on a stream.

        Args:
            kernel: its name.
            grid: number of blocks.
            block: threads of each block.
            stream: what does the work.
            arguments: a zero-dimensional array for each argument.
        """
        # The driver takes the addresses of the arguments, and copies the arguments when the kernel is launched or recorded.
        addresses = np.array([argument.ctypes.data for argument in arguments], np.uint64)
        function = self._functions[kernel]
        self._device.call(
            "cuLaunchKernel", f"launch the kernel {kernel}", function, *grid, *block, 0, stream.raw, addresses.ctypes.data, 0
        )


def _pointers(*addresses: int) -> list[NDArray[Any]]:
    return [np.array(address, np.uint64) for address in addresses]
