"""Pictures that are not upright: the run says how to rotate them, and rotated they give exactly the upright poses."""

from dataclasses import replace

import av
import cv2
import numpy as np
import pytest

from convnextpose import weights
from convnextpose.errors import SourceError
from convnextpose.skeleton import HUMAN36M
from pipeline.estimator import Estimator
from pipeline.models import open_models
from pipeline.people.detection import detections_of
from pipeline.people.rotation import RotationCheck
from pipeline.people.tracker import PeopleTracker
from pipeline.run import RunConfig, open_pipeline
from pipeline.sources import open_source
from pipeline.sources.orientation import FLIPS
from pipeline.types import Frame
from tests.cases import fast_first
from tests.pipeline.blob import BlobDetector, BlobModel
from tests.pipeline.blob import picture as blob

BACK = {"180": "180", "90": "270", "270": "90"}


@pytest.fixture(scope="module")
def upright():
    with av.open(str(weights.DEMO_CLIP)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    return frames[10], frames[120]


@pytest.fixture(scope="module")
def models():
    opened = open_models("xs", threads=1)
    yield opened
    opened.close()


def run(models, tmp_path, pictures, **options):
    folder = tmp_path / "pictures"
    folder.mkdir(exist_ok=True)
    for index, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    with open_pipeline(RunConfig(folder, threads=1, **options), models) as pipeline:
        return list(pipeline), pipeline.streams[0].ledger.counts()


@pytest.mark.parametrize("turn", fast_first(BACK))
def test_a_picture_that_is_not_upright_is_told_and_can_be_turned(models, tmp_path, upright, turn):
    expected, counts = run(models, tmp_path, upright)
    assert counts.with_person == 2
    assert counts.problems == ()
    lying = [np.ascontiguousarray(FLIPS[turn].apply(picture)) for picture in upright]
    _, counts = run(models, tmp_path, lying)
    assert counts.with_person == 0
    (sentence, _), *others = counts.problems
    assert sentence == f"people were found in the picture rotated by {BACK[turn]} degrees: use --flip {BACK[turn]}"
    assert not others
    found, _ = run(models, tmp_path, lying, camera_options=(("flip", BACK[turn]),))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.frame.image, other.frame.image)
        np.testing.assert_array_equal([p.joints_mm for p in one.poses], [p.joints_mm for p in other.poses])


@pytest.mark.parametrize("sequential", [True, False])
def test_who_is_found_in_a_rotated_frame_is_who_would_be_found_in_it(sequential):
    """An unsure pose with a sure detection is enough in a single picture, but not in a stream."""

    class Unsure(BlobModel):
        def run(self, crops):
            read = super().run(crops)
            return replace(read, scores=np.minimum(read.scores, 0.4))

    frame = Frame(blob(640, 480, (200, 100, 80, 220)), "t", 0, 0.0)
    detect = detections_of(BlobDetector())
    assert RotationCheck(detect, BlobModel(), sequential=sequential).check(frame)
    told = RotationCheck(detect, Unsure(), sequential=sequential).check(frame)
    found = PeopleTracker(detect, HUMAN36M, sequential=sequential)
    assert bool(told) == bool(Estimator(Unsure(), found).step(frame).poses) == (not sequential)


def test_pictures_without_people_are_turned_in_vain(models, tmp_path):
    empty = [np.full((120, 160, 3), grey, np.uint8) for grey in (0, 120)]
    _, counts = run(models, tmp_path, empty)
    assert counts.with_person == 0
    assert counts.problems == ()


@pytest.mark.parametrize("flip", FLIPS)
def test_turning_changes_pictures_and_sizes_alike(tmp_path, flip):
    picture = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)
    cv2.imwrite(str(tmp_path / "p.png"), picture)
    with open_source(tmp_path / "p.png", options=[("flip", flip)]) as source:
        (frame,) = source
    assert (source.info.width, source.info.height) == (frame.width, frame.height)
    np.testing.assert_array_equal(frame.image, FLIPS[flip].apply(picture))


def test_an_unknown_turn_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"option flip of .* as one of none, horizontal, vertical, 90, 180, 270"):
        open_source(tmp_path, options=[("flip", "45")])
