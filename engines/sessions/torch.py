"""PyTorch: unchanged modules on the CPU, or on the GPU as CUDA graphs.

The first is the reference for the results of every other session, the second the reference for the speed of engines.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convnextpose.errors import RuntimeUnavailableError
from engines.session import Arrays, ArraySpec, SessionDescription
from engines.sessions.base import LockedSession, require_fp32
from engines.timing import RunTimes

if TYPE_CHECKING:
    from torch import Tensor, nn

WARM_UP = 3
"""Number of runs before a graph is captured: torch chooses its kernels in them."""


@dataclass(frozen=True)
class TorchNetwork:
    """A PyTorch module with its inputs and outputs.

    Attributes:
        module: in evaluation mode; takes tensors in the order of `inputs`, returns a tuple of tensors in that of `outputs`.
        inputs, outputs: their names, types and shapes.
    """

    module: nn.Module
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]


class TorchSession(LockedSession):
    """Runs a module on the CPU in FP32.

    Args:
        network: the module.
        name: what error messages call the network.
        threads: number of torch's threads in this process; None leaves it unchanged.
        precision: `fp32`.

    Raises:
        RuntimeUnavailableError: the precision is another.
    """

    def __init__(self, network: TorchNetwork, name: str, *, threads: int | None = None, precision: str = "fp32") -> None:
        require_fp32("torch", precision)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)  # torch has one number of threads for the whole process
        description = SessionDescription("torch", torch.__version__, "CPU", precision, torch.get_num_threads())
        super().__init__(name, network.inputs, network.outputs, description, (RuntimeError,))
        self._module = network.module

    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        import torch

        with torch.inference_mode():
            # Copied: torch accepts neither read-only arrays nor some flipped arrays of one item.
            results = self._module(*(torch.from_numpy(arrays[spec.name].copy()) for spec in self._inputs))
        return {spec.name: result.numpy() for spec, result in zip(self._outputs, results, strict=True)}

    def _release(self) -> None:
        del self._module


@dataclass
class _Recorded:
    """The recorded work of a batch size, ready to be replayed, and its memory."""

    replay: Callable[[], None]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    pinned_inputs: tuple[Tensor, ...]
    pinned_outputs: tuple[Tensor, ...]


class TorchGpuSession(LockedSession):
    """Runs a module on the first GPU, with a CUDA graph for each batch size. Inputs and outputs are on the host.

    Convolutions use channels last, and compute FP32 in FP32, not TF32; cuDNN chooses its algorithms before a graph is captured.

    Args:
        network: the module, in the types in which it computes.
        name: the network's name in error messages.
        precision: the name of these types.
        compiled: whether torch compiles the module first, for each batch size: this needs Triton and a C compiler.
        device: `cuda`; or `cpu`, which does the same work without graphs.

    Attributes:
        graphs: whether work is replayed as CUDA graphs.

    Raises:
        RuntimeUnavailableError: torch was built without CUDA, or finds no GPU.
    """

    def __init__(
        self, network: TorchNetwork, name: str, *, precision: str, compiled: bool = False, device: str = "cuda"
    ) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
            raise RuntimeUnavailableError(f"torch finds no GPU: torch {torch.__version__} {built}; look at `nvidia-smi`")
        self.graphs = device == "cuda"
        called = torch.cuda.get_device_name() if self.graphs else "CPU"
        description = SessionDescription("torch", torch.__version__, called, precision, 1)
        super().__init__(name, network.inputs, network.outputs, description, (RuntimeError,))
        self._device: _Gpu | _Cpu = _Gpu() if self.graphs else _Cpu()
        # A copy: compiling or moving must not change the caller's module.
        module = copy.deepcopy(network.module).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.graphs:
            torch.cuda.synchronize()  # the weights were copied on another stream than the one that reads them
        self._module: Callable[..., tuple[Tensor, ...]] = torch.compile(module, dynamic=False) if compiled else module
        self._events = [self._device.event() for _ in range(4)]
        self._recorded: dict[int, _Recorded] = {}
        self._times = RunTimes(0.0, 0.0, 0.0, 0.0, 0, 0)

    @property
    def times(self) -> RunTimes:
        """How long the latest run took."""
        return self._times

    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        import torch

        with torch.inference_mode():  # all of it: tensors made within must not be written to outside
            if count not in self._recorded:
                self._recorded[count] = self._record(arrays)
            begun, recorded = time.perf_counter_ns(), self._recorded[count]
            first, second, third, fourth = self._events
            for spec, pinned in zip(self._inputs, recorded.pinned_inputs, strict=True):
                pinned.numpy()[:] = arrays[spec.name]
            with self._device.working():
                first.record()
                for there, pinned in zip(recorded.inputs, recorded.pinned_inputs, strict=True):
                    there.copy_(pinned, non_blocking=True)
                second.record()
                recorded.replay()
                third.record()
                for pinned, there in zip(recorded.pinned_outputs, recorded.outputs, strict=True):
                    pinned.copy_(there, non_blocking=True)
                fourth.record()
            self._device.wait()
            results = [pinned.numpy().copy() for pinned in recorded.pinned_outputs]
        spans = (first.elapsed_time(second), second.elapsed_time(third), third.elapsed_time(fourth))
        replayed = int(self.graphs)
        self._times = RunTimes((time.perf_counter_ns() - begun) / 1e6, *spans, batches=1, replayed=replayed)
        return {spec.name: result for spec, result in zip(self._outputs, results, strict=True)}

    def _record(self, arrays: Arrays) -> _Recorded:
        import torch

        with self._device.working():
            inputs = tuple(torch.from_numpy(arrays[spec.name].copy()).to(self._device.name) for spec in self._inputs)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            with self._device.working():
                for _ in range(WARM_UP):
                    self._module(*inputs)
            self._device.wait()
            replay, outputs = self._device.record(lambda: tuple(self._module(*inputs)))
        pinned_inputs, pinned_outputs = (
            tuple(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.graphs) for tensor in tensors)
            for tensors in (inputs, outputs)
        )
        return _Recorded(replay, inputs, outputs, pinned_inputs, pinned_outputs)

    def _release(self) -> None:
        self._recorded.clear()
        del self._module


class _Gpu:
    """The operations of a device that the session needs: here torch's on CUDA, with a stream of its own."""

    name = "cuda"

    def __init__(self) -> None:
        import torch

        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def event(self) -> Any:  # noqa: ANN401 - torch's
        import torch

        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def working(self) -> AbstractContextManager[Any]:
        import torch

        return torch.cuda.stream(self._stream)

    def wait(self) -> None:
        self._stream.synchronize()

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """A function that repeats the work, and the tensors that then have its results."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            outputs = work()
        return graph.replay, outputs


class _Cpu:
    """The same on the CPU: work is done at once, and repeated when it is replayed."""

    name = "cpu"

    class Event:
        """A point in time."""

        def record(self) -> None:
            self.ns = time.perf_counter_ns()

        def elapsed_time(self, later: _Cpu.Event) -> float:
            """Time until a later event, ms."""
            return (later.ns - self.ns) / 1e6

    def event(self) -> _Cpu.Event:
        return self.Event()

    def working(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def wait(self) -> None:
        return

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        outputs = tuple(tensor.clone() for tensor in work())

        def replay() -> None:
            for output, result in zip(outputs, work(), strict=True):
                output.copy_(result)

        return replay, outputs
