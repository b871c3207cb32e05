"""Draws a sheet of crops to look at, with the joints on every other one.

python -m training.sheet FILE.jpg [--columns 10] [--rows 6] [--difficulty 0.85] [--pictures 0.5] [--never] [--seed 1]
    [--data FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.skeleton import HUMAN36M
from training.dataset import Crops, Renderer
from training.plan import FROM_DATA, Plan

SIDES = {"left": (255, 140, 0), "right": (60, 60, 255), "middle": (60, 220, 60)}
"""BGR."""


def draw(crops: Crops, index: int) -> NDArray[np.uint8]:
    """One crop with its skeleton: the person's right side red, the left blue, hidden joints hollow."""
    picture = crops.images[index].cpu().numpy().copy()
    points = [(round(x), round(y)) for x, y, _ in crops.joints[index].tolist()]
    for a, b in HUMAN36M.bones:
        cv2.line(picture, points[a], points[b], SIDES[HUMAN36M.side(b)], 2, cv2.LINE_AA)
    for point, visible in zip(points, crops.visible[index].tolist(), strict=True):
        cv2.circle(picture, point, 3, (0, 230, 255), -1 if visible else 1, cv2.LINE_AA)
    return picture


def sheet(
    columns: int, rows: int, difficulty: float, seed: int, never: bool, pictures: float, data: Path | None = None
) -> NDArray[np.uint8]:
    """[rows * 256, columns * 256, 3] uint8, BGR."""
    renderer = Renderer(data=data)
    lines = []
    for row in range(rows):
        shares = {**({} if never else Plan().shares()), **(FROM_DATA if data else {}), "pictures": pictures}
        crops = renderer.batch(columns, difficulty, renderer.generator(seed, row), never, held_out_pictures=never, **shares)
        drawn = [draw(crops, k) if (k + row) % 2 else crops.images[k].numpy() for k in range(columns)]
        lines.append(np.concatenate(drawn, 1))
    return np.concatenate(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--difficulty", type=float, default=0.85)
    parser.add_argument("--pictures", type=float, default=0.5, help="share with a real picture as background")
    parser.add_argument("--never", action="store_true", help="only bodies, poses and backgrounds held out from training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, help="data folder with captured poses, cloth and avatars")
    parser.add_argument("--width", type=int, default=1600, help="width of the file, px")
    arguments = parser.parse_args()
    drawn = (arguments.difficulty, arguments.seed, arguments.never, arguments.pictures, arguments.data)
    picture = sheet(arguments.columns, arguments.rows, *drawn)
    height = round(picture.shape[0] * arguments.width / picture.shape[1])
    picture = cv2.resize(picture, (arguments.width, height), interpolation=cv2.INTER_AREA)
    if not cv2.imwrite(str(arguments.file), picture, [cv2.IMWRITE_JPEG_QUALITY, 85]):
        parser.error(f"cannot write {arguments.file}: give a name that ends in .jpg or .png, in a folder that exists")


if __name__ == "__main__":
    main()
