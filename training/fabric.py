"""Real cloth for the rendered clothes: small pictures of garments, repeated over the body with mirroring.

README.md describes the file; none of it is in this repository.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from training.draws import Draws
from training.files import decoded, described

PATCH_PX = 64
"""Side of a stored patch: over half a metre, a pixel is about as large as a point of the skin."""

SIDE_M = (0.25, 0.9)
"""Smallest and largest side of the area of the body that one patch covers, m."""

WORN_AS = {
    "top": ("t-shirt", "longsleeve", "shirt", "dress", "outwear"),
    "trousers": ("pants", "shorts", "skirt", "dress"),
    "coat": ("outwear",),
}
"""Folders of the file with the patches for each rendered garment."""


class Fabric:
    """All patches on a device.

    Attributes:
        pixels: [M, PATCH_PX, PATCH_PX, 3] uint8 RGB.
        kinds: for each garment of WORN_AS the indices of its patches.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Decode the patches of a file.

        Raises:
            SourceError: it is missing or not what README.md describes.
        """
        patches: list[np.ndarray] = []
        folders: list[str] = []
        with described(path):
            with zipfile.ZipFile(path) as archive:
                for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
                    patch = decoded(np.frombuffer(archive.read(name), np.uint8))
                    patches.append(cv2.resize(patch, (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA)[..., ::-1])
                    folders.append(name.split("/")[0])
            kinds = {garment: [k for k, f in enumerate(folders) if f in names] for garment, names in WORN_AS.items()}
            if missing := [garment for garment, indices in kinds.items() if not indices]:
                raise ValueError(f"no patches for {', '.join(missing)}")
        self.pixels = torch.as_tensor(np.stack(patches), device=device)
        self.kinds = {garment: torch.tensor(indices, device=device) for garment, indices in kinds.items()}

    def lay(self, draws: Draws, garment: str, points: Tensor, normals: Tensor) -> Tensor:
        """[N, P, 3] RGB in 0..1: for each person one patch of a garment over points [P, 3] (m) with normals [P, 3].

        Each point is projected onto the patch from the side, front or top, whichever is nearest to its normal.
        """
        kinds = self.kinds[garment]
        which = kinds[draws.integers(len(kinds))]
        side = normals.abs().argmax(1)
        across = torch.where(side == 0, points[:, 1], points[:, 0])
        along = torch.where(side == 2, points[:, 1], points[:, 2])
        turned = draws.chance(0.2, 1)
        across, along = torch.where(turned, along, across), torch.where(turned, across, along)
        per_m = PATCH_PX / draws.log_uniform(*SIDE_M, 1)
        column, row = (_reflected(c * per_m + draws.uniform(0, 2 * PATCH_PX, 1)) for c in (across, -along))
        place = (which[:, None] * PATCH_PX + row) * PATCH_PX + column
        gain = draws.log_uniform(0.6, 1.4, 1, 1)
        return (self.pixels.flatten(0, 2)[place].float() / 255 * gain).clamp(0, 1)


def _reflected(place: Tensor) -> Tensor:
    """Pixels 0..PATCH_PX - 1 at positions on an endless line on which every second patch is mirrored."""
    folded = place.floor().long() % (2 * PATCH_PX)
    return torch.where(folded < PATCH_PX, folded, 2 * PATCH_PX - 1 - folded)
