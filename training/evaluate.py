"""Evaluates a network on fixed sets of crops that no training run ever draws.

    python -m training.evaluate FILE.safetensors [--count 256] [--flip] [--data FOLDER]

`easy` and `hard` come from the renderer with seeds of their own; `never` has bodies, families of poses and backgrounds that
are held out from training; `pictures` is hard, with held-out real pictures as backgrounds. Scores: MPJPE and PA-MPJPE with the
true root depth (mm), error in the crop (px), share of joints within 0.2 torso lengths, share of left-right pairs that are
exchanged. Joints outside the crop's volume do not count.

With `--data`, the limb joints of hand-marked people in real pictures are scored, too: of those held out from training, and of
those in the training data. The difference shows how far a network has only learned its own pictures by heart.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnextpose import metrics
from convnextpose.checkpoint import build_network, verify
from convnextpose.crop import RGB_MEAN, RGB_STD
from convnextpose.network import PoseNetwork
from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import INPUT_SIZE
from training.dataset import Crops, Renderer, mirror
from training.losses import expectations, joints_from_shares, marginals, shares_from_joints
from training.mixed import mixed, moved
from training.real import read_people
from training.real_crops import HeldOutPeople, limb_score

SETS = {"easy": (0.12, False, 0.0), "hard": (0.85, False, 0.0), "never": (0.85, True, 0.0), "pictures": (0.85, False, 1.0)}
"""Difficulty, whether only held-out bodies, poses and backgrounds are used, and the share with real pictures (held-out
ones)."""

SEED = 2**40
"""Higher than any seed of a training run."""

LOT = 32


@dataclass(frozen=True)
class Score:
    """Scores on one set."""

    mpjpe_mm: float
    pa_mpjpe_mm: float
    error_px: float
    pck: float
    swaps: float


def held_out(name: str, count: int, renderer: Renderer) -> Crops:
    """The first `count` crops of a set (rounded up to a multiple of 32); the same on every machine up to rounding."""
    difficulty, never, pictures = SETS[name]
    generators = (renderer.generator(SEED, list(SETS).index(name), lot) for lot in range(-(-count // LOT)))
    return Crops.join([renderer.batch(LOT, difficulty, each, never, pictures, held_out_pictures=True) for each in generators])


def network_input(images: Tensor) -> Tensor:
    """BGR crops [N, S, S, 3] uint8 to normalised RGB [N, 3, S, S] float32, channels last."""
    mean, std = (moved(torch.tensor(values) * 255, images.device) for values in (RGB_MEAN, RGB_STD))
    return ((images.flip(3) - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def predict(network: PoseNetwork, images: Tensor, flip: bool = False) -> Tensor:
    """Joints [N, J, 3] (px, px, mm) of crops [N, S, S, 3]; with `flip`, the mean with those of the mirrored pictures."""
    size, results = images.shape[2], []
    for lot in images.split(LOT):
        with mixed(images.device):
            maps = network.head(network.backbone(network_input(lot)))
        results.append(joints_from_shares(expectations(marginals(maps, network.joint_count)), size))
    joints = torch.cat(results)
    if flip:
        joints = (joints + mirror(images, predict(network, images.flip(2)))[1]) / 2
    return joints


def score(predicted: Tensor, crops: Crops) -> Score:
    """Compare joints [N, 18, 3] (px, px, mm) with the crops' ground truth."""
    size = crops.images.shape[2]
    counts, place, camera, predicted_, joints = _placed(predicted, crops)
    torso = np.linalg.norm(joints[:, 17, :2] - joints[:, 0, :2], axis=-1)
    each = np.repeat(np.maximum(torso, 0.1 * size)[:, None], joints.shape[1], 1)[counts]
    return Score(
        mpjpe_mm=float(metrics.joint_errors(place, camera, HUMAN36M)[counts].mean()),
        pa_mpjpe_mm=metrics.pa_mpjpe(place, camera, HUMAN36M),
        error_px=float(np.linalg.norm((predicted_ - joints)[..., :2], axis=-1)[counts].mean()),
        pck=metrics.pck(predicted_[counts][:, None], joints[counts][:, None], each),
        swaps=metrics.swap_rate(place, camera, HUMAN36M),
    )


def joint_errors_mm(predicted: Tensor, crops: Crops) -> dict[str, float]:
    """The mean error of each scored joint, mm, by name: the parts of `score`'s mpjpe_mm."""
    counts, place, camera, _, _ = _placed(predicted, crops)
    errors = metrics.joint_errors(place, camera, HUMAN36M)
    return {HUMAN36M.joints[j]: float(errors[counts[:, j], j].mean()) for j in HUMAN36M.scored}


def _placed(predicted: Tensor, crops: Crops) -> tuple[NDArray[Any], ...]:
    """Which joints count [N, 18], their predicted and true positions in camera space, mm, and the same in the crop, px."""
    target = shares_from_joints(crops.joints, crops.images.shape[2])
    counts = ((target >= 0) & (target < 1)).all(-1).cpu().numpy()
    counts[:, list(HUMAN36M.unscored)] = False
    predicted_, joints, camera, intrinsics = (
        t.double().cpu().numpy() for t in (predicted, crops.joints, crops.camera_mm, crops.intrinsics)
    )
    depth = predicted_[..., 2:] + camera[:, :1, 2:]
    place = np.concatenate([(predicted_[..., :2] - intrinsics[:, None, 2:]) / intrinsics[:, None, :2] * depth, depth], -1)
    return counts, place, camera, predicted_, joints


def evaluate(network: PoseNetwork, sets: dict[str, Crops], flip: bool = False) -> dict[str, Score]:
    """The scores of a network on each set; the network is left in evaluation mode."""
    network.eval()
    return {name: score(predict(network, crops.images, flip), crops) for name, crops in sets.items()}


def rounded(value: Score) -> dict[str, float]:
    """Scores as they are logged."""
    return {name: round(number, 4 if name in ("pck", "swaps") else 2) for name, number in asdict(value).items()}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--count", type=int, default=256, help="crops in each set")
    parser.add_argument("--size", type=int, default=INPUT_SIZE, help="side of the crops, px")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    parser.add_argument("--data", type=Path, help="data folder with real people (README.md)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_network(verify(arguments.weights)).to(device, memory_format=torch.channels_last)
    renderer = Renderer(device, arguments.size)
    for name in SETS:
        crops = held_out(name, arguments.count, renderer)
        print(json.dumps({"set": name, "count": len(crops), **rounded(evaluate(network, {name: crops}, arguments.flip)[name])}))
    if arguments.data is not None:
        trained, kept = read_people(arguments.data)
        sets = {"people": kept, "people trained on": [person for person in trained if person.by_hand]}
        for name, people in sets.items():
            crops = HeldOutPeople.of(people, arguments.size)
            limbs = asdict(limb_score(predict(network, crops.images.to(device), arguments.flip), crops))
            print(json.dumps({"set": name, "count": len(crops.images), **{key: round(limbs[key], 4) for key in limbs}}))


if __name__ == "__main__":
    main()
