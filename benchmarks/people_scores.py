"""Which people are found in pictures and in frames of videos: the best pose in each, or counts of found people and false
positives.

    python benchmarks/people_scores.py [--model xs] [--every 50] [--detector FILE.onnx] PICTURE_OR_VIDEO...
    python benchmarks/people_scores.py [...] --people FOLDER [--without PICTURE_OR_VIDEO...]

The first command prints a line for each picture. The second counts, for several values of --min-score, how many of the labelled
people are found, and how many other poses. FOLDER is that of the training data (training/README.md): the pictures that are held
out from the detector, the frames in `real/more` with people, and the backgrounds there.

Every picture, and every frame of a video, is searched like a single picture in a run, by the people detector and the pose
network. PICTURE_MIN_SCORE and SURE_DETECTION (pipeline/people, docs/people.md) were chosen with this benchmark. To choose
--min-score for other weights, run it on your own footage, with and without people.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convnextpose import weights
from convnextpose.crop import Box
from convnextpose.errors import PoseError
from engines.opening import open_people_detector
from engines.people import shared_areas
from pipeline.estimator import Estimator
from pipeline.models import open_model
from pipeline.people import PICTURE_MIN_SCORE
from pipeline.people.detection import Detection, detections_of
from pipeline.people.track import box_from_joints
from pipeline.people.tracker import PeopleTracker
from pipeline.sources import open_source
from pipeline.types import Frame, Pose

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `benchmarks` and `training`, which are not installed

SCORES = (0.48, 0.51, 0.53, PICTURE_MIN_SCORE, 0.57, 0.6)
"""The compared values of --min-score."""

SMALL = 0.1
"""Height of a person's box, as a fraction of the picture's longer side, below which the person counts neither as missed nor as
wrong."""


@dataclass(frozen=True)
class Known:
    """The people in a picture, px.

    Attributes:
        people: the boxes of the people that should be found.
        crowds: boxes around crowds; nothing found in them counts as wrong.
    """

    people: list[Box] = field(default_factory=list)
    crowds: list[Box] = field(default_factory=list)


KnownPeople = dict[Path, Known]


@dataclass(frozen=True)
class Search:
    """The result of searching one picture.

    Attributes:
        file: the picture or video.
        frame: number of the frame, from 0.
        size: width and height of the picture, px.
        found: the people found, for each requested value of --min-score.
    """

    file: Path
    frame: int
    size: tuple[int, int]
    found: dict[float, tuple[Pose, ...]]

    def count(self, min_score: float, known: Known) -> tuple[int, int, int]:
        """Number of known people found, of those that should be found, and of other poses found."""
        from benchmarks.pictures import FOUND_IOU

        large = [box for box in known.people if box.height >= SMALL * max(self.size)]
        unclear = [box for box in known.people if box.height < SMALL * max(self.size)]
        left, other = list(large), 0
        for pose in sorted(self.found[min_score], key=lambda pose: -float(pose.scores.mean())):
            box = box_from_joints(pose.joints_px)
            best = max(left, key=box.iou, default=None)
            if best is not None and box.iou(best) >= FOUND_IOU:
                left.remove(best)
            elif not any(box.iou(each) >= FOUND_IOU for each in unclear) and not any(
                _covered(box, each) >= 0.5 for each in known.crowds
            ):
                other += 1
        return len(large) - len(left), len(large), other


def _covered(box: Box, by: Box) -> float:
    """The fraction of a box that is inside another."""
    first, second = (np.array([(b.x, b.y, b.width, b.height)]) for b in (box, by))
    return float(shared_areas(first, second)[0, 0] / box.area)


def main() -> None:
    """Print a line for each searched picture, or the counts of found people for each score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--model", default="xs")
    parser.add_argument("--every", type=int, default=50, help="search every n-th frame of a video")
    parser.add_argument("--detector", type=Path, default=weights.detector(), help="an exported detector of your own")
    parser.add_argument("--people", type=Path, metavar="FOLDER", help="the data folder, for counts instead of lines")
    parser.add_argument("--without", nargs="+", default=[], help="with --people: more pictures without people")
    arguments = parser.parse_args()
    if not arguments.files and arguments.people is None:
        parser.error("expected pictures or videos, or --people FOLDER, received neither")
    try:
        finders = searchers(
            arguments.model, arguments.detector, (0.0, PICTURE_MIN_SCORE) if arguments.people is None else SCORES
        )
        if arguments.people is None:
            print_lines(finders, [Path(file) for file in arguments.files], arguments.every)
            return
        groups = known_people(arguments.people)
        groups["without people, named"] = {Path(file): Known() for file in [*arguments.files, *arguments.without]}
        print_counts({name: count(finders, people, arguments.every) for name, people in groups.items() if people})
    except PoseError as error:
        parser.exit(1, f"{error}\n")


