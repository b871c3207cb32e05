"""Trains the people detector on rendered frames, with the trainer of the pose network: slices, exact resume, small state
files.

    python -m training.detector train RUN --init convnextpose/weights/xs.safetensors --steps 20000 --pictures 0.6 --minutes 55
    python -m training.detector train RUN --minutes 55          (continues where the last slice ended)
    python -m training.detector evaluate FILE.safetensors [--count 128] [--bars]   # on the held-out rendered frames
    python -m training.detector evaluate FILE.safetensors --data FOLDER [--bars]   # on the held-out real pictures
    python -m training.detector ship FILE.safetensors --summary "..."   # into the package

RUN is as for `training.train`. A run at another size begins with the weights of the last one: `--init RUN/best.safetensors`;
`training/start/detector.safetensors` has those of the package's detector.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from convnextpose import weights
from convnextpose.detector import FRAME_SIZE, STRIDE, Detector, build_detector, decode
from engines.export import export_detector
from engines.people import SIDE_STEP, non_maximum_suppression, overlaps, shared_areas
from training import train
from training.dataset import seeded
from training.evaluate import LOT, SEED, network_input
from training.frames import MAX_PEOPLE, FrameRenderer, Frames
from training.initial import initialise
from training.mixed import mixed
from training.plan import Plan
from training.real import read_pictures
from training.real_frames import (
    CROWD,
    NOBODY,
    SHOWN,
    SMALLEST_PX,
    UNCLEAR,
    WANTED,
    HeldOutFrames,
    RealFrames,
    read_frames,
)
from training.stream import seeds_of

WEIGHTS = Path(__file__).parent / "start" / "detector.safetensors"
"""The weights of the package's exported detector, to continue training from; too large to be installed."""

SPREAD = 0.1
"""Standard deviation of the target around a person's middle, as a share of the root of the box's area."""

REGRESSED = 0.2
"""Cells with at least this target learn to predict the box."""

FIRST_HEAT = 0.02
FIRST_SIZE = (30.0, 70.0)
"""Output of an untrained network: a score, and a box's width and height, px."""

SETS = {"easy": (0.12, False), "hard": (0.85, False), "never": (0.85, True)}
"""Difficulty, and whether only held-out bodies, poses and backgrounds are used."""

MIN_SCORE = 0.3
"""Lowest score at which a box counts in recall, precision and false positives."""

MIN_SCORES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Lowest scores for which `evaluate --data` computes its figures."""

HEIGHTS_PX = (0, 32, 64, 128, 10**6)
"""Classes of people's heights in the frame, px."""


def targets(frames: Frames) -> Tensor:
    """[N, P, 5]: boxes clipped to the picture (x, y, width, height, px), and their class, as in `training.real_frames`."""
    low = frames.boxes[..., :2].clamp_min(-0.5)
    high = (frames.boxes[..., :2] + frames.boxes[..., 2:]).minimum(frames.areas[:, None] - 0.5)
    size = (high - low).clamp_min(0)
    wanted = (frames.shown >= SHOWN) & (size.amin(-1) >= SMALLEST_PX)
    kind = torch.where(frames.there & (size.amin(-1) > 0), torch.where(wanted, WANTED, UNCLEAR), NOBODY)
    return torch.cat([low, size, kind[..., None]], -1)


