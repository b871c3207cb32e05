"""glTF 2.0 in one binary file: each person is a skinned figure of bones, moving in one animation; m, y up.

While a person is not seen, the figure has scale 0, so that a gap shows nobody and no key frame is invented. Source: the glTF
2.0 specification, Khronos Group.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.figure import ENDS_MM, Figure
from pipeline.formats.motion import Motion, MotionRecorder, compare
from pipeline.formats.names import bone_names
from pipeline.labels import person_bgr
from pipeline.rig import BONES, quaternion

Array = NDArray[np.float64]

THICK = 0.09
"""Half the width of a bone's solid, as a fraction of its length."""

_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
_FLOAT, _UINT32, _UINT8 = 5126, 5125, 5121


@dataclass(frozen=True)
class _Person:
    motion: Motion
    figure: Figure  # of the frames that show the person


class GlbRecorder(MotionRecorder):
    """Writes `poses.glb`."""

    def _save(self, tracks: Sequence[int]) -> Iterator[tuple[Path, list[_Person]]]:
        people = []
        for track_id in tracks:
            motion = self.motion(track_id)
            people.append(_Person(motion, Figure.of(motion.joints_mm[motion.seen], self._header.joint_set)))
        if people:
            yield self.path, people

    def names(self) -> dict[str, str]:
        """The names of the bones."""
        return bone_names("unity" if self.export.names == "auto" else self.export.names)

    def _write_part(self, part: Path, content: list[_Person]) -> None:
        scene = _Scene(self.names())
        for person in content:
            scene.add(person)
        with part.open("wb") as file:
            file.write(scene.glb())

    def _check_part(self, part: Path, content: list[_Person]) -> None:
        document, data = read_glb(part)
        nodes, animation = document["nodes"], document["animations"][0]
        moved = {(c["target"]["node"], c["target"]["path"]): animation["samplers"][c["sampler"]] for c in animation["channels"]}
        names = self.names()
        for skin, person in zip(document["skins"], content, strict=True):
            joints = dict(zip(BONES, skin["joints"], strict=True))
            if [nodes[at]["name"] for at in skin["joints"]] != [names[bone] for bone in BONES]:
                raise ValueError(f"expected the bones {list(names.values())}")
            hips = _array(document, data, moved[joints["Hips"], "translation"]["output"])
            compare("places of the hips, m,", person.figure.root_mm / 1000, hips, 1e-4)
            for bone, at in joints.items():
                compare(
                    f"the offset of {bone}, m,", person.figure.offsets_mm[bone] / 1000, np.array(nodes[at]["translation"]), 1e-6
                )
                turns = _array(document, data, moved[at, "rotation"]["output"])
                compare(f"turns of {bone}", person.figure.local[bone], matrices(turns), 1e-5)


