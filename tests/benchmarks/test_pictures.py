"""The labels of real pictures and the scores from them."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from benchmarks.pictures import (
    LABELS,
    LIMBS,
    average_pose,
    count_found,
    draw_overlays,
    find_files,
    labelled_frames,
    read_labels,
    score_pictures,
)  # fmt: skip
from convnextpose.crop import Box
from convnextpose.errors import SourceError
from convnextpose.skeleton import HUMAN36M

FILES, PEOPLE = read_labels()


def exact():
    return [np.nan_to_num(p.joints_px) for p in PEOPLE]


def test_labels_are_of_many_people_whole_and_inside_their_boxes():
    assert sum(p.full_body for p in PEOPLE) >= 50
    for person in PEOPLE:
        assert person.file in FILES
        assert set(FILES[person.file]) == {"sha256", "get", "licence"}
        marked = ~np.isnan(person.joints_px[:, 0])
        assert not (person.seen & ~marked).any()
        assert sum(person.seen[HUMAN36M.joints.index(name)] for name in LIMBS) >= 5
        x, y = person.joints_px[marked].T
        slack = 2 + 0.05 * person.box.height
        assert (x >= person.box.x - slack).all() and (x <= person.box.x + person.box.width + slack).all()
        assert (y >= person.box.y - slack).all() and (y <= person.box.y + person.box.height + slack).all()


def test_the_labels_themselves_are_perfect_and_mirrored_sides_are_all_swapped():
    result = score_pictures(PEOPLE, exact())
    assert (result.pck, result.median, result.swaps) == (1, 0, 0)
    assert set(result.joints.values()) == {1}
    exchanged = score_pictures(PEOPLE, [joints[list(HUMAN36M.flip_order)] for joints in exact()])
    assert exchanged.swaps == 1
    assert exchanged.pck < 0.6


def test_error_is_measured_in_torsos():
    moved = [joints + np.array([0.3 * person.torso_px, 0]) for joints, person in zip(exact(), PEOPLE, strict=True)]
    result = score_pictures(PEOPLE, moved)
    assert result.median == pytest.approx(0.3)
    assert result.pck == 0


def test_guessed_places_do_not_count():
    person = next(p for p in PEOPLE if (~p.seen & ~np.isnan(p.joints_px[:, 0])).any())
    joints = np.nan_to_num(person.joints_px) + np.where(person.seen, 0, 1000)[:, None]
    assert score_pictures([person], [joints]).pck == 1


def test_who_is_not_found_is_missed():
    nobody = np.full((18, 2), np.nan)
    half = [joints if number % 2 else nobody for number, joints in enumerate(exact())]
    assert score_pictures(PEOPLE, half).pck == pytest.approx(0.5, abs=0.05)
    assert score_pictures(PEOPLE, half).swaps == 0


def test_an_average_pose_fits_one_person_exactly():
    person = PEOPLE[0]
    assert score_pictures([person], average_pose([person])).median == pytest.approx(0, abs=1e-9)


def test_files_go_by_their_hash_and_frames_are_the_labelled_ones(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "bus.jpg"), picture)
    assert "bus.jpg" not in find_files({"bus.jpg": FILES["bus.jpg"]}, [tmp_path])
    person = replace(PEOPLE[0], file="bus.jpg", frame=0)
    ((frame, people),) = labelled_frames([person], {"bus.jpg": tmp_path / "bus.jpg"})
    assert frame.image.shape == picture.shape and people == [person]
    with pytest.raises(SourceError, match="frame 3"):
        labelled_frames([replace(person, frame=3)], {"bus.jpg": tmp_path / "bus.jpg"})
    assert count_found([(frame, [person])], lambda _: [person.box]) == (1, 1)
    assert count_found([(frame, [person])], lambda _: [Box(0, 0, 5, 5)]) == (0, 0)
    draw_overlays([(frame, [person])], [np.nan_to_num(person.joints_px)], tmp_path / "overlays")
    sheet = cv2.imread(str(tmp_path / "overlays" / "people-00.jpg"))
    assert sheet is not None and sheet.shape[0] == 512


def test_labels_are_written_a_person_a_line():
    lines = LABELS.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith('{"file"') for line in lines) == len(PEOPLE)
    assert json.loads(LABELS.read_text(encoding="utf-8")).keys() == {"files", "people"}
