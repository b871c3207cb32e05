"""Human3.6M's two protocols, scored as in the authors' public code, on the annotation files of 3DMPPE.

    FOLDER/annotations/Human36M_subject{9,11}_{data,camera,joint_3d}.json
    FOLDER/images/s_09_act_02_subact_01_ca_01/s_09_act_02_subact_01_ca_01_000001.jpg, ...

Sources: `data/Human36M/Human36M.py`, `common/utils/pose_utils.py` and `main/test.py` of mks0601/3DMPPE_POSENET_RELEASE, and the
same files of medialab-ku/ConvNeXtPose, whose settings are ground-truth boxes and root depths and a flip test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics
from convnextpose.crop import Box, apply_affine, crop_from_image, invert_affine
from convnextpose.errors import GeometryError, ModelError, SourceError
from convnextpose.metrics import joint_errors, rigid_joint_errors
from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import INPUT_SIZE
from engines.pose import PosePredictor, Predictions
from pipeline.stages import warp_crop

ACTIONS = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Posing", "Purchases", "Sitting", "SittingDown", "Smoking",
    "Photo", "Waiting", "Walking", "WalkDog", "WalkTogether",
)  # fmt: skip
"""The actions in the order of their numbers, from 2."""

FIRST_ACTION = 2
EVERY = 64
"""One in this many frames of the test subjects is used."""

SUBJECTS = {1: (11,), 2: (9, 11)}
"""The test subjects of each protocol."""

LEAST_OVERLAP = 0.3
"""Smallest allowed intersection over union of the box around the true joints and the annotated box."""

BATCH = 16
_LEFT, _RIGHT = HUMAN36M.joints.index("L_Shoulder"), HUMAN36M.joints.index("R_Shoulder")


@dataclass(frozen=True)
class TestFrame:
    """A picture of the test set with its ground truth.

    Attributes:
        path: the picture.
        subject: 9 or 11.
        action: index into ACTIONS.
        region: the square that the network reads, px.
        camera: the intrinsics.
        joints_mm: [18, 3] true joints in camera space, mm; Thorax is the middle of the shoulders.
        root_depth_mm: the distance of the pelvis with which predictions are lifted.
    """

    __test__ = False  # for pytest: not a test, in spite of its name

    path: Path
    subject: int
    action: int
    region: Box
    camera: Intrinsics
    joints_mm: NDArray[np.float64]
    root_depth_mm: float


@dataclass(frozen=True)
class Scores:
    """The errors of a test set's frames.

    Attributes:
        frames: the frames.
        mpjpe_mm: [F, 17] errors of the scored joints after moving both pelvises to the origin (protocol 2).
        pa_mpjpe_mm: [F, 17] errors after aligning each pose with its truth by rotation and translation (protocol 1).
    """

    frames: tuple[TestFrame, ...]
    mpjpe_mm: NDArray[np.float64]
    pa_mpjpe_mm: NDArray[np.float64]

    def of(self, protocol: int, action: int | None = None) -> float | None:
        """A protocol's score, mm, over all frames or those of one action; None if there are none."""
        chosen = [frame.subject in SUBJECTS[protocol] and action in (None, frame.action) for frame in self.frames]
        errors = (self.pa_mpjpe_mm if protocol == 1 else self.mpjpe_mm)[np.array(chosen, bool)]
        return float(errors.mean()) if len(errors) else None


def read_test_set(folder: Path, subjects: Sequence[int], boxes: Path | None = None) -> list[TestFrame]:
    """The test frames of some subjects.

    Args:
        folder: holds `annotations` and `images`.
        subjects: their numbers.
        boxes: a `bbox_root_human36m_output.json` of RootNet: regions and root depths in place of the true ones.

    Raises:
        SourceError: a file is missing or has the wrong format.
    """
    given = _read_boxes(boxes) if boxes else None
    frames = [frame for subject in subjects for frame in _read_subject(folder, subject, given)]
    if not frames:
        raise SourceError(f"expected frames whose number is a multiple of {EVERY} in {folder}, found none")
    return frames


