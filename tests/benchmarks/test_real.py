"""Held-out people, a recording by calibrated cameras, and the people that a search finds, with folders made from the demo."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.joint_offsets import JOINTS, NUMBERS, in_body_axes, medians
from benchmarks.people_scores import SCORES, Known, Search, count, known_people, searchers
from benchmarks.pictures import labelled_people, pck_interval, score_pictures
from benchmarks.recording import TRUTH, read_recording, score_recording
from convnextpose import weights
from convnextpose.camera import RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import SourceError
from convnextpose.skeleton import HUMAN36M
from convnextpose.weights import DEMO_CLIP, DEMO_TRUTH
from pipeline.people import PICTURE_MIN_SCORE
from pipeline.people.track import box_from_joints
from pipeline.sources import open_source
from pipeline.types import Pose
from training.real import COCO, MEDIAPIPE, is_held_out

CLIP = json.loads(DEMO_TRUTH.read_text(encoding="utf-8"))
FRAMES = range(0, 250, 25)
MARKED = [name for name in HUMAN36M.joints if name not in ("Pelvis", "Torso", "Neck", "Head", "Thorax")]


def key_points(joints_px):
    points = np.zeros((17, 3))
    for number, joint in COCO.items():
        points[number] = *joints_px[joint], 2
    return points


def names(held_out):
    """Names of pictures that the split holds out or does not."""
    return (name for name in (f"{number:012d}.jpg" for number in range(10_000)) if is_held_out(name) == held_out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of the demo clip as labelled people: two in each held-out picture, one of them too small to count."""
    root = tmp_path_factory.mktemp("data")
    pictures = root / "real" / "pictures"
    pictures.mkdir(parents=True)
    entries, free, trained = [], names(True), names(False)
    with open_source(DEMO_CLIP) as source:
        for frame in source:
            if frame.index not in FRAMES:
                continue
            truth = CLIP["frames"][frame.index]
            for name in (next(free), next(trained)):
                cv2.imwrite(str(pictures / name), frame.image)
                person = {"file": name, "bbox": truth["box"], "keypoints": key_points(truth["joints_px"]).ravel().tolist()}
                entries += [person, {**person, "bbox": [*truth["box"][:3], 79.0]}]
    (root / "real" / "keypoints.json").write_text(json.dumps(entries), encoding="utf-8")
    nobody = {"picture": np.zeros(0, "U16"), "box": np.zeros((0, 4)), "iou": np.zeros(0)}
    np.savez(
        root / "real" / "mediapipe_heavy_pseudo.npz", **nobody, landmarks_px=np.zeros((0, 33, 4)), world_m=np.zeros((0, 33, 3))
    )
    recording(root / "eval3d")
    return root


def recording(folder, **changes):
    """The demo clip as a recording by one camera, in a rotated world."""
    (folder / "one").mkdir(parents=True)
    shutil.copy(DEMO_CLIP, folder / "one" / "cam01.mp4")
    rotation = cv2.Rodrigues(np.array([0.3, -0.5, 0.2]))[0]
    translation = np.array([0.1, -0.2, 0.3])
    camera_m = (
        np.array([frame["joints_cam_mm"] for frame in CLIP["frames"]])[:, [HUMAN36M.joints.index(n) for n in MARKED]] / 1000
    )
    truth = {
        "names": np.array([name.lower() for name in MARKED]),
        "joints3d_m": (camera_m - translation) @ rotation,
        "good": np.ones(camera_m.shape[:2], bool),
        "K": np.array([[[CLIP["fx"], 0, CLIP["cx"]], [0, CLIP["fy"], CLIP["cy"]], [0, 0, 1]]]),
        "dist": np.zeros((1, 4)),
        "R": rotation[None],
        "T": translation[None],
    }
    np.savez(folder / TRUTH, **truth | changes)
    return read_recording(folder)


def figures(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *map(str, words[1:])])
    return getattr(accuracy, words[0])(argparse.ArgumentParser())[1]


def test_only_people_who_are_held_out_and_large_enough_count(folder):
    files, people = labelled_people(folder, held_out_only=True)
    assert len(people) == len(files) == len(FRAMES)
    assert all(is_held_out(name) and files[name].is_file() for name in files)
    assert all(person.box.height >= 80 for person in people)
    assert sorted(np.flatnonzero(people[0].seen)) == sorted(COCO.values())
    exact = [person.joints_px for person in people]
    assert score_pictures(people, exact).pck == 1
    assert pck_interval(people, exact) == (1, 1)


def test_real2d_gives_the_default_weights_on_the_demo_clips_people_what_the_demo_gives(folder, monkeypatch):
    found = figures(monkeypatch, "real2d", folder)
    assert found["people"] == found["pictures"] == len(FRAMES)
    assert found["limb joints"] == 12 * len(FRAMES)
    assert found["limbs, PCK at 0.2 torso, %"] > 85
    assert found["limbs, median error, % of the torso"] < 15


