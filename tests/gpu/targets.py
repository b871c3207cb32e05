"""Which targets' engines this GPU loads and runs: run `python -m tests.gpu.targets` by hand on a GPU.

The manifest lets an engine run only on the compute capabilities that it was built for. This checks, without the manifest,
whether a GPU that TensorRT for RTX does not name, such as one of compute capability 9.0, would run another's engine.
"""

import hashlib
from dataclasses import replace

import numpy as np

from convnextpose import weights
from engines.opening import open_pose_model
from engines.parity import noise_crops
from engines.pose import PoseModel
from engines.precision import to_fp16
from engines.sessions.tensorrt import TensorRTSession
from engines.tensorrt.builder import build_engine
from engines.tensorrt.gpu import open_device
from engines.tensorrt.module import load_library
from tests.engines.manifests import manifest_of


def main():
    device, library = open_device(), load_library("tensorrt_rtx")
    gpu, onnx = device.gpu, weights.load("xs").onnx
    print(f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.driver}, {library.name} {library.version}")
    with open_pose_model(onnx, "onnxruntime") as runtime:
        expected, model = runtime.run(noise_crops(2)), runtime.info
    for capability in library.compute_capabilities:
        try:
            built = build_engine(to_fp16(onnx.read_bytes()), library, capability)
            manifest = manifest_of(
                built.data,
                model=replace(model, precision="fp16"),
                engine_sha256=hashlib.sha256(built.data).hexdigest(),
                library=library.name,
                library_version=library.version,
                compute_capabilities=(gpu.compute_capability,),
            )
            session = TensorRTSession(built.data, manifest, library, device)
            with PoseModel(session, manifest.model) as engine:
                found = engine.run(noise_crops(2))
            print(
                f"built for {capability}: runs, largest difference {np.abs(found.joints - expected.joints).max():.3g} px or mm"
            )
        except Exception as error:  # noqa: BLE001 - every answer is wanted
            print(f"built for {capability}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
