"""Find people with your own detector: python examples/own_detector.py CLIP X,Y,WIDTH,HEIGHT...

A detector is any function from a frame to boxes with scores: your own network, a mat with a sensor, or as here known places,
such as the treadmills of a room (px). The pose network makes the final decision: an empty place has no pose. A network
in ONNX needs no program: `convnextpose run --detector FILE` (docs/people.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import convnextpose
from pipeline.models import open_model
from pipeline.people.detection import Detection
from pipeline.people.tracker import PeopleTracker


def places(texts: list[str]) -> Callable[[convnextpose.Frame], list[Detection]]:
    """A detector that finds a person at each of these places, in every frame."""
    found = [Detection(convnextpose.Box(*map(float, text.split(","))), score=1.0) for text in texts]
    return lambda frame: found


def main(clip: str, *texts: str) -> None:
    """Print the people in each frame."""
    with open_model("xs") as model, convnextpose.open_source(clip) as source:
        estimator = convnextpose.Estimator(model, PeopleTracker(places(list(texts)), model.info.joint_set))
        for frame in source:
            if isinstance(frame, convnextpose.Frame):  # not an UnreadableFrame
                print(f"{frame.time_s:.2f} s: people {[pose.track_id for pose in estimator.step(frame).poses]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
