"""The accuracy of poses: against true poses, on synthetic sets, on labelled real pictures, and on footage without truth.

    python benchmarks/accuracy.py RESULTS/poses.npz TRUTH.json             a run against the true poses of its clip
    python benchmarks/accuracy.py real2d FOLDER [--model xs]               labelled people who are not used for training
    python benchmarks/accuracy.py real3d FOLDER [--model xs]               one person in front of calibrated cameras
    python benchmarks/accuracy.py pictures [--model xs]                    real pictures with labels (benchmarks/labels)
    python benchmarks/accuracy.py synthetic [--model xs] [--count 128]     training's held-out sets; needs the extra `build`
    python benchmarks/accuracy.py depth CLIP TRUTH.json | FOLDER           people's distances: by the box, and by the bones
    python benchmarks/accuracy.py steadiness RESULTS/poses.npz             how steady the bone lengths of tracked people are
    python benchmarks/accuracy.py agreement VIDEO RESULTS/poses.npz        against another detector (benchmarks/reference.py)

--model takes a name of default weights, a checkpoint or an exported .onnx file. FOLDER is the folder of the training data,
which training/README.md describes: `real2d` reads its `real/`, `real3d` its `eval3d/`. TRUTH.json has for each frame
`joints_cam_mm` [18, 3] (camera axes, mm) and `joints_px` [18, 2] (pixel centres at whole numbers), as the demo clip's does. A
frame without a pose counts as missed, never as a small error. docs/accuracy.md has the figures and their meaning.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box
from convnextpose.errors import PoseError
from convnextpose.metrics import bone_variation, joint_errors, mpjpe, pa_mpjpe, pck, swap_rate
from convnextpose.skeleton import HUMAN36M

if TYPE_CHECKING:
    from benchmarks.pictures import LabelledPerson, PictureScore
    from convnextpose.camera import Intrinsics
    from engines.pose import PoseModel
    from pipeline.types import Frame

    LabelledFrames = list[tuple[Frame, list[LabelledPerson]]]

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `benchmarks` and `training`, which are not installed

Figures = dict[str, float | int | str]
"""The printed figures, by name with unit."""

Picture = NDArray[np.uint8]

CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "grey": lambda image: np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8),
    "brighter (gamma 0.5)": lambda image: (255 * (image / 255) ** 0.5).astype(np.uint8),
    "darker (gamma 2)": lambda image: (255 * (image / 255) ** 2).astype(np.uint8),
    "red and blue exchanged": lambda image: np.ascontiguousarray(image[..., ::-1]),
}
"""Changes of pictures, to see how much poses depend on colours and tones."""

MIN_TRACK = 25
"""Smallest number of frames of a track for measuring steadiness."""


def main() -> None:
    """Print the figures that the command line asks for."""
    commands = {
        "real2d": real2d,
        "real3d": real3d,
        "pictures": pictures,
        "synthetic": synthetic,
        "depth": depth,
        "steadiness": steadiness,
        "agreement": agreement,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    command = commands[sys.argv.pop(1)] if len(sys.argv) > 1 and sys.argv[1] in commands else against_truth
    try:
        title, figures = command(parser)
    except PoseError as error:
        parser.exit(1, f"{error}\n")
    if parser.parse_args().json:
        print(json.dumps(figures, indent=2))
        return
    print(title)
    for name, value in figures.items():
        print(f"  {name:37s} {value:8.1f}" if isinstance(value, float) else f"  {name:37s} {value}")


def against_truth(parser: argparse.ArgumentParser) -> tuple[str, Figures]:
    """A run against the true poses of its clip."""
    parser.add_argument("results", type=Path, help="poses.npz of a run")
    parser.add_argument("truth", type=Path, help="JSON with the true joints of every frame")
    arguments = parser.parse_args()
    return f"accuracy of {arguments.results} against {arguments.truth.name}", score(arguments.results, arguments.truth)


def real2d(parser: argparse.ArgumentParser) -> tuple[str, Figures]:
    """Joints in crops of the labelled boxes of held-out people against the labels; the boxes are given."""
    from benchmarks.pictures import LIMB_JOINTS, draw_overlays, labelled_frames, labelled_people, pck_interval, score_pictures

    parser.add_argument("folder", type=Path, help="the data folder; its real/ has pictures and key points")
    parser.add_argument("--model", default="xs", help="what to measure; mediapipe for the other detector")
    parser.add_argument("--overlays", type=Path, help="folder for pictures of labels and predictions side by side")
    arguments = parser.parse_args()
    files, people = labelled_people(arguments.folder, held_out_only=True)
    frames = labelled_frames(people, files)
    people = [person for _, those in frames for person in those]
    if arguments.model == "mediapipe":
        predicted = _reference_joints(frames)
    else:
        predicted = _network_joints(_opened(parser, arguments.model), frames)
    if arguments.overlays:
        draw_overlays(frames, predicted, arguments.overlays)
    low, high = pck_interval(people, predicted)
    figures = {
        "pictures": len(frames),
        "limb joints": sum(int(person.seen[LIMB_JOINTS].sum()) for person in people),
        "limbs, PCK, 95 % interval": f"{100 * low:.1f} to {100 * high:.1f}",
    } | _picture_figures(score_pictures(people, predicted))
    return f"accuracy of {arguments.model} on labelled people who are held out", figures


def real3d(parser: argparse.ArgumentParser) -> tuple[str, Figures]:
    """Joints of one person in front of calibrated cameras against the joints triangulated from all cameras."""
    from benchmarks.recording import read_recording, score_recording
    from pipeline.stages import TrackedBox
    from pipeline.stages import predict as read

    parser.add_argument("folder", type=Path, help="the data folder; its eval3d/ has the recording")
    parser.add_argument("--model", default="xs", help="what to measure")
    parser.add_argument("--every", type=int, default=1, help="compare every n-th frame of each camera")
    arguments = parser.parse_args()
    recording = read_recording(arguments.folder / "eval3d")
    model = _opened(parser, arguments.model)
    result = score_recording(recording, lambda image, box: read(model, image, [TrackedBox(0, box)])[0].joints, arguments.every)
    figures: Figures = {
        "poses": result.poses,
        "MPJPE with the true root depth, mm": result.mpjpe_mm,
        "PA-MPJPE, with scale, mm": result.pa_mpjpe_mm,
    }
    figures |= {f"MPJPE, {name}, mm": value for name, value in result.of_cameras.items()}
    return f"accuracy of {arguments.model} before calibrated cameras", figures


def pictures(parser: argparse.ArgumentParser) -> tuple[str, Figures]:
    """Joints in crops of the labelled boxes against the labels, and how many people the pipeline's own finder finds."""
    from benchmarks.pictures import average_pose, draw_overlays, find_files, labelled_frames, read_labels, score_pictures

    parser.add_argument("--model", default="xs", help="what to measure; mediapipe for the other detector")
    parser.add_argument("--pictures", type=Path, nargs="+", default=[], help="more folders to look for the pictures in")
    parser.add_argument("--changed", action="store_true", help="also how many limbs are right in other colours and tones")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="some of the labelled files, by name")
    parser.add_argument("--overlays", type=Path, help="folder for pictures of labels and predictions side by side")
    parser.add_argument("--no-finding", action="store_true", help="leave out whom the finder finds, which takes longest")
    arguments = parser.parse_args()
    files, people = read_labels()
    if unknown := sorted({*(arguments.only or ())} - files.keys()):
        parser.error(f"expected names of labelled files, received {', '.join(unknown)}: there are {', '.join(sorted(files))}")
    files = {name: facts for name, facts in files.items() if not arguments.only or name in arguments.only}
    found = find_files(files, arguments.pictures)
    for name in sorted(files.keys() - found.keys()):
        print(f"not measured: {name} is not there ({files[name]['get']}); --pictures FOLDER names where it is", file=sys.stderr)
    frames = labelled_frames(people, found)
    if not frames:
        parser.error("none of the labelled pictures is there")
    people = [person for _, those in frames for person in those]
    if arguments.model == "mediapipe":
        if arguments.changed:
            parser.error("expected --changed with weights of this project: mediapipe is asked about the pictures as they are")
        predicted = _reference_joints(frames)
        figures = _picture_figures(score_pictures(people, predicted))
    else:
        model = _opened(parser, arguments.model)
        predicted = _network_joints(model, frames)
        figures = _picture_figures(score_pictures(people, predicted))
        for name, change in CHANGES.items() if arguments.changed else ():
            changed = score_pictures(people, _network_joints(model, frames, change))
            figures[f"limbs, PCK at 0.2 torso, {name}, %"] = 100 * changed.pck
        figures["an average pose for all, PCK, %"] = 100 * score_pictures(people, average_pose(people)).pck
        if not arguments.no_finding:
            figures |= _finding_figures(model, frames)
    if arguments.overlays:
        draw_overlays(frames, predicted, arguments.overlays)
    return f"accuracy of {arguments.model} on labelled real pictures", figures


