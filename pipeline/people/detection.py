"""The people whom the detector sees in a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box
from convnextpose.errors import GeometryError
from engines.people import PeopleDetector, without_duplicates
from pipeline.types import Frame


@dataclass(frozen=True)
class Detection:
    """A person whom the detector sees.

    Attributes:
        box: where, clipped to the picture, px.
        score: how sure the detector is, 0..1; not comparable with a pose's score.
    """

    box: Box
    score: float


DETECTION_SCORE = 0.3
"""Score of the people detector from which the pose in a box is read. It is low, since the pose has the last word; in boxes of
lower scores are things that the pose network, too, takes for people (docs/people.md)."""


def detections_of(detector: PeopleDetector) -> Callable[[Frame], list[Detection]]:
    """A function that gives the people whom a detector sees in a frame, as `detect` does."""
    return lambda frame: detect(detector, frame.image, DETECTION_SCORE)


def detect(detector: PeopleDetector, image: NDArray[np.uint8], min_score: float) -> list[Detection]:
    """The people whom the detector sees in a BGR picture [H, W, 3] uint8, the surest first, without duplicates."""
    height, width = image.shape[:2]
    side = detector.frame_size
    scale = side / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    letterbox = np.zeros((1, side, side, 3), np.uint8)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    letterbox[0, : size[1], : size[0]] = cv2.resize(image, size, interpolation=interpolation)
    found = detector.run(letterbox)
    boxes, scores = found.boxes[0], found.scores[0]
    detections = []
    for index in without_duplicates(boxes, scores, min_score):
        x, y, w, h = (boxes[index].astype(np.float64) / scale).tolist()
        shift = 0.5 / scale - 0.5  # pixel centres are at whole numbers in both
        try:
            box = Box(x + shift, y + shift, w, h).clip(width, height)
        except GeometryError:  # it lies in the letterbox's black part
            continue
        detections.append(Detection(box, float(scores[index])))
    return detections
