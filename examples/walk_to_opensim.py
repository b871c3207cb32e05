"""Export a walk to OpenSim: python examples/walk_to_opensim.py CLIP FOLDER

It writes a TRC file of markers for each person: upright in the world, mm, under names that OpenSim knows (docs/formats.md).
Open it there with File > Preview Experimental Data, or scale a model by it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import convnextpose


def main(clip: str, folder: str, camera: str | None = None) -> None:
    """Follow everybody; give the camera as fx,fy,cx,cy (px) where it is known, or sizes and distances are a guess."""
    intrinsics = convnextpose.Intrinsics.parse(camera) if camera else None
    config = convnextpose.RunConfig(clip, out=folder, formats=("trc",), camera=intrinsics, smooth=True)
    with convnextpose.open_pipeline(config) as pipeline:
        pipeline.run()
    for path in sorted(Path(folder).glob("*.trc")):
        markers = path.read_text(encoding="utf-8").splitlines()[3].split()[2:]
        print(f"{path}: {', '.join(markers)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