def _opened(parser: argparse.ArgumentParser, name: str) -> PoseModel:
    """The model in FP32; it must have Human3.6M's joints."""
    from pipeline.models import open_model

    model = open_model(name, precision="fp32")
    if model.info.joint_set is not HUMAN36M:
        parser.error(f"expected weights with Human3.6M's joints, received {model.info.joint_set.name}'s")
    return model


def _network_joints(
    model: PoseModel, frames: LabelledFrames, change: Callable[[Picture], Picture] = lambda image: image
) -> list[NDArray[np.float64]]:
    """The joints [18, 3] of each labelled person, estimated in their boxes of the changed pictures."""
    from pipeline.stages import TrackedBox
    from pipeline.stages import predict as read

    return [
        pose.joints
        for frame, those in frames
        for pose in read(model, change(frame.image), [TrackedBox(k, p.box) for k, p in enumerate(those)])
    ]


def _reference_joints(frames: LabelledFrames) -> list[NDArray[np.float64]]:
    """MediaPipe's joints [18, 2] in the box of each labelled person; NaN if it finds nobody."""
    from benchmarks.reference import Reference

    reference, nobody = Reference(), np.full((len(HUMAN36M), 2), np.nan)
    seen = [reference.estimate(frame.image, person.box) for frame, those in frames for person in those]
    return [nobody if one is None else one[0] for one in seen]


