"""The ends of takes: hard cuts, jumps in time, and changes that are neither."""

import numpy as np
import pytest

from pipeline.people.cuts import CutDetector
from pipeline.types import Frame


def scene(seed, box=(200, 100, 80, 220)):
    """A picture of coloured blocks with a person in it."""
    image = np.random.default_rng(seed).integers(0, 120, (6, 8, 3)).astype(np.uint8).repeat(80, 0).repeat(80, 1)
    x, y, w, h = box
    image[y : y + h, x : x + w] = 230
    return image


def takes(pictures, times=None):
    """Numbers of the frames that begin a take."""
    cuts = CutDetector()
    times = times or [i / 25 for i in range(len(pictures))]
    frames = [Frame(image, "t", i, t) for i, (image, t) in enumerate(zip(pictures, times, strict=True))]
    return {frame.index: reason for frame in frames if (reason := cuts.begins_take(frame))}


def test_another_picture_begins_a_take():
    assert takes([scene(1)] * 3 + [scene(2)] * 3) == {3: "a hard cut"}


def test_light_that_changes_and_people_who_move_begin_none():
    dark = (scene(1) * 0.6).astype(np.uint8)
    assert takes([scene(1), dark] * 3) == {}
    assert takes([scene(1, (200 + 30 * i, 100, 80, 220)) for i in range(10)]) == {}


@pytest.mark.parametrize(
    ("gap_s", "reason"), [(0.5, None), (30.0, "30.00 s without a frame"), (-5.0, "time goes back by 5.00 s")]
)
def test_a_jump_in_time_begins_a_take(gap_s, reason):
    assert takes([scene(1)] * 2, [10.0, 10.0 + gap_s]) == ({1: reason} if reason else {})
