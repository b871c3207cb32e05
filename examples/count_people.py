"""Count the people in a clip and print how fast each one went: python examples/count_people.py CLIP."""

from __future__ import annotations

import sys

import numpy as np

import convnextpose


def main(clip: str) -> None:
    """Follow everybody; distances are true where the camera is known (`RunConfig(camera=...)`), elsewhere a guess."""
    walks: dict[int, list[tuple[float, float, float]]] = {}
    with convnextpose.open_pipeline(convnextpose.RunConfig(clip)) as pipeline:
        root = pipeline.header.joint_set.root
        for posed in pipeline:
            for pose in posed.poses:
                joints_mm = pose.joints_mm if pose.smoothed_mm is None else pose.smoothed_mm
                walks.setdefault(pose.track_id, []).append((posed.frame.time_s, joints_mm[root, 0], joints_mm[root, 2]))
    print(f"{len(walks)} people")
    for track_id, walk in sorted(walks.items()):
        times, places = np.array(walk)[:, 0], np.array(walk)[:, 1:]
        seconds, metres = times[-1] - times[0], np.linalg.norm(np.diff(places, axis=0), axis=1).sum() / 1000
        print(f"person {track_id}: {metres / max(seconds, 0.001):.1f} m/s over {seconds:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1])
