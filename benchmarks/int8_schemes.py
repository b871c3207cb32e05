"""The error, mm, and the time of each INT8 scheme: `python benchmarks/int8_schemes.py [MODEL]`.

Each graph is calibrated on some of the package's crops and proven on the others, computed in exactly its types, with every
layer of its scheme in INT8. It is timed in OpenVINO on this CPU, with one crop and eight, all graphs alternating. If TensorRT
for RTX is installed, an RTX 40 engine is built from each.
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
from engines.precision import INT8_SCHEMES, leave_in_fp16, measure, quantisable_layers, quantise, residual_ranges, to_fp16
from engines.tensorrt.builder import build_engine
from engines.tensorrt.module import load_library

ROUNDS = 12


def main(name: str = "xs") -> None:
    """Print each scheme's error as soon as it is known, then the table."""
    shipped = weights.load(name)
    fp32, crops = shipped.onnx.read_bytes(), CalibrationSet.load(weights.CALIBRATION).split()
    with open_pose_model(verify(shipped.safetensors), "torch", name=name, threads=1) as reference:
        half = to_fp16(fp32)
        rows = {"FP16": (half, measure(half, reference, crops.proof), 0)}
        quantised, residuals = quantise(fp32, crops.calibration), residual_ranges(fp32, crops.calibration)
        for scheme in INT8_SCHEMES:
            inside = scheme.layers(fp32)
            outside = [layer for layer in quantisable_layers(fp32) if layer not in inside]
            onnx = leave_in_fp16(fp32, quantised, outside, residuals if scheme.residuals else {})
            rows[scheme.name] = (onnx, measure(onnx, reference, crops.proof), len(inside))
            print(f"{scheme.name}: {rows[scheme.name][1]}", file=sys.stderr, flush=True)
    times: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as opened:
        models = {key: opened.enter_context(open_pose_model(row[0], "openvino", threads=1)) for key, row in rows.items()}
        for count in (1, 8):
            for _ in range(ROUNDS):
                for key, model in models.items():
                    begun = time.process_time()
                    model.run(crops.proof[:1].repeat(count, axis=0))
                    times.setdefault((key, count), []).append((time.process_time() - begun) * 1e3 / count)
    print("| in INT8 | mean mm | max mm | mean px | max px | limits | layers | OpenVINO, ms a crop alone, of 8 | RTX 40 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key, (onnx, parity, inside_count) in rows.items():
        one, eight = (statistics.median(times[key, count][2:]) for count in (1, 8))
        print(
            f"| {key} | {parity.mm.mean:.3f} | {parity.mm.max:.2f} | {parity.px.mean:.3f} | {parity.px.max:.2f} | "
            f"{'held' if parity.passed else 'passed over'} | {inside_count} | {one:.1f}, {eight:.1f} | {_built(onnx)} |",
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
