"""The detector's loss wants what decoding gives, its figures count what they say, and its runs are those of the trainer."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from convnextpose import weights  # noqa: E402
from convnextpose.detector import STRIDE, build_detector, decode  # noqa: E402
from convnextpose.errors import SourceError  # noqa: E402
from engines.layouts import Placement, Preparation  # noqa: E402
from pipeline.people.detection import _laid_out  # noqa: E402
from tests.training import test_avatars, test_fabric, test_mocap  # noqa: E402
from training import state  # noqa: E402
from training.dataset import seeded  # noqa: E402
from training.detector import (  # noqa: E402
    MIN_SCORES,
    SETS,
    WEIGHTS,
    DetectorTrainer,
    FrameChunks,
    detection_loss,
    held_out,
    main,
    predict,
    score,
    targets,
)
from training.frames import FrameRenderer  # noqa: E402
from training.plan import Plan  # noqa: E402
from training.real import is_held_out, read_pictures  # noqa: E402
from training.real_frames import CROWD, NOBODY, UNCLEAR, WANTED, HeldOutFrames, RealFrames, labelled, letterbox, read_frames  # noqa: E402
from training.stream import Stream  # noqa: E402
from training.train import run  # noqa: E402

CPU = torch.device("cpu")
PLAN = Plan(size=64, steps=4, batch=4, chunk=4, kept=3, filled=2, reuse=1.5, warmup=2)
MIDDLE = st.integers(8, 119).map(lambda px: px + 0.3)
"""A person's middle, px: not on the line between two cells, where rounding decides."""
START = weights.FOLDER / "xs.safetensors"


@pytest.fixture(scope="module")
def frames():
    renderer = FrameRenderer("cpu", 128)
    return renderer.batch(24, 0.6, seeded(renderer.device, 9))


def perfect(x, y, width, height, cells=16):
    """Maps that say where one person is: sure of the middle, and the right box in every cell."""
    maps = torch.full((1, 5, cells, cells), -12.0)
    u, v = (x + width / 2) / STRIDE, (y + height / 2) / STRIDE
    maps[0, 0, math.floor(v), math.floor(u)] = 12
    line = torch.arange(cells) + 0.5
    maps[0, 1], maps[0, 2] = u - line, (v - line)[:, None]
    maps[0, 3], maps[0, 4] = math.log(width / STRIDE), math.log(height / STRIDE)
    return maps


def one(x, y, width, height, kind=1.0):
    return torch.tensor([[[x, y, width, height, kind]]])


@given(MIDDLE, MIDDLE, st.floats(6, 200), st.floats(6, 200))
def test_decoding_inverts_the_targets(u, v, width, height):
    truth = (u - width / 2, v - height / 2, width, height)
    boxes, scores = decode(perfect(*truth))
    torch.testing.assert_close(boxes[0, 0], torch.tensor(truth), atol=1e-2, rtol=1e-4)
    assert scores[0, 0] > 0.99 and scores[0, 1] < 0.01


@settings(max_examples=25, deadline=None)
@given(MIDDLE, MIDDLE, st.floats(6, 120), st.floats(6, 120))
def test_the_truth_has_the_least_loss(u, v, width, height):
    truth = (u - width / 2, v - height / 2, width, height)
    labels = one(*truth)
    best, error = detection_loss(perfect(*truth), labels)
    assert best < 1e-3 and error < 1e-4
    for change in range(5):
        maps = perfect(*truth)
        maps[:, change] += 1.0 if change else 14.0  # everywhere: a person in each cell, or boxes that are off
        assert detection_loss(maps, labels)[0] > 0.1
    missed = perfect(*truth)
    missed[:, 0] = -12
    assert detection_loss(missed, labels)[0] > 1


def test_who_can_hardly_be_seen_is_neither_wanted_nor_wrong():
    sure, hidden, nobody = perfect(40, 30, 20, 60), one(40, 30, 20, 60, UNCLEAR), one(0, 0, 0, 0, NOBODY)
    assert detection_loss(sure, hidden)[0] < 0.01 < 1 < detection_loss(sure, nobody)[0]


