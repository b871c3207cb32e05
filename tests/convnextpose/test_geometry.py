"""Laws of the crop, the camera, the heat-map coordinates and the skeleton."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import (
    Box,
    apply_affine,
    crop_from_image,
    crop_region,
    decode_bins,
    encode_bins,
    image_from_crop,
    invert_affine,
    normalise,
)
from convnextpose.errors import GeometryError
from convnextpose.skeleton import HUMAN36M, MUCO, joint_set_of_size
from convnextpose.variants import Variant

finite = st.floats(-1e6, 1e6, allow_nan=False)
sizes = st.floats(0.5, 1e5)
boxes = st.builds(Box, finite, finite, sizes, sizes)
pictures = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
cameras = st.builds(Intrinsics, st.floats(50, 5000), st.floats(50, 5000), st.floats(-500, 4000), st.floats(-500, 4000))


def points(columns, low=-2000.0, high=4000.0):
    return hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(columns)), elements=st.floats(low, high))


@given(boxes, points(3))
def test_crop_and_its_inverse_are_identity(box, joints):
    matrix = crop_from_image(box.square())
    there_and_back = apply_affine(invert_affine(matrix), apply_affine(matrix, joints))
    tolerance = 1e-6 * max(1.0, box.square().width, abs(box.x), abs(box.y))
    assert np.allclose(there_and_back, joints, rtol=0, atol=tolerance)
    np.testing.assert_allclose(image_from_crop(box.square()), invert_affine(matrix), rtol=1e-9, atol=tolerance)


@given(boxes)
def test_the_crop_is_the_region(box):
    region = box.square()
    corners = np.array([[region.x, region.y], [region.x + region.width, region.y + region.height]])
    tolerance = 1e-6 * max(1.0, (abs(box.x) + abs(box.y)) / box.square().width)
    assert np.allclose(apply_affine(crop_from_image(region), corners), [[0, 0], [256, 256]], atol=256 * tolerance)


@given(cameras, points(2), st.floats(100, 20000))
def test_project_and_unproject_are_identity(camera, joints_px, depth):
    pixels = np.column_stack([joints_px, np.full(len(joints_px), depth)])
    assert np.allclose(camera.project(camera.unproject(pixels)), pixels, atol=1e-6)


@given(
    st.sampled_from(list(Variant)),
    cameras,
    hnp.arrays(np.float64, (18, 3), elements=st.floats(-950, 950)),
    st.floats(2500, 12000),
    st.floats(-800, 800),
)
def test_a_skeleton_comes_back_from_heatmap_coordinates(variant, camera, relative_mm, depth_mm, sideways_mm):
    """Project, crop, encode as bins; decode, undo the crop, unproject: within 1e-3 mm."""
    relative_mm = relative_mm - relative_mm[0]
    assume(np.abs(relative_mm[:, 2]).max() < 1000)
    skeleton = relative_mm + np.array([sideways_mm, 0.0, depth_mm])
    image = camera.project(skeleton)
    assume(np.ptp(image[:, 0]) > 1 or np.ptp(image[:, 1]) > 1)
    extent = np.ptp(image[:, :2], axis=0) + 1
    region = Box(*(image[:, :2].min(0) - 0.5), *extent).square()
    image[:, 2] -= depth_mm
    bins = encode_bins(apply_affine(crop_from_image(region), image), variant)
    assert bins[:, :2].min() >= 0 and bins[:, :2].max() <= variant.spec.heatmap_size
    decoded = apply_affine(invert_affine(crop_from_image(region)), decode_bins(bins, variant))
    decoded[:, 2] += depth_mm
    assert np.abs(camera.unproject(decoded) - skeleton).max() < 1e-3


@given(st.sampled_from([HUMAN36M, MUCO]), st.integers(1, 4000), st.data())
def test_mirroring_twice_is_identity(joint_set, width, data):
    joints = data.draw(hnp.arrays(np.float64, (len(joint_set), 3), elements=st.floats(-4000, 4000)))
    assert np.allclose(joint_set.mirror(joint_set.mirror(joints, width), width), joints)


@pytest.mark.parametrize("joint_set", [HUMAN36M, MUCO], ids=lambda s: s.name)
def test_skeletons_are_whole(joint_set):
    assert len(set(joint_set.joints)) == len(joint_set)
    reached = {joint_set.root}
    for _ in joint_set.bones:
        reached |= {b for a, b in joint_set.bones if a in reached}
    assert len(joint_set) - len(reached) == (1 if joint_set is HUMAN36M else 0), "bones connect all but Thorax to the pelvis"
    for a, b in joint_set.flip_pairs:
        assert {joint_set.side(a), joint_set.side(b)} == {"left", "right"}
        assert joint_set.joints[a][2:] == joint_set.joints[b][2:]
    unpaired = set(range(len(joint_set))) - {i for pair in joint_set.flip_pairs for i in pair}
    assert all(joint_set.side(i) == "middle" for i in unpaired)
    assert joint_set_of_size(len(joint_set)) is joint_set
    mirrored_bones = {tuple(sorted((joint_set.flip_order[a], joint_set.flip_order[b]))) for a, b in joint_set.bones}
    assert mirrored_bones == {tuple(sorted(bone)) for bone in joint_set.bones}


def test_unknown_joint_counts_are_refused():
    with pytest.raises(GeometryError, match="received one of 17"):
        joint_set_of_size(17)
    with pytest.raises(GeometryError, match="18 joints"):
        HUMAN36M.mirror(np.zeros((17, 3)), 100)


@given(boxes, pictures)
def test_regions_of_any_box_are_defined_or_refused(box, picture):
    """A box that overlaps the picture gives a square around its visible part; any other is refused."""
    width, height = picture
    try:
        region = crop_region(box, width, height)
    except GeometryError:
        overlap_x = min(box.x + box.width, width) - max(box.x, 0)
        overlap_y = min(box.y + box.height, height) - max(box.y, 0)
        assert overlap_x <= 0 or overlap_y <= 0
        return
    clipped = box.clip(width, height)
    assert clipped.x >= 0 and clipped.x + clipped.width <= width * (1 + 1e-9) + 1e-6
    assert region.width == region.height == pytest.approx(1.25 * max(clipped.width, clipped.height))
    assert region.center == pytest.approx(clipped.center, abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [(0, 0, 0, 5), (0, 0, 5, -1), (math.nan, 0, 5, 5), (0, math.inf, 5, 5), (0, 0, 5, math.nan)],
)
def test_boxes_without_area_or_meaning_are_refused(values):
    with pytest.raises(GeometryError, match="expected a box"):
        Box(*values)


def test_a_box_beyond_the_picture_is_refused_with_both():
    with pytest.raises(GeometryError, match="640x480 px picture, received x=700"):
        crop_region(Box(700, 10, 50, 50), 640, 480)


@given(boxes, boxes)
def test_iou_is_symmetric_and_bounded(a, b):
    assert a.iou(b) == pytest.approx(b.iou(a))
    assert 0 <= a.iou(b) <= 1 + 1e-9
    assert a.iou(a) == pytest.approx(1, abs=1e-6 * max(1, abs(a.x) / a.width, abs(a.y) / a.height))


@given(cameras, st.floats(0.3, 30), st.floats(200, 20000))
def test_root_depth_follows_the_pinhole(camera, factor, depth_mm):
    """A square of 2000 mm at some depth covers the area from which that depth is estimated."""
    side = np.sqrt(camera.fx * camera.fy) * 2000 / depth_mm
    assert camera.estimate_root_depth_mm(side**2) == pytest.approx(depth_mm)
    assert camera.estimate_root_depth_mm((factor * side) ** 2) == pytest.approx(depth_mm / factor)


@pytest.mark.parametrize("area", [0.0, -1.0, math.nan, math.inf])
def test_root_depth_needs_an_area(area):
    with pytest.raises(GeometryError):
        Intrinsics(500, 500, 0, 0).estimate_root_depth_mm(area)


@given(st.integers(2, 8000), st.integers(2, 8000), st.floats(20, 150))
def test_an_assumed_camera_sees_its_field_of_view(width, height, fov):
    camera = Intrinsics.assumed(width, height, fov)
    edge = camera.unproject(np.array([camera.cx + max(width, height) / 2, camera.cy, 1.0]))
    assert math.degrees(2 * math.atan(edge[0])) == pytest.approx(fov)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,1,2,3", "-1,1,2,3", "nan,1,2,3"])
def test_bad_cameras_are_refused(text):
    with pytest.raises(GeometryError, match="expected a camera"):
        Intrinsics.parse(text)


def test_a_camera_is_read_as_it_is_written():
    assert Intrinsics.parse("1500, 1501,640.5,360") == Intrinsics(1500, 1501, 640.5, 360)
    assert RootDepthSource("given") is RootDepthSource.GIVEN


def test_normalising_is_the_official_preprocessing():
    crop = np.zeros((1, 256, 256, 3), np.uint8)
    crop[0, 3, 5] = (10, 20, 30)  # BGR
    out = normalise(crop)
    assert out.shape == (1, 3, 256, 256)
    expected = [(30 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (10 / 255 - 0.406) / 0.225]
    assert out[0, :, 3, 5] == pytest.approx(expected, abs=1e-6)
