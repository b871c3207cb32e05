"""Real cloth lies on the garments it is meant for, and on no skin."""

from __future__ import annotations

import zipfile

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from convnextpose.errors import SourceError  # noqa: E402
from training.appearance import dress_up  # noqa: E402
from training.body import Body  # noqa: E402
from training.dataset import Renderer  # noqa: E402
from training.draws import Draws  # noqa: E402
from training.fabric import PATCH_PX, WORN_AS, Fabric, _reflected  # noqa: E402
from training.plan import Plan  # noqa: E402

COLOURS = {"t-shirt": (255, 0, 0), "pants": (0, 0, 255), "outwear": (0, 255, 0)}
"""RGB of the patches of each kind: the top is red or green, trousers blue, a coat green."""


def write(path, colours=COLOURS):
    with zipfile.ZipFile(path, "w") as archive:
        for name, colour in colours.items():
            patch = np.full((128, 128, 3), colour[::-1], np.uint8)
            archive.writestr(f"{name}/0001.jpg", cv2.imencode(".jpg", patch)[1].tobytes())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write(root / "fabric_patches_cc0.zip")
    return root


@pytest.fixture(scope="module")
def fabric(folder):
    return Fabric(folder / "fabric_patches_cc0.zip")


def draws(count, seed=0):
    return Draws(count, torch.Generator().manual_seed(seed))


def test_each_garment_has_its_kinds(fabric):
    points = torch.rand(50, 3)
    normals = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    for garment, allowed in {"top": {0, 1}, "trousers": {2}, "coat": {1}}.items():
        laid = fabric.lay(draws(16), garment, points, normals)
        assert laid.shape == (16, 50, 3) and laid.min() >= 0 and laid.max() <= 1
        assert set(laid.argmax(-1).unique().tolist()) <= allowed


def test_people_wear_it_where_they_have_clothes(fabric):
    surface = Body(4096).surface
    plain, real = (dress_up(draws(64, 3), surface, 0.5, 0.4, 0.3, share, fabric) for share in (0.0, 1.0))
    again = dress_up(draws(64, 3), surface, 0.5, 0.4, 0.3)
    assert torch.equal(plain.colours, again.colours) and torch.equal(plain.thickness_m, real.thickness_m)
    changed = (plain.colours != real.colours).any(-1)
    assert not changed[:, surface.parts["head"] & (surface.trunk > 1.25)].any()
    feet = surface.parts["foot"]
    assert not changed[:, feet].any() and 0.3 < changed[:, ~feet].float().mean() < 0.95
    assert (real.colours[changed].amax(-1) > 3 * real.colours[changed].amin(-1)).float().mean() > 0.95  # pure colours


def test_a_patch_is_mirrored_at_its_edges():
    places = torch.arange(-2 * PATCH_PX, 4 * PATCH_PX).float()
    pixels = _reflected(places)
    assert pixels.min() == 0 and pixels.max() == PATCH_PX - 1
    assert (pixels.diff().abs() <= 1).all() and torch.equal(pixels[: 2 * PATCH_PX], pixels[2 * PATCH_PX : 4 * PATCH_PX])


def test_its_share_is_a_choice(folder):
    renderer = Renderer("cpu", 64, data=folder)
    none, same, all_of_it = (
        renderer.batch(8, 0.5, renderer.generator(2), **shares) for shares in ({}, {"cloth": 0.0}, {"cloth": 1.0})
    )
    assert torch.equal(none.images, same.images) and not torch.equal(none.images, all_of_it.images)
    assert Plan(cloth=0.5).needs_data and not Plan().needs_data
    with pytest.raises(ValueError, match="data folder"):
        Renderer("cpu", 64).batch(2, 0.5, renderer.generator(2), cloth=0.5)


@pytest.mark.parametrize("damage", ["missing", "no archive", "no picture", "no trousers"])
def test_a_damaged_file_is_told(tmp_path, damage):
    path = tmp_path / "cloth.zip"
    if damage == "no archive":
        path.write_bytes(b"PK")
    elif damage == "no picture":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("pants/1.jpg", b"no JPEG")
    elif damage == "no trousers":
        write(path, {k: v for k, v in COLOURS.items() if k not in WORN_AS["trousers"]})
    with pytest.raises(SourceError, match=r"training/README\.md"):
        Fabric(path)
