"""A parametric human body, baked into training/data/body.npz: shapes, skinning and points on the surface.

Body axes, metres: x to the person's left, y to the back, z up; the person looks along -y. LICENSES.md says where the data
comes from. The shape is a mean and 32 principal components of 2,000 sampled bodies; the skeleton has 24 segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

DATA = Path(__file__).parent / "data" / "body.npz"

SEGMENTS = (
    "pelvis", "sp1", "sp2", "chest", "neck", "head",
    "clavR", "uarmR", "larmR", "handR", "fingR", "clavL", "uarmL", "larmL", "handL", "fingL",
    "thighR", "shankR", "footR", "toesR", "thighL", "shankL", "footL", "toesL",
)  # fmt: skip
"""Segments in the order of the skinning weights: spine, right and left arm, right and left leg."""

SEGMENT = {name: index for index, name in enumerate(SEGMENTS)}
PARENTS = (0, 0, 1, 2, 3, 4, 3, 6, 7, 8, 9, 3, 11, 12, 13, 14, 0, 16, 17, 18, 0, 20, 21, 22)

RIGHT, FORWARD, UP = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)

HELD_OUT_BODIES = 200
"""The last bodies of the file are never used in training."""


@dataclass(frozen=True)
class Surface:
    """Points on the skin of the mean body, and how far they move with the shape.

    Attributes:
        mean: [P, 3] positions, m.
        basis: [K, P * 3] how each shape component moves them, m.
        normals: [P, 3] unit normals.
        weights: [P, 24] skinning weights, summing to 1.
        spacing_m: mean distance between neighbouring points, m.
    """

    mean: Tensor
    basis: Tensor
    normals: Tensor
    weights: Tensor
    spacing_m: float
    along_arm: Tensor
    """[P] 0 shoulder, 1 elbow, 2 wrist; -9 outside the arms."""
    along_leg: Tensor
    """[P] 0 hip, 1 knee, 2 ankle; -9 outside the legs."""
    trunk: Tensor
    """[P] height: 0 hips, 1 neck."""
    head_height: Tensor
    """[P] height from the eyes, in 10 cm."""
    head_depth: Tensor
    """[P] 0 eyes, 1 ears, about 2.4 the back of the head."""
    hairline: Tensor
    """[P] the `head_height` above which hair grows, at this `head_depth`."""
    parts: dict[str, Tensor]
    """Masks [P]: head, neck, hand, foot, eye, lips, brow, iris, ear."""


@dataclass(frozen=True)
class Skeleton:
    """The heads of the 24 segments, the nose and the top of the head: mean [26, 3] and basis [K, 26 * 3], m."""

    mean: Tensor
    basis: Tensor


class Body:
    """The body data on a device."""

    def __init__(self, points: int, device: torch.device | str = "cpu") -> None:
        """Read the data and place `points` points on the surface, evenly by area (more densely on hands and head)."""
        with np.load(DATA) as data:
            raw = {name: data[name] for name in data.files}
        if tuple(raw["seg"]) != SEGMENTS or tuple(raw["par"]) != PARENTS:
            raise ValueError(f"expected the segments {SEGMENTS} in {DATA}, received {tuple(raw['seg'])}")
        self.device = torch.device(device)
        self.shapes = torch.as_tensor(raw["C"], device=self.device)
        vertices, basis = int(raw["nv"]), raw["B"].astype(np.float32)
        weights = raw["W"].astype(np.float32)
        key_points = vertices + len(SEGMENTS) + list(raw["kp"]).index("nose")
        crown = np.where(weights[:, SEGMENT["head"]] > 0.9, raw["mu"][:vertices, 2], -9).argmax()
        rows = [*range(vertices, vertices + len(SEGMENTS)), key_points, int(crown)]
        self.skeleton = Skeleton(self._tensor(raw["mu"][rows]), self._tensor(basis[:, rows].reshape(len(basis), -1)))
        self.surface = self._place_points(raw, basis, weights, points)

    def sample_shapes(self, count: int, generator: torch.Generator, held_out: bool = False) -> Tensor:
        """[N, K] shape coefficients: blends of two of the bodies, so that hardly any two people are alike; or held-out
        bodies."""
        last = len(self.shapes) - HELD_OUT_BODIES
        low, high = (last, len(self.shapes)) if held_out else (0, last)
        pair = torch.randint(low, high, (2, count), generator=generator, device=self.device)
        blend = torch.rand(count, 1, generator=generator, device=self.device) * 0.4
        return torch.lerp(self.shapes[pair[0]], self.shapes[pair[1]], blend)

    def shaped(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """[N, K] coefficients to the points [N, P, 3] and the skeleton [N, 26, 3] at rest, m."""
        points = torch.addmm(self.surface.mean.reshape(1, -1), coefficients, self.surface.basis)
        heads = torch.addmm(self.skeleton.mean.reshape(1, -1), coefficients, self.skeleton.basis)
        return points.reshape(len(coefficients), -1, 3), heads.reshape(len(coefficients), -1, 3)

    def _tensor(self, array: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=self.device)

    def _place_points(self, raw: dict, basis: np.ndarray, weights: np.ndarray, count: int) -> Surface:
        vertices, faces = len(weights), raw["F"].astype(int)
        template = raw["mu"][:vertices]
        a, b, c = (template[faces[:, k]] for k in range(3))
        face_normals = np.cross(b - a, c - a)
        area = np.linalg.norm(face_normals, axis=1) / 2
        vertex_normals = np.zeros_like(template)
        for k in range(3):
            np.add.at(vertex_normals, faces[:, k], face_normals)
        face_weights = weights[faces].mean(1)
        fine = face_weights[:, [SEGMENT[s] for s in ("head", "handR", "handL", "fingR", "fingL")]].sum(1)
        share = np.cumsum(area * (1 + 1.5 * fine))
        # Even steps through the summed area and a low-discrepancy sequence inside: far fewer gaps than random points.
        face = np.searchsorted(share, (np.arange(count) + 0.5) / count * share[-1])
        u, v = ((np.arange(count)[:, None] * np.array([0.7548776662, 0.5698402910]) + 0.5) % 1).T
        u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
        corners, bary = faces[face], np.stack([1 - u - v, u, v], 1).astype(np.float32)

        def mix(values: np.ndarray) -> np.ndarray:
            return np.einsum("pk,...pkc->...pc", bary, values[..., corners, :])

        normals, point_weights, mean = mix(vertex_normals), mix(weights), mix(template)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
        point_weights /= point_weights.sum(1, keepdims=True)
        regions, parts = _regions(mean, point_weights, raw, face)
        return Surface(
            mean=self._tensor(mean),
            basis=self._tensor(mix(basis).reshape(len(basis), -1)),
            normals=self._tensor(normals),
            weights=self._tensor(point_weights),
            spacing_m=float(np.sqrt(area.sum() / count)),
            **{name: self._tensor(values) for name, values in regions.items()},
            parts={name: self._tensor(mask, torch.bool) for name, mask in parts.items()},
        )


def _regions(points: np.ndarray, weights: np.ndarray, raw: dict, face: np.ndarray) -> tuple[dict, dict]:
    """Positions on the body of each point of the mean shape: coordinates and masks, for clothes, hair and faces."""
    first = int(raw["nv"])
    heads = {name: raw["mu"][first + i] for name, i in SEGMENT.items()}
    marks = {str(name): raw["mu"][first + len(SEGMENTS) + i] for i, name in enumerate(raw["kp"])}

    def belongs(*names: str) -> np.ndarray:
        return weights[:, [SEGMENT[n] for n in names]].sum(1)

    def along(start: str, middle: str, end: str) -> np.ndarray:
        a, b, c = heads[start], heads[middle], heads[end]
        upper = (points - a) @ (b - a) / ((b - a) @ (b - a))
        lower = (points - b) @ (c - b) / ((c - b) @ (c - b))
        return np.where(lower > 0, 1 + lower, np.minimum(upper, 1))

    arm, leg = np.full(len(points), -9.0), np.full(len(points), -9.0)
    for s in "RL":
        on_arm = belongs(*(n + s for n in ("uarm", "larm", "hand", "fing"))) > 0.5
        on_leg = belongs(*(n + s for n in ("thigh", "shank", "foot", "toes"))) > 0.5
        arm = np.where(on_arm, along("uarm" + s, "larm" + s, "hand" + s), arm)
        leg = np.where(on_leg, along("thigh" + s, "shank" + s, "foot" + s), leg)
    eyes = [marks["left_eye"], marks["right_eye"]]
    eye, ear = sum(eyes) / 2, (marks["left_ear"] + marks["right_ear"]) / 2
    head = belongs("head") > 0.5
    depth = (points[:, 1] - eye[1]) / (ear[1] - eye[1])
    trunk = (points[:, 2] - heads["thighR"][2]) / (heads["neck"][2] - heads["thighR"][2])
    brow, iris = np.zeros(len(points), bool), np.zeros(len(points), bool)
    for e in eyes:
        x, z = points[:, 0] - e[0], points[:, 2] - e[2]
        brow |= (np.abs(x) < 0.026) & (np.abs(z - 0.021) < 0.005) & (points[:, 1] < e[1] + 0.03)
        iris |= (np.hypot(x, z) < 0.007) & (points[:, 1] < e[1] + 0.02)
    regions = {
        "along_arm": arm,
        "along_leg": leg,
        "trunk": trunk,
        "head_height": (points[:, 2] - eye[2]) / 0.1,
        "head_depth": depth,
        "hairline": np.interp(depth, [-0.3, 0.4, 0.85, 1.1, 2.5], [0.62, 0.55, -0.1, -0.5, -0.9]),
    }
    parts = {
        "head": head,
        "neck": (belongs("neck", "head") > 0.5) & (trunk < 1.25),
        "hand": belongs("handR", "fingR", "handL", "fingL") > 0.6,
        "foot": belongs("footR", "toesR", "footL", "toesL") > 0.5,
        "eye": raw["Feye"][face],
        "lips": raw["Flips"][face],
        "brow": brow & head,
        "iris": iris & head,
        "ear": (np.abs(points[:, 0]) > 0.066) & head & (np.abs(points[:, 2] - ear[2]) < 0.035),
    }
    return regions, parts


def rotation(axis: tuple[float, float, float], angle: Tensor) -> Tensor:
    """Rotations [..., 3, 3] about a fixed unit axis by angles [...] (rad), right-handed. Source: Rodrigues' formula."""
    x, y, z = axis
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], device=angle.device)
    sine, cosine = torch.sin(angle)[..., None, None], torch.cos(angle)[..., None, None]
    return torch.eye(3, device=angle.device) + sine * cross + (1 - cosine) * (cross @ cross)


