"""Makes the README's animated picture from a run's video.

    python -m training.crowd clips --only pair
    convnextpose run clips/pair.mp4 --out results --formats mp4
    python .ci/moving_picture.py results/poses.mp4 docs/images/run.webp

The people in it are rendered.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av

WIDTH = 840
QUALITY = "50"
"""libwebp's quality, 0..100."""

MAX_BYTES = 1_000_000


def make(video: Path, picture: Path) -> None:
    """Write a video as an animated WebP, smaller and in an endless loop.

    Raises:
        ValueError: it is too large for a page.
    """
    with av.open(str(video)) as source, av.open(str(picture), "w", format="webp", options={"loop": "0"}) as target:
        stream = source.streams.video[0]
        out = target.add_stream(
            "libwebp_anim", rate=stream.average_rate, options={"quality": QUALITY, "compression_level": "3"}
        )
        out.width, out.height = WIDTH, round(stream.height * WIDTH / stream.width / 2) * 2
        out.pix_fmt = "yuv420p"
        for frame in source.decode(stream):
            target.mux(out.encode(frame.reformat(out.width, out.height, "yuv420p", interpolation="AREA")))
        target.mux(out.encode(None))
    if (size := picture.stat().st_size) > MAX_BYTES:
        raise ValueError(f"expected a picture of at most {MAX_BYTES} bytes, received {size}: take a shorter clip")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
