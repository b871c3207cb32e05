"""Makes the package's calibration set: half rendered people, half frames of the demo clip.

python -m training.calibration [--out convnextpose/weights/calibration.npz]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from convnextpose import weights
from engines.calibration import CalibrationSet
from pipeline.calibration import collect_crops
from pipeline.models import open_detector, open_model
from training.dataset import Renderer

SEED = 2026
EACH = 12
"""Number of rendered crops, and of crops from the clip: 2.5 MB in all."""

DIFFICULTIES = (0.3, 0.6, 0.9)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=weights.CALIBRATION)
    out = parser.parse_args().out
    renderer = Renderer()
    rendered = np.concatenate(
        [
            renderer.batch(EACH // len(DIFFICULTIES), difficulty, renderer.generator(SEED, index)).images.numpy()
            for index, difficulty in enumerate(DIFFICULTIES)
        ]
    )
    filmed = collect_crops([weights.DEMO_CLIP], open_model("xs"), open_detector(), EACH).crops
    # Alternating, so that every part of the set has both.
    crops = np.stack([rendered, filmed], axis=1).reshape(-1, *rendered.shape[1:])
    CalibrationSet(crops, ("training.dataset.Renderer", weights.DEMO_CLIP.name)).save(out, overwrite=True)
    print(f"wrote {out}: {len(crops)} crops, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
