"""Every layout of people detectors: boxes come back in the picture's px; with wrong colours or placement nobody is found."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.errors import ModelError
from engines.layouts import LAYOUTS, Placement
from engines.opening import open_people_detector
from pipeline.people.detection import detect
from tests.engines.detectors import NAMES, SCORE, detector, picture

RUNTIMES = ("openvino", "onnxruntime")
WIDE, TALL = (300, 120), (110, 260)
BOX = {WIDE: (60, 20, 130, 90), TALL: (30, 60, 70, 200)}


@cache
def opened(name, runtime="onnxruntime", **options):
    pytest.importorskip(runtime)
    return open_people_detector(detector(name, **options), runtime, threads=1)


def check(found, box, picture_size, frame_size):
    """Check for one person, at the box (left, top, right, bottom, px) within two pixels of the frame."""
    (one,) = found
    assert one.score == pytest.approx(SCORE, abs=0.02)
    left, top, right, bottom = box
    across, down = (of / to for of, to in zip(picture_size, frame_size, strict=True))
    pixel = 2 * max(across, down, 1) + 0.1
    # In a Box the centre of the first pixel is at 0, so its edge is at -0.5.
    np.testing.assert_allclose(
        [one.box.x, one.box.y, one.box.x + one.box.width, one.box.y + one.box.height],
        np.clip(np.array([left, top, right, bottom]) - 0.5, 0, None),
        atol=pixel,
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NAMES)
def test_boxes_come_back_in_the_picture_s_pixels(name, runtime):
    model = opened(name, runtime)
    assert model.layout.name == name and model.frame_size == (128, 96)
    for size in (WIDE, TALL):
        check(detect(model, picture(*size, BOX[size]), 0.3), BOX[size], size, model.frame_size)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(NAMES)), st.integers(60, 500), st.integers(60, 500), st.data())
def test_boxes_of_any_place_and_size(name, width, height, data):
    model = opened(name)
    if abs(width / height / (128 / 96) - 1) < 0.1:
        height *= 2  # so that there is a letterbox
    least = round(8 * max(width / 128, height / 96))
    left, top = (data.draw(st.integers(1, side - least - 2)) for side in (width, height))
    right, bottom = (data.draw(st.integers(low + least, side - 1)) for low, side in ((left, width), (top, height)))
    box = left, top, right, bottom
    check(detect(model, picture(width, height, box), 0.3), box, (width, height), model.frame_size)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_colours_scale_padding_and_place_find_nobody(name):
    """Otherwise the tests with these graphs would prove nothing."""
    model = opened(name)
    right = model.layout
    how = right.preparation
    wrong = [replace(how, rgb=not how.rgb)]
    if name != "boxes and scores":  # whose input is plain grey levels
        wrong.append(replace(how, std=tuple(2 * value for value in how.std)))
        wrong.append(replace(how, mean=tuple(value + 40 for value in how.mean)))
    wrong += [replace(how, placement=place) for place in Placement if place is not how.placement]
    if how.placement is not Placement.STRETCHED:
        wrong.append(replace(how, padding=how.padding + 60))
    try:
        for other in wrong:
            model.layout = replace(right, preparation=other)
            assert not detect(model, picture(*WIDE, BOX[WIDE]), 0.3), other
    finally:
        model.layout = right
    assert detect(model, picture(*WIDE, BOX[WIDE]), 0.3)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("YOLOX", {"dtype": "float16", "batch": 1}),
        ("YOLOv8 and later", {"free": True, "metadata": {"imgsz": "[96, 128]"}}),
        ("YOLO with its own selection", {"batch": 1, "size": (192, 160)}),
        ("RT-DETR and D-FINE", {"size": (96, 96)}),
    ],
)
def test_types_and_sizes(name, options, runtime):
    options = {**options, "metadata": tuple(options.get("metadata", {}).items())}
    model = opened(name, runtime, **options)
    assert model.frame_size == options.get("size", (128, 96))
    check(detect(model, picture(*WIDE, BOX[WIDE]), 0.3), BOX[WIDE], WIDE, model.frame_size)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_ssd_takes_levels_with_the_colours_last(dtype, runtime):
    model = opened("SSD", runtime, dtype=dtype, channels_first=False)
    check(detect(model, picture(*WIDE, BOX[WIDE]), 0.3), BOX[WIDE], WIDE, model.frame_size)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, None])
def test_several_frames_are_as_many_alone(name, batch):
    shared = open_people_detector(detector(name, batch=batch), "onnxruntime", threads=1, max_batch=4)
    rng = np.random.default_rng(1)
    frames = np.stack([picture(128, 96, (10 + 8 * n, 12, 50 + 9 * n, 70)) for n in range(3)])
    frames[:, -6:, -6:] = rng.integers(0, 255, (3, 1, 1, 3))
    found = shared.run(frames)
    for number, frame in enumerate(frames):
        alone = shared.run(frame[None])
        np.testing.assert_allclose(found.scores[number], alone.scores[0], atol=1e-6)
        np.testing.assert_allclose(found.boxes[number], alone.boxes[0], atol=1e-3)
        assert (np.diff(alone.scores) <= 0).all()


@pytest.mark.parametrize("name", [layout.name for layout in LAYOUTS if layout.person is not None])
def test_people_are_the_class_that_is_asked_for(name):
    """By number, by name, by the file's metadata; with another class nobody is found."""
    told = {"names": "{0: 'cat', 1: 'dog', 2: 'bird', 3: 'Pedestrian'}"}
    data = detector(name, person=3, classes=4, metadata=told)
    seen = {}
    for asked in (None, "3", "pedestrian", "1"):
        with open_people_detector(data, "onnxruntime", threads=1, person=asked) as model:
            seen[asked] = len(detect(model, picture(*WIDE, BOX[WIDE]), 0.3))
    assert seen == {None: 1, "3": 1, "pedestrian": 1, "1": 0}


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (
            "{0: 'cat', 1: 'dog'}",
            None,
            "class for people, but it has 0 cat, 1 dog: give its number with --detector-class",
        ),
        ("{0: 'cat', 1: 'dog'}", "cow", "with a class cow, but it has 0 cat, 1 dog"),
        ("nonsense(", "cow", "with a class cow, but its file names none"),
        ("", "4", r"among the detector's 4 \(0 to 3\), received 4"),
    ],
)
def test_classes_that_are_not_there(names, asked, message):
    with pytest.raises(ModelError, match=message):
        open_people_detector(
            detector("YOLOv8 and later", classes=4, metadata={"names": names}), "onnxruntime", threads=1, person=asked
        )


