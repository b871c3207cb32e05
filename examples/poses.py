"""Print where the person of a clip is: python examples/poses.py CLIP."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.run import RunConfig, open_pipeline


def main(clip: Path) -> None:
    """Run the default model and print each pelvis."""
    with open_pipeline(RunConfig(clip)) as poses:
        for frame in poses:
            for pose in frame.poses:
                pelvis_mm = pose.joints_mm[poses.header.joint_set.root]
                print(f"{frame.frame.time_s:.3f} s  person {pose.track_id}  pelvis at {pelvis_mm.round()} mm")
        print(poses.ledger.counts())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
