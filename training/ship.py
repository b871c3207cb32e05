"""Put a set of weights into the package: verify, export, hash, and write its card's figures.

    python -m training.ship xs NAME.safetensors --summary "experimental; demo clip 73 mm, ..."

Writes NAME.safetensors, NAME.onnx and NAME.json into convnextpose/weights/. The summary is the line that the console shows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from convnextpose import weights
from convnextpose.checkpoint import verify
from engines.export import export


def ship(name: str, source: Path, summary: str) -> None:
    """Verify `source` (FP16 safetensors) and make it the package's weights `name`."""
    checkpoint = verify(source)
    target = weights.FOLDER / f"{name}.safetensors"
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
    onnx = weights.FOLDER / f"{name}.onnx"
    print(export(checkpoint, onnx, name=name, overwrite=True).parity)
    hashes = {p.suffix[1:]: hashlib.sha256(p.read_bytes()).hexdigest() for p in (target, onnx)}
    card = {"name": name, "variant": checkpoint.variant.name, "sha256": hashes, "summary": summary}
    (weights.FOLDER / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("source", type=Path)
    parser.add_argument("--summary", required=True)
    arguments = parser.parse_args()
    ship(arguments.name, arguments.source, arguments.summary)


if __name__ == "__main__":
    main()
