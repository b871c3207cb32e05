"""The lift to camera space: people cut off by the picture's edge, and impossible cameras."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convnextpose
from convnextpose import weights
from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box, crop_from_image, crop_region
from convnextpose.errors import GeometryError
from convnextpose.skeleton import HUMAN36M
from pipeline.stages import FOUR_CHANNELS_PX, RelativePose, lift, warp_crop

SIZE = (640, 480)
CAMERA = Intrinsics(620, 620, 319.5, 239.5)


def true_poses():
    """The demo clip's true joints: x px, y px and z mm from the pelvis [18, 3], and the pelvis's depth, mm."""
    for frame in json.loads(weights.DEMO_TRUTH.read_text())["frames"][::10]:
        joints_mm = np.array(frame["joints_cam_mm"])
        depth_mm = joints_mm[0, 2]
        yield CAMERA.project(joints_mm) - np.array([0, 0, depth_mm]), depth_mm


def lifted(joints, box, size=SIZE, camera=CAMERA):
    pose = RelativePose(0, box, joints, np.ones(18), crop_region(box, *size))
    return lift(pose, size, camera, RootDepthSource.INTRINSICS, HUMAN36M)


@given(st.integers(0, 99), st.floats(-900, 900), st.floats(-700, 700), st.floats(8, 2 * FOUR_CHANNELS_PX))
def test_a_crop_is_the_official_one_but_for_rounding(seed, x, y, side):
    image = np.random.default_rng(seed).integers(0, 256, (480, 640, 3), np.uint8)
    region = Box(x, y, side, side)
    expected = cv2.warpAffine(image, crop_from_image(region), (256, 256), flags=cv2.INTER_LINEAR)
    crops = np.full((3, 256, 256, 3), 7, np.uint8)
    warp_crop(image, region, crops[1])
    np.testing.assert_array_equal(crops[1], warp_crop(image, region))
    assert (crops[[0, 2]] == 7).all()
    apart = np.abs(crops[1].astype(int) - expected)
    assert apart.max() <= 2 and (apart > 0).mean() < 0.02, "positions are in FP32, and the part has another origin"


@pytest.mark.parametrize("share", [0.6, 0.75])
def test_who_is_cut_by_the_edge_is_placed_by_the_bones_in_sight(share):
    """A picture that ends at the waist or at the knees: the bones show the distance, the box does not."""
    for joints, depth_mm in true_poses():
        top, bottom = joints[:, 1].min(), joints[:, 1].max()
        height = round(top + share * (bottom - top))
        pose = lifted(joints, Box.around(joints).clip(SIZE[0], height), (SIZE[0], height))
        assert pose.cut_by_edge and pose.root_depth_source is RootDepthSource.BONE_LENGTHS
        assert pose.root_depth_mm == pytest.approx(depth_mm, rel=0.05)


def test_who_is_wholly_in_the_picture_is_placed_by_the_box():
    for joints, _ in true_poses():
        box = Box.around(joints)
        pose = lifted(joints, box)
        assert not pose.cut_by_edge and pose.root_depth_source is RootDepthSource.INTRINSICS
        assert pose.root_depth_mm == CAMERA.estimate_root_depth_mm(crop_region(box, *SIZE).area)


def test_too_few_bones_in_sight_leave_the_depth_to_the_box():
    joints, _ = next(true_poses())
    head = joints[8:11]  # neck, nose and head: no bone of known length
    height = round(head[:, 1].max()) + 1
    pose = lifted(joints, Box.around(head).clip(SIZE[0], height), (SIZE[0], height))
    assert pose.cut_by_edge and pose.root_depth_source is RootDepthSource.INTRINSICS


def test_a_principal_point_outside_the_picture_is_refused():
    config = convnextpose.RunConfig(weights.DEMO_CLIP, camera=Intrinsics(1500, 1500, 960, 540))
    with pytest.raises(GeometryError, match=r"principal point inside the 640x480 px pictures of demo\.mp4, received cx=960"):
        convnextpose.open_pipeline(config)
