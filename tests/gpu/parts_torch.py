"""The parts that need torch: its speed and parity, typed graphs, a slice of training, the roofline, TensorRT's engines."""

import tempfile
import time
from pathlib import Path

from tests.gpu.parts import BATCHES, LeftOutError, expect


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
    rounds, batches = (200, BATCHES) if device == "cuda" else (1, (1, 2))
    if compiled:
        batches = batches[:1] if device == "cpu" else (1, 8)
    with open_pose_model(checkpoint, "torch") as reference:
        for precision in ("fp16",) if compiled else ("fp32", "fp16"):
            network = pose_baseline(checkpoint, precision)
            session = TorchGpuSession(network, "xs", precision=precision, compiled=compiled, device=device)
            with PoseModel(session, reference.info) as fast:
                report = compare(reference, fast, proof if device == "cuda" else proof[:2], LIMITS[precision])
                figures[f"{precision}: parity"] = str(report)
                report.check()
                for count in batches:
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
    """The lower bound of the network's time from its bytes and multiply-adds, at the rates that torch reaches here for each."""
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
    """For a crop: numbers of multiply-adds, of values that convolutions read and write, and of weights, with nothing fused."""
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
    from engines.build import build
    from engines.build_request import BuildRequest
    from engines.opening import open_pose_model
    from engines.parity import LIMITS, compare, noise_crops
    from engines.pose import PoseModel
    from engines.sessions.engine_file import open_engine
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
    "torch": torch_speed,
    "typed": typed,
    "training": training,
    "roofline": roofline,
    "tensorrt": tensorrt,
    "compiled": compiled,
}
