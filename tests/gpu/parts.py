"""The parts of `tests/gpu/check.py`: each a function of the device (`cuda` or `cpu`) that fills in figures, or raises."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

BATCHES = (1, 2, 4, 8, 16)

PACKAGES = (
    "torch", "triton", "numpy", "onnx", "onnxruntime", "opencv-python", "opencv-python-headless", "safetensors",
    "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "tensorrt", "tensorrt-rtx-cu13", "av", "openvino",
)  # fmt: skip
"""Whose versions the figures hold."""


class LeftOutError(Exception):
    """A part cannot run on this machine; the message is the reason."""


class Figures(dict):
    """What a part found; each figure is in the file as soon as it is known, so that a time limit costs only what follows."""

    def __init__(self, path):
        super().__init__()
        self.path, self.error, self.left_out = path, None, None

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        print(f"{name}: {value}", flush=True)
        self.save()

    def save(self):
        self.path.write_text(json.dumps({"figures": self, "error": self.error, "left_out": self.left_out}, default=float))


def expect(holds, what):
    """Raise unless it holds: with `python -O` an `assert` would not."""
    if not holds:
        raise AssertionError(what)


def choose_device(wanted):
    if wanted != "auto":
        return wanted
    from engines.tensorrt.gpu import find_gpu

    return "cuda" if find_gpu() is not None else "cpu"


@contextmanager
def opened_device(device):
    """A `CudaDevice`, made current: the GPU, or one in memory."""
    if device == "cuda":
        from engines.tensorrt.gpu import open_device

        found = open_device("cuda-python")
    else:
        from tests.engines.cpu_kernels import cpu_device

        found = cpu_device()
    with found.current():
        yield found


def quantiles(milliseconds):
    return {f"p{q}": round(float(np.percentile(milliseconds, q)), 4) for q in (50, 95, 99)}


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
def opened_kernels(device):
    """The kernels, compiled by NVRTC for the GPU; or by a C++ compiler for the CPU."""
    from engines.kernels import program

    with opened_device(device) as found:
        compile_kernel = program.compile_kernel
        if device == "cpu":
            if shutil.which("g++") is None and shutil.which("clang++") is None:
                raise LeftOutError("without a GPU the kernels are compiled by g++ or clang++, and neither is here")
            program.compile_kernel = lambda kernel, capability, text: kernel.encode()
        try:
            kernels = program.Kernels(found)
        finally:
            program.compile_kernel = compile_kernel
        yield kernels, found
        kernels.free()


def repeated_ms(device, stream, work, launches):
    """How long work takes on the GPU, ms: a graph of it, launched several times."""
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
    from engines.kernels.blocks import BT709, DeviceFrame, PixelFormat, crop_block_size, write_crop_block
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
        told = np.zeros(crop_block_size(count), np.uint8)
        write_crop_block(told, DeviceFrame(tuple(at.address for at in there), pitches, width, height, pixels, BT709), matrices)
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
        # Places of FP32 are some thousandths of a pixel off at 1920 px, which in noise is up to half a level.
        expect(worst <= 2, f"crops of {pixels.name} are those of their definition")
        if pixels is PixelFormat.BGR:
            warped = [cv2.warpAffine(planes[0], matrix, (256, 256), flags=cv2.INTER_LINEAR) for matrix in matrices]
            near = float((np.abs(result.astype(int) - warped) <= 1).mean())
            figures[f"share within a level of OpenCV {cv2.__version__}"] = near
            exact = int(cv2.__version__.split(".")[0]) >= 5  # before that it rounds places to 1/32 px
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
            for _ in range(2):  # the second time with the counters as the first left them
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
    from tests.engines.memory_gpu import Driver, engine_bytes, predict, tensorrt_module
    from tests.engines.test_tensorrt_session import manifest_of

    if device == "cuda":
        from tests.gpu.stand_in import cuda_module

    rounds = 300 if device == "cuda" else 20
    most = noise_crops(40)
    with opened_device(device) as found:
        if device == "cpu":  # a driver that has no kernels to run
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
            if device == "cuda":  # a GPU in memory has no time of its own
                row["gpu_ms"] = quantiles([run.gpu_ms for run in runs])
                row["host_less_gpu_ms"] = quantiles([run.host_ms - run.gpu_ms for run in runs])
            figures[f"{count} crops"] = row
        session.close()


def checkpoint_and_proof():
    from convnextpose import weights
    from convnextpose.checkpoint import verify
    from engines.calibration import CalibrationSet

    return verify(weights.load("xs").safetensors), CalibrationSet.load(weights.CALIBRATION).split().proof


def torch_speed(device, figures, *, compiled=False):
    from engines.opening import open_pose_model, pose_baseline
    from engines.parity import LIMITS, compare, noise_crops
    from engines.pose import PoseModel
    from engines.sessions.torch import TorchGpuSession
    from engines.timing import measure

    checkpoint, proof = checkpoint_and_proof()
    rounds, batches = (200, BATCHES) if device == "cuda" else (2, (1, 2))
    with open_pose_model(checkpoint, "torch") as reference:
        for precision in ("fp16",) if compiled else ("fp32", "fp16"):
            network = pose_baseline(checkpoint, precision)
            session = TorchGpuSession(network, "xs", precision=precision, compiled=compiled, device=device)
            with PoseModel(session, reference.info) as fast:
                report = compare(reference, fast, proof if device == "cuda" else proof[:2], LIMITS[precision])
                figures[f"{precision}: parity"] = str(report)
                report.check()
                for count in (1, 8) if compiled else batches:
                    (row,) = measure({precision: session}, noise_crops(count), rounds, 20 if device == "cuda" else 1)
                    figures[f"{precision}, {count} crops"] = {
                        "host_ms": row.host.p50,
                        "host_p99_ms": row.host.p99,
                        "gpu_ms": row.gpu.p50,
                        "network_ms": row.inference.p50,
                        "crops_per_s": row.crops_per_s,
                        "graphs": row.replayed == rounds,
                    }


def compiled(device, figures):
    torch_speed(device, figures, compiled=True)


def typed(device, figures):
    from convnextpose import weights
    from engines.metadata import read_metadata
    from engines.opening import open_pose_model
    from engines.parity import LIMITS, compare
    from engines.pose import PoseModel
    from engines.precision import to_fp16
    from engines.sessions.typed import TypedSession

    checkpoint, proof = checkpoint_and_proof()
    shipped = weights.load("xs")
    graphs = {"fp16": to_fp16(shipped.onnx.read_bytes()), "int8": shipped.int8.read_bytes()}
    crops = proof if device == "cuda" else proof[:1]
    with open_pose_model(checkpoint, "torch") as reference:
        for precision, onnx in graphs.items():
            for where in dict.fromkeys(("cpu", device)):
                session = TypedSession(onnx, f"xs {precision}", precision=precision, device=where)
                with PoseModel(session, read_metadata(onnx, "the graph")) as model:
                    report = compare(reference, model, crops, LIMITS[precision])
                figures[f"{precision} on {where}"] = {
                    "mean_px": report.px.mean,
                    "max_px": report.px.max,
                    "mean_mm": report.mm.mean,
                    "max_mm": report.mm.max,
                    "within the limits": report.passed,
                }
                expect(report.passed, str(report))


def training(device, figures):
    import torch

    from convnextpose import weights
    from training.plan import Plan
    from training.train import run

    begin = weights.load("xs").safetensors
    numbers = (
        dict(batch=64, chunk=256, kept=16, filled=4, size=256)
        if device == "cuda"
        else dict(batch=4, chunk=8, kept=2, filled=2, size=128)
    )
    steps = (20, 60) if device == "cuda" else (1, 2)
    plan = Plan(steps=1000, **numbers)
    with tempfile.TemporaryDirectory() as folder:
        for name, count in zip(("first", "next"), steps, strict=True):
            begun = time.perf_counter()
            trainer = run(
                Path(folder), plan, torch.device(device), seconds=float("inf"), steps=count, init=begin, held_out_count=0
            )
            took = time.perf_counter() - begun
            figures[f"{name} {count} steps"] = {"s": round(took, 2), "images_per_s": round(count * plan.batch / took, 1)}
    expect(trainer.step == sum(steps), "a run goes on where it ended")
    expect(all(torch.isfinite(value).all() for value in trainer.weights().values()), "weights are finite")


def roofline(device, figures):
    """The least time that the network's bytes and multiply-adds can take, by what torch reaches here at both alone."""
    import torch

    from engines.opening import pose_baseline

    half = torch.float16 if device == "cuda" else torch.float32
    side, copied = (8192, 1 << 30) if device == "cuda" else (512, 1 << 24)
    matrix, source = torch.ones(side, side, dtype=half, device=device), torch.ones(copied, dtype=torch.uint8, device=device)
    flops = 2 * side**3 / best_s(device, lambda: matrix @ matrix)
    bandwidth = 2 * copied / best_s(device, source.clone)
    figures["measured"] = {"TFLOP/s": round(flops / 1e12, 2), "GB/s": round(bandwidth / 1e9, 1)}
    checkpoint, _ = checkpoint_and_proof()
    multiply_adds, moved, held = work_of(pose_baseline(checkpoint, "fp32").module)
    size = 2  # bytes of FP16
    figures["XS"] = {"multiply_adds": multiply_adds, "MB a crop": size * moved / 1e6, "MB of weights": size * held / 1e6}
    for count in BATCHES:
        by_sums, by_bytes = 2 * multiply_adds * count / flops, size * (moved * count + held) / bandwidth
        figures[f"least ms of {count} crops"] = {
            "by multiply-adds": round(1e3 * by_sums, 4),
            "by bytes": round(1e3 * by_bytes, 4),
        }


