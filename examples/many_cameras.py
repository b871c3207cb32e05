"""Watch many cameras with one model: python examples/many_cameras.py door=rtsp://10.0.0.7/stream yard=0

A camera that is absent does not stop the others. To try it without cameras: a=test:// b=test://
"""

from __future__ import annotations

import sys

import convnextpose
from pipeline.run import SourceEntry  # a source with a name and, if known, its own intrinsics


def main(cameras: list[str], seconds: float | None = None) -> None:
    """Print the people in each frame, and at the end the counts of frames; stop after a number of seconds, if given."""
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
