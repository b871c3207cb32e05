"""Watch many cameras with one model: python examples/many_cameras.py door=rtsp://10.0.0.7/stream yard=0

A camera that is not there does not stop the others. Without cameras at hand: a=test:// b=test://
"""

from __future__ import annotations

import sys

import convnextpose
from pipeline.run import SourceEntry  # a source with a name, and with intrinsics of its own where they are known


def main(cameras: list[str], seconds: float | None = None) -> None:
    """Print who is where as the frames come, and what became of them; end when a camera has run so many seconds, if given."""
    entries = [SourceEntry(uri, name) for name, _, uri in (camera.partition("=") for camera in cameras)]
    with convnextpose.open_pipeline(entries) as pipeline:
        for posed in pipeline:
            time_s = posed.frame.time_s
            print(f"{posed.source_id} {time_s:.2f} s: people {[pose.track_id for pose in posed.poses]}")
            if seconds is not None and time_s >= seconds:
                break
        for stream in pipeline.streams:
            print(stream.header.source, stream.ledger.counts())


if __name__ == "__main__":
    main(sys.argv[1:])