def searchers(model: str, detector: Path, min_scores: Sequence[float]) -> dict[float, Estimator]:
    """For each value of --min-score, an estimator that searches each picture anew. They share one run of the detector."""
    poses = open_model(model, precision="fp32")
    detect = _remembered(detections_of(open_people_detector(detector)))
    joints = poses.info.joint_set
    return {each: Estimator(poses, PeopleTracker(detect, joints, min_score=each, sequential=False)) for each in min_scores}


def _remembered(detect: Callable[[Frame], list[Detection]]) -> Callable[[Frame], list[Detection]]:
    last: list[tuple[Frame, list[Detection]]] = []

    def again(frame: Frame) -> list[Detection]:
        if not last or last[0][0] is not frame:
            last[:] = [(frame, detect(frame))]
        return last[0][1]

    return again


def search_files(finders: dict[float, Estimator], files: list[Path], every: int) -> Iterator[Search]:
    """Search every n-th frame of each file."""
    for file in files:
        with open_source(file) as source:
            for frame in source:
                if isinstance(frame, Frame) and frame.index % every == 0:
                    found = {min_score: finder.step(frame).poses for min_score, finder in finders.items()}
                    yield Search(file, frame.index, (frame.width, frame.height), found)


def print_lines(finders: dict[float, Estimator], files: list[Path], every: int) -> None:
    """Print the best score of each picture, its position, and the number of people found."""
    began, searches = time.perf_counter(), 0
    for search in search_files(finders, files, every):
        searches += 1
        place, people = f"{search.file.name:24s} frame {search.frame:4d}", len(search.found[PICTURE_MIN_SCORE])
        best = max(search.found[0.0], key=lambda pose: float(pose.scores.mean()), default=None)
        if best is None:
            print(f"{place}  nobody")
            continue
        box = best.box
        where = f"x={box.x:.0f} y={box.y:.0f} {box.width:.0f}x{box.height:.0f} px"
        told = f"{people} found" if people else "nobody"
        print(f"{place}  {told:8s}  best pose {best.scores.mean():.2f}  {where}")
    print(f"{searches} pictures, {(time.perf_counter() - began) / max(1, searches) * 1000:.0f} ms each, decoding included")


def known_people(folder: Path) -> dict[str, KnownPeople]:
    """Groups of the data folder's pictures by name: held-out ones, frames of each source in `real/more`, backgrounds.

    Raises:
        SourceError: the folder is not as training/README.md describes it.
    """
    from training.real import read_people, read_pictures

    more = folder / "real" / "more"
    groups: dict[str, KnownPeople] = {"held out": {}, "held out, without people": {}}
    train, held_out = read_pictures(folder)
    for picture in held_out:
        marked = [(Box(*map(float, box)), crowd) for box, crowd in zip(picture.boxes, picture.crowds, strict=True)]
        known = Known([box for box, crowd in marked if not crowd], [box for box, crowd in marked if crowd])
        groups["held out" if marked else "held out, without people"][picture.picture] = known
    groups["without people, trained on by the detector"] = {each.picture: Known() for each in train if not len(each.boxes)}
    for person in read_people(folder)[0]:
        if person.picture.parent == more:
            source = f"with people, {person.picture.name.split('__')[0]}"
            groups.setdefault(source, {}).setdefault(person.picture, Known()).people.append(person.box)
    return groups


def count(finders: dict[float, Estimator], people: KnownPeople, every: int) -> dict[str, list[int]]:
    """For each value of --min-score: numbers of known people found, of all known people, and of other poses found."""
    searches = list(search_files(finders, list(people), every))
    counts = [[search.count(each, people[search.file]) for search in searches] for each in finders]
    found, there, other = ([sum(of[part] for of in each) for each in counts] for part in range(3))
    return {"found": found, "there": there, "other": other, "pictures": [len(searches)] * len(finders)}


def print_counts(groups: dict[str, dict[str, list[int]]]) -> None:
    """Print a line for each value of --min-score, with the found people and the other poses of each group."""
    for number, (name, counts) in enumerate(groups.items(), 1):
        print(f"{number}: {name}, {counts['pictures'][0]} pictures, {counts['there'][0]} people")
    print("score " + "".join(f"{f'{number}: found other':>16s}" for number in range(1, len(groups) + 1)))
    for row, min_score in enumerate(SCORES):
        cells = "".join(f"{counts['found'][row]:>10d}{counts['other'][row]:>6d}" for counts in groups.values())
        print(f"{min_score:.2f}  {cells}")


if __name__ == "__main__":
    main()
