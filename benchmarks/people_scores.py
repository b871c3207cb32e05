"""How surely a search finds a person: the best mean score in pictures and in frames of videos.

    python benchmarks/people_scores.py [--model xs] [--every 50] [--detector FILE.onnx] PICTURE_OR_VIDEO...
    python benchmarks/people_scores.py [...] --people FOLDER [--without PICTURE_OR_VIDEO...]

The first prints a line for each picture. The second counts, for scores from which a person may count as found, the pictures
in which the person who was found is a known one, in which it is something else, and the false alarms in pictures without
people. FOLDER is that of the training's data, which training/README.md describes: its held-out people, the frames in
`real/more` with people, and the backgrounds there.

Boxes are the people detector's. The figures behind MIN_SCORE (pipeline/people/__init__.py, docs/people.md); run it on footage
of your own, with and without people, to choose --min-score for other weights.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convnextpose import weights
from convnextpose.crop import Box
from convnextpose.errors import PoseError, SourceError
from engines.opening import open_people_detector
from pipeline.estimator import Estimator
from pipeline.models import open_model
from pipeline.people import MIN_SCORE
from pipeline.people.detection import detections_of
from pipeline.people.tracker import PeopleTracker, box_from_joints
from pipeline.sources import open_source
from pipeline.types import Frame, Pose

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `benchmarks` and `training`, which are not installed

SCORES = (*(number / 100 for number in range(40, 64, 2)), MIN_SCORE)
"""Scores from which a person may count as found."""

KnownPeople = dict[Path, list[Box]]
"""The boxes, px, of the known people in each picture."""


@dataclass(frozen=True)
class Search:
    """What a search of one picture came to.

    Attributes:
        file: the picture or video.
        frame: number of the frame, from 0.
        best: the best pose, None where nothing is like a person.
    """

    file: Path
    frame: int
    best: Pose | None

    def finds(self, score: float) -> bool:
        """Whether somebody counts as found from this score on."""
        return self.best is not None and float(self.best.scores.mean()) >= score

    def is_of(self, boxes: list[Box]) -> bool:
        """Whether the best pose is of one of the people in these boxes."""
        from benchmarks.pictures import FOUND_IOU

        return self.best is not None and any(box_from_joints(self.best.joints_px).iou(box) >= FOUND_IOU for box in boxes)


def main() -> None:
    """Print a line for each picture that was searched, or how many people are found from which score on."""
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
        finder = everybody(arguments.model, arguments.detector)
        if arguments.people is None:
            print_lines(finder, [Path(file) for file in arguments.files], arguments.every)
            return
        groups = known_people(arguments.people)
        groups["without people, named"] = {Path(file): [] for file in [*arguments.files, *arguments.without]}
        print_counts({name: count(finder, people, arguments.every) for name, people in groups.items() if people})
    except PoseError as error:
        parser.exit(1, f"{error}\n")


def everybody(model: str, detector: Path) -> Estimator:
    """Finds all poses that lie where the detector sees somebody, however unsure they are."""
    poses = open_model(model, precision="fp32")
    see = detections_of(open_people_detector(detector))
    return Estimator(poses, PeopleTracker(see, poses.info.joint_set, min_score=0.0, follows=False))


def search_files(finder: Estimator, files: list[Path], every: int) -> Iterator[Search]:
    """Search every n-th frame of each file."""
    for file in files:
        with open_source(file) as source:
            for frame in source:
                if isinstance(frame, Frame) and frame.index % every == 0:
                    best = max(finder.step(frame).poses, key=lambda pose: float(pose.scores.mean()), default=None)
                    yield Search(file, frame.index, best)


def print_lines(finder: Estimator, files: list[Path], every: int) -> None:
    """Print the best score of each picture, and where it is."""
    began, searches = time.perf_counter(), 0
    for search in search_files(finder, files, every):
        searches += 1
        place, best = f"{search.file.name:24s} frame {search.frame:4d}", search.best
        if best is None:
            print(f"{place}  nobody")
            continue
        box = best.box
        where = f"x={box.x:.0f} y={box.y:.0f} {box.width:.0f}x{box.height:.0f} px"
        print(f"{place}  {'found' if search.finds(MIN_SCORE) else 'nobody':6s}  score {best.scores.mean():.2f}  {where}")
    print(f"{searches} pictures, {(time.perf_counter() - began) / max(1, searches) * 1000:.0f} ms each, decoding included")


def known_people(folder: Path) -> dict[str, KnownPeople]:
    """Groups of the data folder's pictures by name: held-out ones, frames of each source in `real/more`, backgrounds.

    Raises:
        SourceError: the folder is not as training/README.md describes it.
    """
    from training.real import read_people

    train, held_out = read_people(folder)
    more = folder / "real" / "more"
    groups: dict[str, KnownPeople] = {"with people, held out": {}}
    for person in held_out:
        groups["with people, held out"].setdefault(person.picture, []).append(person.box)
    for person in train:
        if person.picture.parent == more:
            source = f"with people, {person.picture.name.split('__')[0]}"
            groups.setdefault(source, {}).setdefault(person.picture, []).append(person.box)
    manifest = more / "manifest.csv"
    try:
        with manifest.open(encoding="utf-8", newline="") as file:
            backgrounds: KnownPeople = {more / row["file"]: [] for row in csv.DictReader(file) if row["people_good"] == "0"}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise SourceError(
            f"expected {manifest} with the columns file and people_good, received {type(error).__name__}: {error}"
        ) from error
    return groups | {"without people, backgrounds": backgrounds}


def count(finder: Estimator, people: KnownPeople, every: int) -> dict[str, list[int]]:
    """For each of SCORES: in how many pictures a known person is found, and in how many something else is."""
    searches = list(search_files(finder, list(people), every))
    right = [search for search in searches if search.is_of(people[search.file])]
    other = [search for search in searches if not search.is_of(people[search.file])]
    return {
        "known": [sum(search.finds(score) for search in right) for score in SCORES],
        "other": [sum(search.finds(score) for search in other) for score in SCORES],
        "all": [len(searches)] * len(SCORES),
    }


def print_counts(groups: dict[str, dict[str, list[int]]]) -> None:
    """Print a line for each score and two columns for each group: known people and others (without people: false alarms)."""
    for number, (name, counts) in enumerate(groups.items(), 1):
        print(f"{number}: {name}, {counts['all'][0]} pictures")
    print("score " + "".join(f"{f'{number}: known other':>16s}" for number in range(1, len(groups) + 1)))
    for row in sorted(range(len(SCORES)), key=lambda row: SCORES[row]):
        cells = "".join(f"{counts['known'][row]:>10d}{counts['other'][row]:>6d}" for counts in groups.values())
        print(f"{SCORES[row]:.2f}  {cells}")


if __name__ == "__main__":
    main()
