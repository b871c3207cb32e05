"""Real pictures stand behind the people and change nothing else; the older held-out sets stay what they were."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tests.cases import fast_first  # noqa: E402
from training import pictures as module  # noqa: E402
from training.background import in_its_light  # noqa: E402
from training.draws import Draws  # noqa: E402
from training.evaluate import held_out  # noqa: E402
from training.pictures import FOLDER, Pictures, developed  # noqa: E402
from training.plan import Plan  # noqa: E402
from training.render import render  # noqa: E402
from training.stream import PoseChunks  # noqa: E402

LICENSES = Path(module.__file__).with_name("LICENSES.md")


def draws(count, seed=0):
    return Draws(count, torch.Generator().manual_seed(seed))


@pytest.fixture
def album(tmp_path, monkeypatch):
    """One panorama, blue sky above green ground with a sun at 90 degrees, and one flat picture of a slow gradient."""
    panorama = np.full((128, 256, 3), (60, 60, 140), np.uint8)
    panorama[64:] = (40, 160, 40)
    panorama[20:30, 190:194] = 255  # the middle of column 192 lies at (192 / 256 - 0.5) turns
    flat = np.broadcast_to(np.linspace(0, 255, 101)[None, :, None], (60, 101, 3)).astype(np.uint8)
    for name, picture in (("panorama-a", panorama), ("flat-b", flat)):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return Pictures()


@pytest.mark.parametrize("name", fast_first(["hard", "easy", "never"]))
def test_the_older_held_out_sets_are_what_they_were(renderer, name):
    """Against crops recorded before there were pictures; rounding may move a point over a pixel's edge, no more."""
    with np.load(Path(__file__).with_name("held_out.npz")) as recorded:
        joints, colours = recorded[f"{name}_joints"], recorded[f"{name}_colours"]
    crops = held_out(name, 32, renderer)
    np.testing.assert_allclose(crops.joints, joints, rtol=2e-3, atol=0.1)
    means = torch.nn.functional.avg_pool2d(crops.images.permute(0, 3, 1, 2).float(), 32).numpy()
    assert (np.abs(means - colours) > 2).mean() < 0.01


def test_pictures_change_no_pose(renderer):
    plain, real = (renderer.batch(6, 0.6, renderer.generator(4), pictures=share) for share in (0.0, 1.0))
    assert torch.equal(plain.camera_mm, real.camera_mm)
    torch.testing.assert_close(plain.joints, real.joints, atol=1.0, rtol=0)  # a denser skirt may be a little wider
    assert (plain.images.float() - real.images.float()).abs().mean((1, 2, 3)).min() > 3


def test_a_seed_decides_the_pictures(renderer):
    first, again, held = (renderer.batch(4, 0.6, renderer.generator(5), False, 1.0, hold) for hold in (False, False, True))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, held.images)


def test_a_plan_decides_the_share():
    chunks = [PoseChunks("cpu", 64).render(Plan(size=64, chunk=4, pictures=share), 1) for share in (0.0, 1.0)]
    plain, real = chunks
    assert torch.equal(plain[1][..., 2], real[1][..., 2]) and not torch.equal(plain[0], real[0])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Plan(pictures=1.5)