@dataclass
class _Scene:
    """A glTF document to which people are added."""

    names: dict[str, str]
    data: bytearray = field(default_factory=bytearray)
    document: dict[str, Any] = field(
        default_factory=lambda: {
            "asset": {"version": "2.0", "generator": "convnextpose"},
            "scene": 0,
            "scenes": [{"nodes": []}],
            "nodes": [],
            "meshes": [],
            "skins": [],
            "materials": [],
            "accessors": [],
            "bufferViews": [],
            "animations": [{"name": "poses", "samplers": [], "channels": []}],
        }
    )

    def add(self, person: _Person) -> None:
        """Add a person."""
        nodes, figure, motion = self.document["nodes"], person.figure, person.motion
        name, first = f"person-{motion.track_id}", len(nodes)
        places = _rest_mm(figure)
        of = {bone: first + 1 + number for number, bone in enumerate(BONES)}
        nodes.append({"name": name, "children": [of["Hips"]], "scale": [1.0, 1.0, 1.0]})
        for bone in BONES:
            node: dict[str, Any] = {"name": self.names[bone], "translation": (figure.offsets_mm[bone] / 1000).tolist()}
            if children := [of[child] for child, facts in BONES.items() if facts.parent == bone]:
                node["children"] = children
            nodes.append(node)
        mesh, skin = len(self.document["meshes"]), len(self.document["skins"])
        nodes.append({"name": f"{name}-bones", "mesh": mesh, "skin": skin})
        self.document["scenes"][0]["nodes"] += [first, len(nodes) - 1]
        inverse = np.tile(np.eye(4), (len(BONES), 1, 1))
        inverse[:, 3, :3] = [-places[bone] / 1000 for bone in BONES]  # column-major: the translation is stored as the last row
        self.document["skins"].append(
            {"name": name, "skeleton": first, "joints": [of[bone] for bone in BONES], "inverseBindMatrices": self._put(inverse)}
        )
        self.document["meshes"].append(self._mesh(name, figure, places, motion.track_id))
        self._animate(person, first, of)

    def _mesh(self, name: str, figure: Figure, places: dict[str, Array], track_id: int) -> dict[str, Any]:
        """A solid for each bone, from its start to that of each of its child bones."""
        points: list[Array] = []
        owners: list[int] = []
        faces: list[NDArray[np.int64]] = []
        for number, bone in enumerate(BONES):
            ends = [places[child] for child, facts in BONES.items() if facts.parent == bone]
            ends += [places[bone] + ENDS_MM[bone]] if bone in ENDS_MM else []
            for end in ends:
                corners, sides = _solid(places[bone] / 1000, end / 1000)
                faces.append(sides + sum(len(part) for part in points))
                points.append(corners)
                owners += [number] * len(corners)
        blue, green, red = (value / 255 for value in person_bgr(track_id))
        material = {"pbrMetallicRoughness": {"baseColorFactor": [red, green, blue, 1.0], "metallicFactor": 0.0}}
        self.document["materials"].append({"name": name, "doubleSided": True, **material})
        joints = np.zeros((len(owners), 4), np.uint8)
        joints[:, 0] = owners
        attributes = {
            "POSITION": self._put(np.concatenate(points), bounds=True, target=34962),
            "JOINTS_0": self._put(joints, _UINT8, target=34962),
            "WEIGHTS_0": self._put(np.tile([1.0, 0.0, 0.0, 0.0], (len(owners), 1)), target=34962),
        }
        indices = self._put(np.concatenate(faces).reshape(-1, 1), _UINT32, target=34963)
        primitive = {"attributes": attributes, "indices": indices, "material": len(self.document["materials"]) - 1}
        return {"name": name, "primitives": [primitive]}

    def _animate(self, person: _Person, root: int, of: dict[str, int]) -> None:
        motion, figure = person.motion, person.figure
        times = (motion.first + np.flatnonzero(motion.seen)) / motion.rate
        at = self._put(times[:, None], bounds=True)
        self._channel(of["Hips"], "translation", at, self._put(figure.root_mm / 1000))
        for bone, node in of.items():
            turns = np.array([quaternion(turn) for turn in figure.local[bone]])
            flips = np.cumprod(np.where((turns[1:] * turns[:-1]).sum(axis=1) < 0, -1.0, 1.0))
            turns[1:] *= flips[:, None]  # the shorter rotation from key to key
            self._channel(node, "rotation", at, self._put(turns))
        begins, ends = np.array([[s.start, s.stop] for s in motion.stretches()]).T
        shows = {(motion.first + begin) / motion.rate: 1.0 for begin in begins}
        shows |= {(motion.first + end) / motion.rate: 0.0 for end in ends}
        if min(shows) > 0:
            shows[0.0] = 0.0
        keys = np.array(sorted(shows.items()))
        size = np.repeat(keys[:, 1:], 3, axis=1)
        self._channel(root, "scale", self._put(keys[:, :1], bounds=True), self._put(size), "STEP")

    def _channel(self, node: int, path: str, times: int, values: int, interpolation: str = "LINEAR") -> None:
        animation = self.document["animations"][0]
        animation["channels"].append({"sampler": len(animation["samplers"]), "target": {"node": node, "path": path}})
        animation["samplers"].append({"input": times, "output": values, "interpolation": interpolation})

    def _put(self, values: NDArray[Any], kind: int = _FLOAT, *, bounds: bool = False, target: int | None = None) -> int:
        """Add an accessor of values [N, ...]; returns its number."""
        rows = values.reshape(len(values), -1).astype({_FLOAT: "<f4", _UINT32: "<u4", _UINT8: "u1"}[kind])
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.data), "byteLength": rows.nbytes}
        if target is not None:
            view["target"] = target
        self.data += rows.tobytes()
        self.data += bytes(-len(self.data) % 4)
        accessor: dict[str, Any] = {"bufferView": len(self.document["bufferViews"]), "componentType": kind}
        accessor |= {"count": len(rows), "type": _TYPES[rows.shape[1]]}
        if bounds:
            accessor |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        self.document["bufferViews"].append(view)
        self.document["accessors"].append(accessor)
        return len(self.document["accessors"]) - 1

    def glb(self) -> bytes:
        """The whole file."""
        text = json.dumps(self.document | {"buffers": [{"byteLength": len(self.data)}]}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        size = 12 + 8 + len(text) + 8 + len(self.data)
        head = struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<I4s", len(text), b"JSON")
        return head + text + struct.pack("<I4s", len(self.data), b"BIN\0") + bytes(self.data)


def _rest_mm(figure: Figure) -> dict[str, Array]:
    """The starts of the bones at rest, mm from the hips."""
    places: dict[str, Array] = {}
    for bone, facts in BONES.items():
        places[bone] = figure.offsets_mm[bone] + (places[facts.parent] if facts.parent else 0)
    return places


def _solid(begin: Array, end: Array) -> tuple[Array, NDArray[np.int64]]:
    """A double pyramid between two points: corners [6, 3] and triangles [8, 3]."""
    along = end - begin
    length = max(float(np.linalg.norm(along)), 1e-6)
    across = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    across *= THICK * length / max(float(np.linalg.norm(across)), 1e-9)
    other = np.cross(along, across) / length
    belt = begin + 0.2 * along
    corners = np.array([begin, belt + across, belt + other, belt - across, belt - other, end])
    sides = [(0, b, a) for a, b in ((1, 2), (2, 3), (3, 4), (4, 1))] + [(5, a, b) for a, b in ((1, 2), (2, 3), (3, 4), (4, 1))]
    return corners, np.array(sides)


def matrices(quaternions: Array) -> Array:
    """Unit quaternions x, y, z, w [T, 4] as rotations [T, 3, 3]."""
    x, y, z, w = quaternions.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def read_glb(path: Path) -> tuple[dict[str, Any], bytes]:
    """The document and the binary part of a .glb file.

    Raises:
        ValueError: it is not such a file.
    """
    data = path.read_bytes()
    magic, version, size = struct.unpack_from("<4sII", data)
    length, kind = struct.unpack_from("<I4s", data, 12)
    if (magic, version, size, kind) != (b"glTF", 2, len(data), b"JSON"):
        raise ValueError(f"expected glTF 2 of {len(data)} bytes, received {magic!r} {version} of {size}")
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def _array(document: dict[str, Any], data: bytes, number: int) -> Array:
    """The values of an accessor of 32-bit numbers."""
    accessor = document["accessors"][number]
    view, width = document["bufferViews"][accessor["bufferView"]], {v: k for k, v in _TYPES.items()}[accessor["type"]]
    values = np.frombuffer(data, "<f4", accessor["count"] * width, view["byteOffset"])
    return values.reshape(-1, width).astype(np.float64)
