"""Print the positions of the people in a clip: python examples/poses.py CLIP."""

from __future__ import annotations

import sys

import convnextpose


def main(clip: str) -> None:
    """Run the default model and print each pelvis."""
    with convnextpose.open_pipeline(clip) as pipeline:
        root = pipeline.header.joint_set.root
        for posed in pipeline:
            for pose in posed.poses:
                position_mm = pose.joints_mm[root].round()
                print(f"{posed.frame.time_s:.3f} s  person {pose.track_id}  pelvis at {position_mm} mm")
        print(pipeline.streams[0].ledger.counts())


if __name__ == "__main__":
    main(sys.argv[1])
