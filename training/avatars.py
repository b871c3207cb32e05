"""Clothed people modelled by others: a second kind of body, with real folds, hair and faces in its textures.

Each is a mesh in a T-pose, with a skeleton whose bones are those of `body.SEGMENTS`. Like the parametric body it is rendered
from points on its surface. README.md describes the files; none of them is in this repository.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from convnextpose.errors import SourceError
from training.body import SEGMENT, SEGMENTS, skin
from training.draws import Draws
from training.files import described
from training.mocap import BODY_FROM_CAPTURE

HELD_OUT_EVERY = 6
"""Avatars of one in this many heads are never used in training."""

HEIGHT, WIDTH = 0.06, 0.06
"""Standard deviations of the logarithms by which avatars are made taller, and wider and deeper, because 42 heads are few
bodies."""

_STEMS = {
    "Hips": "pelvis", "Spine": "sp1", "Spine1": "sp2", "Spine2": "chest", "Neck": "neck", "Head": "head",
    "Shoulder": "clav", "Arm": "uarm", "ForeArm": "larm", "Hand": "hand", "FingerBase": "fing",
    "UpLeg": "thigh", "Leg": "shank", "Foot": "foot", "ToeBase": "toes", "HandThumb1": "hand",
}  # fmt: skip
JOINTS = {
    name: segment
    for stem, part in _STEMS.items()
    for name, segment in (
        [(stem, part)] if part in SEGMENTS else [(f"{side}{stem}", part + side[0]) for side in ("Right", "Left")]
    )
}
"""The segment of each joint; other joints move with their parent, and thumbs with the hand."""

_MM = 8 * 1000
"""Length of one metre in the file."""

SKIN, HAIR = 0, 1
"""Parts of a mesh, as numbered in the file; 2, the eyes, is textured like skin."""


@dataclass(frozen=True)
class Worn:
    """N avatars at rest.

    Attributes:
        vertices, normals: [N, V, 3] m, and unit length.
        weights: [N, V, 24] skinning weights.
        skeleton: [N, 26, 3] as from `Body.shaped`, m.
        corners: [N, P, 3] the vertices around each point of the surface.
        shares: [N, P, 3] the weight of each of these vertices.
        colours: [N, P, 3] in 0..1 RGB.
        thin: [N, P] points of hair, which is visible from both sides.
    """

    vertices: Tensor
    normals: Tensor
    weights: Tensor
    skeleton: Tensor
    corners: Tensor
    shares: Tensor
    colours: Tensor
    thin: Tensor

    def posed(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Points and unit normals [N, P, 3] for each segment's motion from rest [N, 24, 3, 4]."""
        vertices, normals = skin(self.vertices, self.normals, self.weights, motion)
        both = torch.cat([vertices, normals], -1)
        points, directions = torch.zeros_like(self.shares), torch.zeros_like(self.shares)
        for k in range(3):
            corner = both.gather(1, self.corners[..., k : k + 1].expand(-1, -1, 6)) * self.shares[..., k : k + 1]
            points, directions = points + corner[..., :3], directions + corner[..., 3:]
        return points, F.normalize(directions, dim=-1)


class Avatars:
    """All avatars on a device, each with the same number of points."""

    def __init__(self, folder: Path, points: int, device: torch.device | str = "cpu") -> None:
        """Read the meshes and their textures, and place `points` points on each, evenly by area.

        Raises:
            SourceError: a file is missing or not what README.md describes.
        """
        path = folder / "avatars.npz"
        with described(path):
            with np.load(path, allow_pickle=False) as data:
                self.names = sorted({name.split("/")[0] for name in data.files if "/" in name})
                if not self.names:
                    raise ValueError("no avatars")
                meshes = [_Mesh.read(data, name) for name in self.names]
            entries = json.loads((folder / "avatars.json").read_text(encoding="utf-8"))
            textures = {entry["name"]: entry["textures"] for entry in entries}
            surfaces = [mesh.place(folder / "textures", textures[mesh.name], points) for mesh in meshes]
        most = max(len(mesh.vertices) for mesh in meshes)

        def padded(arrays: list[NDArray]) -> Tensor:
            rows = [np.pad(array, [(0, most - len(array))] + [(0, 0)] * (array.ndim - 1)) for array in arrays]
            return torch.as_tensor(np.stack(rows), device=device)

        self.vertices, self.normals = (padded([getattr(m, name) for m in meshes]) for name in ("vertices", "normals"))
        self.segments, self.weights = (padded([getattr(m, name) for m in meshes]) for name in ("segments", "weights"))
        self.skeletons = torch.as_tensor(np.stack([m.skeleton for m in meshes]), device=device)
        self.corners, self.shares, self.colours, self.thin = (
            torch.as_tensor(np.stack(part), device=device) for part in zip(*surfaces, strict=True)
        )
        self.spacing_m = torch.tensor([(mesh.area_m2 / points) ** 0.5 for mesh in meshes], device=device)
        out = torch.tensor([is_held_out(name) for name in self.names], device=device)
        self.kept = {held_out: (out == held_out).nonzero()[:, 0] for held_out in (False, True)}

    def sample(self, draws: Draws, held_out: bool = False) -> tuple[Worn, Tensor]:
        """Avatars drawn at random, made taller or shorter, wider or narrower; and the distance between their points, [N] m."""
        kept = self.kept[held_out]
        if not len(kept):
            raise SourceError(
                f"expected avatars that are{'' if held_out else ' not'} held out, found none of {len(self.names)}"
            )
        which = kept[draws.integers(len(kept))]
        wide, tall = draws.normal(WIDTH).exp(), draws.normal(HEIGHT).exp()
        scale = torch.stack([wide, wide, tall], 1)[:, None]
        count, vertices = self.segments[which].shape[:2]
        weights = torch.zeros(count, vertices, len(SEGMENTS), device=draws.device)
        weights.scatter_add_(2, self.segments[which].long(), self.weights[which].float() / 255)
        worn = Worn(
            vertices=self.vertices[which] * scale,
            normals=F.normalize(self.normals[which] / scale, dim=-1),
            weights=weights,
            skeleton=self.skeletons[which] * scale,
            corners=self.corners[which].long(),
            shares=self.shares[which].float() / 255,
            colours=self.colours[which].float() / 255,
            thin=self.thin[which],
        )
        return worn, self.spacing_m[which] * scale[:, 0, 2]


