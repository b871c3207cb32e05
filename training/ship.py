"""Puts a set of weights into the package: verifies, exports, makes and proves INT8, hashes, and writes its card.

    python -m training.ship xs NAME.safetensors --summary "experimental; demo clip 73 mm, ..."
    python -m training.ship xs convnextpose/weights/xs.safetensors      # all files but the weights again

Writes NAME.safetensors, NAME.onnx, NAME.int8.onnx and NAME.json into convnextpose/weights/. The summary is the line that the
console shows. INT8 is calibrated on the package's calibration set. The card has the deviations in BF16 and INT8, and the
runtime in which they were measured: PyTorch for BF16 if this CPU does not compute it natively, otherwise OpenVINO for both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from convnextpose import weights
from convnextpose.checkpoint import verify
from engines.calibration import CalibrationSet
from engines.cpu_precision import prove_precisions
from engines.export import export


def ship(name: str, source: Path, summary: str | None) -> None:
    """Verify `source` (FP16 safetensors) and make it the package's weights `name`; without a summary the card keeps its own."""
    checkpoint = verify(source)
    target, onnx, int8, card = (
        weights.FOLDER / f"{name}.{suffix}" for suffix in ("safetensors", "onnx", weights.INT8_SUFFIX, "json")
    )
    if summary is None:
        summary = json.loads(card.read_text(encoding="utf-8"))["summary"]
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
    print(export(checkpoint, onnx, name=name, overwrite=True).parity)
    proven = prove_precisions(checkpoint, onnx.read_bytes(), CalibrationSet.load(weights.CALIBRATION))
    int8.write_bytes(proven.int8)
    for precision, deviation in proven.deviations.items():
        print(f"{precision}: {deviation}")
    files = {"safetensors": target, "onnx": onnx, weights.INT8_SUFFIX: int8}
    told = {
        "name": name,
        "variant": checkpoint.variant.name,
        "sha256": {suffix: hashlib.sha256(path.read_bytes()).hexdigest() for suffix, path in files.items()},
        "deviations": {precision: asdict(deviation) for precision, deviation in proven.deviations.items()},
        "summary": summary,
    }
    card.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("source", type=Path)
    parser.add_argument("--summary", help="one line on the accuracy of the weights; without it the card keeps its own")
    arguments = parser.parse_args()
    ship(arguments.name, arguments.source, arguments.summary)


if __name__ == "__main__":
    main()
