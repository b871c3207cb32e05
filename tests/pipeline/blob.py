"""A pose model and a people detector with exact results on any machine: they take a bright blob for a person.

The pipeline's laws (who is tracked, what is lost, what is counted) need a network whose answers are known. This one finds the
bright pixels of the crop: its joints lie on their bounding box, and its scores are high if the blob fills the crop as a
person's box does.
"""

from contextlib import nullcontext

import numpy as np

from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import Variant
from engines.layouts import BOXES_AND_SCORES, DetectedBoxes
from engines.pose import ModelInfo, Predictions, check_crops
from engines.session import SessionDescription

LAYOUT = np.random.default_rng(7).random((18, 2))
LAYOUT[10], LAYOUT[3], LAYOUT[13], LAYOUT[16] = (0.5, 0.0), (0.5, 1.0), (0.0, 0.5), (1.0, 0.5)


class BlobModel:
    """Behaves as an `engines.pose.PoseModel`."""

    info = ModelInfo("blob", Variant.XS, HUMAN36M, "0" * 64)

    def __init__(self):
        self.crops = 0
        self.closed = 0

    def hold(self, picture):
        return nullcontext()

    def run(self, crops):
        check_crops(crops)
        self.crops += len(crops)
        joints = np.zeros((len(crops), 18, 3), np.float32)
        scores = np.zeros((len(crops), 18), np.float32)
        for crop, out, score in zip(crops, joints, scores, strict=True):
            ys, xs = np.nonzero(crop[..., 1] > 128)
            if not len(xs):
                out[:, :2] = LAYOUT * 255
                continue
            low, high = np.array([xs.min(), ys.min()]), np.array([xs.max(), ys.max()]) + 0.01
            out[:, :2] = low + LAYOUT * (high - low)
            cut = low.min() == 0 or high.max() > 255
            score[:] = 0.2 if cut else max(0.05, 1 - abs((high - low).max() / 205 - 1))
        return Predictions(joints, scores)

    def describe(self):
        return SessionDescription("blob", "1", "CPU", "exact", 1)

    def close(self):
        self.closed += 1


class BlobDetector:
    """Behaves as an `engines.people.PeopleDetector`: takes bright pixels for one person, and always adds a false one."""

    frame_size = 384, 384
    layout = BOXES_AND_SCORES

    def __init__(self):
        self.frames = 0

    def frame_for(self, width, height):
        return self.frame_size

    def run(self, frames):
        self.frames += len(frames)
        boxes = np.tile(np.array([[0, 0, 1, 1], [5, 5, 30, 60]], np.float32), (len(frames), 1, 1))
        scores = np.tile(np.array([0, 0.3], np.float32), (len(frames), 1))
        for index, frame in enumerate(frames):
            ys, xs = np.nonzero(frame[..., 1] > 128)
            if len(xs):
                boxes[index, 0] = xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1
                scores[index, 0] = 0.8
        return DetectedBoxes(boxes, scores)


def picture(width, height, box=None):
    """A dark picture with a bright, upright rectangle like a person at box (x, y, w, h) px."""
    image = np.full((height, width, 3), 20, np.uint8)
    if box is not None:
        x, y, w, h = (round(v) for v in box)
        image[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)] = 230
    return image