def best_s(device, work, rounds=5):
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(rounds):
        wait()
        begun = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begun)
    return min(times)


def work_of(module):
    """Multiply-adds of a crop, and numbers that convolutions read and write of one, and have as weights: nothing fused."""
    import torch

    found = [0, 0, 0]

    def count(conv, inputs, output):
        found[0] += output[0].numel() * conv.weight[0].numel()
        found[1] += inputs[0][0].numel() + output[0].numel()
        found[2] += conv.weight.numel()

    hooks = [each.register_forward_hook(count) for each in module.modules() if isinstance(each, torch.nn.Conv2d)]
    with torch.inference_mode():
        module(torch.zeros(1, 256, 256, 3, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return found


def tensorrt(device, figures):
    from convnextpose.errors import RuntimeUnavailableError
    from engines.tensorrt.module import LIBRARIES, load_library

    loaded = []
    for name in LIBRARIES:
        try:
            loaded.append(load_library(name))
        except RuntimeUnavailableError as error:
            print(error)
    if not loaded:
        raise LeftOutError(f"neither {' nor '.join(LIBRARIES)} is installed")
    figures["modules"] = [f"{library.name} {library.version}" for library in loaded]
    if device == "cpu":
        raise LeftOutError("an engine needs a GPU to run")
    from engines.build import BuildRequest, build
    from engines.opening import open_pose_model
    from engines.parity import LIMITS, compare, noise_crops
    from engines.pose import PoseModel
    from engines.sessions.tensorrt import open_engine
    from engines.targets import find_target
    from engines.timing import measure

    checkpoint, proof = checkpoint_and_proof()
    with tempfile.TemporaryDirectory() as folder, open_pose_model(checkpoint, "torch") as reference:
        for precision in ("fp16", "int8"):
            begun = time.perf_counter()
            request = BuildRequest(source="xs", out=Path(folder), precisions=(precision,), targets=(find_target("this"),))
            report = build(request, lambda step: None)
            expect(not report.failures, f"{precision} builds: {report.failures}")
            figures[f"{precision}: s to build"] = round(time.perf_counter() - begun, 1)
            session = open_engine(report.results[0].path)
            with PoseModel(session, session.manifest.model) as engine:
                parity = compare(reference, engine, proof, LIMITS[precision])
                figures[f"{precision}: parity"] = str(parity)
                for count in BATCHES:
                    (row,) = measure({precision: session}, noise_crops(count), 200, 20)
                    figures[f"{precision}, {count} crops"] = {
                        "host_ms": row.host.p50,
                        "gpu_ms": row.gpu.p50,
                        "network_ms": row.inference.p50,
                        "crops_per_s": row.crops_per_s,
                    }
                parity.check()


PARTS = {
    "machine": machine,
    "device": device_layer,
    "kernels": kernels,
    "runtime": runtime,
    "torch": torch_speed,
    "typed": typed,
    "training": training,
    "roofline": roofline,
    "tensorrt": tensorrt,
    "compiled": compiled,
}