def align(source: Tensor, target: Tensor) -> Tensor:
    """The smallest rotations [..., 3, 3] that turn unit vectors `source` [..., 3] into `target`."""
    v = torch.linalg.cross(source, target)
    zero = torch.zeros_like(v[..., 0])
    rows = [zero, -v[..., 2], v[..., 1], v[..., 2], zero, -v[..., 0], -v[..., 1], v[..., 0], zero]
    cross = torch.stack(rows, -1).reshape(*v.shape[:-1], 3, 3)
    cosine = (source * target).sum(-1)[..., None, None]
    return torch.eye(3, device=v.device) + cross + cross @ cross / (1 + cosine)


def skin(points: Tensor, normals: Tensor, weights: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Linear blend skinning.

    Args:
        points: [N, P, 3] at rest, m.
        normals: [N, P, 3] or [1, P, 3] unit normals at rest.
        weights: [P, 24].
        motion: [N, 24, 3, 4] each segment's rigid motion from rest.

    Returns:
        Posed points and unit normals, [N, P, 3].
    """
    blended = torch.matmul(weights, motion.flatten(2)).unflatten(-1, (3, 4))
    turned = (blended[..., :3] * points[..., None, :]).sum(-1) + blended[..., 3]
    return turned, F.normalize((blended[..., :3] * normals[..., None, :]).sum(-1), dim=-1)