def detection_loss(maps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss (focal loss of the heat-map, L1 of boxes) and the mean absolute error of the boxes in it.

    Args:
        maps: [N, 5, H, W] as from `Detector`.
        labels: [N, P, 5] as `targets` gives them.
    """
    maps = maps.float()
    height, width = maps.shape[2:]
    kind = labels[..., 4]
    middle, size = (labels[..., :2] + labels[..., 2:4] / 2) / STRIDE, (labels[..., 2:4] / STRIDE).clamp_min(0.1)
    cell = middle.floor()  # of the person's middle
    rows, columns = (torch.arange(n, device=maps.device, dtype=maps.dtype) for n in (height, width))
    spread = (SPREAD * size.prod(-1).sqrt()).clamp_min(0.6)[..., None]
    along_y = torch.exp(-0.5 * ((rows - cell[..., 1:]) / spread).square())
    along_x = torch.exp(-0.5 * ((columns - cell[..., :1]) / spread).square())
    each = along_y[..., :, None] * along_x[..., None, :]  # [N, P, H, W]
    wanted = each * (kind == WANTED)[..., None, None]
    heat, owner = wanted.max(1)
    unclear = (each * (kind == UNCLEAR)[..., None, None]).amax(1) > 0.2
    low, high = labels[..., :2] / STRIDE, (labels[..., :2] + labels[..., 2:4]) / STRIDE
    within_x, within_y = (
        (low[..., axis, None] < line + 1) & (line < high[..., axis, None]) for axis, line in ((0, columns), (1, rows))
    )
    crowd = within_y[..., :, None] & within_x[..., None, :] & (kind == CROWD)[..., None, None]
    unclear |= crowd.any(1)

    logits = maps[:, 0]
    p = torch.sigmoid(logits)
    hit = heat > 0.999
    positive = -F.logsigmoid(logits) * (1 - p).square() * hit
    negative = -F.logsigmoid(-logits) * p.square() * (1 - heat) ** 4 * ~hit * ~(unclear & (heat < 0.5))
    people = hit.sum().clamp_min(1)
    focal = (positive + negative).sum() / people

    weight = heat * (heat >= REGRESSED)
    grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    every = torch.cat([middle, size.log()], -1)  # [N, P, 4]
    truth = every.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4)).mT.unflatten(2, (height, width))
    truth = torch.cat([truth[:, :2] - grid - 0.5, truth[:, 2:]], 1)
    error = ((maps[:, 1:] - truth).abs().mean(1) * weight).sum() / weight.sum().clamp_min(1)
    return focal + 2 * error, error


class FrameChunks:
    """Frames and the people in them."""

    label_shape: tuple[int, ...] = (MAX_PEOPLE, 5)

    def __init__(self, device: torch.device | str, size: int, data: Path | None = None) -> None:
        self._renderer = FrameRenderer(device, size, data)

    def render(self, plan: Plan, number: int) -> tuple[Tensor, Tensor]:
        """Images [C, S, S, 3] uint8 and labels [C, P, 5] of a chunk."""
        generator, share = seeds_of(self._renderer.device, plan, number)
        shares = {name: plan.shares()[name] for name in ("pictures", "clutter", "mocap", "cloth", "avatars")}
        frames = self._renderer.batch(plan.chunk, share * plan.hardest(number), generator, **shares)
        return frames.images, targets(frames)


class DetectorTrainer(train.Trainer):
    """A run of the detector."""

    chunks = FrameChunks
    unused = frozenset({"variant", "wide", "far", "coats", "bare", "turned"})

    def read_real(self, data: Path) -> tuple[RealFrames, HeldOutFrames | None]:
        """Whole pictures in place of crops."""
        return read_frames(data, self.plan.size)

    def new_network(self, init: Path | None) -> nn.Module:
        """The detector, with all matching weights of a pose network or another detector."""
        network = Detector()
        initialise(network, network.final_layer, self.plan.seed)
        sizes = [math.log(px / STRIDE) for px in FIRST_SIZE]
        bias = [math.log(FIRST_HEAT / (1 - FIRST_HEAT)), 0.0, 0.0, *sizes]
        network.final_layer.bias = nn.Parameter(torch.tensor(bias))
        if init is not None:
            own = network.state_dict()
            given = load_file(init)
            network.load_state_dict({k: t for k, t in given.items() if k in own and t.shape == own[k].shape}, strict=False)
        return network

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `detection_loss`."""
        with mixed(self.device):
            maps = self.network(images.contiguous(memory_format=self.memory_format))
        return detection_loss(maps, labels)

    def weighted(self, labels: Tensor) -> Tensor:
        """Unchanged, since they already have weights, padded to as many rows as those of real pictures."""
        if self._real is None:
            return labels
        missing = self._real.source.most - labels.shape[1]
        return torch.cat([labels, labels.new_full((len(labels), missing, labels.shape[2]), NOBODY)], 1)

    def mirrored(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of the mirrored frames."""
        mirrored = labels.clone()
        mirrored[..., 0] = images.shape[2] - 1 - labels[..., 0] - labels[..., 2]
        return images.flip(2), mirrored

    def judge(self, count: int) -> tuple[dict[str, dict], float]:
        """Scores on the held-out sets, and the sum of what hard and never lack to an average precision of 1; real pictures do
        not count."""
        if not self._sets:
            renderer = FrameRenderer(self.device, self.plan.size)
            sets = {name: held_out(name, count, renderer) for name in SETS}
            self._sets = {name: (frames.images, targets(frames)) for name, frames in sets.items()}
            if self._held_out is not None:
                self._sets["real"] = (self._held_out.images.to(self.device), self._held_out.labels)
        scores = {name: score(predict(self.average, images), labels) for name, (images, labels) in self._sets.items()}
        lacking = 2 - scores["hard"].average_precision - scores["never"].average_precision
        return {name: rounded(value) for name, value in scores.items()}, lacking


@dataclass(frozen=True)
class Score:
    """Scores on one set; a box is right from an intersection over union of 0.5.

    Attributes:
        average_precision: area under precision over recall, 0..1, whatever the boxes' scores.
        recall: share of the people found by boxes of at least the lowest score.
        precision: share of these boxes that are right; NaN without boxes.
        recalls, precisions: the same by classes of the people's, or the boxes', height (HEIGHTS_PX).
        false_positives: such boxes in each frame without people.
    """

    average_precision: float
    recall: float
    precision: float
    recalls: tuple[float, ...]
    precisions: tuple[float, ...]
    false_positives: float


def held_out(name: str, count: int, renderer: FrameRenderer) -> Frames:
    """The first `count` frames of a set (rounded up to lots of 32); half have real pictures as backgrounds."""
    difficulty, never = SETS[name]
    generators = (seeded(renderer.device, SEED + 1, list(SETS).index(name), lot) for lot in range(-(-count // LOT)))
    return Frames.join([renderer.batch(LOT, difficulty, generator, never, 0.5) for generator in generators])


@torch.no_grad()
def predict(
    network: Detector, images: Tensor, areas: Tensor | None = None
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Boxes [K, 4] (px) and scores [K] of each of the frames [N, S, S, 3], without duplicates.

    With `areas` [N, 2] as in `Frames`, the black bars of each frame are cut off, as when the package's detector runs.
    """
    lots: Iterable[Tensor] = images.split(LOT)
    if areas is not None:
        sides = (areas / SIDE_STEP).ceil().long() * SIDE_STEP
        lots = (image[None, :down, :across] for image, (across, down) in zip(images, sides.tolist(), strict=True))
    found = []
    for lot in lots:
        with mixed(images.device):
            maps = network(network_input(lot))
        for boxes, scores in zip(*(t.cpu().numpy() for t in decode(maps.float())), strict=True):
            kept = non_maximum_suppression(boxes, scores, 0.02)
            found.append((boxes[kept], scores[kept]))
    return found


def score(found: list[tuple[NDArray[np.float32], NDArray[np.float32]]], labels: Tensor, min_score: float = MIN_SCORE) -> Score:
    """Compare boxes and scores of each frame with its ground truth.

    A box is matched with the person whom it fits best, among those without a box of a higher score. A box without a person is
    wrong, unless it matches a person who is ignored, or half of it or more lies in a crowd.

    Args:
        found: boxes [K, 4], px, and scores [K] of each of N frames.
        labels: [N, P, 5] as `targets` gives them.
        min_score: lowest score at which boxes count in recall, precision and false positives.
    """
    results: list[tuple[float, float, bool]] = []  # score and height of each box, and whether it is right
    people: list[tuple[float, float]] = []  # height, and the score with which each is found
    empty = wrong = 0
    for (boxes, scores), truth in zip(found, labels.cpu().numpy(), strict=True):
        truth = truth[truth[:, 4] != NOBODY]
        if not len(truth):
            empty += 1
            wrong += int((scores >= min_score).sum())
        wanted, unclear, crowd = (truth[truth[:, 4] == kind] for kind in (WANTED, UNCLEAR, CROWD))
        best = np.zeros(len(wanted))
        shared = overlaps(boxes, wanted[:, :4])
        excused = (overlaps(boxes, unclear[:, :4]) >= 0.5).any(1) | (covered(boxes, crowd[:, :4]) >= 0.5).any(1)
        for number in np.argsort(-scores, kind="stable"):
            match = np.where(best == 0, shared[number], 0)
            right = len(match) > 0 and match.max() >= 0.5
            if right:
                best[match.argmax()] = scores[number]
            if right or not excused[number]:
                results.append((float(scores[number]), float(boxes[number, 3]), right))
        people += list(zip(wanted[:, 3], best, strict=True))
    sure = np.array([(height, right) for with_score, height, right in results if with_score >= min_score])
    known = np.array([(height, with_score >= min_score) for height, with_score in people])
    (recall, recalls), (precision, precisions) = _by_height(known), _by_height(sure)
    ranked = [(with_score, right) for with_score, _, right in results]
    return Score(_average_precision(ranked, len(people)), recall, precision, recalls, precisions, wrong / max(1, empty))


def covered(boxes: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """[A, B] the share of each of the boxes [A, 4] that is inside each of the others [B, 4]."""
    return np.asarray(shared_areas(boxes, others) / boxes[:, None, 2:].prod(-1).clip(1e-6), np.float64)


def _by_height(counted: NDArray) -> tuple[float, tuple[float, ...]]:
    """The mean of the second of N pairs [N, 2] (height, 0 or 1), in all and by class of height; NaN for an empty class."""
    heights, right = counted.reshape(-1, 2).astype(np.float64).T
    classes = [np.ones(len(heights), bool)] + [(heights >= a) & (heights < b) for a, b in itertools.pairwise(HEIGHTS_PX)]
    means = [float(right[c].mean()) if c.any() else math.nan for c in classes]
    return means[0], tuple(means[1:])


def _average_precision(results: Iterable[tuple[float, bool]], people: int) -> float:
    """Area under the precision, made non-increasing, over the recall; 0 without people."""
    right = np.array([r for _, r in sorted(results, key=lambda r: -r[0])], float)
    if not people or not len(right):
        return 0.0
    recall, precision = right.cumsum() / people, right.cumsum() / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * precision).sum())


def rounded(value: Score) -> dict[str, object]:
    """Scores as they are logged."""
    figures = asdict(value)
    return {name: [round(n, 3) for n in number] if isinstance(number, tuple) else round(number, 4)
            for name, number in figures.items()}  # fmt: skip


def ship(source: Path, summary: str) -> None:
    """Make `source` (FP16 safetensors) the package's people detector: export, hash, write its card; keep the weights as
    WEIGHTS."""
    onnx = weights.FOLDER / f"{weights.DETECTOR}.onnx"
    print(export_detector(source, onnx))
    if source.resolve() != WEIGHTS.resolve():
        shutil.copyfile(source, WEIGHTS)
    exported, made_from = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (onnx, WEIGHTS))
    card = {"name": weights.DETECTOR, "sha256": {"onnx": exported}, "weights_sha256": made_from, "summary": summary}
    text = json.dumps(card, indent=2) + "\n"
    (weights.FOLDER / f"{weights.DETECTOR}.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Read the command line."""
    if sys.argv[1:2] == ["train"]:
        del sys.argv[1]
        train.main(DetectorTrainer, __doc__)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "evaluate", "ship"])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--count", type=int, default=128, help="frames in each set")
    parser.add_argument("--size", type=int, default=FRAME_SIZE)
    parser.add_argument("--bars", action="store_true", help="for `evaluate`: keep the black bars, as in training")
    parser.add_argument("--data", type=Path, help="for `evaluate`: a data folder, for its held-out real pictures")
    parser.add_argument("--summary", help="for `ship`: one line on its accuracy")
    arguments = parser.parse_args()
    if arguments.what == "ship":
        if not arguments.summary:
            parser.error("expected --summary, one line that says how good the detector is")
        ship(arguments.weights, arguments.summary)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_detector(arguments.weights).to(device, memory_format=torch.channels_last)
    if arguments.data is not None:
        pictures = HeldOutFrames.of(read_pictures(arguments.data)[1], arguments.size)
        found = predict(network, pictures.images.to(device), None if arguments.bars else pictures.areas)
        for min_score in MIN_SCORES:
            figures = rounded(score(found, pictures.labels, min_score))
            print(json.dumps({"set": "real", "count": len(found), "min_score": min_score, **figures}))
        return
    renderer = FrameRenderer(device, arguments.size)
    for name in SETS:
        frames = held_out(name, arguments.count, renderer)
        found = predict(network, frames.images, None if arguments.bars else frames.areas)
        print(json.dumps({"set": name, "count": len(frames), **rounded(score(found, targets(frames)))}))


if __name__ == "__main__":
    main()
