"""The shipped weights: the exported model agrees with the checkpoint beside it."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from convnextpose import weights
from convnextpose.checkpoint import verify
from convnextpose.crop import Box, crop_region
from convnextpose.skeleton import HUMAN36M
from engines.calibration import CalibrationSet, hash_crops
from engines.metadata import read_metadata
from engines.opening import open_pose_model
from engines.parity import FP32_LIMITS, LIMITS, compare
from engines.sessions.openvino import cpu_precisions
from pipeline.models import open_model
from pipeline.sources import open_source
from pipeline.stages import warp_crop


@pytest.fixture(scope="module")
def crops():
    """Real crops: the demo clip's person, and the rooms around."""
    with open_source(weights.DEMO_CLIP) as source:
        frames = [frame.image for frame in source if frame.index % 60 == 0]
    regions = [middle(image, share) for image in frames for share in (0.5, 1.0)]
    return np.stack([warp_crop(image, region) for image, region in zip(np.repeat(frames, 2, axis=0), regions, strict=True)])


@pytest.fixture(scope="module")
def filmed_person():
    """Crops of the demo clip's person, from the true boxes."""
    truth = json.loads(weights.DEMO_TRUTH.read_text())["frames"]
    with open_source(weights.DEMO_CLIP) as source:
        frames = [frame for frame in source if frame.index % 60 == 0]
    return np.stack([warp_crop(f.image, crop_region(Box(*truth[f.index]["box"]), f.width, f.height)) for f in frames])


def middle(image, share):
    height, width = image.shape[:2]
    side = share * height
    return Box((width - side) / 2, (height - side) / 2, side, side)


@pytest.mark.parametrize("name", weights.names())
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_shipped_model_agrees_with_its_checkpoint(name, runtime, crops):
    with open_model(name, "torch") as reference, open_model(name, runtime, precision="fp32") as candidate:
        report = compare(reference, candidate, crops, FP32_LIMITS)
    report.check()
    assert report.px.max > 0, "two runtimes are never equal to the last bit: the candidate must not be the reference"


@pytest.mark.parametrize("name", weights.names())
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_shipped_model_keeps_its_limits_in_each_precision(name, precision, filmed_person):
    """On the crops that its card was measured on, and on others."""
    pytest.importorskip("openvino")
    shipped, limits = weights.load(name), LIMITS[precision]
    assert limits.hold(shipped.deviations[precision])
    if precision != "int8" and precision not in cpu_precisions():
        pytest.skip(f"this CPU has no {precision}")
    proof = CalibrationSet.load(weights.CALIBRATION).split().proof
    with open_model(name, "torch") as reference, open_model(name, "openvino", precision=precision) as candidate:
        assert candidate.describe().precision == ("int8+fp32" if precision == "int8" else precision)
        assert candidate.info.name == reference.info.name == name
        found = compare(reference, candidate, proof, limits)
        filmed = compare(reference, candidate, filmed_person, limits)
    found.check()
    assert filmed.px.mean <= limits.mean_px and filmed.mm.mean <= limits.mean_mm
    able = torch.cpu.get_capabilities()
    if precision == "int8" and not (able["avx512_vnni"] or able["avx_vnni"]):
        return  # without VNNI, sums of two products have 16 bits and saturate: the card's figures are from a CPU with VNNI
    told = shipped.deviations[precision]
    if told.runtime != "openvino":
        return  # PyTorch rounds in more places
    assert (found.deviation.mean_px, found.deviation.mean_mm) == pytest.approx((told.mean_px, told.mean_mm), rel=0.2)


@pytest.mark.parametrize("name", weights.names())
def test_the_shipped_int8_model_says_what_it_is(name):
    shipped = weights.load(name)
    info, original = (read_metadata(path.read_bytes(), str(path)) for path in (shipped.int8, shipped.onnx))
    calibrated = hash_crops(CalibrationSet.load(weights.CALIBRATION).split().calibration)
    assert info == replace(original, precision="int8", calibration_sha256=calibrated)


@pytest.mark.parametrize("name", weights.names())
def test_the_shipped_model_says_what_it_is(name):
    shipped = weights.load(name)
    checkpoint = verify(shipped.safetensors, shipped.variant)
    info = read_metadata(shipped.onnx.read_bytes(), str(shipped.onnx))
    assert (info.name, info.variant, info.joint_set) == (name, checkpoint.variant, checkpoint.joint_set)
    assert info.checkpoint_sha256 == checkpoint.sha256
    assert not info.random


def test_all_shipped_files_together_are_small():
    assert sum(path.stat().st_size for path in weights.FOLDER.iterdir() if path.is_file()) < 35e6


def test_mirrored_pictures_give_mirrored_poses(crops):
    """A network that distinguishes left and right: a mirrored picture's pose is approximately the mirrored pose."""
    with open_pose_model(weights.load("xs").onnx) as runtime:
        straight = runtime.run(crops).joints[::2]
        mirrored = runtime.run(np.stack([cv2.flip(crop, 1) for crop in crops])).joints[::2]
    distance = np.linalg.norm(HUMAN36M.mirror(mirrored, 256)[..., :2] - straight[..., :2], axis=-1)
    assert np.median(distance) < 12
