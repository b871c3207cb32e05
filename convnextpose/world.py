"""World coordinates: y up, the floor at 0, and the position of the camera.

World axes: right-handed, x level to the camera's right, y up, z level and towards the camera's back; millimetres. Unless the
caller gives the camera's position, the origin is the point of the floor below the camera.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, SourceError
from convnextpose.files import parse_json, read_file

MAX_FILE_BYTES = 64 * 1024

ASSUMED_HEIGHT_MM = 1500.0
"""The assumed height of the camera above the floor if it was not given and no feet have been seen, mm."""

_ROTATION_WITHIN = 1e-3


class WorldOrigin(str, Enum):
    """The source of a world, which shows how far it can be trusted."""

    GIVEN = "given"
    """Given by the caller."""
    ESTIMATED = "estimated"
    """Estimated from the people: the direction of down from upright bodies and standing feet, the floor from the feet."""
    LEVEL = "level"
    """Assumed: the camera looks straight ahead, and the floor is under the lowest joints."""


@dataclass(frozen=True)
class World:
    """A rigid transform from camera space (x right, y down, z forward) to the world, world = rotation @ camera + position.

    Attributes:
        rotation: [3, 3] world_from_camera.
        position_mm: [3] the camera's position in the world, mm; the second number is its height above the floor.
        origin: the source of the rotation.
        height_origin: the source of the height.
        tilt_error_degrees: standard deviation of the upward direction; None if it was not estimated.
        height_error_mm: standard deviation of the height; None if it was not estimated.
    """

    rotation: NDArray[np.float64]
    position_mm: NDArray[np.float64]
    origin: WorldOrigin
    height_origin: WorldOrigin
    tilt_error_degrees: float | None = None
    height_error_mm: float | None = None

    def __post_init__(self) -> None:
        """Check that it is a rigid transform."""
        rotation, position = np.asarray(self.rotation, np.float64), np.asarray(self.position_mm, np.float64)
        if (
            rotation.shape != (3, 3)
            or position.shape != (3,)
            or not (np.isfinite(rotation).all() and np.isfinite(position).all())
        ):
            raise GeometryError(
                f"expected a finite rotation [3, 3] and position [3], received {rotation.shape} and {position.shape}"
            )
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > _ROTATION_WITHIN or np.linalg.det(rotation) < 0:
            raise GeometryError("expected a rotation [3, 3]: rows of length 1, at right angles, right-handed")
        object.__setattr__(self, "rotation", rotation)
        object.__setattr__(self, "position_mm", position)

    @classmethod
    def of(
        cls, up: NDArray[np.float64], height_mm: float, origin: WorldOrigin, height_origin: WorldOrigin, **errors: float | None
    ) -> World:
        """The world whose upward direction in camera axes is `up` [3], with the camera `height_mm` above its origin."""
        return cls(rotation_of(up), np.array([0.0, height_mm, 0.0]), origin, height_origin, **errors)

    @classmethod
    def level(cls, height_mm: float = ASSUMED_HEIGHT_MM) -> World:
        """The world of a camera that is assumed to look straight ahead."""
        return cls.of(up_of(0.0, 0.0), height_mm, WorldOrigin.LEVEL, WorldOrigin.LEVEL)

    @property
    def up(self) -> NDArray[np.float64]:
        """[3] the upward direction in camera axes."""
        return self.rotation[1]

    @property
    def height_mm(self) -> float:
        """The camera's height above the floor, mm."""
        return float(self.position_mm[1])

    @property
    def pitch_degrees(self) -> float:
        """Angle by which the camera looks down, degrees."""
        return math.degrees(math.asin(float(np.clip(-self.up[2], -1, 1))))

    @property
    def roll_degrees(self) -> float:
        """Angle by which the camera is turned clockwise about its line of sight, its right side down, degrees."""
        return math.degrees(math.atan2(-float(self.up[0]), -float(self.up[1])))

    def from_camera(self, points_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Convert points from camera space [..., 3], mm, to the world."""
        moved: NDArray[np.float64] = np.asarray(points_mm, np.float64) @ self.rotation.T + self.position_mm
        return moved

    def place_on_floor(self, joints_mm: NDArray[np.floating], root: int, depth_scale: float) -> NDArray[np.float64]:
        """A pose in the world, with its feet on the floor.

        Every joint moves along its own line of sight, so that its place in the picture stays the same: the root to
        `depth_scale` times its depth; the others keep their distance from it along z.

        Args:
            joints_mm: [J, 3] in camera space, mm.
            root: the pelvis's index.
            depth_scale: as in `pipeline.types.Pose`.
        """
        joints = np.asarray(joints_mm, np.float64)
        depths = joints[:, 2] + (depth_scale - 1) * joints[root, 2]
        if depth_scale == 1 or depths.min() <= 0:
            return self.from_camera(joints)
        return self.from_camera(joints * (depths / joints[:, 2])[:, None])

    def to_camera(self, points_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Convert points from the world [..., 3], mm, to camera space."""
        moved: NDArray[np.float64] = (np.asarray(points_mm, np.float64) - self.position_mm) @ self.rotation
        return moved

    def record(self) -> dict[str, Any]:
        """The world as plain JSON values."""
        matrix = np.concatenate([np.round(self.rotation, 6), np.round(self.position_mm, 2)[:, None]], axis=1)
        return {
            "world_from_camera": matrix.tolist(),
            "origin": self.origin.value,
            "height_origin": self.height_origin.value,
            "pitch_degrees": round(self.pitch_degrees, 2),
            "roll_degrees": round(self.roll_degrees, 2),
            "height_mm": round(self.height_mm, 1),
            "tilt_error_degrees": None if self.tilt_error_degrees is None else round(self.tilt_error_degrees, 2),
            "height_error_mm": None if self.height_error_mm is None else round(self.height_error_mm, 1),
        }

    @classmethod
    def parse(cls, record: dict[str, Any]) -> World:
        """The world of a record.

        Raises:
            GeometryError, KeyError, TypeError, ValueError: it is not the record of a world.
        """
        matrix = np.asarray(record["world_from_camera"], np.float64)
        if matrix.shape not in ((3, 4), (4, 4)):
            raise GeometryError(f"expected world_from_camera as 3 or 4 rows of 4 numbers, received {list(matrix.shape)}")
        origin = WorldOrigin(record.get("origin", WorldOrigin.GIVEN.value))
        return cls(
            matrix[:3, :3],
            matrix[:3, 3],
            origin,
            WorldOrigin(record.get("height_origin", origin.value)),
            record.get("tilt_error_degrees"),
            record.get("height_error_mm"),
        )


@dataclass(frozen=True)
class GivenWorld:
    """What the caller knows about the camera's position; whatever is None is estimated.

    Attributes:
        world: the whole transform, or None.
        up: [3] the upward direction in camera axes, or None.
        height_mm: the camera's height above the floor, mm, or None.
    """

    world: World | None = None
    up: NDArray[np.float64] | None = None
    height_mm: float | None = None

    @classmethod
    def of_angles(cls, pitch_degrees: float | None, roll_degrees: float | None, height_m: float | None) -> GivenWorld:
        """From angles (degrees) and a height (m), each of which may be None; if only one angle is given, the other is 0.

        Raises:
            GeometryError: no camera can have these values.
        """
        up = None
        if pitch_degrees is not None or roll_degrees is not None:
            up = up_of(pitch_degrees or 0.0, roll_degrees or 0.0)
        if height_m is not None and not (math.isfinite(height_m) and height_m > 0):
            raise GeometryError(f"expected the camera above the floor, by its height in m, received {height_m}")
        return cls(up=up, height_mm=None if height_m is None else 1000 * height_m)

    @classmethod
    def read(cls, path: Path) -> GivenWorld:
        """Read a camera's pose: JSON with `world_from_camera`, 3 or 4 rows of 4 numbers, rotation and position in mm, y up.

        Raises:
            SourceError: it cannot be read or is not such a file.
        """
        data = read_file(path, MAX_FILE_BYTES, SourceError, "a camera's pose")
        try:
            world = World.parse({"world_from_camera": parse_json(data)["world_from_camera"]})
            if not world.height_mm > 0:
                raise GeometryError(f"expected the camera above the floor, received a height of {world.height_mm:g} mm")
        except (GeometryError, KeyError, TypeError, ValueError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            example = json.dumps({"world_from_camera": [[1, 0, 0, 0], [0, -1, 0, 1500], [0, 0, -1, 0]]})
            raise SourceError(f"expected a camera's pose such as {example} in {path}, but {what}") from error
        return cls(world=world)


def up_of(pitch_degrees: float, roll_degrees: float) -> NDArray[np.float64]:
    """[3] the upward direction in camera axes for a camera that looks down by a pitch and is turned clockwise by a roll.

    Raises:
        GeometryError: no camera can have these angles.
    """
    if not (abs(pitch_degrees) < 90 and abs(roll_degrees) <= 180):  # also refuses NaN
        raise GeometryError(
            f"expected a pitch between -90 and 90 degrees (down is positive) and a roll within 180, received {pitch_degrees:g} "
            f"and {roll_degrees:g}"
        )
    pitch, roll = math.radians(pitch_degrees), math.radians(roll_degrees)
    return np.array([-math.sin(roll) * math.cos(pitch), -math.cos(roll) * math.cos(pitch), -math.sin(pitch)])


def rotation_of(up: NDArray[np.float64]) -> NDArray[np.float64]:
    """The world_from_camera rotation [3, 3] for an upward direction [3] in camera axes; x is level, to the right."""
    y = np.asarray(up, np.float64) / np.linalg.norm(up)
    right = np.array([1.0, 0.0, 0.0]) if abs(y[0]) < 0.99 else np.array([0.0, 1.0, 0.0])
    x = right - (right @ y) * y
    x /= np.linalg.norm(x)
    return np.stack([x, y, np.cross(x, y)])