def test_in_a_crowd_only_those_who_are_marked_count():
    everybody = perfect(40, 30, 20, 60)
    everybody[:, 0, 2:14, 2:14] = 12.0
    crowd, marked = one(16, 16, 96, 96, CROWD), one(40, 30, 20, 60)
    assert detection_loss(everybody, torch.cat([marked, crowd], 1))[0] < 0.1 < 1 < detection_loss(everybody, marked)[0]
    nobody = torch.cat([perfect(40, 30, 20, 60)[:, :1] * 0 - 12, perfect(40, 30, 20, 60)[:, 1:]], 1)
    assert detection_loss(nobody, torch.cat([marked, crowd], 1))[0] > 1  # who is marked is wanted all the same


def test_targets_lie_in_the_picture(frames):
    labels = targets(frames)
    there = labels[..., 4] != NOBODY
    assert (labels[..., 4] == WANTED).any() and (~there).any()
    high = labels[..., :2] + labels[..., 2:4]
    areas = frames.areas[:, None].expand(-1, labels.shape[1], -1)
    assert (labels[there][:, :2] >= -0.5).all() and (high[there] <= areas[there] - 0.5 + 1e-3).all()


def test_numbers_of_poses_mean_nothing_to_it():
    trainer = DetectorTrainer(replace(PLAN, turned=1.0, coats=0.5), CPU)
    assert trainer.plan == replace(PLAN, **{n: 0.0 for n in DetectorTrainer.unused - {"variant"}})


def test_mirroring_twice_changes_nothing(frames):
    trainer = DetectorTrainer(PLAN, CPU)
    labels = targets(frames)
    images, mirrored = trainer.mirrored(frames.images, labels)
    middle = mirrored[..., 0] + mirrored[..., 2] / 2
    torch.testing.assert_close(middle, 127 - labels[..., 0] - labels[..., 2] / 2)
    back = trainer.mirrored(images, mirrored)
    assert torch.equal(back[0], frames.images)
    torch.testing.assert_close(back[1], labels, atol=1e-4, rtol=0)


def test_the_truth_scores_best(frames):
    labels = targets(frames).numpy()
    people = [truth[truth[:, 4] == WANTED] for truth in labels]
    right = [(p[:, :4], np.full(len(p), 0.9)) for p in people]
    truth = torch.from_numpy(labels)
    figures = score(right, truth)
    assert figures.average_precision == pytest.approx(1) and figures.false_positives == 0
    assert figures.recall == figures.precision == 1
    assert all(math.isnan(r) or r == 1 for r in (*figures.recalls, *figures.precisions))
    assert score(right, truth, 0.95).recall == 0 and math.isnan(score(right, truth, 0.95).precision)
    twice = [(np.concatenate([b, b]), np.concatenate([s, s - 0.1])) for b, s in right]
    assert score(twice, truth).average_precision == pytest.approx(1)  # the surer ones came first
    assert score(twice, truth).precision == pytest.approx(0.5, abs=0.1)
    assert score([(np.concatenate([b, b]), np.concatenate([s, s])) for b, s in right], truth).average_precision < 0.9
    moved = [(b + np.array([1000, 0, 0, 0]), s) for b, s in right]
    assert score(moved, truth).average_precision == 0
    empty = [(one[:, 4] == NOBODY).all() for one in labels]
    ghost = (np.array([[5.0, 5, 20, 50]]), np.array([0.8]))
    haunted = [ghost if e else r for e, r in zip(empty, right, strict=True)]
    assert any(empty) and score(haunted, truth).false_positives == 1


def test_a_box_in_a_crowd_or_of_somebody_unclear_is_not_wrong():
    box, surely = np.array([[40.0, 30, 20, 60]]), np.array([0.9])
    for kind, excused in ((NOBODY, False), (UNCLEAR, True), (CROWD, True)):
        alone = torch.cat([one(40, 30, 20, 60, kind), one(200, 30, 20, 60)], 1)
        figures = score([(box, surely)], alone)
        assert math.isnan(figures.precision) if excused else figures.precision == 0
        assert figures.recall == 0
    assert math.isnan(score([(box, surely)], one(0, 0, 300, 300, CROWD)).precision)  # a small part of it
    assert score([(box, surely)], one(0, 0, 300, 300, UNCLEAR)).precision == 0
    assert score([(box, surely)], one(0, 0, 45, 300, CROWD)).precision == 0  # a quarter of the box is in it
    labelled_there = torch.cat([one(0, 0, 300, 300, CROWD), one(40, 30, 20, 60)], 1)
    assert score([(box, surely)], labelled_there).recall == 1


