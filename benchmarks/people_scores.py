"""How surely a search finds a person: the best mean score in pictures and in frames of videos.

    python benchmarks/people_scores.py [--model xs] [--every 50] [--detector FILE.onnx | --search] PICTURE_OR_VIDEO...

Boxes are the people detector's, or with --search those of windows all over the picture. The figures behind MIN_SCORE
(pipeline/people.py, docs/people.md); run it on footage of your own, with and without people, to choose --min-score for other
weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from convnextpose import weights
from engines.opening import open_people_detector
from pipeline.people import MIN_SCORE, DetectedPerson, SinglePerson
from pipeline.run import open_model
from pipeline.sources import open_source


def main() -> None:
    """Print a line for each picture that was searched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--model", default="xs")
    parser.add_argument("--every", type=int, default=50, help="search every n-th frame of a video")
    parser.add_argument("--detector", type=Path, default=weights.detector(), help="an exported detector of your own")
    parser.add_argument("--search", action="store_true", help="search with the pose network alone")
    arguments = parser.parse_args()
    detector = open_people_detector(arguments.detector) if arguments.detector and not arguments.search else None
    spent_s = searches = 0
    with open_model(arguments.model, "auto") as model:
        finder = SinglePerson(model) if detector is None else DetectedPerson(model, detector)
        for file in arguments.files:
            with open_source(file) as source:
                for frame in source:
                    if frame.index % arguments.every:
                        continue
                    began = time.perf_counter()
                    best = finder.search(frame)
                    spent_s += time.perf_counter() - began
                    searches += 1
                    place = f"{source.name:24s} frame {frame.index:4d}"
                    if best is None:
                        print(f"{place}  nobody")
                        continue
                    verdict = "found" if best.score >= MIN_SCORE else "nobody"
                    box = best.person.box
                    where = f"x={box.x:.0f} y={box.y:.0f} {box.width:.0f}x{box.height:.0f} px"
                    print(f"{place}  {verdict:6s}  score {best.score:.2f}  {where}")
    print(f"{searches} pictures, {spent_s / max(1, searches) * 1000:.0f} ms each")


if __name__ == "__main__":
    main()
