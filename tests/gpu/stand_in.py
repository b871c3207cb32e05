"""A TensorRT for tests whose engines run on a real GPU: a kernel on the given stream, which graphs can capture."""

import types
import weakref

import numpy as np

from engines.kernels.program import Kernels
from tests.engines.memory_tensorrt import tensorrt_module

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
"""The same computation as `tests.engines.memory_tensorrt.predict`."""


class _Nothing:
    """A placeholder for the simulated GPU that the module's bookkeeping needs: here CUDA itself keeps the order."""

    def __init__(self):
        self.violations, self.engines = [], weakref.WeakSet()

    def records(self, stream):
        return False

    def give(self, stream, work):
        work()


def torch_logits(checkpoint):
    """A network up to its logits, in FP16 with torch: a stand-in engine may compute this instead of `predict`."""
    import torch

    from engines.folding import contract_network

    network = contract_network(checkpoint, half=True).network.cuda().to(memory_format=torch.channels_last)
    torch.cuda.synchronize()

    def run(stream, batch, addresses):
        shape = network.variant.spec
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            crops = _tensor(addresses["crops"], (batch, 256, 256, 3), "|u1")
            logits = network.head(network.backbone(crops.half().permute(0, 3, 1, 2)))
            size = (batch, network.joint_count * shape.depth_bins, shape.heatmap_size, shape.heatmap_size)
            _tensor(addresses["logits"], size, "<f2").copy_(logits)

    return run


def _tensor(address, shape, kind):
    import torch

    told = {"data": (address, False), "shape": shape, "typestr": kind, "version": 3}
    return torch.as_tensor(types.SimpleNamespace(__cuda_array_interface__=told), device="cuda")


def cuda_module(device, family="10", *, network=None):
    """A TensorRT module whose engines run on a `CudaDevice`; within the device's `current()`.

    Args:
        device: the GPU.
        family: TensorRT's family.
        network: the engines' computation, a function of a stream, a batch size and addresses by name; None for `predict`.
    """
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
        if network is not None:
            network(stream, context.batch, context.addresses)
            return True
        joint_count = context.engine.spec["joint_count"]
        places = [np.array(context.addresses[name], np.uint64) for name in ("crops", "joints", "scores")]
        arguments = [*places, np.array(joint_count, np.int32)]
        kernel.launch("stand_in", (context.batch, 1, 1), (256, 1, 1), types.SimpleNamespace(raw=stream), arguments)
        return True

    module.Runtime = Runtime
    return module
