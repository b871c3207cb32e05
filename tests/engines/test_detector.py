"""The exported detector agrees with PyTorch in every runtime; duplicates go, people stay; bad files and frames are reported."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose import weights as shipped
from convnextpose.crop import Box
from convnextpose.errors import CheckpointError, GeometryError, ModelError, ParityError, RuntimeUnavailableError
from engines.export import export_detector
from engines.layouts import DetectedBoxes
from engines.opening import open_people_detector
from engines.parity import compare_detectors, frames_of, noise_frames
from engines.people import PeopleDetector, non_maximum_suppression, overlaps, people_specs
from engines.session import SessionDescription
from engines.sessions.base import LockedSession
from pipeline.people.detection import DETECTION_SCORE, detect
from pipeline.people.tracker import MAX_CANDIDATES
from pipeline.sources import open_source

EXPORTED = ("openvino", "onnxruntime")
FRAME_SIZE = 384

START = Path(__file__).parents[2] / "training" / "start" / "detector.safetensors"
"""The weights that the shipped detector was exported from."""


def boxes_and_scores(seed, count):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.random((count, 2)) * 200, rng.random((count, 2)) * 100 + 5], 1), rng.random(count)


@given(st.integers(0, 2**32 - 1), st.integers(0, 24), st.floats(0, 1), st.floats(0.1, 0.9))
def test_of_boxes_that_overlap_the_best_is_left(seed, count, min_score, overlap):
    boxes, scores = boxes_and_scores(seed, count)
    kept = non_maximum_suppression(boxes, scores, min_score, overlap)
    assert (np.diff(scores[kept]) <= 0).all() and (scores[kept] >= min_score).all()
    shared = overlaps(boxes[kept], boxes[kept])
    assert (shared[~np.eye(len(kept), dtype=bool)] < overlap).all()
    for gone in set(np.flatnonzero(scores >= min_score)) - set(kept.tolist()):
        better = kept[scores[kept] >= scores[gone]]
        assert (overlaps(boxes[gone][None], boxes[better]) >= overlap).any()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-100, 100))
def test_overlap_is_of_shapes_and_not_of_units(seed, scale, shift):
    (a, _), (b, _) = boxes_and_scores(seed, 6), boxes_and_scores(seed + 1, 5)
    moved = [np.concatenate([p[:, :2] * scale + shift, p[:, 2:] * scale], 1) for p in (a, b)]
    np.testing.assert_allclose(overlaps(*moved), overlaps(a, b), atol=1e-9)
    np.testing.assert_allclose(overlaps(a, b), overlaps(b, a).T)
    np.testing.assert_allclose(np.diag(overlaps(a, a)), 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A detector with random weights whose batch norms are not the identity, so that a mistake in folding shows."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from convnextpose.detector import Detector

    network, generator = Detector(), torch.Generator().manual_seed(1)
    state = network.state_dict()
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else None
        if name.endswith("running_var"):
            state[name] = 0.7 + 0.1 * noise.abs()
        elif tensor.ndim == 4:
            state[name] = noise * (2.0 / tensor[0].numel()) ** 0.5 * (0.3 if "pwconv2" in name else 1.0)
        elif noise is not None:
            state[name] = 0.1 * noise + (1.0 if "norm.weight" in name or name.endswith("1.weight") else 0.0)
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def exported(weights):
    pytest.importorskip("onnxscript")
    out = weights.with_suffix(".onnx")
    export_detector(weights, out)
    return out


@pytest.mark.parametrize("runtime", EXPORTED)
def test_every_runtime_agrees_with_pytorch(weights, exported, runtime):
    pytest.importorskip(runtime)
    detector, reference = open_people_detector(exported, runtime, threads=1), open_people_detector(weights, "torch")
    assert (detector.describe().name, detector.frame_size) == (runtime, (FRAME_SIZE, FRAME_SIZE))
    for width, height in ((384, 288), (384, 224), (64, 384), (384, 384)):
        compare_detectors(reference, detector, noise_frames(2, FRAME_SIZE)[:, :height, :width]).check()
    frames = noise_frames(3, FRAME_SIZE)
    found = detector.run(frames)
    boxes, scores = found.boxes, found.scores
    assert boxes.shape == (3, 32, 4) and scores.shape == (3, 32)
    assert (np.diff(scores, axis=1) <= 0).all() and scores.max() > 0.01 and (boxes[..., 2:] > 0).all()
    alone = detector.run(frames[1:2])
    np.testing.assert_allclose(alone.scores[0], scores[1], atol=1e-5)
    assert len(detector.run(frames[:0]).boxes) == 0
    detector.close()
    detector.close()
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        detector.run(frames)


def test_the_reference_is_the_network_with_the_official_preprocessing(weights):
    torch = pytest.importorskip("torch")
    from convnextpose.crop import normalise
    from convnextpose.detector import build_detector, decode

    frames = noise_frames(2, FRAME_SIZE)
    with torch.inference_mode():
        boxes, scores = decode(build_detector(weights).double()(torch.from_numpy(normalise(frames)).double()))
    found = open_people_detector(weights, "torch").run(frames)
    np.testing.assert_allclose(found.scores, scores.numpy(), atol=1e-4)
    certain = (scores > 0.01).numpy()
    np.testing.assert_allclose(found.boxes[certain], boxes.numpy()[certain], atol=1e-2)


def test_a_detector_that_strays_is_refused(weights, exported):
    class Wrong:
        def run(self, frames):
            found = open_people_detector(exported).run(frames)
            return DetectedBoxes(found.boxes + 1, found.scores)

        def describe(self):
            return SessionDescription("wrong", "1", "CPU", "fp32", 1)

    reference, frames = open_people_detector(weights, "torch"), noise_frames(1, FRAME_SIZE)
    parity = compare_detectors(reference, Wrong(), frames)
    assert parity.boxes > 0 and parity.box_px == pytest.approx(1, rel=0.1)
    with pytest.raises(ParityError, match=r"wrong \(fp32\) disagrees with torch on \d+ boxes in 1 frames: .* boxes within 1"):
        parity.check()
    for strays in ({"score": float("nan")}, {"score": 0.01}, {"box_px": float("nan")}):
        with pytest.raises(ParityError):
            replace(parity, **{"score": 0.0, "box_px": 0.0, **strays}).check()
    replace(parity, score=0.0, box_px=0.0).check()


@given(st.integers(1, 7), st.integers(32, 700), st.integers(32, 700))
@settings(max_examples=25, deadline=None)
def test_frames_are_put_together_of_crops_and_nothing_else(count, width, height):
    crops = np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None] * np.ones((1, 256, 256, 3), np.uint8)
    frames = frames_of(crops, width, height)
    assert frames.shape == (min(count, 4), height, width, 3) and frames.min() >= 1 and frames.max() <= count
    assert [frame[0, 0, 0] for frame in frames] == list(range(1, len(frames) + 1))
    places = -(-width // 256) * -(-height // 256)
    assert len(np.unique(frames[0])) == min(count, places)


def test_tensorrt_reads_the_graph(exported):
    tensorrt = pytest.importorskip("tensorrt_rtx")
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    assert parser.parse(exported.read_bytes()), [parser.get_error(k).desc() for k in range(parser.num_errors)]
    assert [network.get_output(k).name for k in range(network.num_outputs)] == ["boxes", "scores"]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, FRAME_SIZE, FRAME_SIZE, 3), np.float32),
        np.zeros((1, FRAME_SIZE, 250, 3), np.uint8),
        np.zeros((1, 48, 256, 3), np.uint8),
    ],
)
def test_other_frames_are_refused(exported, frames):
    with pytest.raises(GeometryError, match=r"expected frames (uint8|with sides of 64 px or more, in multiples of 16)"):
        open_people_detector(exported).run(frames)


@pytest.fixture(scope="module")
def own():
    return open_people_detector(shipped.detector())


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_frame_is_as_large_as_the_picture_in_it(own, width, height):
    across, down = own.frame_for(width, height)
    assert across % 16 == down % 16 == 0 and min(across, down) >= 64 and max(across, down) == FRAME_SIZE
    scale = FRAME_SIZE / max(width, height)
    for side, of in ((across, width), (down, height)):
        assert round(of * scale) <= side and (side == 64 or side < round(of * scale) + 16)


def test_a_frame_without_bars_has_the_boxes_of_one_with_them(own):
    with open_source(shipped.DEMO_CLIP) as source:
        images = [frame.image for frame in source if frame.index % 50 == 0]
    agreement = []
    for image in images:
        small = cv2.resize(image, (384, 288), interpolation=cv2.INTER_AREA)
        barred = np.zeros((1, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        barred[0, :288] = small
        plain, square = own.run(small[None]), own.run(barred)
        for a, b in ((plain, square), (square, plain)):
            for number in np.flatnonzero(a.scores[0] > 0.4):
                shared = overlaps(a.boxes[0, number : number + 1], b.boxes[0])[0]
                nearest = int(np.argmax(shared * (b.scores[0] > 0.3)))
                assert shared[nearest] > 0.75 and abs(a.scores[0, number] - b.scores[0, nearest]) < 0.1
                agreement.append(shared[nearest])
    assert len(agreement) >= 2 * len(images) and np.mean(agreement) > 0.95


def test_files_that_are_no_detector_are_refused(tmp_path, exported):
    with pytest.raises(ModelError, match="there is no such file"):
        open_people_detector(tmp_path / "none.onnx")
    damaged = exported.read_bytes()[:5000]
    for runtime in EXPORTED:
        pytest.importorskip(runtime)
        with pytest.raises(ModelError):
            open_people_detector(damaged, runtime)
        with pytest.raises(ModelError, match=r"expected a people detector of a known layout .*received .*crops uint8"):
            open_people_detector(shipped.load("xs").onnx, runtime)
    with pytest.raises(RuntimeUnavailableError, match="safetensors"):
        open_people_detector(exported, "torch")


@pytest.mark.parametrize(
    ("size", "outputs", "message"),
    [
        ((None, 96, 5000, 3), {}, "frames of 32 to 4096 px"),
        ((2, 96, 96, 3), {}, "known layout"),
        ((None, 96, 96, 4), {}, "known layout"),
        ((None, 96, 96, 3), {"scores": (2, 3)}, r"expected boxes \[N, K, 4\] and scores \[N, K\], received \[1, 2, 4\]"),
        ((None, 96, 96, 3), {"boxes": (5, 2, 4), "scores": (5, 2)}, "from the people detector, received"),
        ((None, 96, 96, 3), {"value": np.nan}, "finite boxes"),
    ],
)
def test_a_session_that_breaks_the_layout_is_refused_and_closed(size, outputs, message):
    class Session(LockedSession):
        closed = 0

        def _infer(self, arrays, count):
            value = outputs.get("value", 1.0)
            return {
                "boxes": np.full(outputs.get("boxes", (count, 2, 4)), value, np.float32),
                "scores": np.full(outputs.get("scores", (count, 2)), 0.5, np.float32),
            }

        def _release(self):
            self.closed += 1

    (frames,), given = people_specs(2)
    session = Session("it", (replace(frames, shape=size),), given, SessionDescription("it", "1", "CPU", "fp32", 1))
    with pytest.raises(ModelError, match=message):
        PeopleDetector(session)
    assert session.closed == 1


def test_weights_that_are_no_detector_s_are_refused(tmp_path):
    pytest.importorskip("torch")
    from convnextpose.detector import build_detector

    with pytest.raises(CheckpointError, match="people detector"):
        build_detector(shipped.load("xs").safetensors)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="starts with b'nothing'"):
        build_detector(broken)


def test_the_shipped_detector_is_that_of_its_weights():
    pytest.importorskip("torch")
    frames = noise_frames(2, FRAME_SIZE)
    compare_detectors(open_people_detector(START, "torch"), open_people_detector(shipped.detector()), frames).check()
    card = json.loads((shipped.FOLDER / "detector.json").read_text())
    assert hashlib.sha256(START.read_bytes()).hexdigest() == card["weights_sha256"]
    assert shipped.DETECTOR not in shipped.names()


def test_the_shipped_detector_sees_the_demo_clip_s_person():
    detector = open_people_detector(shipped.detector())
    truth = json.loads(shipped.DEMO_TRUTH.read_text())["frames"]
    with open_source(shipped.DEMO_CLIP) as source:
        frames = [frame for frame in source if frame.index % 50 == 0]
    for frame in frames:
        boxes = [detection.box for detection in detect(detector, frame.image, DETECTION_SCORE)[:MAX_CANDIDATES]]
        assert max(box.iou(Box(*truth[frame.index]["box"])) for box in boxes) > 0.5


def test_a_shipped_detector_that_was_changed_is_refused(tmp_path, monkeypatch):
    for path in shipped.FOLDER.glob(f"{shipped.DETECTOR}.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with (tmp_path / "detector.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="was changed"):
        shipped.detector()
    (tmp_path / "detector.json").unlink()
    with pytest.raises(CheckpointError, match="card of detector, but it is missing"):
        shipped.detector()