def test_the_interval_is_wider_the_fewer_pictures_there_are(folder):
    _, people = labelled_people(folder, held_out_only=True)
    wrong = [p.joints_px + (k % 2) * p.torso_px for k, p in enumerate(people)]
    low, high = pck_interval(people, wrong)
    assert low < score_pictures(people, wrong).pck == 0.5 < high
    low_of_more, high_of_more = pck_interval(
        [person for k in range(9) for person in renamed(people, k)], [joints for _ in range(9) for joints in wrong]
    )
    assert high_of_more - low_of_more == pytest.approx((high - low) / 3, rel=0.2)


def renamed(people, number):
    return [type(person)(**{**vars(person), "file": f"{number} {person.file}"}) for person in people]


def test_a_folder_without_held_out_people_is_refused_in_a_sentence(folder, tmp_path):
    shutil.copytree(folder / "real", tmp_path / "real")
    entries = json.loads((tmp_path / "real" / "keypoints.json").read_text(encoding="utf-8"))
    kept = [entry for entry in entries if not is_held_out(entry["file"])]
    (tmp_path / "real" / "keypoints.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(SourceError, match="expected labelled people who are held out"):
        labelled_people(tmp_path, held_out_only=True)


def perfect(camera):
    """A reader that returns the truth of each frame in turn."""
    frames = iter(CLIP["frames"])

    def read(image, box):
        joints = np.array(next(frames)["joints_cam_mm"])
        pelvis = joints[[HUMAN36M.joints.index("L_Hip"), HUMAN36M.joints.index("R_Hip")]].mean(0)
        return np.concatenate([camera.project(joints), joints[:, 2:] - pelvis[2]], axis=1)

    return read


def test_the_true_joints_have_no_error_whatever_the_lens(tmp_path):
    for number, lens in enumerate((0.0, 0.1)):
        recorded = recording(tmp_path / str(number), dist=np.array([[lens, 0.02, 0.001, -0.001]]))
        result = score_recording(recorded, perfect(recorded.cameras[0]))
        assert result.poses == len(CLIP["frames"])
        assert result.mpjpe_mm == pytest.approx(0, abs=0.1)
        assert result.pa_mpjpe_mm == pytest.approx(0, abs=0.1)


def test_only_good_joints_count_and_frames_without_hips_are_left_out(tmp_path):
    good = np.ones((len(CLIP["frames"]), len(MARKED)), bool)
    good[:, MARKED.index("R_Wrist")] = False
    good[100:, MARKED.index("L_Hip")] = False
    recorded = recording(tmp_path / "few", good=good)
    read = perfect(recorded.cameras[0])

    def wrong_wrist(image, box):
        joints = read(image, box)
        joints[HUMAN36M.joints.index("R_Wrist")] += 500
        return joints

    result = score_recording(recorded, wrong_wrist)
    assert result.poses == 100
    assert result.mpjpe_mm == pytest.approx(0, abs=0.1)
    with pytest.raises(SourceError, match="expected frames with both hips"):
        score_recording(recording(tmp_path / "none", good=np.zeros_like(good)), read)


def test_real3d_gives_the_default_weights_on_the_demo_clip_what_the_demo_gives(folder, monkeypatch):
    found = figures(monkeypatch, "real3d", folder, "--every", 25)
    assert found["poses"] == len(FRAMES)
    assert 0 < found["PA-MPJPE, with scale, mm"] < found["MPJPE with the true root depth, mm"] < 100


@pytest.mark.parametrize(
    "changes", [{"names": np.array(["nose"])}, {"K": np.zeros((2, 3, 3))}, {"good": np.ones((3, 13), bool)}]
)
def test_a_recording_that_is_not_as_described_is_refused(tmp_path, changes):
    with pytest.raises(SourceError, match="expected a recording in"):
        recording(tmp_path / "wrong", **changes)


def test_a_missing_recording_is_refused(tmp_path):
    with pytest.raises(SourceError, match="expected a recording in"):
        read_recording(tmp_path)


@pytest.fixture(scope="module")
def more(folder):
    """The folder with a frame of the demo clip as a separate source, and a background."""
    pictures = folder / "real" / "more"
    pictures.mkdir()
    truth = CLIP["frames"][FRAMES[4]]
    with open_source(DEMO_CLIP) as source:
        frame = next(frame for frame in source if frame.index == FRAMES[4])
    for name in ("clip__f00000.jpg", "elsewhere__f00000.jpg"):
        cv2.imwrite(str(pictures / name), frame.image)
    boxes = {}
    for entry in json.loads((folder / "real" / "keypoints.json").read_text(encoding="utf-8")):
        x, y, width, height = entry["bbox"]
        if height > 79:
            boxes.setdefault(entry["file"], []).append([x + 0.001, y, width, height])  # whole numbers would mean a crowd
    (folder / "real" / "person_boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    cv2.imwrite(str(pictures / "backgrounds__wall.jpg"), np.full((240, 320, 3), 90, np.uint8))
    rows = ["file,people_good", "clip__f00000.jpg,1", "elsewhere__f00000.jpg,1", "backgrounds__wall.jpg,0"]
    (pictures / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    landmarks = np.zeros((2, 33, 4))
    for number, joint in MEDIAPIPE.items():
        landmarks[:, number] = *truth["joints_px"][joint], 0, 1
    np.savez(
        pictures / "mediapipe_heavy_pseudo.npz",
        picture=np.array(["clip__f00000.jpg", "elsewhere__f00000.jpg"]),
        box=np.array([truth["box"], [0, 0, 40, 400]]),  # the second is far from the person
        iou=np.ones(2),
        landmarks_px=landmarks,
        world_m=np.zeros((2, 33, 3)),
    )
    return folder


def test_a_search_counts_known_people_others_and_false_alarms(more):
    groups = known_people(more)
    wall = "without people, trained on by the detector"
    sizes = {"held out": len(FRAMES), "with people, clip": 1, "with people, elsewhere": 1, wall: 1}
    assert {name: len(people) for name, people in groups.items() if people} == sizes
    scores = (SCORES[0], PICTURE_MIN_SCORE, SCORES[-1])
    finders = searchers("xs", weights.detector(), scores)
    counts = {name: count(finders, people, 1) for name, people in groups.items() if people}
    at = scores.index(PICTURE_MIN_SCORE)
    assert counts["held out"]["found"][at] >= 0.8 * len(FRAMES) and counts["held out"]["there"][at] == len(FRAMES)
    kinds = ("found", "there", "other", "pictures")
    assert [counts["with people, clip"][kind][at] for kind in kinds] == [1, 1, 0, 1]
    assert [counts["with people, elsewhere"][kind][at] for kind in kinds] == [0, 1, 1, 1]
    assert [counts[wall][kind][at] for kind in kinds] == [0, 0, 0, 1]
    for counted in counts.values():
        by_score = [found + other for found, other in zip(counted["found"], counted["other"], strict=True)]
        assert by_score == sorted(by_score, reverse=True), "a higher threshold never finds more"


def test_each_known_person_is_found_once_and_neither_crowds_nor_small_people_are_wrong():
    box, joints = Box(100, 50, 80, 300), np.zeros((18, 3))
    joints[:, :2] = np.random.default_rng(0).uniform((105, 60), (175, 320), (18, 2))
    joints[0, :2], joints[1, :2] = (105, 60), (175, 320)
    pose = Pose(0, box, joints[:, :2], joints, np.full(18, 0.6), 3000, RootDepthSource.GIVEN)
    search = Search(Path("a.jpg"), 0, (640, 480), {0.5: (pose, pose)})
    around, beside, small = box_from_joints(joints), Box(400, 50, 80, 300), Box(20, 20, 20, 40)
    assert search.count(0.5, Known([around, beside, small])) == (1, 2, 1)
    assert search.count(0.5, Known([beside], [Box(0, 0, 300, 480)])) == (0, 1, 0)
    assert search.count(0.5, Known([beside], [Box(0, 0, 120, 480)])) == (0, 1, 2), "less than half of it is in the crowd"


def test_a_manifest_without_its_columns_is_refused(more, tmp_path):
    shutil.copytree(more / "real", tmp_path / "real")
    (tmp_path / "real" / "more" / "manifest.csv").write_text("name\na.jpg\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"expected .*manifest\.csv as training/README.md describes it"):
        known_people(tmp_path)


@pytest.mark.parametrize("size", [2, 3])
def test_offsets_turn_with_the_body(size):
    """However a person is rotated, moved and scaled, a joint that is too far outward and up has the same offset."""
    random = np.random.default_rng(size)
    joints = np.array(CLIP["frames"][0]["joints_cam_mm"])[:, :size]
    left, right = (joints[HUMAN36M.joints.index(f"{side}_Shoulder")] for side in "LR")
    offsets = 0.1 * random.normal(size=(len(JOINTS), size)) * np.linalg.norm(left - right)
    expected = in_body_axes(offsets, joints, mistaken=np.inf)
    assert np.allclose(np.linalg.norm(expected, axis=1), np.linalg.norm(offsets, axis=1))
    turn = np.linalg.qr(random.normal(size=(size, size)))[0]
    turn[0] *= np.sign(np.linalg.det(turn))
    turned = in_body_axes(offsets @ turn.T, 2 * joints @ turn.T + 50, mistaken=np.inf)
    assert np.allclose(turned, expected)
    shoulders_out = np.zeros((len(JOINTS), size))
    shoulders_out[JOINTS.index("L_Shoulder")], shoulders_out[JOINTS.index("R_Shoulder")] = left - right, right - left
    assert (
        in_body_axes(shoulders_out, joints, mistaken=np.inf)[[JOINTS.index("L_Shoulder"), JOINTS.index("R_Shoulder")], 0] > 0
    ).all()
    assert np.isnan(in_body_axes(offsets, joints, mistaken=0.0)).all()


def test_medians_join_both_sides():
    offsets = np.zeros((9, len(JOINTS), 2))
    for number, name in enumerate(JOINTS):
        offsets[:, number] = (
            ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Nose").index(name.removeprefix("L_").removeprefix("R_")),
            0.5,
        )
    offsets[4] = np.nan
    for values in medians(offsets, [str(k // 3) for k in range(9)]):
        assert np.allclose(values, [[k, 0.5] for k in range(7)])
    assert len(NUMBERS) == len(JOINTS) == 13