def _finding_figures(model: PoseModel, frames: LabelledFrames) -> Figures:
    """Figures of the people that a run finds in each picture, and of the detector's boxes."""
    from benchmarks.pictures import count_found
    from pipeline.estimator import Estimator
    from pipeline.models import open_detector
    from pipeline.people.detection import detections_of
    from pipeline.people.tracker import PeopleTracker

    detect = detections_of(open_detector())
    estimator = Estimator(model, PeopleTracker(detect, model.info.joint_set, sequential=False))
    found, _ = count_found(frames, lambda frame: [pose.box for pose in estimator.step(frame).poses])
    boxed, _ = count_found(frames, lambda frame: [detection.box for detection in detect(frame)])
    labelled = sum(len(people) for _, people in frames)
    return {
        "labelled people whom a run finds": f"{found} of {labelled}",
        "labelled people in detected boxes": f"{boxed} of {labelled}",
    }


def _picture_figures(result: PictureScore) -> Figures:
    figures: Figures = {
        "people": result.people,
        "limbs, PCK at 0.2 torso, %": 100 * result.pck,
        "limbs, median error, % of the torso": 100 * result.median,
        "left-right swaps, %": 100 * result.swaps,
    }
    return figures | {f"PCK at 0.2 torso, {name}, %": 100 * value for name, value in result.joints.items()}


