"""A packed data folder is small, and what is in it is what training reads from the whole one."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from convnextpose.errors import SourceError  # noqa: E402
from tests.training import test_avatars, test_fabric, test_mocap, test_real  # noqa: E402
from training import pack as packing  # noqa: E402
from training.avatars import Avatars, is_held_out  # noqa: E402
from training.detector import DetectorTrainer  # noqa: E402
from training.mocap import Mocap  # noqa: E402
from training.pack import pack  # noqa: E402
from training.plan import Plan  # noqa: E402
from training.real_crops import PACKED, read_crops  # noqa: E402
from training.real_frames import read_frames  # noqa: E402
from training.train import run  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with a little of everything."""
    root = test_real.write(tmp_path_factory.mktemp("data"))
    test_mocap.write(root / "mocap_poses.npz", test_mocap.random_vectors(8, 1))
    test_fabric.write(root / "fabric_patches_cc0.zip")
    test_avatars.write(root / "avatars", test_avatars.ALL)
    return root


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("packed") / "data"
    sizes = pack(folder, target, avatars=4)
    assert sizes.keys() == {path.name for path in target.iterdir()} and min(sizes.values()) > 0
    return target


def test_the_people_are_the_same(folder, packed):
    for size in (256, 128):
        (people, held_out), (again, held_out_again) = (read_crops(root, size) for root in (folder, packed))
        assert again.fingerprint == people.fingerprint
        assert np.abs(again.pixels.astype(float) - people.pixels).mean() < 3
        np.testing.assert_allclose(held_out_again.joints_px, held_out.joints_px, atol=1)
        np.testing.assert_allclose(held_out_again.torso_px, held_out.torso_px, rtol=1e-6)
        assert held_out_again.images.shape == held_out.images.shape
        assert (held_out_again.images.float() - held_out.images.float()).abs().mean() < 4


def test_the_detectors_pictures_are_the_same_but_for_their_size(folder, tmp_path, monkeypatch):
    names = sorted(path.name for path in (folder / "real" / "pictures").iterdir())
    boxes = {name: [[10.5, 20.25, 30.0 + number, 40.0], [0, 0, 50, 60]] for number, name in enumerate(names)}
    marked = folder / "real" / "person_boxes.json"
    monkeypatch.setattr("training.real_frames.PACKED_PX", 100)
    try:
        marked.write_text(json.dumps(boxes))
        pack(folder, tmp_path / "packed", avatars=1)
        whole, _ = read_frames(folder, 64)
    finally:
        marked.unlink()
    again, held_out = read_frames(tmp_path / "packed", 64)
    assert held_out is None and len(again.images) == len(whole.images)
    np.testing.assert_allclose(again.odds, whole.odds)
    for image, picture, small, known in zip(whole.images, whole.pictures, again.images, again.pictures, strict=True):
        assert (known.picture.name, known.subject) == (picture.picture.name, picture.subject)
        assert max(small.shape) == 100 < max(image.shape)
        share = small.shape[1] / image.shape[1]
        np.testing.assert_allclose(known.boxes, picture.boxes * share, atol=1)
        np.testing.assert_array_equal(known.crowds, picture.crowds)
    plan = Plan(size=64, steps=2, batch=4, chunk=4, kept=2, filled=1, real=0.5)
    assert run(tmp_path / "run", plan, CPU, data=tmp_path / "packed", held_out_count=0, kind=DetectorTrainer).step == 2


def test_the_poses_are_the_first(folder, packed, tmp_path, monkeypatch):
    whole, again = (Mocap(root / "mocap_poses.npz").orientations for root in (folder, packed))
    assert torch.equal(whole, again)
    monkeypatch.setattr(packing, "COUNT", 3)
    pack(folder, tmp_path / "packed", avatars=1)
    assert torch.equal(Mocap(tmp_path / "packed" / "mocap_poses.npz").orientations, whole[:3])


def test_the_avatars_are_some_of_those_trained_on(folder, packed):
    names = Avatars(packed / "avatars", 100).names
    assert len(names) == 4 and not any(is_held_out(name) for name in names)


def test_a_run_learns_from_it(packed, tmp_path):
    shares = {"real": 0.5, "mocap": 0.5, "cloth": 0.5, "avatars": 0.5}
    plan = Plan(size=64, steps=2, batch=4, chunk=4, kept=2, filled=1, **shares)
    assert run(tmp_path, plan, CPU, data=packed, held_out_count=0).step == 2


def test_a_damaged_file_is_told(packed, tmp_path):
    for content in (b"", (packed / PACKED).read_bytes()[:5000]):
        (tmp_path / PACKED).write_bytes(content)
        with pytest.raises(SourceError, match=r"training/README\.md"):
            read_crops(tmp_path, 256)


def test_nothing_is_overwritten(folder, packed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pack", str(folder), str(packed)])
    with pytest.raises(SystemExit):
        packing.main()
    assert "not there yet" in capsys.readouterr().err
