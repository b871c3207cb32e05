"""A TensorRT for tests whose engines work on a real GPU: a kernel on the stream that they are given; graphs record it."""

import types
import weakref

import numpy as np

from engines.kernels.program import Kernels
from tests.engines.memory_gpu import tensorrt_module

SOURCE = """
extern "C" __global__ void stand_in(const unsigned char* crops, float* joints, float* scores, int count)
{
    __shared__ unsigned long long total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    const unsigned char* crop = crops + (long long)blockIdx.x * 256 * 256 * 3;
    unsigned long long mine = 0;
    for (int i = threadIdx.x; i < 256 * 256 * 3; i += blockDim.x) mine += (unsigned long long)crop[i] * (i % 64 + 1);
    atomicAdd(&total, mine);
    __syncthreads();
    const int sum = (int)(total % 997);
    for (int joint = threadIdx.x; joint < count; joint += blockDim.x) {
        for (int axis = 0; axis < 3; axis++)
            joints[(blockIdx.x * count + joint) * 3 + axis] = (float)((double)sum * (joint + 1) + 0.25 * (axis + 1));
        scores[blockIdx.x * count + joint] = (float)((double)(sum + joint) / (997 + count));
    }
}
"""
"""What `tests.engines.memory_gpu.predict` computes."""


class _Nothing:
    """What the module's bookkeeping needs of a GPU in memory: CUDA itself keeps order here."""

    def __init__(self):
        self.violations, self.engines = [], weakref.WeakSet()

    def records(self, stream):
        return False

    def give(self, stream, work):
        work()


def cuda_module(device, family="10"):
    """A TensorRT module whose engines run on a `CudaDevice`; within the device's `current()`."""
    module = tensorrt_module(_Nothing(), family)
    kernel = Kernels(device, {"stand_in": SOURCE})
    plain = module.Runtime

    class Runtime(plain):
        def deserialize_cuda_engine(self, data):
            engine = super().deserialize_cuda_engine(data)
            make = engine.create_execution_context

            def create(*arguments):
                context = make(*arguments)
                context.execute_async_v3 = lambda stream: execute(context, stream)
                return context

            engine.create_execution_context = create
            return engine

    def execute(context, stream):
        joint_count = context.engine.spec["joint_count"]
        places = [np.array(context.addresses[name], np.uint64) for name in ("crops", "joints", "scores")]
        arguments = [*places, np.array(joint_count, np.int32)]
        kernel.launch("stand_in", (context.batch, 1, 1), (256, 1, 1), types.SimpleNamespace(raw=stream), arguments)
        return True

    module.Runtime = Runtime
    return module
