"""The parts that check CUDA itself: machine, device layer, kernels, and the runtime with a stand-in for TensorRT."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np

from tests.gpu.parts import LeftOutError, expect, opened_device, quantiles

PACKAGES = (
    "torch", "triton", "numpy", "onnx", "onnxruntime", "opencv-python", "opencv-python-headless", "safetensors",
    "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "tensorrt", "tensorrt-rtx-cu13", "av", "openvino",
)  # fmt: skip
"""The packages whose versions are among the figures."""


def machine(device, figures):
    figures["python"] = platform.python_version()
    figures["cpu"] = f"{platform.machine()}, {os.cpu_count()} cores"
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    figures["packages"] = versions
    figures["compilers"] = {name: shutil.which(name) for name in ("gcc", "g++", "nvcc")}
    if device == "cuda":
        query = "name,driver_version,clocks.sm,clocks.max.sm,power.limit,memory.total"
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, check=False
        )
        figures["nvidia_smi"] = told.stdout.strip().splitlines()
    with opened_device(device) as found:
        gpu = found.gpu
        figures["gpu"] = f"{gpu.name}, compute capability {gpu.compute_capability}, driver for {gpu.driver} ({found.binding})"


def device_layer(device, figures):
    from convnextpose.errors import DeviceMemoryError

    size = 64 << 20 if device == "cuda" else 1 << 16
    with opened_device(device) as found:
        values = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        before, after, stream = found.pin(size), found.pin(size), found.stream()
        here, there = found.allocate(size), found.allocate(size)
        before.array[:] = values
        events = [found.event() for _ in range(4)]
        for _ in range(3):
            events[0].record(stream)
            found.copy_in(here.address, before.array, stream)
            events[1].record(stream)
            found.copy_within(there.address, here.address, size, stream)
            events[2].record(stream)
            found.copy_out(after.array, there.address, stream)
            events[3].record(stream)
            stream.synchronize()
        expect(np.array_equal(after.array, values), "bytes survive the GPU")
        for turn, name in enumerate(("to the GPU", "within it", "from it")):
            figures[f"GB/s {name}"] = round(size / 1e6 / max(1e-6, events[turn + 1].milliseconds_since(events[turn])), 1)
        graph = found.capture(stream, lambda: found.copy_within(there.address, here.address, size, stream))
        for value in (1, 2):
            before.array[:] = value
            found.copy_in(here.address, before.array, stream)
            graph.launch(stream)
            found.copy_out(after.array, there.address, stream)
            stream.synchronize()
            expect((after.array == value).all(), "a graph does its work each time")
        begun = time.perf_counter()
        for _ in range(100):
            graph.launch(stream)
        figures["us to launch a graph"] = round((time.perf_counter() - begun) * 1e4, 2)
        stream.synchronize()
        try:
            found.allocate(found.free_bytes() + (1 << 34))
        except DeviceMemoryError:
            figures["too much memory"] = "is an error of its own"
        else:
            raise AssertionError("too much memory is refused")
        for owned in (graph, before, after, stream, here, there, *events):
            owned.free()
        free = found.free_bytes()
        for _ in range(200):
            for owned in (found.allocate(1 << 12), found.pin(1 << 12), found.stream(), found.event()):
                owned.free()
        figures["bytes lost by 200 of everything"] = free - found.free_bytes()
        expect(free - found.free_bytes() < 16 << 20, "everything is given back")


@contextmanager
def kernels_compiled(device):
    """The kernels compiled for the GPU by NVRTC, or for the CPU by a C++ compiler."""
    from engines.kernels import program

    compile_kernel = program.compile_kernel
    if device == "cpu":
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise LeftOutError("without a GPU the kernels are compiled by g++ or clang++, and neither is here")
        program.compile_kernel = lambda kernel, capability, text: kernel.encode()
    try:
        yield
    finally:
        program.compile_kernel = compile_kernel


@contextmanager
def opened_kernels(device):
    """The kernels for a device, compiled as in `kernels_compiled`."""
    from engines.kernels import program

    with opened_device(device) as found:
        with kernels_compiled(device):
            kernels = program.Kernels(found)
        yield kernels, found
        kernels.free()


def repeated_ms(device, stream, work, launches):
    """Time of some work on the GPU, ms: captured as a graph and launched several times."""
    graph = device.capture(stream, work)
    graph.launch(stream)
    first, second = device.event(), device.event()
    first.record(stream)
    for _ in range(launches):
        graph.launch(stream)
    second.record(stream)
    stream.synchronize()
    took = second.milliseconds_since(first) / launches
    for owned in (graph, first, second):
        owned.free()
    return took


def kernels(device, figures):
    begun = time.perf_counter()
    with opened_kernels(device) as (made, found):
        figures["s to compile both"] = round(time.perf_counter() - begun, 2)
        crops_of_frames(device, figures, made, found)
        tails_of_logits(device, figures, made, found)


def crops_of_frames(device, figures, made, found):
    import cv2

    from convnextpose.crop import Box, crop_from_image
    from engines.kernels.blocks import BT709, DeviceFrame, PixelFormat, crop_origins
    from tests.engines import kernel_twin
    from tests.engines.cpu_kernels import from_device, on_device

    width, height = (1920, 1080) if device == "cuda" else (321, 241)
    count, rng = (8 if device == "cuda" else 2), np.random.default_rng(0)
    half = (height + 1) // 2, (width + 1) // 2
    shapes = {
        PixelFormat.BGR: [(height, width, 3)],
        PixelFormat.NV12: [(height, width), (*half, 2)],
        PixelFormat.YUV420: [(height, width), half, half],
    }
    boxes = [Box(*rng.uniform(-0.2, 0.8, 2) * (width, height), *[rng.uniform(0.1, 0.9) * height] * 2) for _ in range(count)]
    matrices = [crop_from_image(box) for box in boxes]
    for pixels, wanted in shapes.items():
        planes = [rng.integers(0, 256, shape, np.uint8) for shape in wanted]
        there = [on_device(found, plane) for plane in planes]
        pitches = tuple(plane[0].size for plane in planes)
        told = crop_origins(DeviceFrame(tuple(at.address for at in there), pitches, width, height, pixels, BT709), matrices)
        result = np.zeros((count, 256, 256, 3), np.uint8)
        block, crops, stream = on_device(found, told), on_device(found, result), found.stream()
        made.crop(block.address, crops.address, count, stream)
        stream.synchronize()
        result = from_device(found, crops, result)
        worst = max(
            np.abs(crop - kernel_twin.crop(planes, width, height, pixels, BT709, matrix)).max()
            for crop, matrix in zip(result, matrices, strict=True)
        )
        figures[f"{pixels.name}: levels from the definition at most"] = round(float(worst), 3)
        # FP32 positions are some thousandths of a pixel off at 1920 px, which in noise is up to half a grey level.
        expect(worst <= 2, f"crops of {pixels.name} are those of their definition")
        if pixels is PixelFormat.BGR:
            warped = [cv2.warpAffine(planes[0], matrix, (256, 256), flags=cv2.INTER_LINEAR) for matrix in matrices]
            near = float((np.abs(result.astype(int) - warped) <= 1).mean())
            figures[f"share within a level of OpenCV {cv2.__version__}"] = near
            exact = int(cv2.__version__.split(".")[0]) >= 5  # older versions round positions to 1/32 px
            expect(near >= (0.999 if exact else 0.5), "crops are OpenCV's")
        if device == "cuda":
            launch = lambda: made.crop(block.address, crops.address, count, stream)  # noqa: B023, E731 - used at once
            figures[f"{pixels.name}: us for {count} crops"] = round(1e3 * repeated_ms(found, stream, launch, 200), 2)
        for owned in (*there, block, crops, stream):
            owned.free()


def tails_of_logits(device, figures, made, found):
    import torch

    from convnextpose.network import joint_scores, soft_argmax
    from convnextpose.variants import Variant
    from engines.kernels.blocks import TailShape
    from tests.engines.cpu_kernels import from_device, on_device

    for variant, counts in ((Variant.XS, (1, 8)), (Variant.L, (1, 8))) if device == "cuda" else ((Variant.XS, (1,)),):
        shape = TailShape.of(variant, 18)
        for count in counts:
            rng = np.random.default_rng(1)
            logits = (3 * rng.normal(size=(count, 18 * shape.depth, shape.height, shape.width))).astype(np.float16)
            joints, scores = np.zeros((count, 18, 3), np.float32), np.zeros((count, 18), np.float32)
            there, stream = [on_device(found, array) for array in (logits, joints, scores)], found.stream()
            work = found.allocate(shape.workspace(count))
            made.clear(work.address, shape.workspace(count), stream)
            launch = lambda: made.tail(shape, *(at.address for at in there), work.address, count, stream)  # noqa: B023, E731
            for _ in range(2):  # the second time with the counters that the first one left
                launch()
                stream.synchronize()
            volume = torch.from_numpy(logits).to(device).double().reshape(count, 18, shape.depth, shape.height, shape.width)
            factor, offset = (shape.px_x, shape.px_y, shape.mm), (0.0, 0.0, shape.mm_offset)
            expected = soft_argmax(volume).cpu().numpy() * factor + offset
            difference = np.abs(from_device(found, there[1], joints) - expected)
            name = f"tail of {variant.name}, {count} crops"
            figures[f"{name}: px, mm at most"] = [float(difference[..., :2].max()), float(difference[..., 2].max())]
            score = np.abs(from_device(found, there[2], scores) - joint_scores(volume).cpu().numpy()).max()
            expect(
                difference[..., :2].max() < 1e-2 and difference[..., 2].max() < 1e-1 and score < 1e-4,
                f"{name} is the network's",
            )
            if device == "cuda":
                took_ms = repeated_ms(found, stream, launch, 200)
                figures[f"{name}: us"] = round(1e3 * took_ms, 2)
                figures[f"{name}: GB/s"] = round(logits.nbytes / 1e6 / took_ms)
            for owned in (*there, work, stream):
                owned.free()


def runtime(device, figures):
    from engines.parity import noise_crops
    from engines.sessions.tensorrt import TensorRTSession
    from engines.tensorrt.module import Library
    from tests.engines.memory_gpu import Driver
    from tests.engines.memory_tensorrt import engine_bytes, predict, tensorrt_module
    from tests.engines.test_tensorrt_session import manifest_of

    if device == "cuda":
        from tests.gpu.stand_in import cuda_module

    rounds = 300 if device == "cuda" else 20
    most = noise_crops(40)
    with opened_device(device) as found:
        if device == "cpu":  # the simulated driver runs no kernels
            from engines.tensorrt.device_cuda import CudaDevice

            driver = Driver()
            found = CudaDevice(driver, "cuda-python in memory")
        with found.current():
            module = cuda_module(found) if device == "cuda" else tensorrt_module(driver)
        data, library = engine_bytes(), Library(module.__name__, module.__version__, module)
        manifest = manifest_of(
            data,
            library=library.name,
            library_version=library.version,
            compute_capabilities=(found.gpu.compute_capability,),
        )
        with ExitStack() as opening:
            if device == "cpu":  # the engine alone; `frames` runs it with the kernels
                opening.enter_context(mock.patch("engines.sessions.tensorrt.engine_kernels", lambda *_: None))
            session = TensorRTSession(data, manifest, library, found)
        joints, scores = predict(most)
        for count in (1, 2, 3, 8, 9, 40, 1, 8, 40, 5):
            got = session.run({"crops": most[:count]})
            expect(np.array_equal(got["joints"], joints[:count]), f"joints of {count} crops")
            expect(np.allclose(got["scores"], scores[:count], rtol=1e-6), f"scores of {count} crops")
        for count in (1, 2, 4, 8, 16):
            crops, runs, begun = most[:count], [], time.process_time()
            for _ in range(rounds):
                session.run({"crops": crops})
                runs.append(session.times)
            cpu_ms = 1e3 * (time.process_time() - begun) / rounds
            row = {"host_ms": quantiles([run.host_ms for run in runs]), "cpu_ms": round(cpu_ms, 4)}
            row["runs_as_graphs"] = sum(run.replayed == run.batches for run in runs) / rounds
            if device == "cuda":  # a simulated GPU has no times of its own
                row["gpu_ms"] = quantiles([run.gpu_ms for run in runs])
                row["host_less_gpu_ms"] = quantiles([run.host_ms - run.gpu_ms for run in runs])
            figures[f"{count} crops"] = row
        session.close()


def frames(device, figures):
    """A frame and matrices in, poses out, in one graph: crop kernel, XS up to its logits instead of an engine, tail kernel."""
    import cv2

    from convnextpose import weights
    from convnextpose.checkpoint import verify
    from convnextpose.crop import Box, crop_from_image
    from engines.kernels.blocks import DeviceFrame, TailShape
    from engines.opening import open_pose_model
    from engines.parity import LIMITS
    from engines.pose import PoseModel
    from engines.sessions.tensorrt import TensorRTSession
    from engines.tensorrt.module import Library
    from tests.engines.cpu_kernels import on_device
    from tests.engines.memory_tensorrt import engine_bytes, tensorrt_module
    from tests.engines.test_frames import network
    from tests.engines.test_tensorrt_session import manifest_of

    image = cv2.VideoCapture(str(weights.DEMO_CLIP)).read()[1]
    counts, rounds, most = ((1, 8), 200, 8) if device == "cuda" else ((1,), 1, 1)
    regions = [Box(150 + 7 * k, 60 - 5 * k, 380 - 9 * k, 380 - 9 * k) for k in range(counts[-1])]
    matrices = [crop_from_image(region) for region in regions]
    # The same picture and people enlarged to 1080p, for a frame that is already on the GPU.
    factor = 1080 / image.shape[0] if device == "cuda" else 1
    large = cv2.resize(image, None, fx=factor, fy=factor)
    if device == "cuda":
        large = cv2.copyMakeBorder(large, 0, 0, 0, 1920 - large.shape[1], cv2.BORDER_CONSTANT)
    in_large = [crop_from_image(Box(*(factor * side for side in (r.x, r.y, r.width, r.height)))) for r in regions]
    with open_pose_model(weights.load("xs").onnx, "onnxruntime") as reference:
        warped = np.stack([cv2.warpAffine(image, matrix, (256, 256), flags=cv2.INTER_LINEAR) for matrix in matrices])
        warped_large = [cv2.warpAffine(large, matrix, (256, 256), flags=cv2.INTER_LINEAR) for matrix in in_large]
        expected, expected_large, info = reference.run(warped), reference.run(np.stack(warped_large)), reference.info
    tail = TailShape.of(info.variant, len(info.joint_set))
    data = engine_bytes(most=most, network="logits", logits=(tail.joint_count * tail.depth, tail.height, tail.width))
    with opened_device(device) as found, kernels_compiled(device):
        if device == "cuda":
            from tests.gpu.stand_in import cuda_module, torch_logits

            module = cuda_module(found, network=torch_logits(verify(weights.load("xs").safetensors)))
        else:
            module = tensorrt_module(found._driver, networks={"logits": network("logits")})
        library = Library(module.__name__, module.__version__, module)
        manifest = manifest_of(
            data,
            library=library.name,
            library_version=library.version,
            compute_capabilities=(found.gpu.compute_capability,),
        )
        begun = time.perf_counter()
        session = TensorRTSession(data, manifest, library, found)
        figures["s to open"] = round(time.perf_counter() - begun, 2)
        expect(session.takes_frames, "crops are made on the GPU")
        figures["without a graph"] = {str(size): reason for size, reason in session.unrecorded.items()}
        with PoseModel(session, manifest.model) as model:
            with model.hold(image) as held:
                of_frame = model.run(held.origins(matrices))
            memory = on_device(found, large)
            there = DeviceFrame((memory.address,), (large[0].size,), large.shape[1], large.shape[0])
            with model.hold(there) as held:
                of_large = model.run(held.origins(in_large))
            for name, result, wanted in (
                ("of frames", of_frame, expected),
                ("of crops", model.run(warped), expected),
                ("of a frame on the GPU", of_large, expected_large),
            ):
                difference = np.abs(result.joints - wanted.joints)
                score = float(np.abs(result.scores - wanted.scores).max())
                figures[f"{name}: px, mm, score at most"] = [
                    float(difference[..., :2].max()),
                    float(difference[..., 2].max()),
                    score,
                ]
                limits = LIMITS["fp16"]
                expect(
                    difference[..., :2].max() <= limits.max_px
                    and difference[..., 2].max() <= limits.max_mm
                    and score <= limits.max_score,
                    f"poses {name} are those of the CPU",
                )
            for count in counts:
                times: dict[str, list[float]] = {"frame": [], "crops": []}
                cpu, gpu = {"frame": 0.0, "crops": 0.0}, []
                for _ in range(rounds):
                    for way, spent in times.items():
                        begun, busy = time.perf_counter(), time.process_time()
                        if way == "frame":
                            with model.hold(image) as held:
                                model.run(held.origins(matrices[:count]))
                            gpu.append(session.times.gpu_ms)
                        else:
                            warped = [cv2.warpAffine(image, m, (256, 256), flags=cv2.INTER_LINEAR) for m in matrices[:count]]
                            model.run(np.stack(warped))
                        spent.append(1e3 * (time.perf_counter() - begun))
                        cpu[way] += 1e3 * (time.process_time() - busy) / rounds
                row = {f"{way}: host ms": quantiles(spent) for way, spent in times.items()}
                row |= {f"{way}: cpu ms": round(spent, 4) for way, spent in cpu.items()}
                figures[f"{count} people of a {image.shape[1]}x{image.shape[0]} frame"] = (
                    row | {"frame: gpu ms": quantiles(gpu)} if device == "cuda" else row
                )
            host, gpu = [], []
            for _ in range(rounds):
                begun = time.perf_counter()
                with model.hold(there) as held:
                    model.run(held.origins(in_large))
                host.append(1e3 * (time.perf_counter() - begun))
                gpu.append(session.times.gpu_ms)
            row = {"host ms": quantiles(host)} | ({"gpu ms": quantiles(gpu)} if device == "cuda" else {})
            figures[f"{counts[-1]} people of a {there.width}x{there.height} frame on the GPU"] = row
            memory.free()


PARTS = {"machine": machine, "device": device_layer, "kernels": kernels, "runtime": runtime, "frames": frames}