def evaluate(
    model: PosePredictor,
    frames: Sequence[TestFrame],
    *,
    flip: bool = True,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Predict every frame and compare.

    Args:
        model: reads the poses; it must have Human3.6M's 18 joints.
        frames: the test set.
        flip: average each prediction with that of the mirrored crop, as the authors do.
        on_progress: called with the number of finished frames.

    Raises:
        ModelError: the model has other joints.
        SourceError: a picture cannot be read.
    """
    if model.info.joint_set is not HUMAN36M:
        raise ModelError(
            f"expected a model of Human3.6M's {len(HUMAN36M)} joints, received {model.info.name} with those of "
            f"{model.info.joint_set.name}"
        )
    predicted = []
    for start in range(0, len(frames), BATCH):
        batch = frames[start : start + BATCH]
        crops = np.stack([warp_crop(_read_picture(frame.path), frame.region) for frame in batch])
        joints = predict(model, crops, flip=flip)
        predicted += [to_camera_space(joint, frame) for joint, frame in zip(joints, batch, strict=True)]
        on_progress(start + len(batch))
    scored, truth = list(HUMAN36M.scored), np.stack([frame.joints_mm for frame in frames])
    places = np.stack(predicted)
    return Scores(
        tuple(frames),
        joint_errors(places, truth, HUMAN36M)[:, scored],
        rigid_joint_errors(places, truth, HUMAN36M)[:, scored],
    )


def predict(model: PosePredictor, crops: NDArray[np.uint8], *, flip: bool) -> NDArray[np.float64]:
    """Joints [N, 18, 3] of crops (px in the crop, mm from the pelvis); with `flip`, averaged with those of mirrored crops.

    Mirrored positions are mirrored back in the heat map, as in the authors' code: bin W - 1 - x of W. In the crop that is
    256 - x - 256/W px, although 255 - x would be right: so their test shifts all joints by half the difference. The shift
    nearly vanishes when the pelvises are aligned; without it the score could not be compared with theirs.
    """
    joints = _joints(model.run(crops))
    if flip:
        mirrored = _joints(model.run(np.ascontiguousarray(crops[:, :, ::-1])))[:, list(HUMAN36M.flip_order)]
        mirrored[..., 0] = INPUT_SIZE - mirrored[..., 0] - INPUT_SIZE / model.info.variant.spec.heatmap_size
        joints = (joints + mirrored) / 2
    return joints


def to_camera_space(joints: NDArray[np.float64], frame: TestFrame) -> NDArray[np.float64]:
    """Convert joints [18, 3] of a crop to camera space, mm, with the frame's root depth."""
    place = apply_affine(invert_affine(crop_from_image(frame.region)), joints)
    place[:, 2] += frame.root_depth_mm
    return frame.camera.unproject(place)


def _joints(predictions: Predictions) -> NDArray[np.float64]:
    return predictions.joints.astype(np.float64)


def _read_subject(folder: Path, subject: int, given: dict[str, tuple[Box, float]] | None) -> Iterator[TestFrame]:
    paths = [folder / "annotations" / f"Human36M_subject{subject}_{what}.json" for what in ("data", "camera", "joint_3d")]
    data, cameras, worlds = (_read_json(path) for path in paths)
    where = paths[0]
    to_camera = None
    try:
        pictures = {picture["id"]: picture for picture in data["images"] if picture["frame_idx"] % EVERY == 0}
        for annotation in data["annotations"]:
            picture = pictures.get(annotation["image_id"])
            if picture is None or picture["subject"] != subject:
                continue
            where = folder / "images" / picture["file_name"]
            camera = cameras[str(picture["cam_idx"])]
            world = worlds[str(picture["action_idx"])][str(picture["subaction_idx"])][str(picture["frame_idx"])]
            world_mm = _with_thorax(np.array(world, np.float64).reshape(-1, 3))
            intrinsics = Intrinsics(*(float(value) for value in (*camera["f"], *camera["c"])))
            rotation, translation = np.array(camera["R"], np.float64).reshape(3, 3), np.array(camera["t"], np.float64).ravel()
            to_camera = to_camera or _convention(world_mm, rotation, translation, intrinsics, annotation["bbox"])
            joints_mm = to_camera(world_mm, rotation, translation)
            if given is not None:
                region, root_depth_mm = given[str(picture["id"])]
            else:
                found = true_region(annotation["bbox"], picture["width"], picture["height"])
                if found is None:  # the authors' code skips such frames, too
                    continue
                region, root_depth_mm = found, float(joints_mm[HUMAN36M.root, 2])
            action = picture["action_idx"] - FIRST_ACTION
            if not 0 <= action < len(ACTIONS):
                raise ValueError(f"its action_idx is {picture['action_idx']}")
            yield TestFrame(where, subject, action, region, intrinsics, joints_mm, root_depth_mm)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SourceError(f"expected 3DMPPE's annotations of Human3.6M, but {where} has something else: {what}") from error


def true_region(box: Sequence[float], width: int, height: int) -> Box | None:
    """The authors' region for an annotated box x, y, width, height (px): clipped, made square, enlarged; None if it is empty.

    Unlike `convnextpose.crop`, their clipping ends one pixel before the edges of the picture and of the box.
    """
    x, y, w, h = (float(value) for value in box)
    x1, y1 = max(0.0, x), max(0.0, y)
    x2, y2 = min(width - 1.0, x1 + max(0.0, w - 1)), min(height - 1.0, y1 + max(0.0, h - 1))
    if w * h <= 0 or x2 <= x1 or y2 <= y1:
        return None
    return Box(x1, y1, x2 - x1, y2 - y1).square()


def _with_thorax(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    if joints.shape != (len(HUMAN36M) - 1, 3):
        raise ValueError(f"expected {len(HUMAN36M) - 1} joints of a person, received {len(joints)}")
    return np.concatenate([joints, (joints[_LEFT] + joints[_RIGHT])[None] / 2])


_Conversion = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def _convention(
    world_mm: NDArray[np.float64],
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    camera: Intrinsics,
    box: Sequence[float],
) -> _Conversion:
    """Whether `t` is the world's origin in camera space or, as in older files, the camera's position in the world.

    Only with the right one do the joints agree with the annotated box.
    """
    conversions: tuple[_Conversion, ...] = (
        lambda world, r, t: world @ r.T + t,
        lambda world, r, t: (world - t) @ r.T,
    )
    for convert in conversions:
        joints = convert(world_mm, rotation, translation)
        if joints[:, 2].min() > 0 and Box.around(camera.project(joints)).iou(Box(*box)) >= LEAST_OVERLAP:
            return convert
    raise ValueError("its camera does not put the joints into the annotated box")


def _read_boxes(path: Path) -> dict[str, tuple[Box, float]]:
    try:
        return {str(row["image_id"]): (Box(*row["bbox"]), float(row["root_cam"][2])) for row in _read_json(path)}
    except (KeyError, TypeError, IndexError, GeometryError) as error:
        raise SourceError(f"expected RootNet's list of image_id, bbox and root_cam in {path}: {error}") from error


def _read_json(path: Path) -> Any:  # noqa: ANN401 (JSON's types)
    try:
        with path.open("rb") as file:
            return json.load(file)
    except FileNotFoundError:
        raise SourceError(
            f"expected 3DMPPE's annotations of Human3.6M, but there is no {path}: give the folder that holds `annotations` and "
            "`images`"
        ) from None
    except (OSError, ValueError) as error:
        raise SourceError(f"expected 3DMPPE's annotations of Human3.6M, but {path} cannot be read: {error}") from error


def _read_picture(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise SourceError(f"expected the picture {path}, which the annotations name, but it is not there or cannot be read")
    return np.asarray(image, np.uint8)