def test_every_picture_has_a_line_on_its_licence():
    text = LICENSES.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `((?:held_out/)?(?:panorama|flat)-[^`]+\.jpg)` \| ([^|]+) \| [^|]+ \| ([DNP]\d) ", text, re.M)
    assert sorted(name for name, _, _ in listed) == sorted(p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*.jpg"))
    assert {licence for _, licence, _ in listed} <= {"CC0", "CC0 1.0", "public domain", "CC BY 4.0", "CC BY 2.0"}
    assert all(f"- {source}: " in text for _, _, source in listed)


def test_held_out_pictures_are_others():
    folders = (FOLDER, FOLDER / "held_out")
    trained, held = ({hashlib.sha256(p.read_bytes()).digest() for p in folder.glob("*.jpg")} for folder in folders)
    assert trained and held and not trained & held
    for pictures in (Pictures(), Pictures(held_out=True)):
        assert len(pictures.panoramas) >= 3 and len(pictures.flats) >= 3


def test_an_empty_folder_and_a_broken_picture_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="bake_pictures"):
        Pictures()
    (tmp_path / "flat-half.jpg").write_bytes(b"half")
    with pytest.raises(ValueError, match="flat-half"):
        Pictures()


def test_samples_are_the_pixels_and_what_lies_between(album):
    flat = album.flats[:1]
    exact = album.sample(flat, torch.arange(100.0)[None, None], torch.full((1, 1, 100), 7.0))[0, 0, 0]
    between = album.sample(flat, torch.arange(100.0)[None, None] + 0.25, torch.full((1, 1, 100), 7.5))[0, 0, 0]
    assert (exact.diff() > 0).all() and abs(exact[50] - 0.5) < 0.02
    torch.testing.assert_close(between[:-1], 0.75 * exact[:-1] + 0.25 * exact[1:], atol=0.005, rtol=0)


@settings(max_examples=30, deadline=None)
@given(x=st.floats(-1000, 1000), y=st.floats(-1000, 1000))
def test_beyond_its_edges_a_picture_is_mirrored(x, y):
    pictures = _shared_album()
    which = pictures.flats[:1]
    width, height = int(pictures.width[which]) - 1, int(pictures.height[which]) - 1
    spots = [(x, y), (-x, y), (x, -y), (2 * width - x, y), (x + 2 * width, y - 2 * height)]
    colours = [pictures.mirrored(which, torch.tensor([[[u]]]), torch.tensor([[[v]]])) for u, v in spots]
    assert all(torch.allclose(colours[0], colour, atol=0.02) for colour in colours)


_albums: list[Pictures] = []


def _shared_album() -> Pictures:
    """The held-out pictures, decoded once."""
    if not _albums:
        _albums.append(Pictures(held_out=True))
    return _albums[0]


def test_the_horizon_is_level_and_the_ground_below(album):
    size, count = 64, 24
    line = torch.linspace(-0.5, 0.5, size)
    v, u = torch.meshgrid(line, line, indexing="ij")
    rays = torch.stack([u, v], -1).expand(count, -1, -1, -1)
    roll, pitch = draws(count).normal(0.3), draws(count, 1).normal(0.2)
    up = torch.stack([roll.sin() * pitch.cos(), -roll.cos() * pitch.cos(), pitch.sin()], 1)
    light = torch.nn.functional.normalize(draws(count, 2).normal(1.0, 3), dim=-1)
    view = album.around(draws(count, 3), rays, up, light, size)
    ground = view[:, 1] > view[:, 2]  # greener than blue
    # A wide view squeezes what the rays see: the horizon passes where up . (wider x, wider y, 1) = 0, wider >= 1.
    slope = (rays * up[:, None, None, :2]).sum(-1)
    assert ((slope < -0.03) & (up[:, 2, None, None] < 0) <= ground).float().mean() > 0.999
    assert ((slope > 0.03) & (up[:, 2, None, None] > 0) <= ~ground).float().mean() > 0.999
    level = torch.tensor([0.0, -1.0, 0.0]).expand(count, -1)
    view = album.around(draws(count, 3), rays, level, light, size)
    assert (view[:, 1, size // 2 + 3 :] > view[:, 2, size // 2 + 3 :]).all()
    assert (view[:, 1, : size // 2 - 3] <= view[:, 2, : size // 2 - 3] + 0.05).all()


def test_the_sun_is_found_and_stands_where_the_light_comes_from(album):
    azimuth = album.sun[album.panoramas[0]].item()
    assert azimuth == pytest.approx(math.pi / 2, abs=0.06)
    size, count = 64, 200
    line = torch.linspace(-0.5, 0.5, size)
    v, u = torch.meshgrid(line, line, indexing="ij")
    rays = torch.stack([u, v - 0.7], -1).expand(count, -1, -1, -1)  # looking up a little, to where the sun is
    up = torch.tensor([[0.0, -1.0, 0.0]]).expand(count, -1)
    seen = []
    for light in ((0.0, -0.7, 1.0), (0.0, -0.7, -1.0)):
        toward = torch.nn.functional.normalize(torch.tensor([light]), dim=-1).expand(count, -1)
        seen.append((album.around(draws(count), rays, up, toward, size).amax((1, 2, 3)) > 0.9).float().mean().item())
    assert seen[0] > 0.5 > 0.3 > seen[1]


def test_developing_keeps_pictures_pictures():
    picture = draws(12).uniform(0, 1, 3, 64, 64)
    result = developed(draws(12, 1), picture.clone())
    assert result.shape == picture.shape and (result >= 0).all() and (result <= 1).all()
    contrast = result.std((1, 2, 3)) / picture.std((1, 2, 3))
    assert contrast.min() < 0.6 < contrast.max()  # some are out of focus


def test_people_in_a_picture_s_light_keep_their_place(renderer):
    people = render(renderer.body, draws(8), renderer.size, 0.5, closed=True)
    dark, red = torch.full_like(people.rgb, 0.05), people.rgb.new_tensor([0.8, 0.2, 0.2])[:, None, None].expand_as(people.rgb)
    for name in ("joints_px", "joints_m", "box", "depth_m"):
        assert torch.equal(getattr(in_its_light(draws(8), people, dark), name), getattr(people, name)), name
    shaded, tinted = (in_its_light(draws(8, 1), people, picture) for picture in (dark, red))
    assert shaded.rgb.mean() < 0.9 * tinted.rgb.mean()
    assert (tinted.rgb[:, 0].mean() / tinted.rgb[:, 2].mean()) > (shaded.rgb[:, 0].mean() / shaded.rgb[:, 2].mean())
    assert (shaded.alpha >= 0).all() and (shaded.alpha <= 1).all()
    assert (shaded.alpha[people.alpha == 0] == 0).all() and (shaded.alpha[people.alpha == 1] > 0.999).all()
