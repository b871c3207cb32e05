"""Clips move smoothly, and their truth is what the pictures show, in the format that the benchmark reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from benchmarks.accuracy import score  # noqa: E402
from convnextpose.weights import DEMO_TRUTH  # noqa: E402
from training import clip, families  # noqa: E402
from training.clip import RATE, SCRIPTS, SPEED_M_S, Act, Scene, film, motion  # noqa: E402

SHIPPED = Path(clip.__file__).parents[1] / "benchmarks" / "clips" / "yard.mp4"
SHORT = replace(SCRIPTS["yard"], acts=(Act(None, 0.12, 70), Act(families.wave, 0.12, 40)), start_m=(-1.0, 0.0))


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "short.mp4"
    film(SHORT, path)
    return path


def decoded(path):
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="bgr24") for frame in file.decode(video=0)]


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_people_move_smoothly_and_no_faster_than_they_walk(script):
    moments = list(motion(script))
    assert len(moments) == round(sum(act.seconds for act in script.acts) * RATE)
    angles = torch.stack([m.angles for m in moments])
    place = torch.tensor([m.place_m for m in moments])
    heading = torch.tensor([m.heading for m in moments])
    assert angles.diff(dim=0).abs().max() < 0.35  # rad in 40 ms: a quick swing of an arm
    assert place.diff(dim=0).norm(dim=-1).max() < 1.001 * SPEED_M_S / RATE
    assert heading.diff().abs().max() < math.radians(360) / RATE
    assert place.diff(dim=0).norm(dim=-1).min() == 0  # somewhere it stands


def test_the_truth_is_in_the_demo_clip_s_format(short):
    truth, demo = (json.loads(path.read_text()) for path in (short.with_suffix(".json"), DEMO_TRUTH))
    assert truth.keys() == demo.keys() and truth["joint_names"] == demo["joint_names"] and truth["note"] == demo["note"]
    for frame in truth["frames"]:
        assert frame.keys() == demo["frames"][0].keys()
        assert {k: np.shape(v) for k, v in frame.items()} == {k: np.shape(v) for k, v in demo["frames"][0].items()}


@pytest.mark.parametrize("path", [None, SHIPPED], ids=["short", "shipped"])
def test_truth_and_clip_belong_together(short, path):
    path = path or short
    truth = json.loads(path.with_suffix(".json").read_text())
    pictures = decoded(path)
    assert len(pictures) == len(truth["frames"]) and pictures[0].shape == (truth["height"], truth["width"], 3)
    for frame in truth["frames"]:
        joints, flat = np.array(frame["joints_cam_mm"]), np.array(frame["joints_px"])
        center = np.array([truth["cx"], truth["cy"]])
        np.testing.assert_allclose(joints[:, :2] / joints[:, 2:] * truth["fx"] + center, flat, atol=0.05)
        x, y, width, height = frame["box"]
        inside = np.clip(flat, 0, np.array(pictures[0].shape[1::-1]) - 1)
        assert (inside > [x - 4, y - 4]).all() and (inside < [x + width + 4, y + height + 4]).all()
        turn = np.array(frame["cam_R"])
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-4)


def test_the_person_is_where_the_truth_says(short):
    """The picture differs from the empty scene inside the silhouette's box and, but for the shadow, only there."""
    scene = Scene(SHORT)
    first = json.loads(short.with_suffix(".json").read_text())["frames"][0]
    empty = (scene.behind(scene.camera(0.0))[0][0].permute(1, 2, 0).numpy()[..., ::-1] * 255).astype(int)
    changed = np.abs(decoded(short)[0].astype(int) - empty).max(-1) > 40
    x, y, width, height = (round(v) for v in first["box"])
    inside = changed[y : y + height, x : x + width]
    assert 0.15 < inside.mean() < 0.9
    assert inside.any(0).mean() > 0.9 and inside.any(1).mean() > 0.9  # from edge to edge
    above = changed[: y - 4]
    assert above.mean() < 0.01


def test_the_benchmark_reads_the_truth(tmp_path):
    truth = json.loads(SHIPPED.with_suffix(".json").read_text())["frames"]
    joints = np.array([f["joints_cam_mm"] for f in truth])
    index = np.arange(len(truth))
    poses = {"frame_index": index, "pose_frame": index, "joints_mm": joints, "root_depth_mm": joints[:, 0, 2]}
    np.savez(tmp_path / "poses.npz", **poses, joints_px=np.array([f["joints_px"] for f in truth]))
    figures = score(tmp_path / "poses.npz", SHIPPED.with_suffix(".json"))
    assert figures["MPJPE, mm"] < 0.2 and figures["left-right swaps, %"] == 0
    assert figures["frames with a pose"] == f"{len(truth)} of {len(truth)}"


def test_a_picture_that_is_trained_on_is_refused():
    with pytest.raises(ValueError, match="held-out panorama"):
        Scene(replace(SHORT, picture="panorama-blender-forest"))