def is_held_out(name: str) -> bool:
    """Whether this avatar is never used in training: this depends only on its head, with which its name HEAD_OUTFIT begins."""
    return int(hashlib.sha256(name.rsplit("_", 1)[0].encode()).hexdigest(), 16) % HELD_OUT_EVERY == 0


@dataclass(frozen=True)
class _Mesh:
    """One avatar in the axes of the body, m."""

    name: str
    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    uv: NDArray[np.float32]
    faces: NDArray[np.int64]
    part: NDArray[np.uint8]
    segments: NDArray[np.uint8]
    weights: NDArray[np.uint8]
    skeleton: NDArray[np.float32]
    area_m2: float

    @classmethod
    def read(cls, data: np.lib.npyio.NpzFile, name: str) -> _Mesh:
        own = f"{name}/joint_names" in data.files
        names = data[f"{name}/joint_names" if own else "joint_names"].tolist()
        parents = data[f"{name}/joint_parents" if own else "joint_parents"].tolist()
        turn = np.array(BODY_FROM_CAPTURE, np.float32)
        vertices = data[f"{name}/v"].astype(np.float32) / _MM @ turn.T
        faces = data[f"{name}/f"].astype(np.int64)
        a, b, c = (vertices[faces[:, k]] for k in range(3))
        across = np.cross(b - a, c - a)
        normals = np.zeros_like(vertices)
        for k in range(3):
            np.add.at(normals, faces[:, k], across)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
        segment_of: list[int] = []
        for joint, parent in zip(names, parents, strict=True):
            segment_of.append(SEGMENT[JOINTS[joint]] if joint in JOINTS else segment_of[parent])
        segments = np.array(segment_of, np.uint8)[data[f"{name}/j"]]
        weights, part = data[f"{name}/w"], data[f"{name}/part"]
        if weights.shape != segments.shape or len(part) != len(vertices):
            raise ValueError(f"{name} has {len(vertices)} vertices, weights {weights.shape} and parts {part.shape}")
        places = data[f"{name}/joints"].astype(np.float32) / 1000 @ turn.T
        heads = {segment: places[names.index(joint)] for joint, segment in JOINTS.items() if "Thumb" not in joint}
        eyes = (places[names.index("RightEye")] + places[names.index("LeftEye")]) / 2
        face = (part == SKIN) & (segments[np.arange(len(segments)), weights.argmax(1)] == SEGMENT["head"])
        below = face & (np.abs(vertices[:, 0] - eyes[0]) < 0.015) & (np.abs(eyes[2] - 0.035 - vertices[:, 2]) < 0.035)
        nose = vertices[np.where(below, vertices[:, 1], np.inf).argmin()]  # the foremost point below the eyes
        crown = vertices[np.where(face, vertices[:, 2], -np.inf).argmax()]
        skeleton = np.stack([*(heads[segment] for segment in SEGMENTS), nose, crown])
        area = float(np.linalg.norm(across, axis=1).sum() / 2)
        uv = data[f"{name}/uv"].astype(np.float32) / 65535
        return cls(name, vertices, normals, uv, faces, part, segments, weights, skeleton, area)

    def place(self, folder: Path, textures: dict[str, str], count: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """For `count` points: corners [P, 3] int16, shares [P, 3] uint8 of 255, colours [P, 3] uint8 RGB, hair mask [P]."""
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        hairy = self.part[self.faces[:, 0]] == HAIR
        more = count + int(count * area[hairy].sum() / area.sum()) + 1  # where hair is transparent there are no points
        summed = np.cumsum(area)
        face = np.searchsorted(summed, (np.arange(more) + 0.5) / more * summed[-1])
        u, v = ((np.arange(more)[:, None] * np.array([0.7548776662, 0.5698402910]) + 0.5) % 1).T
        u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
        shares = np.stack([1 - u - v, u, v], 1)
        corners, thin = self.faces[face], hairy[face]
        place = np.einsum("pk,pkc->pc", shares, self.uv[corners])
        colours, solid = np.empty((more, 3), np.uint8), np.ones(more, bool)
        for which, kind in ((~thin, "skin"), (thin, "hair")):
            if which.any():
                seen = _texture(folder / textures.get(kind, textures["skin"]), place[which])
                colours[which], solid[which] = seen[:, :3], seen[:, 3] > 127
        kept = solid.nonzero()[0]
        kept = kept[np.linspace(0, len(kept) - 1, count).round().astype(int)]
        return corners[kept].astype(np.int16), (shares[kept] * 255).round().astype(np.uint8), colours[kept], thin[kept]


def _texture(path: Path, places: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[P, 4] RGBA of a picture at positions [P, 2] (shares of its width and height)."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3:
        raise ValueError(f"{path.name} is missing or cannot be decoded")
    height, width = image.shape[:2]
    column, row = (places % 1 * (width, height)).astype(int).T
    seen = image[row.clip(0, height - 1), column.clip(0, width - 1)]
    opaque = seen[:, 3] if seen.shape[1] == 4 else np.full(len(seen), 255)
    return np.column_stack([seen[:, 2::-1], opaque]).astype(np.uint8)
