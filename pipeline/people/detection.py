"""The people that the detector finds in a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box
from convnextpose.errors import GeometryError
from engines.layouts import Placement
from engines.people import PeopleDetector, non_maximum_suppression
from pipeline.types import Frame


@dataclass(frozen=True)
class Detection:
    """A person found by the detector.

    Attributes:
        box: the box, clipped to the picture, px.
        score: the detector's confidence, 0..1; not comparable with a pose's score.
    """

    box: Box
    score: float


DETECTION_SCORE = 0.3
"""Lowest score of the people detector at which the pose network reads a box. It is low, because the pose network makes the
final decision; boxes with lower scores contain objects that the pose network, too, takes for people (docs/people.md)."""

SURE_DETECTION = 0.55
"""Lowest score of the people detector at which a less confident pose counts as a person in a single picture. A stream needs a
confident pose: with this rule, posts were taken for people again and again."""


def detections_of(detector: PeopleDetector) -> Callable[[Frame], list[Detection]]:
    """A function that finds the people in a frame with this detector, as `detect` does."""
    return lambda frame: detect(detector, frame.image, DETECTION_SCORE)


def detect(detector: PeopleDetector, image: NDArray[np.uint8], min_score: float) -> list[Detection]:
    """The people that the detector finds in a BGR picture [H, W, 3] uint8, the highest score first, without duplicates."""
    height, width = image.shape[:2]
    frame, scale, corner = _laid_out(image, detector)
    found = detector.run(frame[None])
    boxes, scores = found.boxes[0], found.scores[0]
    detections = []
    for index in non_maximum_suppression(boxes, scores, min_score):
        box_px = boxes[index].astype(np.float64)
        x, y = (box_px[:2] - corner + 0.5) / scale - 0.5  # pixel centres are at whole numbers in both
        w, h = box_px[2:] / scale
        try:
            box = Box(float(x), float(y), float(w), float(h)).clip(width, height)
        except GeometryError:  # it is outside the picture
            continue
        detections.append(Detection(box, float(scores[index])))
    return detections


def _laid_out(
    image: NDArray[np.uint8], detector: PeopleDetector
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """A picture as the detector's frame, with its scale [2] across and down and the position [2] of its corner there, px."""
    height, width = image.shape[:2]
    how, (across, down) = detector.layout.preparation, detector.frame_for(width, height)
    one = min(across / width, down / height)
    stretched = how.placement is Placement.STRETCHED
    scale = np.array([across / width, down / height] if stretched else [one, one])
    size = (across, down) if stretched else (max(1, round(width * one)), max(1, round(height * one)))
    interpolation = cv2.INTER_AREA if scale.max() < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(image, size, interpolation=interpolation)
    x = y = 0
    if how.placement is Placement.MIDDLE:  # an odd row of padding is at the end
        x, y = (across - size[0]) // 2, (down - size[1]) // 2
    frame = np.full((down, across, 3), how.padding, np.uint8)
    frame[y : y + size[1], x : x + size[0]] = picture
    return frame, scale, np.array([x, y], np.float64)
