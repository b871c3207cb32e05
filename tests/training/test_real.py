"""People in real pictures are read as they were marked, held out by picture, changed by the seed alone, and trained on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from convnextpose.crop import Box  # noqa: E402
from convnextpose.errors import SourceError  # noqa: E402
from convnextpose.skeleton import HUMAN36M  # noqa: E402
from convnextpose.weights import load  # noqa: E402
from training import evaluate, real_crops  # noqa: E402
from training.plan import Plan  # noqa: E402
from training.real import COCO, DEPTH_WEIGHT, LIMBS, MEDIAPIPE, is_held_out, read_people, shares  # noqa: E402
from training.real_crops import CutOuts, HeldOutPeople, RealCrops, limb_score  # noqa: E402
from training.stream import Stream  # noqa: E402
from training.train import Trainer, main, run  # noqa: E402

CPU = torch.device("cpu")
PLAN = Plan(size=64, steps=6, batch=4, chunk=4, kept=3, filled=2, reuse=1.5, warmup=2, real=0.5)
NAMES = [f"{number:03d}.jpg" for number in range(9)]
BOX = (60.0, 30.0, 100.0, 180.0)
PLACES = {  # of COCO's key points, in shares of the box
    0: (0.5, 0.08), 5: (0.7, 0.2), 6: (0.3, 0.2), 7: (0.8, 0.35), 8: (0.2, 0.35), 9: (0.85, 0.5), 10: (0.15, 0.5),
    11: (0.62, 0.5), 12: (0.38, 0.5), 13: (0.62, 0.75), 14: (0.38, 0.75), 15: (0.62, 0.97), 16: (0.38, 0.97),
}  # fmt: skip


def place(number):
    return BOX[0] + BOX[2] * PLACES[number][0], BOX[1] + BOX[3] * PLACES[number][1]


def draw_person(path):
    image = np.full((240, 220, 3), 60, np.uint8)
    for number in PLACES:
        x, y = place(number)
        cv2.circle(image, (round(x), round(y)), 5, (20 * number % 255, 255 - 12 * number, 40 + 10 * number), -1)
    cv2.imwrite(str(path), image)


def guesses(names, moved=(0, 0)):
    """What the file of guesses holds: the same body in each picture, `moved` by px, one joint hidden, the left side nearer."""
    landmarks, world = np.zeros((len(names), 33, 4), np.float32), np.zeros((len(names), 33, 3), np.float32)
    of_joint = {joint: number for number, joint in COCO.items()}
    for number, joint in MEDIAPIPE.items():
        landmarks[:, number] = (*np.add(place(of_joint[joint]), moved), 0, 0.9)
        world[:, number, 2] = -0.1 if HUMAN36M.joints[joint].startswith("L_") else 0.1
    landmarks[:, 28, 3] = 0.2  # the right ankle
    boxes = np.tile(np.float32([BOX[0] + moved[0], BOX[1] + moved[1], *BOX[2:]]), (len(names), 1))
    return {
        "picture": np.array(names), "box": boxes, "landmarks_px": landmarks, "world_m": world,
        "iou": np.full(len(names), 0.8, np.float32),
    }  # fmt: skip


def write(root):
    """A data folder: nine pictures, the first seven marked by hand, the right wrist not; all with guesses; six frames."""
    (root / "real" / "pictures").mkdir(parents=True)
    (root / "real" / "more").mkdir()
    frames = [f"home__Subject_1_f{number}.jpg" for number in range(6)]
    for name in NAMES:
        draw_person(root / "real" / "pictures" / name)
    for name in frames:
        draw_person(root / "real" / "more" / name)
    points = [[*place(k), 2] if k in PLACES and k != 10 else [0, 0, 0] for k in range(17)]
    entries = [
        {"file": name, "bbox": BOX, "keypoints": np.array(points).ravel().tolist(), "num_keypoints": 12} for name in NAMES[:7]
    ]
    (root / "real" / "keypoints.json").write_text(json.dumps(entries))
    np.savez(root / "real" / "mediapipe_heavy_pseudo.npz", **guesses(NAMES))
    np.savez(root / "real" / "more" / "mediapipe_heavy_pseudo.npz", **guesses(frames))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def people(folder):
    return read_people(folder)


def joint(name):
    return HUMAN36M.joints.index(name)


def test_marks_are_read_as_they_are(people):
    person = people[1][0]
    for number, index in COCO.items():
        if number == 10:
            assert person.weights[index, 0] == 0
        else:
            np.testing.assert_allclose(person.joints[index, :2], place(number), atol=1e-3)
            assert tuple(person.weights[index, :2]) == (1, 1)
    np.testing.assert_allclose(person.joints[joint("Pelvis"), :2], np.add(place(11), place(12)) / 2, atol=1e-3)
    assert person.torso_px == pytest.approx(0.3 * BOX[3]) and person.scorable
    unmarked = [joint(name) for name in ("Torso", "Neck", "Head", "R_Wrist")]
    assert not person.weights[unmarked].any() and not person.weights[:, 2].any()


def test_nobody_in_a_held_out_picture_is_trained_on(people):
    train, held_out = people
    names = {person.picture.name for person in held_out}
    assert names == {name for name in NAMES[:7] if is_held_out(name)} and names
    assert not names & {person.picture.name for person in train}
    assert {person.picture.name for person in train} >= set(NAMES) - names
    assert all(person.by_hand for person in held_out)


def test_about_a_third_is_held_out():
    assert 0.3 < np.mean([is_held_out(f"{number:012d}.jpg") for number in range(3000)]) < 0.37


def test_a_guess_lends_its_depth_where_it_agrees(people, folder):
    train, _ = people
    person = next(p for p in train if p.by_hand)
    assert sum(p.picture == person.picture for p in train) == 1  # the guess of the same body is no second person
    left, right = joint("L_Hip"), joint("R_Hip")
    assert person.joints[left, 2] == -100 and person.joints[right, 2] == 100
    assert person.weights[left, 2] == np.float32(DEPTH_WEIGHT)
    assert person.weights[joint("R_Wrist"), 2] == 0 and person.weights[joint("R_Ankle"), 2] == 0  # not marked; not in sight
    assert person.weights[joint("R_Ankle"), 0] == 1


def test_a_guess_that_strays_lends_nothing(folder, tmp_path):
    for path in folder.rglob("*"):
        target = tmp_path / path.relative_to(folder)
        target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    np.savez(tmp_path / "real" / "mediapipe_heavy_pseudo.npz", **guesses(NAMES, moved=(20, 0)))
    marked = [p for p in read_people(tmp_path)[0] if p.by_hand]
    assert marked and not any(p.weights[:, 2].any() for p in marked)


def test_frames_of_one_person_are_few_people(people):
    train, _ = people
    frames = [p.subject == "home Subject_1" for p in train]
    odds = shares(train, by_hand=1.5, frames=2.0)
    by_hand = [p.by_hand for p in train]
    assert sum(frames) == 6 and odds.sum() == pytest.approx(1)
    alone = odds[[not f and not h for f, h in zip(frames, by_hand, strict=True)]]
    assert odds[frames].sum() == pytest.approx(2 * alone[0]) and odds[by_hand][0] == pytest.approx(1.5 * alone[0])


@pytest.mark.parametrize("damage", ["missing", "not JSON", "no picture", "half a file"])
def test_a_damaged_folder_is_told(folder, tmp_path, damage):
    for path in folder.rglob("*"):
        target = tmp_path / path.relative_to(folder)
        target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    marks, guessed = tmp_path / "real" / "keypoints.json", tmp_path / "real" / "mediapipe_heavy_pseudo.npz"
    if damage == "missing":
        marks.unlink()
    elif damage == "not JSON":
        marks.write_text("[{")
    elif damage == "no picture":
        (tmp_path / "real" / "pictures" / NAMES[8]).unlink()
    else:
        guessed.write_bytes(guessed.read_bytes()[:300])
    with pytest.raises(SourceError, match=r"training/README\.md"):
        read_people(tmp_path)


@pytest.fixture
def cut_outs(people):
    return CutOuts.of(people[0])


def batch(cut_outs, count, size, seed=1):
    return RealCrops(cut_outs, count, size, seed).batch(0)


def test_seed_and_step_decide_the_crops(cut_outs):
    steady, resumed, other = (RealCrops(cut_outs, 4, 64, seed) for seed in (1, 1, 2))
    steps = [steady.batch(step) for step in (6, 7)]
    again = resumed.batch(7)
    assert all(torch.equal(a, b) for a, b in zip(steps[1], again, strict=True))
    for different in (steps[0], other.batch(7)):
        assert not torch.equal(different[0], again[0])


def test_processes_make_the_same_crops_as_threads(cut_outs):
    threads, processes = (RealCrops(cut_outs, 4, 64, 1, count) for count in (0, 2))
    for step in (0, 1, 30):
        assert all(torch.equal(a, b) for a, b in zip(threads.batch(step), processes.batch(step), strict=True))


def test_labels_stay_on_the_body(cut_outs, monkeypatch):
    for name in ("BLURRED", "COARSE", "COMPRESSED", "NOISY", "EXCHANGED"):
        monkeypatch.setattr(real_crops, name, 0.0)
    monkeypatch.setattr(real_crops, "COVERS", (1.0, 0.0, 0.0, 0.0))
    images, labels = batch(cut_outs, 32, 256)
    wrist = labels[:, joint("L_Wrist")]
    inside = ((wrist[:, :2] > 3) & (wrist[:, :2] < 252)).all(1)
    assert inside.sum() > 20 and labels[..., 0].std(0).max() > 10
    for image, (x, y, *_) in zip(images[inside], wrist[inside].tolist(), strict=True):
        here, beside = image[round(y), round(x)].float(), image.float().median(0)[0].median(0)[0]
        assert (here - beside).abs().max() > 25  # a disc of another colour is drawn at each joint


def test_covered_joints_count_less(cut_outs, monkeypatch):
    plain = batch(cut_outs, 32, 64)[1]
    assert set(plain[..., 3].unique().tolist()) <= {2 * 0.5**k for k in range(4)} | {0.0}
    monkeypatch.setattr(real_crops, "COVERS", (1.0, 0.0, 0.0, 0.0))
    assert set(batch(cut_outs, 32, 64)[1][..., 3].unique().tolist()) == {0.0, 2.0}


def test_the_marks_score_best(people):
    judged = HeldOutPeople.of(people[1], 128)
    truth = torch.as_tensor(np.concatenate([judged.joints_px, np.zeros((len(judged.images), 18, 1))], -1))
    best = limb_score(truth, judged)
    assert best.right == 1 and best.median == 0 and best.swaps == 0
    exchanged = limb_score(truth[:, list(HUMAN36M.flip_order)], judged)
    assert exchanged.swaps == 1 and exchanged.right < 0.5
    assert judged.seen.sum(1).max() == len(LIMBS) - 1
    moved = limb_score(truth + 0.1 * torch.as_tensor(judged.torso_px)[:, None, None], judged)
    assert moved.median == pytest.approx(0.1 * 2**0.5)


@pytest.mark.slow
def test_two_slices_with_real_people_are_one(folder, tmp_path):
    whole = run(tmp_path / "whole", PLAN, CPU, data=folder, held_out_count=0)
    run(tmp_path / "slices", PLAN, CPU, data=folder, steps=2, held_out_count=0)
    resumed = run(tmp_path / "slices", PLAN, CPU, data=folder, held_out_count=0)
    states = zip(whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True)
    assert resumed.step == 6 and all(torch.equal(a, b) for a, b in states)


def test_a_run_goes_on_only_with_the_people_it_began_with(folder, people, tmp_path, monkeypatch):
    run(tmp_path, PLAN, CPU, data=folder, steps=1, held_out_count=0)
    monkeypatch.setattr("training.real_crops.read_people", lambda _: (people[0][1:], people[1]))
    with pytest.raises(ValueError, match="data folder"):
        run(tmp_path, PLAN, CPU, data=folder, held_out_count=0)


def test_a_batch_has_its_share_of_real_people(folder):
    trainer = Trainer(replace(PLAN, batch=8), CPU, data=folder)
    with Stream(trainer.plan, CPU) as stream:
        stream.advance(2)
        images, labels = trainer._batch(stream)
    whole = (labels[..., 3:] == 1).flatten(1).all(1)
    assert images.shape == (8, 3, 64, 64) and labels.shape == (8, 18, 6) and whole.tolist() == [True] * 4 + [False] * 4


def test_a_run_is_judged_on_the_held_out_people(folder, monkeypatch):
    monkeypatch.setattr("training.evaluate.LOT", 4)
    figures, _ = Trainer(replace(PLAN, size=128), CPU, data=folder).judge(4)
    assert set(figures["people"]) == {"right", "median", "swaps"} and 0 <= figures["people"]["right"] <= 1


def test_weights_are_scored_on_people_held_out_and_trained_on(folder, people, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "SETS", {})
    monkeypatch.setattr(sys, "argv", ["evaluate", str(load("xs").safetensors), "--size", "64", "--data", str(folder)])
    evaluate.main()
    held_out, trained = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (held_out["set"], held_out["count"]) == ("people", len(people[1]))
    assert (trained["set"], trained["count"]) == ("people trained on", sum(person.by_hand for person in people[0]))
    assert held_out.keys() == trained.keys() == {"set", "count", "right", "median", "swaps"}


def test_real_people_need_a_folder(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="data folder"):
        Trainer(PLAN, CPU)
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path), "--real", "0.5"])
    with pytest.raises(SystemExit):
        main()
    assert "--data" in capsys.readouterr().err


def test_a_batch_needs_somebody_rendered():
    with pytest.raises(ValueError, match="rendered"):
        Plan(real=1.0)
    assert Plan(steps=100, real=0.5).chunks_before(100) < Plan(steps=100).chunks_before(100)


def test_a_box_outside_its_picture_has_no_crop(people):
    wrong = replace(people[0][0], box=Box(5000, 5000, 10, 10))
    with pytest.raises(ValueError, match="box"):
        CutOuts.of([wrong])
    with pytest.raises(SourceError, match="decoded"):
        CutOuts.of([replace(people[0][0], picture=Path("nowhere.jpg"))])
    for empty in (CutOuts.of, lambda nobody: HeldOutPeople.of(nobody, 64)):
        with pytest.raises(SourceError, match="found none"):
            empty([])
