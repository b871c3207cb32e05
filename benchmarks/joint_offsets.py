"""The bias of a network's joints: their offsets from the marks in COCO's pictures, and from MediaPipe's joints.

    python benchmarks/joint_offsets.py FOLDER [--model xs] [--held-out]

Sets of labels differ in their definition of, for example, a hip. Such a difference is the same for everybody, so it shows in
the median over many people, in axes that rotate with the body: up the torso (from the middle of the hips to the middle of the
shoulders), outward (from the body's middle to the joint's own side; for the nose to the person's left) and, in 3D, forward.

In pictures (FOLDER/real, see training/README.md) people count if their torso is complete, at most 0.5 of the box's longer side,
and their shoulders are at least 0.4 torso lengths apart, so that outward is defined. All marked people count, unless
--held-out: weights that were trained on some of them have learned the labels' bias. In 3D (FOLDER/eval3d) there is one person,
and both roots, the middle of the hips, are at the origin. Joints farther than 0.3 torso lengths, or 200 mm, from their label
are wrong and do not count. The 95 % interval is a bootstrap over pictures, or over the cameras' frames.

An uncertain network draws joints towards a mean pose, which is not a bias of the labels. The same figures for rendered people,
whose joints are known exactly, show how large this effect is; the rest of the difference comes from the labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import PoseError
from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import INPUT_SIZE

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `benchmarks` and `training`, which are not installed

from benchmarks.pictures import LIMBS, LabelledPerson, labelled_frames, labelled_people
from benchmarks.recording import read_recording, views
from engines.pose import PoseModel
from pipeline.models import open_model
from pipeline.stages import TrackedBox, predict

Array = NDArray[np.float64]

JOINTS = (*LIMBS, "Nose")
NUMBERS, SHOULDERS, HIPS = (
    [HUMAN36M.joints.index(name) for name in names] for names in (JOINTS, ("L_Shoulder", "R_Shoulder"), ("L_Hip", "R_Hip"))
)
MISTAKEN_TORSO, MISTAKEN_MM = 0.3, 200.0
NARROW_TORSO = 0.4
LONGEST_TORSO = 0.5
"""A torso is at most this fraction of the box's longer side: a box around less of the body does not show the torso's length."""
EVERY = 3
DRAWS = 2000


def in_body_axes(offsets: Array, joints: Array, *, mistaken: float) -> Array:
    """Offsets [13, 2 or 3] of JOINTS along the body's axes: outward, up and, in space, forward. NaN where they do not count.

    Args:
        offsets: the network's joints minus the labels, in any unit; NaN where there is no label.
        joints: the labels [18, 2 or 3] with y down and, in space, z away from the camera; shoulders and hips are there.
        mistaken: the length above which an offset is a mistake.
    """
    left_shoulder, right_shoulder, left_hip, right_hip = joints[SHOULDERS + HIPS]
    up = left_shoulder + right_shoulder - left_hip - right_hip
    up /= np.linalg.norm(up)
    left = left_shoulder - right_shoulder + left_hip - right_hip
    left -= up * (left @ up)
    left /= np.linalg.norm(left)
    axes = np.stack([left, up] if joints.shape[1] == 2 else [left, up, np.cross(left, up)])
    result = offsets @ axes.T
    result[:, 0] *= [-1.0 if name.startswith("R_") else 1.0 for name in JOINTS]
    result[np.linalg.norm(offsets, axis=1) > mistaken] = np.nan
    return np.asarray(result, np.float64)


def medians(offsets: Array, groups: list[str]) -> tuple[Array, Array, Array]:
    """The medians [7, A] of offsets [N, 13, A] over people and both sides, and their 95 % intervals, [7, A] each.

    Args:
        offsets: each person's offsets along A axes.
        groups: each person's group, which is resampled as a whole (percentile bootstrap, Efron 1979).
    """
    sided = np.concatenate([offsets[:, 6:12], offsets[:, :6]], axis=1)  # left and right of each pair exchanged
    pairs = np.stack([sided, np.concatenate([offsets[:, :6], offsets[:, 6:12]], axis=1)], 1)[:, :, :6]
    nose = np.repeat(offsets[:, None, 12:], 2, axis=1)
    values = np.concatenate([pairs, nose], axis=2)  # [N, 2, 7, A]
    numbers = np.unique(groups, return_inverse=True)[1]
    members = [np.flatnonzero(numbers == n) for n in range(numbers.max() + 1)]
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        those = np.concatenate([members[n] for n in random.integers(len(members), size=len(members))])
        drawn.append(np.nanmedian(values[those], axis=(0, 1)))
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    return np.nanmedian(values, axis=(0, 1)), low, high


def picture_offsets(model: PoseModel, folder: Path, *, held_out: bool) -> tuple[Array, list[str]]:
    """Offsets [N, 13, 2] in torso lengths of the people marked in pictures, and their pictures' names."""
    files, people = labelled_people(folder, held_out_only=held_out)
    offsets, names = [], []
    for frame, those in labelled_frames([person for person in people if _counts(person)], files):
        for person in those:
            (pose,) = predict(model, frame.image, [TrackedBox(0, person.box)])
            found = (pose.joints[:, :2] - person.joints_px)[NUMBERS] / person.torso_px
            offsets.append(in_body_axes(found, person.joints_px, mistaken=MISTAKEN_TORSO))
            names.append(person.file)
    return np.stack(offsets), names


