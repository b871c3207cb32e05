"""Crops of people from videos and pictures, found in the same way as in a run: the data for calibrating an INT8 model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import crop_region
from convnextpose.errors import CalibrationError
from engines.calibration import CalibrationSet
from engines.people import PeopleDetector
from engines.pose import PoseModel
from pipeline.estimator import Estimator
from pipeline.people.detection import detections_of
from pipeline.people.tracker import PeopleTracker
from pipeline.sources import open_source
from pipeline.stages import warp_crop
from pipeline.types import Frame

FOLLOW_STEP = 5
"""Largest mean distance between sampled frames, in frames, at which the nearest person is tracked. If they are farther apart,
each frame is searched independently."""

SHEET_TILE_PX, SHEET_COLUMNS, SHEET_TILES = 96, 12, 144
"""A preview sheet: side of a crop on it, px; crops in a row; largest number of crops on it, chosen evenly."""


def collect_crops(sources: Sequence[Path], model: PoseModel, detector: PeopleDetector, count: int) -> CalibrationSet:
    """Crops of the nearest person in evenly spaced frames of videos, pictures and folders of pictures.

    Frames without a person give none, so there may be fewer crops than requested.

    Args:
        sources: as `open_source` takes them; each gives an equal share.
        model, detector: find the people, as in a run.
        count: how many crops to collect.

    Raises:
        SourceError: a source cannot be read.
        CalibrationError: too few people were found.
    """
    crops: list[NDArray[np.uint8]] = []
    for index, path in enumerate(sources):
        # Later sources make up for crops that earlier ones lacked.
        share = -(-(count - len(crops)) // (len(sources) - index))
        crops.extend(_crops(path, model, detector, share))
    if not crops:
        raise CalibrationError(f"nobody was found in {', '.join(map(str, sources))}: give clips with a person in full view")
    return CalibrationSet(np.stack(crops), tuple(path.resolve().name for path in sources))


def _crops(path: Path, model: PoseModel, detector: PeopleDetector, share: int) -> Iterator[NDArray[np.uint8]]:
    with open_source(path) as source:
        frames = source.info.frame_count
        is_video = source.info.frame_rate is not None
    if frames is None:  # not declared by its container: count them
        with open_source(path) as source:
            frames = sum(1 for _ in source)
    looked_at = {round(index) for index in np.linspace(0, frames - 1, min(share, frames))}
    sequential = is_video and frames <= FOLLOW_STEP * share
    people = PeopleTracker(detections_of(detector), model.info.joint_set, max_people=1, sequential=sequential)
    estimator = Estimator(model, people)
    with open_source(path) as source:
        for frame in source:
            if isinstance(frame, Frame) and frame.index in looked_at:
                for pose in estimator.step(frame).poses:
                    yield warp_crop(frame.image, crop_region(pose.box, frame.width, frame.height))


def draw_preview(crops: NDArray[np.uint8]) -> bytes:
    """Crops [N, 256, 256, 3] as one PNG, for a visual check."""
    chosen = crops[np.linspace(0, len(crops) - 1, min(len(crops), SHEET_TILES)).round().astype(int)]
    tiles = [cv2.resize(crop, (SHEET_TILE_PX, SHEET_TILE_PX), interpolation=cv2.INTER_AREA) for crop in chosen]
    columns = min(SHEET_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * SHEET_TILE_PX, columns * SHEET_TILE_PX, 3), np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (SHEET_TILE_PX * place for place in divmod(index, columns))
        sheet[top : top + SHEET_TILE_PX, left : left + SHEET_TILE_PX] = tile
    return bytes(cv2.imencode(".png", sheet)[1].tobytes())
