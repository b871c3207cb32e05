"""The report has a runtime's deviation, in px and mm, and the joints with the largest one."""

import json
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest

from convnextpose.checkpoint import verify_state
from convnextpose.errors import ModelError, ParityError
from convnextpose.network import random_state
from convnextpose.variants import Variant
from engines.opening import open_pose_model
from engines.parity import FP32_LIMITS, ParityLimits, ParityReport, compare, noise_crops

JOINT, BINS = 5, 4
"""The joint with the fault, and its error in depth bins of 62.5 mm."""


@pytest.fixture(scope="module")
def reference(checkpoint):
    with open_pose_model(checkpoint, "torch") as runtime:
        yield runtime


@pytest.fixture(scope="module")
def faulty(onnx_bytes):
    """The exported model with one joint's heat-map moved in depth."""
    model = onnx.load_from_string(onnx_bytes)
    depth = Variant.XS.spec.depth_bins
    for tensor in model.graph.initializer:
        if "final_layer" in tensor.name:
            array = onnx.numpy_helper.to_array(tensor).copy()
            rows = slice(JOINT * depth, (JOINT + 1) * depth)
            array[rows] = np.roll(array[rows], BINS, axis=0)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    with open_pose_model(model.SerializeToString()) as runtime:
        yield runtime


def test_a_runtime_agrees_with_itself(reference, crops):
    report = compare(reference, reference, crops)
    assert (report.px.max, report.mm.max, report.max_score) == (0, 0, 0)
    assert report.crops == len(crops)
    report.check()


def test_the_joint_that_strays_is_found(reference, faulty, crops):
    report = compare(reference, faulty, crops)
    name = reference.info.joint_set.joints[JOINT]
    assert not report.passed
    assert report.worst[0].joint == name
    with pytest.raises(ParityError, match=f"worst joints: {name}"):
        report.check()
    for joint in report.joints:
        assert (joint.mm.max > 1) == (joint.joint == name)
        assert joint.px.max < 1e-3  # moved in depth only


def test_the_numbers_are_those_of_the_predictions(reference, faulty, crops):
    expected, found = reference.run(crops).joints, faulty.run(crops).joints
    report = compare(reference, faulty, crops)
    px, mm = np.linalg.norm((found - expected)[..., :2], axis=-1), np.abs(found - expected)[..., 2]
    assert report.px.max == pytest.approx(px.max(), rel=1e-3)
    assert report.mm.mean == pytest.approx(mm.mean(), rel=1e-3)
    assert report.joints[JOINT].mm.max == pytest.approx(mm[:, JOINT].max(), rel=1e-3)
    assert report.mm.mean <= report.mm.max
    assert report.mm.max == max(joint.mm.max for joint in report.joints)


@pytest.mark.parametrize("name", ["mean_px", "max_px", "mean_mm", "max_mm", "max_score"])
def test_every_limit_counts(name, reference, faulty, crops):
    wide = ParityLimits(256, 256, 2000, 2000, 1)
    report = replace(compare(reference, faulty, crops, wide), max_score=0.5)
    assert report.passed
    assert not replace(report, limits=replace(wide, **{name: 1e-9})).passed


def test_json_round_trip(reference, faulty, crops):
    report = compare(reference, faulty, crops)
    assert ParityReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["joints"][JOINT]["joint"] == reference.info.joint_set.joints[JOINT]
    for text in ("", "[]", "{}", '{"px": 1}', json.dumps(asdict(report) | {"limits": {"mean_px": 1}})):
        with pytest.raises(ParityError, match="expected a parity report"):
            ParityReport.from_json(text)


def test_it_reads_as_one_line(reference, faulty, crops):
    text = str(compare(reference, faulty, crops))
    assert "disagrees with torch on 5 crops" in text
    assert "\n" not in text


def test_two_models_are_not_compared(reference, crops):
    other = verify_state(random_state(Variant.XS, seed=1), source="other")
    with open_pose_model(other, "torch", name="other") as candidate, pytest.raises(ModelError, match="two models of one"):
        compare(reference, candidate, crops)


def test_no_crops_prove_nothing(reference, crops):
    with pytest.raises(ParityError, match="one crop or more"):
        compare(reference, reference, crops[:0])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_limits_are_positive(value):
    with pytest.raises(ParityError, match="positive max_px"):
        replace(FP32_LIMITS, max_px=value)


def test_noise_crops_are_fixed_and_differ():
    crops = noise_crops(10)
    assert crops.shape == (10, 256, 256, 3)
    assert np.array_equal(crops[:3], noise_crops(3))
    assert not np.array_equal(crops, noise_crops(10, seed=1))
    assert len({crop.tobytes() for crop in crops}) == 10
