"""How good the poses of a run are: a result against the true poses of its clip.

    python benchmarks/accuracy.py RESULTS/poses.npz TRUTH.json

TRUTH.json holds, for each frame, `joints_cam_mm` [18, 3] (camera axes, mm) and `joints_px` [18, 2] (pixel centres at
whole numbers), as the demo clip's does. A frame without a pose counts as missed, never as a small error.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from convnextpose.metrics import joint_errors, mpjpe, pa_mpjpe, pck, swap_rate
from convnextpose.skeleton import HUMAN36M


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="poses.npz of a run")
    parser.add_argument("truth", type=Path, help="JSON with the true joints of every frame")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    figures = score(arguments.results, arguments.truth)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"accuracy of {arguments.results} against {arguments.truth.name}")
    for name, value in figures.items():
        print(f"  {name:34s} {value:8.1f}" if isinstance(value, float) else f"  {name:34s} {value}")


def score(results: Path, truth_file: Path) -> dict[str, float | str]:
    """The scores of one result, by name and unit."""
    truth = json.loads(truth_file.read_text(encoding="utf-8"))["frames"]
    with np.load(results) as run:
        frame_of_pose = run["frame_index"][run["pose_frame"]]
        first = {int(frame): row for row, frame in reversed(list(enumerate(frame_of_pose)))}
        rows = [first[f["frame"]] for f in truth if f["frame"] in first]
        joints_mm, joints_px = run["joints_mm"][rows], run["joints_px"][rows]
        root_mm = run["root_depth_mm"][rows]
    seen = [f for f in truth if f["frame"] in first]
    figures: dict[str, float | str] = {"frames with a pose": f"{len(seen)} of {len(truth)}"}
    if not seen:
        return figures
    true_mm = np.array([f["joints_cam_mm"] for f in seen])
    true_px = np.array([f["joints_px"] for f in seen])
    scored = list(HUMAN36M.scored)
    torso_px = np.linalg.norm(true_px[:, HUMAN36M.joints.index("Neck")] - true_px[:, HUMAN36M.root], axis=-1)
    # With the true root depth in place of the estimated one: the network's own error, as papers give it.
    true_depth_mm = true_mm[:, HUMAN36M.root, 2]
    relative_z = joints_mm[..., 2:] - root_mm[:, None, None]
    rays = joints_mm[..., :2] / joints_mm[..., 2:]
    z = relative_z + true_depth_mm[:, None, None]
    with_true_root = np.concatenate([rays * z, z], axis=-1)
    figures |= {
        "MPJPE, mm": mpjpe(joints_mm, true_mm, HUMAN36M),
        "MPJPE with the true root depth, mm": mpjpe(with_true_root, true_mm, HUMAN36M),
        "PA-MPJPE, mm": pa_mpjpe(joints_mm, true_mm, HUMAN36M),
        "mean error in the picture, px": float(np.linalg.norm(joints_px - true_px, axis=-1)[:, scored].mean()),
        "PCK at 0.2 torso, %": 100 * pck(joints_px[:, scored], true_px[:, scored], torso_px),
        "left-right swaps, %": 100 * swap_rate(joints_mm, true_mm, HUMAN36M),
        "root depth error, mean, mm": float(np.abs(root_mm - true_depth_mm).mean()),
    }
    worst = joint_errors(joints_mm, true_mm, HUMAN36M).mean(0)
    order = sorted(scored, key=lambda j: -worst[j])[:3]
    figures["worst joints"] = ", ".join(f"{HUMAN36M.joints[j]} {worst[j]:.0f} mm" for j in order)
    return figures


if __name__ == "__main__":
    main()