@pytest.mark.slow
def test_two_slices_are_one(tmp_path):
    whole = run(tmp_path / "whole", PLAN, CPU, held_out_count=0, kind=DetectorTrainer)
    run(tmp_path / "slices", PLAN, CPU, steps=1, held_out_count=0, kind=DetectorTrainer)
    resumed = run(tmp_path / "slices", PLAN, CPU, steps=3, held_out_count=0, kind=DetectorTrainer)
    assert resumed.step == 4 and state.load_facts(tmp_path / "slices") == state.load_facts(tmp_path / "whole")
    for a, b in zip(whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    shipped = build_detector(tmp_path / "whole" / "last.safetensors").state_dict()
    torch.testing.assert_close(shipped, whole.average.state_dict(), atol=1e-3, rtol=1e-3)


def test_it_begins_with_a_pose_network_s_backbone():
    with_help, without = DetectorTrainer(PLAN, CPU, START).network, DetectorTrainer(PLAN, CPU).network
    name = "stages.2.3.pwconv1.weight"
    given = state.load_file(START)[f"backbone.{name}"].float()
    torch.testing.assert_close(with_help.backbone.get_parameter(name), given)
    assert not torch.equal(without.backbone.get_parameter(name), given)


@pytest.mark.slow
def test_a_few_frames_can_be_learnt():
    plan = replace(PLAN, steps=40, batch=8, chunk=8, kept=1, filled=1, reuse=1e9, average=0.9, first_difficulty=0.0)
    trainer = DetectorTrainer(plan, CPU, START)
    with Stream(plan, CPU, kind=FrameChunks) as stream:
        losses = torch.stack([trainer.update(stream)[0] for _ in range(plan.steps)])
    assert losses[-8:].mean() < 0.4 * losses[:3].mean()


def test_held_out_sets_are_fixed_and_differ(monkeypatch):
    monkeypatch.setattr("training.detector.LOT", 8)
    renderer = FrameRenderer("cpu", 64)
    sets = {name: held_out(name, 8, renderer) for name in SETS}
    assert torch.equal(sets["hard"].images, held_out("hard", 8, renderer).images)
    assert not torch.equal(sets["hard"].images, sets["never"].images)
    network = DetectorTrainer(PLAN, CPU).average
    assert score(predict(network, sets["hard"].images), targets(sets["hard"])).average_precision < 0.3  # nothing learnt yet


GREEN = (40, 220, 40)
PEOPLE = {  # boxes as COCO writes them, from the picture's edge; the last is of a crowd: whole numbers
    "single": [[60.4, 30.3, 41.2, 180.1]],
    "small": [[10.2, 20.6, 12.3, 30.4], [120.7, 60.2, 100.4, 41.3]],
    "crowd": [[30.5, 40.5, 20.2, 60.4], [100.0, 20.0, 110.0, 70.0]],
}
NAMES = [f"{name}{number}.jpg" for number in range(4) for name in PEOPLE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder of twelve pictures in which people are green; frames of one person; four pictures without people, one of
    which shows somebody all the same."""
    root = tmp_path_factory.mktemp("data")
    more = root / "real" / "more"
    more.mkdir(parents=True)
    (root / "real" / "pictures").mkdir()
    boxes = {name: PEOPLE[name.rstrip(".jpg0123")] for name in NAMES}
    for name, people in boxes.items():
        image = np.full((240, 250, 3), 90, np.uint8)
        for x, y, width, height in people:
            cv2.rectangle(image, (round(x), round(y)), (round(x + width) - 1, round(y + height) - 1), GREEN, -1)
        cv2.imwrite(str(root / "real" / "pictures" / name), image)
    (root / "real" / "person_boxes.json").write_text(json.dumps(boxes))
    frames = [f"home__Subject_1_f{number:02d}.jpg" for number in range(60)] + ["oid__crowd.jpg"]
    empty = [f"backgrounds__{name}.jpg" for name in ("one", "two", "three", "000000060623")]
    for name in (*frames, *empty):
        cv2.imwrite(str(more / name), np.full((120, 160, 3), 70, np.uint8))
    landmarks = np.ones((len(frames), 33, 4), np.float32) * (50, 50, 0, 0.9)
    marks = {"box": np.tile(np.float32([40, 20, 30, 80]), (len(frames), 1)), "iou": np.ones(len(frames), np.float32)}
    world = np.zeros((len(frames), 33, 3), np.float32)
    np.savez(more / "mediapipe_heavy_pseudo.npz", picture=np.array(frames), landmarks_px=landmarks, world_m=world, **marks)
    rows = [*(f"{name},1" for name in frames), *(f"{name},0" for name in empty)]
    (more / "manifest.csv").write_text("\n".join(["file,people_good", *rows]) + "\n")
    test_mocap.write(root / "mocap_poses.npz", test_mocap.random_vectors(8, 1))
    test_fabric.write(root / "fabric_patches_cc0.zip")
    test_avatars.write(root / "avatars", test_avatars.ALL)
    return root


def test_held_out_pictures_are_never_trained_on(folder):
    train, held_out = read_pictures(folder)
    names, kept_apart = ({picture.picture.name for picture in pictures} for pictures in (train, held_out))
    assert kept_apart and all(map(is_held_out, kept_apart)) and not names & kept_apart
    marked = {name for name in (*NAMES, *(f"backgrounds__{name}.jpg" for name in ("one", "two", "three")))}
    assert {name for name in names | kept_apart if not name.startswith("home")} == marked
    crowds = [picture for picture in (*train, *held_out) if picture.crowds.any()]
    assert {picture.picture.name for picture in crowds} == {name for name in NAMES if name.startswith("crowd")}
    assert all(picture.crowds.tolist() == [False, True] for picture in crowds)


def test_a_guessed_pose_s_box_gets_the_outline_s_margins(folder):
    frame = next(picture for picture in read_pictures(folder)[0] if picture.picture.name.startswith("home"))
    (x, y, width, height), subject = frame.boxes[0], frame.subject
    assert x < 40 and y < 20 and 70 < x + width < 76 and 100 < y + height < 104 and subject == "home Subject_1"


def test_many_frames_of_one_person_are_few_pictures(folder):
    frames = RealFrames.of(read_pictures(folder)[0])
    home = np.array([picture.subject == "home Subject_1" for picture in frames.pictures])
    assert home.sum() == 30 and frames.odds.sum() == pytest.approx(1)
    assert frames.odds[home].sum() == pytest.approx(4 * frames.odds[~home][0])


def test_boxes_stay_on_the_people(folder, monkeypatch):
    monkeypatch.setattr("training.real_frames.damaged", lambda image, rng, coarsest: image)
    frames = RealFrames.of([p for p in read_pictures(folder)[0] if p.picture.parent.name == "pictures"])
    kinds = []
    for seed in range(60):
        image, labels = frames.crop(128, 3, seed)
        assert image.shape == (128, 128, 3) and labels.shape == (frames.most, 5)
        green = (image.astype(int)[..., 1] - image.max(2, where=[True, False, True], initial=0)) > 60
        inside = np.zeros_like(green)
        for x, y, width, height, kind in labels[labels[:, 4] != NOBODY]:
            kinds.append(kind)
            assert x >= -0.5 and y >= -0.5 and x + width <= 127.51 and y + height <= 127.51
            part = slice(max(0, round(y) - 2), round(y + height) + 3), slice(max(0, round(x) - 2), round(x + width) + 3)
            inside[part] = True
            if kind == WANTED:
                assert min(width, height) >= 6 and max(width, height) >= 12
                assert green[round(y) + 1 : round(y + height) - 1, round(x) + 1 : round(x + width) - 1].mean() > 0.85
        assert not (green & ~inside).any()
    assert set(kinds) == {UNCLEAR, WANTED, CROWD}


def test_seed_and_step_decide_the_frames(folder):
    frames = RealFrames.of(read_pictures(folder)[0])
    (image, labels), (again, same), (other, _) = (frames.crop(64, *seeds) for seeds in ((1, 2, 3), (1, 2, 3), (1, 2, 4)))
    assert np.array_equal(image, again) and np.array_equal(labels, same) and not np.array_equal(image, other)


@given(st.integers(40, 700), st.integers(40, 700), st.integers(64, 400))
def test_a_letterbox_holds_the_whole_picture(width, height, side):
    image, boxes = letterbox(np.zeros((height, width, 3), np.uint8), np.float32([[-0.5, -0.5, width, height]]), side, side)
    assert max(image.shape[:2]) == side
    np.testing.assert_allclose(boxes, [[-0.5, -0.5, image.shape[1], image.shape[0]]], atol=1e-3)
    assert labelled(boxes, np.zeros(1, bool), image.shape[1], image.shape[0])[0, 4] == (
        WANTED if min(image.shape[:2]) >= 6 else 0
    )


def test_held_out_pictures_are_judged_as_the_package_lays_them_out(folder):
    held_out = read_pictures(folder)[1]
    frames = HeldOutFrames.of(held_out, 128)
    for image, area, labels, picture in zip(frames.images.numpy(), frames.areas, frames.labels.numpy(), held_out, strict=True):
        detector = SimpleNamespace(
            layout=SimpleNamespace(preparation=Preparation(Placement.TOP_LEFT)), frame_for=lambda *_: (128, 128)
        )
        laid_out, scale, corner = _laid_out(cv2.imread(str(picture.picture)), detector)
        assert np.array_equal(image, laid_out) and not corner.any() and max(area) == 128
        wide = labels[: len(picture.boxes), 2] / picture.boxes[:, 2]
        np.testing.assert_allclose(wide, scale[0], rtol=0.02)


def test_a_run_learns_from_real_frames_and_goes_on_exactly(folder, tmp_path):
    plan = replace(PLAN, steps=2, real=0.5, mocap=0.5, cloth=0.5, avatars=0.5)
    whole = run(tmp_path / "whole", plan, CPU, data=folder, held_out_count=0, kind=DetectorTrainer)
    run(tmp_path / "slices", plan, CPU, data=folder, steps=1, held_out_count=0, kind=DetectorTrainer)
    resumed = run(tmp_path / "slices", plan, CPU, data=folder, held_out_count=0, kind=DetectorTrainer)
    states = zip(whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True)
    assert resumed.step == plan.steps and all(torch.equal(a, b) for a, b in states)
    figures, _ = whole.judge(8)
    assert figures.keys() == {*SETS, "real"} and 0 <= figures["real"]["average_precision"] <= 1


@pytest.mark.parametrize("damage", ["missing", "not JSON", "no picture", "not a picture", "nobody"])
def test_a_damaged_folder_is_told(folder, tmp_path, damage):
    shutil.copytree(folder / "real", tmp_path / "real")
    boxes, first = tmp_path / "real" / "person_boxes.json", next(name for name in NAMES if not is_held_out(name))
    if damage == "missing":
        boxes.unlink()
    elif damage == "not JSON":
        boxes.write_text("{")
    elif damage == "no picture":
        (tmp_path / "real" / "pictures" / first).unlink()
    elif damage == "not a picture":
        (tmp_path / "real" / "pictures" / first).write_text("no picture")
    else:
        boxes.write_text("{}")
        shutil.rmtree(tmp_path / "real" / "more")
    with pytest.raises(SourceError, match=r"README|decoded"):
        read_frames(tmp_path, 64)


def test_evaluate_counts_on_the_real_pictures(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["detector", "evaluate", str(WEIGHTS), "--data", str(folder), "--size", "128"])
    main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["min_score"] for line in lines] == list(MIN_SCORES) and {line["set"] for line in lines} == {"real"}
    recalls = [line["recall"] for line in lines]
    assert recalls == sorted(recalls, reverse=True) and len({line["average_precision"] for line in lines}) == 1
