"""Avatars move as their skeleton does, look as their textures do, and some heads are never trained on."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from convnextpose.errors import SourceError  # noqa: E402
from convnextpose.skeleton import HUMAN36M  # noqa: E402
from training import avatars, poses  # noqa: E402
from training.avatars import JOINTS, Avatars, is_held_out  # noqa: E402
from training.body import PARENTS, SEGMENT, SEGMENTS  # noqa: E402
from training.dataset import Renderer  # noqa: E402
from training.draws import Draws  # noqa: E402
from training.plan import Plan  # noqa: E402

PLACES = {  # mm, y up, the left at +x, facing +z
    "Hips": (0, 980, 0), "Spine": (0, 1020, 0), "Spine1": (0, 1100, 0), "Spine2": (0, 1190, 0), "Neck": (0, 1440, 20),
    "Head": (0, 1536, 40), "LeftEye": (31, 1590, 120), "RightEye": (-31, 1590, 120),
} | {
    f"{side}{name}": (sign * x, y, z)
    for side, sign in (("Left", 1), ("Right", -1))
    for name, (x, y, z) in {
        "Shoulder": (30, 1400, 15), "Arm": (160, 1395, 20), "ForeArm": (430, 1400, -5), "Hand": (650, 1396, 10),
        "FingerBase": (680, 1400, 12), "HandThumb1": (670, 1390, 40), "HandIndex1": (730, 1400, 25), "UpLeg": (80, 900, 20),
        "Leg": (82, 500, 20), "Foot": (80, 70, 0), "ToeBase": (80, 26, 120),
    }.items()
}  # fmt: skip
NAMES = ["Hips", "Spine", "Spine1", "Spine2", "Neck", "Head", *(n for n in PLACES if n[0] in "LR")]
PARENT_OF = {
    "Spine": "Hips", "Spine1": "Spine", "Spine2": "Spine1", "Neck": "Spine2", "Head": "Neck", "Shoulder": "Spine2",
    "Arm": "Shoulder", "ForeArm": "Arm", "Hand": "ForeArm", "FingerBase": "Hand", "HandThumb1": "FingerBase",
    "HandIndex1": "FingerBase", "UpLeg": "Hips", "Leg": "UpLeg", "Foot": "Leg", "ToeBase": "Foot", "Eye": "Head",
}  # fmt: skip
HALF_MM = 40
BLUE, RED = (230, 40, 30), (20, 30, 220)
"""BGR of skin and hair."""


def parent(name):
    stem = name.removeprefix("Left").removeprefix("Right")
    if stem == "Hips":
        return -1
    above = PARENT_OF[stem]
    return NAMES.index(above if above in NAMES else name.removesuffix(stem) + above)


def boxes():
    """A box of 8 cm around each joint that moves with it: corners, faces, whose they are, what is hair (the head's upper half
    has a box of its own)."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * HALF_MM
    faces = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                      [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip
    moving = [name for name in NAMES if "Eye" not in name]
    middles = [PLACES[name] for name in moving] + [(0, 1700, 40)]
    owners = [NAMES.index(name) for name in moving] + [NAMES.index("Head")]
    vertices = np.concatenate([corners + middle for middle in middles])
    nose = np.array([[0, 1550, 140]])
    joint = np.repeat(owners, 8)
    part = np.repeat([0] * len(moving) + [1], 8)
    every = np.concatenate([faces + 8 * k for k in range(len(middles))])
    return (
        np.concatenate([vertices, nose]), every, np.append(joint, NAMES.index("Head")), np.append(part, 0).astype(np.uint8),
    )  # fmt: skip


def write(folder, names):
    vertices, faces, joint, part = boxes()
    weights = np.zeros((len(joint), 4), np.uint8)
    weights[:, 0] = 255
    arrays = {"joint_names": np.array(NAMES), "joint_parents": np.array([parent(n) for n in NAMES], np.int16)}
    for name in names:
        arrays |= {
            f"{name}/v": (8 * vertices).astype(np.int16), f"{name}/uv": np.full((len(joint), 2), 30000, np.uint16),
            f"{name}/j": np.stack([joint, joint * 0, joint * 0, joint * 0], 1).astype(np.uint8), f"{name}/w": weights,
            f"{name}/f": faces.astype(np.uint16), f"{name}/part": part,
            f"{name}/joints": np.array([PLACES[n] for n in NAMES], np.float32),
        }  # fmt: skip
    (folder / "textures").mkdir(parents=True)
    cv2.imwrite(str(folder / "textures" / "skin.png"), np.full((16, 16, 3), BLUE, np.uint8))
    cv2.imwrite(str(folder / "textures" / "hair.png"), np.full((16, 16, 4), (*RED, 255), np.uint8))
    entries = [{"name": name, "textures": {"skin": "skin.png", "hair": "hair.png"}} for name in names]
    (folder / "avatars.json").write_text(json.dumps(entries))
    np.savez(folder / "avatars.npz", **arrays)
    return folder


HEADS = [f"Head_{number}" for number in range(12)]
ALL = [f"{head}_{outfit}" for head in HEADS for outfit in ("Busi", "Casual")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write(root / "avatars", ALL)
    return root


@pytest.fixture(scope="module")
def album(folder):
    return Avatars(folder / "avatars", 2000)


def draws(count, seed=0):
    return Draws(count, torch.Generator().manual_seed(seed))


@pytest.fixture
def as_they_are(monkeypatch):
    monkeypatch.setattr(avatars, "HEIGHT", 0.0)
    monkeypatch.setattr(avatars, "WIDTH", 0.0)


def test_every_segment_has_its_joint(album, as_they_are):
    skeleton = album.sample(draws(1))[0].skeleton[0]
    assert set(JOINTS.values()) == set(SEGMENTS)
    for joint, segment in JOINTS.items():
        if "Thumb" not in joint:
            x, y, z = PLACES[joint]
            torch.testing.assert_close(skeleton[SEGMENT[segment]], torch.tensor([x, -z, y]) / 1000.0, atol=1e-3, rtol=0)
    torch.testing.assert_close(skeleton[24], torch.tensor([0, -0.14, 1.55]), atol=1e-3, rtol=0)  # the nose
    for index, above in enumerate(PARENTS[1:], 1):
        assert (skeleton[index] - skeleton[above]).norm() < 0.5


def test_the_surface_moves_with_its_bones(album, as_they_are):
    worn, spacing_m = album.sample(draws(4))
    assert worn.corners.shape == (4, 2000, 3) and spacing_m.min() > 0.005 and spacing_m.max() < 0.1
    pose = poses.orient(poses.sample(draws(4, 5), 0.9))
    motion, joints = poses.move_skeleton(pose, worn.skeleton)
    points, normals = worn.posed(motion)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(4, 2000))
    for name, index in (("L_Elbow", "larmL"), ("R_Knee", "shankR"), ("L_Ankle", "footL"), ("R_Hip", "thighR")):
        owner = worn.weights.gather(1, worn.corners[..., :1].expand(-1, -1, 24))[..., SEGMENT[index]] > 0.9
        for person in range(4):  # a box of 8 cm: its surface is 40 to 69.3 mm from its middle
            middle = joints[person, HUMAN36M.joints.index(name)]
            apart = (points[person, owner[person]] - middle).norm(dim=-1)
            assert owner[person].sum() > 20 and apart.max() < 0.0695 and apart.min() > 0.039


def test_colours_are_the_textures(album):
    worn, _ = album.sample(draws(3))
    for mask, colour in ((~worn.thin, BLUE), (worn.thin, RED)):
        expected = torch.tensor(colour[::-1]) / 255
        assert mask.any() and (worn.colours[mask] - expected).abs().max() < 0.02


def test_transparent_hair_has_no_points(folder, tmp_path):
    write(tmp_path / "avatars", ALL[:2])
    hair = np.full((16, 16, 4), (*RED, 0), np.uint8)
    cv2.imwrite(str(tmp_path / "avatars" / "textures" / "hair.png"), hair)
    bald = Avatars(tmp_path / "avatars", 500)
    assert not bald.thin.any() and bald.corners.shape[1] == 500


def test_some_heads_are_never_trained_on(album):
    held_out = {name for name in ALL if is_held_out(name)}
    assert held_out and all(is_held_out(f"{n.rsplit('_', 1)[0]}_Milit") for n in held_out)
    assert {album.names[k] for k in album.kept[True]} == held_out
    assert {album.names[k] for k in album.kept[False]} == set(ALL) - held_out
    assert 0.1 < np.mean([is_held_out(f"Head_{k}_X") for k in range(2000)]) < 0.24


def test_sizes_vary(album):
    skeletons = album.sample(draws(64))[0].skeleton
    tall = skeletons[:, SEGMENT["head"], 2]
    assert 0.03 < tall.std() / tall.mean() < 0.1


def test_their_share_is_a_choice(folder):
    renderer = Renderer("cpu", 64, points=6000, data=folder)
    renderer_without = Renderer("cpu", 64, points=6000)
    none = renderer.batch(8, 0.2, renderer.generator(1), avatars=0.0)
    assert torch.equal(none.images, renderer_without.batch(8, 0.2, renderer.generator(1)).images)
    boxes = renderer.batch(8, 0.0, renderer.generator(1), avatars=1.0)
    assert boxes.visible.any(1).all() and torch.isfinite(boxes.joints).all()
    again = renderer.batch(8, 0.0, renderer.generator(1), avatars=1.0)
    assert torch.equal(boxes.images, again.images)
    inside = ((boxes.joints[..., :2] >= 0) & (boxes.joints[..., :2] < 64)).all(-1)
    assert inside[:, [j for j in range(18) if HUMAN36M.joints[j] != "Head"]].float().mean() > 0.95
    assert Plan(avatars=0.1).needs_data
    with pytest.raises(ValueError, match="data folder"):
        renderer_without.batch(2, 0.2, renderer.generator(1), avatars=0.5)


@pytest.mark.parametrize("damage", ["missing", "half a file", "no texture", "no skeleton", "nobody"])
def test_a_damaged_folder_is_told(tmp_path, monkeypatch, damage):
    folder = tmp_path / "avatars"
    if damage == "no skeleton":
        monkeypatch.setitem(globals(), "NAMES", [n for n in NAMES if n != "RightEye"])
    if damage != "missing":
        write(folder, [] if damage == "nobody" else ALL[:2])
    if damage == "half a file":
        (folder / "avatars.npz").write_bytes((folder / "avatars.npz").read_bytes()[:999])
    if damage == "no texture":
        (folder / "textures" / "skin.png").unlink()
    with pytest.raises(SourceError, match=r"training/README\.md"):
        Avatars(folder, 100)