def test_a_detector_of_one_class_sees_people_whatever_they_are_called():
    data = detector("YOLOv8 and later", classes=1, metadata={"names": "['worker']"})
    with open_people_detector(data, "onnxruntime", threads=1) as model:
        assert model.about == "YOLOv8 and later, 128x96 px, people are class 0 (worker)"
    with open_people_detector(detector("RF-DETR", person=0, classes=1), "onnxruntime", threads=1) as model:
        check(detect(model, picture(*WIDE, BOX[WIDE]), 0.3), BOX[WIDE], WIDE, model.frame_size)
    with pytest.raises(ModelError, match="which detects only people, received 0"):
        open_people_detector(detector("boxes and scores"), "onnxruntime", threads=1, person="0")


def renamed(data, **names):
    """A model whose outputs have other names."""
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)
    return model.SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        lambda: renamed(detector("RF-DETR"), dets="boxes", labels="classes"),  # which normalisation?
        lambda: detector("RT-DETR of Transformers", classes=92),  # as DETR, which has no sigmoids
        lambda: renamed(detector("YOLOX of MMDeploy"), labels="masks"),
        lambda: detector("YOLOX", size=(120, 90)),  # not a whole number of cells
    ],
)
def test_what_could_be_two_kinds_or_none_is_refused(data):
    with pytest.raises(ModelError, match=r"known layout \(boxes and scores.*YOLOX.*SSD.*received a network of images float32"):
        open_people_detector(data(), "onnxruntime", threads=1)


def test_yolox_that_is_decoded_already_is_refused():
    model = onnx.load_from_string(detector("YOLOX"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 1, 1), 60, np.float32), "far"))
    last = model.graph.node[-1]
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("Add", [last.input[0], "far"], ["moved"]))
    last.input[0] = "moved"
    with pytest.raises(ModelError, match="decoded already"):
        open_people_detector(model.SerializeToString(), "onnxruntime", threads=1)