def synthetic(parser: argparse.ArgumentParser) -> tuple[str, Figures]:
    """The error of each joint on training's held-out sets."""
    import torch

    from convnextpose import weights
    from convnextpose.checkpoint import build_network, verify
    from convnextpose.variants import INPUT_SIZE
    from training.dataset import Renderer
    from training.evaluate import SETS, held_out, joint_errors_mm, predict
    from training.evaluate import score as score_crops

    parser.add_argument("--model", default="xs")
    parser.add_argument("--count", type=int, default=128, help="crops of each set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["easy", "hard", "never"])
    arguments = parser.parse_args()
    named = arguments.model.lower() in weights.names()
    file = weights.load(arguments.model.lower()).safetensors if named else Path(arguments.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_network(verify(file)).to(device, memory_format=torch.channels_last).eval()
    renderer = Renderer(device, INPUT_SIZE)
    columns: list[dict[str, str]] = []
    for name in arguments.sets:
        crops = held_out(name, arguments.count, renderer)
        joints = predict(network, crops.images)
        result = score_crops(joints, crops)
        column = {
            "": name,
            "MPJPE with the true root depth, mm": f"{result.mpjpe_mm:.1f}",
            "PA-MPJPE, mm": f"{result.pa_mpjpe_mm:.1f}",
            "error in the crop, px of 256": f"{result.error_px:.1f}",
            "PCK at 0.2 torso, %": f"{100 * result.pck:.1f}",
            "left-right swaps, %": f"{100 * result.swaps:.1f}",
        }
        columns.append(column | {f"{joint}, mm": f"{value:.0f}" for joint, value in joint_errors_mm(joints, crops).items()})
    rows: Figures = {key: "".join(f"{column[key]:>10s}" for column in columns) for key in columns[0]}
    return f"accuracy of {arguments.model} on {arguments.count} crops of each held-out synthetic set", rows


UPRIGHT, BENT = 0.95, 0.85
"""Limits of straightness, the distance from neck to ankles divided by the length of torso, thighs and shins: upright above the
first, bent below the second."""


def depth(parser: argparse.ArgumentParser) -> tuple[str, Figures]:
    """The error of people's estimated distance, for whole people and for people whom the picture cuts off at the hips."""
    parser.add_argument("source", type=Path, help="a clip with truth, or the data folder, whose eval3d/ has a recording")
    parser.add_argument("truth", type=Path, nargs="?", help="the clip's truth")
    parser.add_argument("--model", default="xs")
    parser.add_argument("--every", type=int, default=5)
    arguments = parser.parse_args()

    from convnextpose.camera import root_depth_from_bones_mm
    from pipeline.stages import TrackedBox, predict

    cases = _rendered_depths if arguments.truth else _recorded_depths
    off: dict[tuple[str, str], list[float]] = {}
    with _opened(parser, arguments.model) as model:
        for who, image, box, camera, root_mm in cases(arguments):
            height, width = image.shape[:2]
            (pose,) = predict(model, image, [TrackedBox(0, box.clip(width, height))])
            inside = np.all((pose.joints[:, :2] >= 0) & (pose.joints[:, :2] < (width, height)), axis=1)
            by_bones_mm = root_depth_from_bones_mm(camera, pose.joints, inside, HUMAN36M)
            for how, found_mm in (("box", camera.estimate_root_depth_mm(pose.region.area)), ("bones", by_bones_mm)):
                if found_mm is not None:
                    off.setdefault((who, how), []).append(found_mm / root_mm - 1)
    figures: Figures = {}
    for (who, how), values in sorted(off.items()):
        median, worst = np.percentile(np.abs(values), (50, 90)) * 100
        figures[f"{who}, by {how} ({len(values)})"] = (
            f"median {median:.1f} %, 90 % under {worst:.1f} %, on the whole {100 * float(np.median(values)):+.1f} %"
        )
    return f"Root depth in {arguments.source.name}, true boxes", figures


def _rendered_depths(arguments: argparse.Namespace) -> Iterator[tuple[str, Picture, Box, Intrinsics, float]]:
    """Posture, picture, box, camera and true root depth (mm) of a rendered person, whole and cut off at the hips."""
    from convnextpose.camera import Intrinsics
    from pipeline.sources import open_source
    from pipeline.types import Frame as VideoFrame

    known = json.loads(arguments.truth.read_text(encoding="utf-8"))
    camera = Intrinsics(known["fx"], known["fy"], known["cx"], known["cy"])
    truth = {frame["frame"]: frame for frame in known["frames"]}
    with open_source(arguments.source) as source:
        for frame in source:
            if not isinstance(frame, VideoFrame) or frame.index % arguments.every or frame.index not in truth:
                continue
            joints_mm, box = np.array(truth[frame.index]["joints_cam_mm"]), Box(*truth[frame.index]["box"])
            root_mm = float(joints_mm[HUMAN36M.root, 2])
            hips_px = round(float(np.array(truth[frame.index]["joints_px"])[HUMAN36M.root, 1]))
            yield _bearing(joints_mm), frame.image, box, camera, root_mm
            yield "cut at the hips", np.ascontiguousarray(frame.image[:hips_px]), box, camera, root_mm


def _recorded_depths(arguments: argparse.Namespace) -> Iterator[tuple[str, Picture, Box, Intrinsics, float]]:
    """The same for a recorded person; the picture never cuts the person off, so there is only one posture."""
    from benchmarks.recording import read_recording, views
    from convnextpose.camera import Intrinsics

    recording = read_recording(arguments.source / "eval3d")
    for camera, image, box, truth, _ in views(recording, arguments.every):
        (fx, _, cx), (_, fy, cy), _ = camera.matrix
        yield "recorded", image, box, Intrinsics(fx, fy, cx, cy), float(truth[recording.hips, 2].mean())


def _bearing(joints_mm: NDArray[np.float64]) -> str:
    """Whether a person [J, 3] (mm) stands upright or is bent."""
    at = {name: joints_mm[HUMAN36M.joints.index(name)] for name in HUMAN36M.joints}
    middle = {part: (at[f"L_{part}"] + at[f"R_{part}"]) / 2 for part in ("Hip", "Ankle")}
    legs = [np.linalg.norm(at[f"{s}_{a}"] - at[f"{s}_{b}"]) for s in "LR" for a, b in (("Hip", "Knee"), ("Knee", "Ankle"))]
    whole = np.linalg.norm(at["Neck"] - middle["Hip"]) + sum(legs) / 2
    straight = float(np.linalg.norm(at["Neck"] - middle["Ankle"]) / whole)
    return "upright" if straight > UPRIGHT else "crouching or bent" if straight < BENT else "in between"


def steadiness(parser: argparse.ArgumentParser) -> tuple[str, Figures]:
    """Standard deviation divided by mean of each bone's 3D length, for each track; the mean over tracks."""
    parser.add_argument("results", type=Path, help="poses.npz of a run")
    arguments = parser.parse_args()
    with np.load(arguments.results) as run:
        tracks = [run["joints_mm"][run["track_id"] == track] for track in np.unique(run["track_id"])]
    long = [track for track in tracks if len(track) >= MIN_TRACK]
    figures: Figures = {f"tracks of {MIN_TRACK} frames or more": f"{len(long)}, {sum(map(len, long))} poses"}
    if long:
        variation = 100 * np.mean([bone_variation(track, HUMAN36M) for track in long], axis=0)
        figures["bone lengths vary by, mean, %"] = float(variation.mean())
        for (near, far), value in zip(HUMAN36M.bones, variation, strict=True):
            figures[f"{HUMAN36M.joints[near]} to {HUMAN36M.joints[far]}, %"] = float(value)
    return f"steadiness of bone lengths in {arguments.results}", figures


def agreement(parser: argparse.ArgumentParser) -> tuple[str, Figures]:
    """Joints in the picture against MediaPipe's joints in the same boxes."""
    from benchmarks.pictures import LabelledPerson, draw_overlays, score_pictures
    from benchmarks.reference import Reference
    from pipeline.sources import open_source

    parser.add_argument("video", type=Path, help="what the run was made from")
    parser.add_argument("results", type=Path, help="poses.npz of the run")
    parser.add_argument("--every", type=int, default=10, help="compare every n-th pose")
    parser.add_argument("--overlays", type=Path, help="folder for pictures of both side by side, MediaPipe's to the left")
    arguments = parser.parse_args()
    with np.load(arguments.results) as run:
        frame_of_pose = run["frame_index"][run["pose_frame"]]
        poses = [(int(frame_of_pose[k]), Box(*run["box"][k]), run["joints_px"][k])
                 for k in range(0, len(frame_of_pose), arguments.every)]  # fmt: skip
    reference, compared, predicted, frames = Reference(), [], [], []
    with open_source(arguments.video) as source:
        for frame in source:
            for index, box, joints in poses:
                seen = reference.estimate(frame.image, box) if index == frame.index else None
                if seen is not None:
                    compared.append(LabelledPerson(source.info.id, index, box, False, *seen))
                    frames.append((frame, compared[-1:]))
                    predicted.append(joints)
    figures: Figures = {"poses asked about": len(poses), "in which MediaPipe sees a person": len(compared)}
    if compared:
        figures |= _picture_figures(score_pictures(compared, predicted))
    if arguments.overlays and compared:
        draw_overlays(frames, predicted, arguments.overlays)
    return f"agreement of {arguments.results} with MediaPipe", figures


def score(results: Path, truth_file: Path) -> Figures:
    """The scores of one result, by name and unit."""
    truth = json.loads(truth_file.read_text(encoding="utf-8"))["frames"]
    with np.load(results) as run:
        frame_of_pose = run["frame_index"][run["pose_frame"]]
        first = {int(frame): row for row, frame in reversed(list(enumerate(frame_of_pose)))}
        rows = [first[f["frame"]] for f in truth if f["frame"] in first]
        joints_mm, joints_px = run["joints_mm"][rows], run["joints_px"][rows]
        root_mm = run["root_depth_mm"][rows]
    seen = [f for f in truth if f["frame"] in first]
    figures: Figures = {"frames with a pose": f"{len(seen)} of {len(truth)}"}
    if not seen:
        return figures
    true_mm = np.array([f["joints_cam_mm"] for f in seen])
    true_px = np.array([f["joints_px"] for f in seen])
    scored = list(HUMAN36M.scored)
    torso_px = np.linalg.norm(true_px[:, HUMAN36M.joints.index("Neck")] - true_px[:, HUMAN36M.root], axis=-1)
    # With the true root depth instead of the estimated one: the network's own error, as papers report it.
    true_depth_mm = true_mm[:, HUMAN36M.root, 2]
    relative_z = joints_mm[..., 2:] - root_mm[:, None, None]
    rays = joints_mm[..., :2] / joints_mm[..., 2:]
    z = relative_z + true_depth_mm[:, None, None]
    with_true_root = np.concatenate([rays * z, z], axis=-1)
    figures |= {
        "MPJPE, mm": mpjpe(joints_mm, true_mm, HUMAN36M),
        "MPJPE with the true root depth, mm": mpjpe(with_true_root, true_mm, HUMAN36M),
        "PA-MPJPE, mm": pa_mpjpe(joints_mm, true_mm, HUMAN36M),
        "mean error in the picture, px": float(np.linalg.norm(joints_px - true_px, axis=-1)[:, scored].mean()),
        "PCK at 0.2 torso, %": 100 * pck(joints_px[:, scored], true_px[:, scored], torso_px),
        "left-right swaps, %": 100 * swap_rate(joints_mm, true_mm, HUMAN36M),
        "root depth error, mean, mm": float(np.abs(root_mm - true_depth_mm).mean()),
    }
    worst = joint_errors(joints_mm, true_mm, HUMAN36M).mean(0)
    order = sorted(scored, key=lambda j: -worst[j])[:3]
    figures["worst joints"] = ", ".join(f"{HUMAN36M.joints[j]} {worst[j]:.0f} mm" for j in order)
    return figures


if __name__ == "__main__":
    main()
