"""Export a walk to OpenSim: python examples/walk_to_opensim.py CLIP FOLDER

It writes a TRC file of markers for each person: in upright world coordinates, mm, with OpenSim's names (docs/formats.md). Open
it in OpenSim with File > Preview Experimental Data, or scale a model with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import convnextpose


def main(clip: str, folder: str, camera: str | None = None) -> None:
    """Track everybody. Give the camera as fx,fy,cx,cy (px) if it is known; otherwise sizes and distances are a guess."""
    intrinsics = convnextpose.Intrinsics.parse(camera) if camera else None
    config = convnextpose.RunConfig(clip, out=folder, formats=("trc",), camera=intrinsics, smooth=True)
    with convnextpose.open_pipeline(config) as pipeline:
        pipeline.run()
    for path in sorted(Path(folder).glob("*.trc")):
        markers = path.read_text(encoding="utf-8").splitlines()[3].split()[2:]
        print(f"{path}: {', '.join(markers)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
