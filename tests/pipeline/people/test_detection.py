"""The detector's boxes, in the picture's own pixels, and how a run uses them in real pictures of a blob."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose import weights
from convnextpose.crop import Box
from convnextpose.errors import SinkError
from pipeline.estimator import Estimator
from pipeline.people.detection import detect, detections_of
from pipeline.people.track import box_from_joints
from pipeline.people.tracker import PeopleTracker
from pipeline.run import RunConfig, open_pipeline
from pipeline.types import Frame
from tests.pipeline.blob import BlobDetector, BlobModel, picture


def estimator(model=None, detector=None, **options):
    model = model or BlobModel()
    return Estimator(model, PeopleTracker(detections_of(detector or BlobDetector()), model.info.joint_set, **options))


@settings(max_examples=25, deadline=None)
@given(st.integers(40, 1500), st.integers(40, 1500), st.floats(0.3, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_detected_boxes_are_those_of_the_picture(width, height, size, across, down):
    shape = np.array([width, height])
    extent = np.maximum(size * shape, 16)
    (x, y), (w, h) = ((shape - extent) * (across, down)).round(), extent.round()
    seen = detect(BlobDetector(), picture(width, height, (x, y, w, h)), 0.5)
    box = seen[0].box
    pixel = max(width, height) / BlobDetector.frame_size[0]  # size of a letterboxed pixel
    np.testing.assert_allclose([*box.center, box.width, box.height], [x + w / 2, y + h / 2, w, h], atol=2.5 * max(1, pixel))
    for detection in seen:
        detection.box.clip(width, height)  # no part of a box is outside the picture
        assert detection.box.x >= 0 and detection.box.x + detection.box.width <= width + 1e-6


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_a_person_anywhere_is_found_in_the_first_frame(size, across, down):
    height = 480 * size
    width = height * 0.4
    box = (across * (636 - width) + 2, down * (476 - height) + 2, width, height)
    (pose,) = estimator().step(Frame(picture(640, 480, box), "t", 0, 0.0)).poses
    assert box_from_joints(pose.joints_px).iou(Box(*box)) > 0.7


def test_what_the_detector_takes_for_a_person_makes_no_pose():
    run = estimator()
    assert not any(run.step(Frame(picture(640, 480), "t", i, i / 25)).poses for i in range(10))


def test_a_pose_elsewhere_than_the_detector_saw_somebody_is_nobody():
    class Beside(BlobDetector):
        def run(self, frames):
            seen = super().run(frames)
            seen.boxes[..., 0] += 0.8 * seen.boxes[..., 2]
            return seen

    frame = Frame(picture(640, 480, (200, 100, 80, 220)), "t", 0, 0.0)
    assert estimator().step(frame).poses and not estimator(detector=Beside()).step(frame).poses


def test_while_everybody_is_followed_the_detector_looks_as_seldom_as_the_newcomers_allow():
    for rate in (10, 25, 60):
        detector = BlobDetector()
        run = estimator(detector=detector)
        for index in range(4 * rate):
            run.step(Frame(picture(640, 480, (200, 100, 80, 220)), "t", index, index / rate))
        assert 10 <= detector.frames <= 15, "every 0.3 to 0.4 s"


def test_pictures_of_several_sources_may_have_one_number():
    run = estimator(sequential=False)
    for box in ((200, 100, 80, 220), (400, 150, 60, 180)):
        (pose,) = run.step(Frame(picture(640, 480, box), "t", 0, 0.0)).poses
        assert box_from_joints(pose.joints_px).iou(Box(*box)) > 0.7


def test_a_run_says_what_finds_the_people(tmp_path):
    pytest.importorskip("onnx")
    from tests.engines.detectors import detector

    own = tmp_path / "own.onnx"
    own.write_bytes(detector("YOLOv8 and later", person=1, metadata={"names": "['dog', 'person', 'cat', 'cow']"}))
    with open_pipeline(RunConfig(weights.DEMO_CLIP)) as pipeline:
        assert pipeline.detector.startswith("xs (boxes and scores, up to 384x384 px), ")
    with open_pipeline(RunConfig(weights.DEMO_CLIP, detector=str(own))) as pipeline:
        assert pipeline.detector.startswith("own.onnx (YOLOv8 and later, 128x96 px, people are class 1 (person)), ")
    with open_pipeline(RunConfig(weights.DEMO_CLIP, detector=str(own), detector_class="cow")) as pipeline:
        assert "class 3 (cow)" in pipeline.detector
    with pytest.raises(ValueError, match="expected boxes or a people detector, received both"):
        RunConfig(weights.DEMO_CLIP, boxes=own, detector=str(own))
    with pytest.raises(SinkError, match="in another place than the sources"):
        open_pipeline(RunConfig(weights.DEMO_CLIP, detector=str(own), trace=own, overwrite=True))