def recorded_offsets(model: PoseModel, folder: Path) -> Iterator[tuple[Array, str]]:
    """Offsets [13, 3] in mm in every third frame of each camera, and the frame's name."""
    recording = read_recording(folder)
    for number, (camera, image, box, truth, good) in enumerate(views(recording, EVERY)):
        labels = np.full((len(HUMAN36M), 3), np.nan)
        labels[list(recording.joints)] = np.where(good[:, None], truth, np.nan)
        if np.isnan(labels[SHOULDERS]).any():
            continue
        root = truth[recording.hips].mean(0)
        (pose,) = predict(model, image, [TrackedBox(0, box)])
        place = camera.unproject(pose.joints + np.array([0, 0, root[2]]))
        found = (place - place[HIPS].mean(0)) - (labels - root)
        yield in_body_axes(found[NUMBERS], labels, mistaken=MISTAKEN_MM), f"{camera.video.name} {number}"


def rendered_offsets(model: PoseModel, count: int) -> tuple[Array, Array]:
    """Offsets [N, 13, 2] in torso lengths and [N, 13, 3] in mm of rendered people in front of held-out pictures."""
    import torch

    from convnextpose.camera import Intrinsics
    from training.dataset import Renderer
    from training.evaluate import held_out

    crops = held_out("pictures", count, Renderer(torch.device("cpu"), INPUT_SIZE))
    found = model.run(crops.images.numpy()).joints.astype(np.float64)
    in_picture, in_space = [], []
    for joints, labels, camera_mm, camera in zip(found, crops.joints, crops.camera_mm, crops.intrinsics, strict=True):
        truth, truth_mm = labels.numpy().astype(np.float64), camera_mm.numpy().astype(np.float64)
        pelvis, thorax, (left, right) = truth[HUMAN36M.root, :2], truth[HUMAN36M.joints.index("Thorax"), :2], SHOULDERS
        torso = float(np.linalg.norm(thorax - pelvis))
        if np.linalg.norm(truth[left, :2] - truth[right, :2]) < NARROW_TORSO * torso:
            continue
        in_picture.append(in_body_axes((joints - truth)[NUMBERS, :2] / torso, truth[:, :2], mistaken=MISTAKEN_TORSO))
        root_mm = truth_mm[HIPS].mean(0)
        place = Intrinsics(*camera.tolist()).unproject(joints + np.array([0, 0, root_mm[2]]))
        offsets = (place - place[HIPS].mean(0)) - (truth_mm - root_mm)
        in_space.append(in_body_axes(offsets[NUMBERS], truth_mm, mistaken=MISTAKEN_MM))
    return np.stack(in_picture), np.stack(in_space)


def _counts(person: LabelledPerson) -> bool:
    """Whether a person's labels show the body's axes and the torso's length."""
    left, right = person.joints_px[SHOULDERS]
    wide = float(np.linalg.norm(left - right)) >= NARROW_TORSO * person.torso_px
    return wide and person.torso_px <= LONGEST_TORSO * max(person.box.width, person.box.height)


def table(offsets: Array, groups: list[str], unit: str, digits: int) -> str:
    """The medians and their intervals as a Markdown table."""
    axes = ("outward", "up", "forward")[: offsets.shape[2]]
    lines = [f"| {unit} | {' | '.join(axes)} |", f"|---|{'---|' * len(axes)}"]
    for name, *rows in zip((*(name[2:] for name in LIMBS[:6]), "Nose"), *medians(offsets, groups), strict=True):
        cells = [f"{m:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})" for m, low, high in zip(*rows, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the data folder")
    parser.add_argument("--model", default="xs", help="name of default weights, a checkpoint, or an exported .onnx file")
    parser.add_argument("--held-out", action="store_true", help="only people whom no training reads")
    parser.add_argument("--rendered", type=int, default=256, help="crops of rendered people")
    arguments = parser.parse_args()
    try:
        model = open_model(arguments.model, precision="fp32")
        if model.info.joint_set is not HUMAN36M:
            parser.error(f"expected weights with Human3.6M's joints, received {model.info.joint_set.name}'s")
        offsets, names = picture_offsets(model, arguments.folder, held_out=arguments.held_out)
        print(f"{len(offsets)} people in {len(set(names))} pictures\n\n{table(offsets, names, 'torso lengths', 3)}\n")
        recorded = list(recorded_offsets(model, arguments.folder / "eval3d"))
        print(f"{len(recorded)} views\n\n{table(np.stack([o for o, _ in recorded]), [n for _, n in recorded], 'mm', 0)}\n")
        in_picture, in_space = rendered_offsets(model, arguments.rendered)
        each = [str(number) for number in range(len(in_picture))]
        print(
            f"{len(each)} rendered people\n\n{table(in_picture, each, 'torso lengths', 3)}\n\n{table(in_space, each, 'mm', 0)}"
        )
    except PoseError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
