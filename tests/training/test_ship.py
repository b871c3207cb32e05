"""Weights are put into the package whole: all files agree with the card, and open."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
from convnextpose import weights
from engines.opening import open_people_detector, open_pose_model
from engines.parity import noise_crops
from training import detector, ship


@pytest.fixture
def shipped():
    """What the package has: the pose model's weights."""
    return weights.load("xs")


@pytest.fixture
def folder(shipped, tmp_path, monkeypatch):
    """An empty folder in place of the package's."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_pose_model_is_shipped_whole(shipped, folder):
    ship.ship("xs", shipped.safetensors, "a summary")
    made = weights.load("xs")  # checks every file against the card
    assert made.summary == "a summary" and made.variant == shipped.variant
    assert made.safetensors.read_bytes() == shipped.safetensors.read_bytes()
    assert set(made.deviations) == {"bf16", "int8"}
    for precision in ("fp32", "int8"):
        with open_pose_model(made.int8.read_bytes() if precision == "int8" else made.onnx, "openvino") as model:
            assert model.run(noise_crops(1)).joints.shape == (1, 18, 3)
    ship.ship("xs", made.safetensors, None)
    assert weights.load("xs").summary == "a summary"


@pytest.mark.slow
def test_a_detector_is_shipped_with_the_weights_it_was_made_from(folder, tmp_path, monkeypatch):
    source = detector.WEIGHTS
    monkeypatch.setattr(detector, "WEIGHTS", tmp_path / "kept.safetensors")
    detector.ship(source, "a summary")
    assert detector.WEIGHTS.read_bytes() == source.read_bytes()
    with open_people_detector(weights.detector()) as opened:
        assert opened is not None
