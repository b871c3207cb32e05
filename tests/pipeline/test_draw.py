"""Drawing: it draws the right things in the right places, never fails, and gives the same pictures for the same frames."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import GeometryError
from convnextpose.skeleton import HUMAN36M, JOINT_SETS, MUCO, JointSet
from convnextpose.world import World
from pipeline.draw import LEFT_BGR, RIGHT_BGR, START_DEGREES, TURN_DEGREES_PER_S, PoseRenderer
from pipeline.labels import Label, draw_labels, person_bgr, side_bgr
from pipeline.types import Frame, Pose
from pipeline.view3d import turned

CAMERA = Intrinsics(620.0, 620.0, 319.5, 179.5)
BOTH = pytest.mark.parametrize("joint_set", JOINT_SETS.values(), ids=lambda s: s.name)
# A person who faces the camera with arms half raised: mm from the pelvis, x towards the person's left, y down.
STANDING = {
    "Pelvis": (0, 0, 0), "Hip": (120, 10, 0), "Knee": (140, 440, -20), "Ankle": (150, 860, 20), "Toe": (160, 920, -120),
    "Torso": (0, -230, 0), "Spine": (0, -230, 0), "Thorax": (0, -480, 0), "Neck": (0, -520, 0), "Nose": (0, -600, -90),
    "Head": (0, -700, 0), "Head_top": (0, -760, 0), "Shoulder": (190, -460, 0), "Elbow": (430, -330, 20),
    "Wrist": (620, -480, -60), "Hand": (680, -540, -80),
}  # fmt: skip


def frame(width: int = 640, height: int = 360, *, time_s: float = 0.0, source: str = "a", grey: int = 128) -> Frame:
    image = np.full((height, width, 3), grey, np.uint8)
    image.flags.writeable = False  # drawing into it would raise
    return Frame(image, source, round(time_s * 25), time_s)


def standing(
    joint_set: JointSet = HUMAN36M,
    *,
    at_mm: tuple[float, float, float] = (0.0, 0.0, 4000.0),
    camera: Intrinsics = CAMERA,
    track_id: int = 1,
    score: float = 0.9,
) -> Pose:
    def joint(name: str) -> tuple[float, float, float]:
        x, y, z = STANDING[name.removeprefix("L_").removeprefix("R_")]
        return (-x if name.startswith("R_") else x, y, z)

    joints_mm = np.array([joint(name) for name in joint_set.joints], np.float64) + at_mm
    joints_px = camera.project(joints_mm)[:, :2]
    low, size = joints_px.min(axis=0) - 4, np.ptp(joints_px, axis=0) + 8
    scores = np.full(len(joint_set), score)
    return Pose(track_id, Box(*low, *size), joints_px, joints_mm, scores, at_mm[2], RootDepthSource.GIVEN)


def where(picture: np.ndarray, bgr: tuple[int, int, int]) -> np.ndarray:
    """[H, W]: the pixels of a colour, shaded or not: with the same ratio of the channels, and bright enough."""
    colour = np.array(bgr, np.float64)
    brightness = picture.astype(np.float64) @ colour / (colour @ colour)
    return (brightness > 0.5) & (np.abs(picture - brightness[..., None] * colour).max(axis=-1) < 12)


def middle_x(picture: np.ndarray, bgr: tuple[int, int, int], rows: slice) -> float:
    mask = where(picture, bgr)[rows]
    assert mask.sum() > 30
    return float(np.nonzero(mask)[1].mean())


def below_key(panel: np.ndarray) -> slice:
    """The rows under the colour key."""
    return slice(round(0.12 * panel.shape[0]), None)


@pytest.mark.parametrize("size", [(640, 360), (641, 361), (360, 641), (1, 1), (2, 3), (17, 5), (3, 400), (1280, 720)])
def test_picture_without_people_stays_and_sides_are_even(size: tuple[int, int]) -> None:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    result = PoseRenderer(HUMAN36M).render(Frame(noise, "a", 0, 0.0), (), CAMERA)
    assert result.dtype == np.uint8 and result.shape[0] % 2 == 0 and result.shape[1] % 2 == 0
    assert result.shape[0] - height in (0, 1) and result.shape[1] - width - min(size) in (0, 1)
    assert np.array_equal(result[:height, :width], noise)


def test_panel_says_that_nobody_is_there() -> None:
    renderer = PoseRenderer(HUMAN36M)
    nobody, somebody = (renderer.render(frame(), poses, CAMERA)[:, 640:] for poses in ((), (standing(),)))
    middle = np.s_[170:215, 90:270]
    assert nobody[middle].max() > 150 and not where(nobody, LEFT_BGR)[below_key(nobody)].any()
    assert where(somebody, LEFT_BGR)[below_key(somebody)].any()


@BOTH
@pytest.mark.parametrize("size", [(640, 360), (1280, 720), (360, 640)])
def test_drawing_stays_near_the_skeleton_and_the_box(joint_set: JointSet, size: tuple[int, int]) -> None:
    width, height = size
    camera = Intrinsics(1.1 * min(size), 1.1 * min(size), width / 2, height / 2)
    pose, plain = standing(joint_set, camera=camera), frame(width, height)
    drawn = PoseRenderer(joint_set).render(plain, (pose,), camera)[:height, :width]
    allowed = np.full((height, width), 255, np.uint8)
    for a, b in joint_set.bones:
        start, end = (tuple(np.rint(pose.joints_px[joint]).astype(int).tolist()) for joint in (a, b))
        cv2.line(allowed, start, end, 0)
    box = pose.box
    cv2.rectangle(allowed, (round(box.x), round(box.y)), (round(box.x + box.width), round(box.y + box.height)), 0)
    distance = cv2.distanceTransform(allowed, cv2.DIST_L2, 5)
    changed = (drawn != plain.image).any(axis=-1)
    assert changed.any() and distance[changed].max() < 9 * min(size) / 360


@BOTH
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_left_and_right_are_told_apart_in_the_picture(joint_set: JointSet, grey: int) -> None:
    drawn = PoseRenderer(joint_set).render(frame(grey=grey), (standing(joint_set),), CAMERA)[:, :640]
    # The person faces the camera: the person's left is on the picture's right.
    assert middle_x(drawn, RIGHT_BGR, np.s_[:]) < 300 < 340 < middle_x(drawn, LEFT_BGR, np.s_[:])


@BOTH
def test_left_and_right_are_told_apart_in_the_view_from_every_side(joint_set: JointSet) -> None:
    def seen(degrees: float) -> tuple[np.ndarray, np.ndarray]:
        time_s = (degrees - START_DEGREES) % 360 / TURN_DEGREES_PER_S
        panel = PoseRenderer(joint_set).render(frame(time_s=time_s), (standing(joint_set),), CAMERA)[:, 640:]
        left, right = (np.nonzero(where(panel, bgr)[below_key(panel)])[1] for bgr in (LEFT_BGR, RIGHT_BGR))
        return left, right

    left, right = seen(0)  # from the real camera's direction
    assert left.mean() - right.mean() > 40
    left, right = seen(180)
    assert left.mean() - right.mean() < -40
    left, right = seen(90)  # from the person's left, which hides the right
    assert len(left) > 5 * len(right)
    left, right = seen(270)
    assert len(right) > 5 * len(left)


def test_view_turns_with_the_time_stamp_once_round() -> None:
    def at(time_s: float) -> np.ndarray:
        return PoseRenderer(HUMAN36M).render(frame(time_s=time_s), (standing(),), CAMERA)

    first, later = at(0.0), at(0.4)
    assert np.array_equal(first[:, :640], later[:, :640])
    assert (first[:, 640:] != later[:, 640:]).any(axis=-1).mean() > 0.005
    assert np.array_equal(first, at(360.0 / TURN_DEGREES_PER_S))


def test_the_same_frames_give_the_same_pictures() -> None:
    def clip() -> list[np.ndarray]:
        renderer, noise = PoseRenderer(HUMAN36M), np.random.default_rng(1)
        crowds = [(1,), (1,), (1, 2), (1, 2), (2,), (), (3, 2)]
        return [
            renderer.render(
                frame(time_s=i / 25),
                tuple(standing(at_mm=(900 * t, 0, 4e3 + noise.normal(0, 90)), track_id=t) for t in ids),
                CAMERA,
            )
            for i, ids in enumerate(crowds)
        ]

    assert all(np.array_equal(a, b) for a, b in zip(clip(), clip(), strict=True))


@pytest.mark.parametrize("before", [frame(time_s=0.0, source="other"), frame(time_s=9.0)], ids=["other source", "later"])
def test_another_source_or_an_earlier_time_starts_afresh(before: Frame) -> None:
    renderer = PoseRenderer(HUMAN36M)
    renderer.render(before, (standing(at_mm=(0, 500, 9000)), standing(at_mm=(3000, 0, 4000), track_id=2)), CAMERA)
    again = renderer.render(frame(time_s=1.0), (standing(),), CAMERA)
    assert np.array_equal(again, PoseRenderer(HUMAN36M).render(frame(time_s=1.0), (standing(),), CAMERA))


UNDER_FEET_MM = float(standing().joints_mm[:, 1].max()) + 35
"""The floor under a person who stands at height 0 of camera space, mm."""


def people_in_view(renderer: PoseRenderer, time_s: float, *poses: Pose) -> np.ndarray:
    """[H, W]: the pixels of the limbs in the 3D view, always seen from the same side."""
    panel = renderer.render(frame(time_s=time_s), poses, CAMERA, World.level(UNDER_FEET_MM))[:, 640:]
    colours = [LEFT_BGR, RIGHT_BGR] if len(poses) == 1 else [tuple(bgr) for p in poses for bgr in side_bgr(p.track_id)[:2]]
    limbs = np.any([where(panel, bgr) for bgr in colours], axis=0)
    limbs[: round(0.12 * len(limbs))] = False
    return limbs


def test_noise_in_the_root_depth_does_not_shake_the_view() -> None:
    calm, noisy = PoseRenderer(HUMAN36M), PoseRenderer(HUMAN36M)
    noise = np.random.default_rng(2)
    for i in range(10):
        still = people_in_view(calm, i / 25, standing())
        shaken = people_in_view(noisy, i / 25, standing(at_mm=(noise.normal(0, 60), 0, 4000 + noise.normal(0, 200))))
        assert (still != shaken).sum() <= 0.01 * still.sum()


def test_a_leap_of_one_persons_root_depth_reaches_the_view_slowly() -> None:
    def pair(depth_mm: float) -> tuple[Pose, Pose]:
        return standing(at_mm=(-700, 0, 4000)), standing(at_mm=(700, 0, depth_mm), track_id=2)

    renderer = PoseRenderer(HUMAN36M)
    for i in range(5):
        before = people_in_view(renderer, i / 25, *pair(4000))
    smooth = people_in_view(renderer, 5 / 25, *pair(4400))
    at_once = people_in_view(PoseRenderer(HUMAN36M), 5 / 25, *pair(4400))
    assert (smooth != before).sum() < 0.6 * (at_once != before).sum()


def test_a_jump_is_seen_as_a_jump() -> None:
    renderer = PoseRenderer(HUMAN36M)
    for i in range(5):
        stood = people_in_view(renderer, i / 25, standing())
    jumped = people_in_view(renderer, 5 / 25, standing(at_mm=(0, -300, 4000)))
    mm_per_px = 2860 / 360
    assert np.nonzero(stood)[0].mean() - np.nonzero(jumped)[0].mean() > 0.8 * 300 / mm_per_px


def test_people_far_apart_all_fit_into_the_view() -> None:
    pair = standing(at_mm=(-2500, 0, 5000)), standing(at_mm=(2500, 0, 5000), track_id=2)
    limbs = people_in_view(PoseRenderer(HUMAN36M), 0.0, *pair)
    columns = np.nonzero(limbs.any(axis=0))[0]
    assert columns[0] > 5 and columns[-1] < 354 and np.diff(columns).max() > 60


@BOTH
def test_low_scores_are_drawn_but_less(joint_set: JointSet) -> None:
    sure, unsure = (
        PoseRenderer(joint_set).render(frame(), (standing(joint_set, score=score),), CAMERA) for score in (0.9, 0.1)
    )
    for part in (np.s_[:, :640], np.s_[45:, 640:]):
        for bgr in (LEFT_BGR, RIGHT_BGR):
            many, few = where(sure[part], bgr).sum(), where(unsure[part], bgr).sum()
            assert 0.05 * many < few < 0.6 * many


def test_track_ids_are_shown_only_among_several_people() -> None:
    def pair(*ids: int) -> np.ndarray:
        poses = tuple(standing(at_mm=(1600 * i - 800, 0, 4000), track_id=track_id) for i, track_id in enumerate(ids))
        return PoseRenderer(HUMAN36M).render(frame(), poses, CAMERA)

    assert np.array_equal(pair(1), pair(7))
    one, other = pair(1, 2), pair(1, 7)
    for part in (np.s_[:, :640], np.s_[:, 640:]):
        assert (one[part] != other[part]).any()


def test_several_people_keep_their_colours_when_one_is_left() -> None:
    def colours(renderer: PoseRenderer, *ids: int, time_s: float = 0.0) -> list[bool]:
        poses = tuple(standing(at_mm=(1600 * i - 800, 0, 4000), track_id=track_id) for i, track_id in enumerate(ids))
        drawn = renderer.render(frame(time_s=time_s), poses, CAMERA)[40:, :640]
        return [bool(where(drawn, tuple(side_bgr(track_id)[0])).any()) for track_id in (1, 2)]

    renderer = PoseRenderer(HUMAN36M)
    assert colours(renderer, 1, 2) == [True, True]
    assert colours(renderer, 2, time_s=0.1) == [False, True]
    assert colours(PoseRenderer(HUMAN36M), 2) == [False, False]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 400), st.floats(-50, 300)), min_size=1, max_size=10))
def test_labels_stay_in_the_picture_and_dodge_each_other(places: list[tuple[float, float]]) -> None:
    labels = [Label(str(i), (10 + 20 * i, 255, 128), x, y) for i, (x, y) in enumerate(places)]
    alone = []
    for label in labels:
        picture = np.zeros((240, 320, 3), np.uint8)
        draw_labels(picture, [label], 12.0)
        alone.append((picture == np.array(label.bgr)).all(axis=-1).sum())
    picture = np.zeros((240, 320, 3), np.uint8)
    draw_labels(picture, labels, 12.0)
    for label, whole in zip(labels, alone, strict=True):
        assert whole > 0 and (picture == np.array(label.bgr)).all(axis=-1).sum() >= 0.8 * whole


def labelled(panel: np.ndarray, track_id: int) -> bool:
    """Whether the person has a label there: bones and joints have no patch of one colour as large as this."""
    patch = (panel == np.array(person_bgr(track_id))).all(axis=-1).astype(np.uint8)
    return bool(cv2.erode(patch, np.ones((3, 10), np.uint8)).any())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-12e3, 12e3), st.floats(-2e3, 2e3), st.floats(300, 30e3)), min_size=2, max_size=6),
    st.floats(0, 24),
)
def test_in_the_3d_view_only_people_in_it_have_a_label(places: list[tuple[float, float, float]], time_s: float) -> None:
    poses = tuple(standing(at_mm=place, track_id=i) for i, place in enumerate(places))
    renderer = PoseRenderer(HUMAN36M)
    panel = renderer.render(frame(time_s=time_s), poses, CAMERA)[:, 640:]
    view, floor = renderer._views[360, 360, True], renderer._floor
    turn = math.radians((START_DEGREES + TURN_DEGREES_PER_S * time_s) % 360)
    for pose in poses:
        points = view.project(turned(floor.place_on_floor(pose), turn))
        inside = ((points[:, :2] >= 0) & (points[:, :2] < 360)).all(axis=-1).any()
        assert labelled(panel, pose.track_id) == inside


def test_somebody_far_from_the_others_is_told_of_and_not_labelled() -> None:
    near = (standing(track_id=1), standing(at_mm=(900, 0, 4200), track_id=2), standing(at_mm=(-900, 0, 4300), track_id=3))
    far = standing(at_mm=(0, 0, 60_000), track_id=4)
    time_s = (180 - START_DEGREES) / TURN_DEGREES_PER_S  # seen from behind: the far person is in front of the view's camera
    panel = PoseRenderer(HUMAN36M).render(frame(time_s=time_s), (*near, far), CAMERA)[:, 640:]
    assert [labelled(panel, track_id) for track_id in (1, 2, 3, 4)] == [True, True, True, False]
    all_near = PoseRenderer(HUMAN36M).render(frame(time_s=time_s), near, CAMERA)[:, 640:]
    note = np.s_[330:, 75:180]  # behind "grid 1 m"
    assert panel[note].max() > all_near[note].max() + 40


@pytest.mark.parametrize("size", [(640, 360), (3840, 2160), (360, 640), (320, 180)])
@pytest.mark.parametrize("caption", ["random weights", "a caption much longer than any picture is wide " * 3])
def test_caption_is_stamped_across_the_top_of_the_picture(size: tuple[int, int], caption: str) -> None:
    width, height = size
    plain, stamped = (PoseRenderer(HUMAN36M).render(frame(width, height), (), CAMERA, caption=c) for c in (None, caption))
    changed = (plain != stamped).any(axis=-1)
    assert changed[0, :width].all() and not changed[height // 3 :].any() and not changed[:, width:].any()
    band = stamped[: np.nonzero(changed[:, 0])[0][-1] + 1, :width]
    if caption == "random weights":
        ink = np.nonzero((band.max(axis=-1) < 100).any(axis=0))[0]
        assert ink[0] > 0 and ink[-1] < width - 1 and ink[-1] - ink[0] > 0.2 * width
        assert len(band) > 0.08 * min(size)


def test_lines_grow_with_the_picture() -> None:
    def share(scale: int) -> float:
        camera = Intrinsics(620.0 * scale, 620.0 * scale, 320.0 * scale, 180.0 * scale)
        drawn = PoseRenderer(HUMAN36M).render(frame(640 * scale, 360 * scale), (standing(camera=camera),), camera)
        return float((where(drawn, LEFT_BGR) | where(drawn, RIGHT_BGR)).mean())

    assert share(4) == pytest.approx(share(1), rel=0.2)


@pytest.mark.parametrize("drawn, given_", [(HUMAN36M, MUCO), (MUCO, HUMAN36M)], ids=lambda s: s.name)
def test_poses_of_another_joint_set_are_refused(drawn: JointSet, given_: JointSet) -> None:
    with pytest.raises(GeometryError, match=f"expected poses of {len(drawn)} joints .* received {len(given_)}"):
        PoseRenderer(drawn).render(frame(), (standing(given_),), CAMERA)


ANYWHERE = st.one_of(st.floats(-2000, 2000), st.sampled_from([0.0, -1.0, 1e6, -1e6, 1e12, -1e300, 1e308]), st.floats(-1e9, 1e9))
POSITIVE = st.one_of(st.floats(0.01, 2000), st.sampled_from([1e-300, 1e6, 1e300]))


@st.composite
def wild_poses(draw: st.DrawFn, joint_set: JointSet) -> Pose:
    count = len(joint_set)
    return Pose(
        draw(st.integers(-5, 10**12)),
        Box(draw(ANYWHERE), draw(ANYWHERE), draw(POSITIVE), draw(POSITIVE)),
        draw(arrays.arrays(np.float64, (count, 2), elements=ANYWHERE)),
        draw(arrays.arrays(np.float64, (count, 3), elements=ANYWHERE)),
        draw(arrays.arrays(np.float64, count, elements=st.floats(0, 1))),
        draw(ANYWHERE),
        RootDepthSource.ASSUMED_FOV,
    )


@given(
    data=st.data(),
    size=st.sampled_from([(160, 90), (90, 161), (1, 1), (7, 300)]),
    camera=st.builds(Intrinsics, POSITIVE, POSITIVE, ANYWHERE, ANYWHERE),
)
def test_people_anywhere_are_drawn_without_failing(data: st.DataObject, size: tuple[int, int], camera: Intrinsics) -> None:
    joint_set = data.draw(st.sampled_from(list(JOINT_SETS.values())))
    renderer = PoseRenderer(joint_set)
    for i in range(data.draw(st.integers(1, 3))):
        poses = tuple(data.draw(st.lists(wild_poses(joint_set), max_size=2)))
        time_s = data.draw(st.sampled_from([i / 25, i * 1e6, -float(i)]))
        result = renderer.render(
            frame(*size, time_s=time_s), poses, camera, caption=data.draw(st.sampled_from([None, "ü — 骨"]))
        )
        assert result.shape[0] - size[1] in (0, 1) and result.shape[1] - size[0] - min(size) in (0, 1)


def test_a_limb_that_leaves_the_picture_keeps_its_direction() -> None:
    pose = standing()
    wrist, elbow = HUMAN36M.joints.index("L_Wrist"), HUMAN36M.joints.index("L_Elbow")
    px = pose.joints_px.copy()
    px[elbow], px[wrist] = (400, 100), (400 + 1e9, 100 + 5e8)
    far = Pose(1, pose.box, px, pose.joints_mm, pose.scores, pose.root_depth_mm, pose.root_depth_source)
    drawn = PoseRenderer(HUMAN36M).render(frame(), (far,), CAMERA)[:, :640]
    assert where(drawn, LEFT_BGR)[[150, 200, 219], [500, 600, 638]].all()
