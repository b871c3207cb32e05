"""What each way to INT8 costs in mm and gains in time: `python benchmarks/int8_schemes.py [MODEL]`.

Each graph is calibrated on the package's crops and proven on others of them, computed as its types say, and timed in OpenVINO
on this CPU: one crop and eight, all of them in turn. Where TensorRT for RTX is installed an RTX 40 engine is built of each.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack

from convnextpose import weights
from convnextpose.checkpoint import verify
from convnextpose.errors import RuntimeUnavailableError
from engines.calibration import CalibrationSet
from engines.opening import open_pose_model
from engines.precision import INT8_SCHEMES, int8_within_limits, measure, to_fp16
from engines.tensorrt.builder import build_engine
from engines.tensorrt.module import load_library

ROUNDS = 40


def main(name: str = "xs") -> None:
    """Print a line for FP16 and each scheme."""
    shipped = weights.load(name)
    fp32, crops = shipped.onnx.read_bytes(), CalibrationSet.load(weights.CALIBRATION).split()
    with open_pose_model(verify(shipped.safetensors), "torch", name=name) as reference:
        half = to_fp16(fp32)
        rows = {"FP16": (half, measure(half, reference, crops.proof), 0, 0)}
        for scheme in INT8_SCHEMES:
            made = int8_within_limits(fp32, crops.calibration, reference, crops.proof, scheme=scheme)
            inside = len(scheme.layers(fp32)) - len(made.excluded)
            rows[scheme.name] = (made.onnx, made.parity, inside, len(made.excluded))
    times: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as opened:
        models = {key: opened.enter_context(open_pose_model(row[0], "openvino", threads=1)) for key, row in rows.items()}
        for count in (1, 8):
            for _ in range(ROUNDS):
                for key, model in models.items():
                    begun = time.process_time()
                    model.run(crops.proof[:1].repeat(count, axis=0))
                    times.setdefault((key, count), []).append((time.process_time() - begun) * 1e3 / count)
    print("| in INT8 | mean mm | max mm | mean px | convolutions | OpenVINO ms a crop, 1 and 8 at once | RTX 40 engine |")
    print("|---|---|---|---|---|---|---|")
    for key, (onnx, parity, inside, left) in rows.items():
        one, eight = (statistics.median(times[key, count][2:]) for count in (1, 8))
        print(
            f"| {key} | {parity.mm.mean:.3f} | {parity.mm.max:.2f} | {parity.px.mean:.3f} | {inside}"
            f"{f' ({left} left in FP16)' if left else ''} | {one:.1f}, {eight:.1f} | {_built(onnx)} |",
            flush=True,
        )


def _built(onnx: bytes) -> str:
    try:
        engine = build_engine(onnx, load_library("tensorrt_rtx"), "8.9")
    except RuntimeUnavailableError:
        return "not built"
    return f"{len(engine.layers)} layers, {len(engine.data) / 2**20:.1f} MiB"


if __name__ == "__main__":
    main(*sys.argv[1:])
