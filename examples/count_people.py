"""Count the people in a clip and print their speeds: python examples/count_people.py CLIP."""

from __future__ import annotations

import sys

import numpy as np

import convnextpose


def speed(walk: list[tuple[float, ...]]) -> float | None:
    """The speed in m/s from times in s and positions in mm, or None if they are all within one second.

    It is computed from the mean positions of successive seconds, because the noise between frames is larger than the movement.
    """
    seconds = np.floor([time_s for time_s, *_ in walk])
    means = np.array([np.array(walk)[seconds == second].mean(axis=0) for second in np.unique(seconds)])
    steps = np.diff(means, axis=0)
    return float(np.linalg.norm(steps[:, 1:], axis=1).sum() / 1000 / steps[:, 0].sum()) if len(steps) else None


def main(clip: str) -> None:
    """Track everybody. Distances are a guess unless the camera is known (`RunConfig(camera=...)`)."""
    walks: dict[int, list[tuple[float, ...]]] = {}
    with convnextpose.open_pipeline(clip) as pipeline:
        root = pipeline.header.joint_set.root
        for posed in pipeline:
            for pose in posed.poses:
                position_mm = pose.joints_mm[root] * pose.depth_scale  # with the feet on the floor
                walks.setdefault(pose.track_id, []).append((posed.frame.time_s, *position_mm))
    print(f"people: {len(walks)}")
    for track_id, walk in sorted(walks.items()):
        told = "too short for a speed" if (metres_per_s := speed(walk)) is None else f"{metres_per_s:.1f} m/s"
        print(f"person {track_id}: {told}, seen from {walk[0][0]:.1f} to {walk[-1][0]:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1])
