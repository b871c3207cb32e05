"""The kinds of inputs: how a whole one is made, how it is spoilt, and what of the project reads it.

Most cases call the function that reads the input; its errors are those that the command line prints. Some are whole runs of the
command line, with the network opened once before all of them.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import resource
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Protocol

import av
import cv2
import numpy as np

import pipeline.models
import tools.main
from convnextpose import weights
from convnextpose.archives import read_npz
from convnextpose.checkpoint import verify_state
from convnextpose.errors import CalibrationError, CheckpointError
from engines import manifest
from engines.bundle import read_bundle
from engines.calibration import CalibrationSet
from engines.opening import open_people_detector, open_pose_model
from pipeline.formats.records import frame_record, header_record, read_poses, to_line
from pipeline.people.given import GivenBoxes
from pipeline.run import read_sources
from pipeline.sources import open_source
from tests.fuzz.mutations import ODD_WORDS, damaged, json_text, odd_json, odd_lines, odd_message, odd_words
from tests.fuzz.zygote import MEMORY

MOST_FRAMES = 100
"""Frames of a source that are read at most: a header may promise thousands."""


class Kind(Protocol):
    """A kind of input."""

    def prepare(self) -> str | None:
        """Make what all cases start from, or say why it cannot be made here. Called once, before the first fork."""
        ...

    def read(self, random: Random, folder: Path) -> object:
        """Make a spoilt input in an empty folder, where the process is, and have the project read it."""
        ...


def command(*arguments: object) -> None:
    """Run the command line in this process; it ends with SystemExit."""
    sys.argv = ["convnextpose", *map(str, arguments)]
    tools.main.main()


def run_on(source: object, *options: object) -> None:
    """`convnextpose run` with the network that is open already."""
    command("run", source, "--out", "results", "--runtime", "onnxruntime", "--threads", 1, *options)


def import_all() -> None:
    """Import what the command line does, also what it imports when it prints, so that no child has to."""
    for name in tools.main.COMMANDS:
        importlib.import_module(f"tools.{name.replace('-', '_')}")
    lines = (
        ["--help"],
        ["run"],
        ["verify", "missing"],
        ["engine", "inspect", "missing"],
        ["calibrate", "missing", "--out", "x.npz"],
    )
    for arguments in lines:
        with suppress(SystemExit), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            command(*arguments)


_warm: dict[str, Any] = {}


def warm() -> None:
    """Open the network once. ONNX Runtime with one thread starts none, so that the children of a fork can run it."""
    if not _warm:
        _warm["model"] = open_pose_model(weights.load("xs").onnx, "onnxruntime", threads=1, name="xs")
        _warm["detector"] = open_people_detector(weights.detector(), "onnxruntime", threads=1)
        cold = pipeline.models.open_model

        def open_model(model: str, runtime: str = "auto", **options: Any) -> object:
            plain = options.get("precision", "auto") == "auto" and not options.get("random_weights")
            if model == "xs" and runtime == "onnxruntime" and options.get("threads") == 1 and plain:
                return _warm["model"]
            return cold(model, runtime, **options)

        pipeline.models.open_model = open_model  # type: ignore[assignment]
        pipeline.models.open_detector = lambda *_, **__: _warm["detector"]


def read_all(path: object, **options: object) -> None:
    """Open a source and take its frames."""
    with open_source(path, **options) as source:  # type: ignore[arg-type]
        for _ in islice(source, MOST_FRAMES):
            pass


def picture(index: int = 0, width: int = 64, height: int = 48) -> np.ndarray:
    """A textured BGR picture."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3 + index * 5, y * 4, x + y], -1).astype(np.uint8)


class Media:
    """Files of pictures and of moving pictures.

    Args:
        make: gives whole files, by what their name ends in.
    """

    def __init__(self, make: Callable[[], dict[str, bytes]]) -> None:
        self._make = make

    def prepare(self) -> str | None:
        self._files = self._make()
        warm()
        return None

    def read(self, random: Random, folder: Path) -> None:
        name = random.choice(sorted(self._files))
        path = folder / f"clip.{name.split('.')[-1] if random.random() < 0.8 else random.choice(('mp4', 'png', 'x', 'heic'))}"
        path.write_bytes(damaged(random, self._files[name]))
        damage = random.choice(("stop", "skip"))
        if random.random() < 0.05:
            run_on(path, "--on-damage", damage)
        read_all(path, on_damage=damage)


def videos() -> dict[str, bytes]:
    """Short videos in the containers and codecs that cameras and tools write."""
    made = {}
    codecs = ("libx264", "mpeg4", "mjpeg", "libvpx", "ffv1")
    for codec, suffixes in zip(codecs, ("mp4 mov ts mkv flv", "avi mp4 mpg", "avi mov", "webm", "mkv avi"), strict=True):
        for suffix in suffixes.split():
            buffer = io.BytesIO()
            form = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg"}.get(suffix, suffix)
            with av.open(buffer, "w", format=form) as container:
                stream = container.add_stream(codec, rate=25)
                stream.width, stream.height = 64, 48
                stream.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "bgr0"}.get(codec, "yuv420p")
                stream.codec_context.thread_count = 1
                for index in range(8):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="bgr24")))
                container.mux(stream.encode(None))
            made[f"{codec}.{suffix}"] = buffer.getvalue()
    return made


def pictures() -> dict[str, bytes]:
    """Pictures in every format that is read, with EXIF, animated and in HEIF, too."""
    from tests.pipeline import media

    made = {}
    for suffix in ("jpg", "png", "webp", "bmp", "tiff", "ppm", "jp2", "avif", "gif"):
        try:
            done, data = cv2.imencode(f".{suffix}", picture())
        except cv2.error:
            continue
        if done:
            made[f"plain.{suffix}"] = data.tobytes()
    made["exif.jpg"] = media.jpeg_with_exif(picture(), 6)
    with tempfile.TemporaryDirectory() as folder:
        for name, options in {"hevc": {}, "tiles": {"tile": 64}, "turned": {"turns": ((b"irot", b"\1"),)}}.items():
            made[f"{name}.heic"] = media.heif(Path(folder), picture(0, 128, 128), **options)
        made["av1.avif"] = media.heif(Path(folder), picture(), kind=b"av01")
    return made


class Folders:
    """Folders of pictures, some of which are spoilt, among files that are none."""

    def prepare(self) -> str | None:
        self._files = pictures()
        warm()
        return None

    def read(self, random: Random, folder: Path) -> None:
        place = folder / "pictures"
        place.mkdir()
        for index in range(random.choice((0, 1, 2, 5))):
            name = random.choice(sorted(self._files))
            data = self._files[name]
            word = random.choice((f"img{index}", f"{index}", "a\nb", "\u202eb", ".hidden", "x" * 200, "img١"))
            path = place / f"{word}.{name.split('.')[-1]}"
            path.write_bytes(damaged(random, data) if random.random() < 0.5 else data)
        kind = random.randrange(6)
        if kind == 0:
            (place / "zero.png").symlink_to("/dev/zero")
        elif kind == 1:
            (place / "loop.png").symlink_to("loop.png")
        elif kind == 2:
            (place / "folder.png").mkdir()
        elif kind == 3:
            (place / "notes.txt").write_bytes(b"")
        if random.random() < 0.05:
            run_on(place)
        read_all(place if random.random() < 0.9 else str(place))


class Checkpoints:
    """Checkpoints in every container, small ones and whole models, in `convnextpose verify`."""

    def prepare(self) -> str | None:
        tree = {"network": {"a.weight": np.arange(12.0, dtype=np.float32).reshape(3, 4), "b": np.array([7])}, "epoch": 68}
        self._files = {"small.safetensors": _safetensors(tree["network"])}  # type: ignore[arg-type]
        self._files["whole.safetensors"] = weights.load("xs").safetensors.read_bytes()
        try:
            import torch
        except ImportError:
            return None  # what torch.save writes cannot be made here
        torch.set_num_threads(1)
        with suppress(CheckpointError):  # what the variants' tensors are is worked out once
            verify_state({"w": torch.zeros(1)}, source="nothing")
        tensors = {"network": {k: torch.from_numpy(v) for k, v in tree["network"].items()}, "epoch": 68}  # type: ignore[union-attr,attr-defined]
        tensors["optimizer"] = {"state": {0: {"step": 9, "exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.9, 0.9)}]}
        for name, zipped in {"new.pth": True, "old.tar": False}.items():
            buffer = io.BytesIO()
            torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
            self._files[name] = buffer.getvalue()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive, zipfile.ZipFile(io.BytesIO(self._files["new.pth"])) as made:
            for member in made.namelist():
                info = tarfile.TarInfo(member)
                info.size = len(data := made.read(member))
                archive.addfile(info, io.BytesIO(data))
        self._files["unpacked.tar"] = buffer.getvalue()
        return None

    def read(self, random: Random, folder: Path) -> None:
        names = sorted(name for name in self._files if not name.startswith("whole"))
        name = "whole.safetensors" if random.random() < 0.05 else random.choice(names)
        data = self._files[name]
        kind = random.random()
        if name == "new.pth" and kind < 0.4:
            data = _new_archive(random, data)
        elif name.endswith("safetensors") and kind < 0.6:
            size = int.from_bytes(data[:8], "little")
            head = json_text(random, json.loads(data[8 : 8 + size]))
            data = len(head).to_bytes(8, "little") + head + data[8 + size :]
        else:
            data = damaged(random, data)
        path = folder / name
        if name == "new.pth" and random.random() < 0.2:
            try:
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    archive.extractall(path)
            except Exception:  # noqa: BLE001  # too spoilt for a folder
                path.unlink(missing_ok=True) if path.is_file() else None
        if not path.exists():
            path.write_bytes(data)
        command("verify", path, *random.choice(((), ("--json",), ("--variant", "XS"))))


def _safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    head, body = {}, b""
    for name, array in arrays.items():
        kind = {"float32": "F32", "int64": "I64"}[str(array.dtype)]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(body), len(body) + array.nbytes]}
        body += array.tobytes()
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + body


def _new_archive(random: Random, data: bytes) -> bytes:
    """A ZIP file in which one member is spoilt and its checksum is right all the same."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        chosen = random.choice(old.namelist())
        for name in old.namelist():
            contents = old.read(name)
            if name == chosen:
                contents = b"" if random.random() < 0.1 else damaged(random, contents)
                if random.random() < 0.1:
                    name = random.choice(("../evil", "/evil", "a/../../evil", "x" * 300, name + "/"))
            kind = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            new.writestr(name, contents, kind)
    return buffer.getvalue()


class Graphs:
    """ONNX files: a small graph that keeps the contract of pose models, opened and run."""

    def prepare(self) -> str | None:
        try:
            from onnx import TensorProto, helper, numpy_helper
        except ImportError:
            return "making graphs needs onnx"
        strides = {"kernel_shape": [4, 4], "strides": [256, 256]}
        nodes = [
            helper.make_node("Cast", ["crops"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "w"], ["flat"], **strides),
            helper.make_node("Reshape", ["flat", "to_joints"], ["joints"]),
            helper.make_node("Conv", ["planes", "v"], ["logits"], **strides),
            helper.make_node("Reshape", ["logits", "to_scores"], ["rows"]),
            helper.make_node("Sigmoid", ["rows"], ["scores"]),
        ]
        chance = np.random.default_rng(0)
        constants = {
            "w": chance.normal(size=(54, 3, 4, 4)).astype(np.float32) * 0.01,
            "to_joints": np.array([0, 18, 3]),
            "v": chance.normal(size=(18, 3, 4, 4)).astype(np.float32) * 0.001,
            "to_scores": np.array([0, 18]),
        }
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["N", 256, 256, 3])],
            [
                helper.make_tensor_value_info("joints", TensorProto.FLOAT, ["N", 18, 3]),
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 18]),
            ],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        texts = {"variant": "XS", "joint_set": "human36m", "checkpoint_sha256": "0", "name": "x", "random": "0"}
        helper.set_model_props(model, {"convnextpose.contract": "1", **texts})
        self._data = model.SerializeToString()
        return None

    def read(self, random: Random, folder: Path) -> None:
        data = self._data
        for _ in range(random.choice((1, 1, 2, 3))):
            data = odd_message(random, data)
        path = folder / "model.onnx"
        path.write_bytes(data)
        runtime = random.choice(("openvino", "onnxruntime"))
        with open_pose_model(path, runtime, threads=1) as model:
            model.run(np.zeros((2, 256, 256, 3), np.uint8))


class Engines:
    """Engine files and their manifests, spoilt and sealed again, in `convnextpose engine inspect`."""

    def prepare(self) -> str | None:
        from tests.engines.test_manifest import ENGINE, make

        self._engine, self._manifest = ENGINE, json.loads(make().to_json())
        for library in ("tensorrt", "tensorrt_rtx", "cuda.bindings.driver", "cuda.bindings.runtime"):
            with suppress(ImportError):
                importlib.import_module(library)
        return None

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "model.engine"
        engine, told = self._engine, json.loads(json.dumps(self._manifest))
        kind = random.random()
        if kind < 0.15:
            engine = damaged(random, engine)
        elif kind < 0.3:
            told = odd_json(random, told)
        else:
            rest = odd_json(random, {k: v for k, v in told.items() if k not in ("format", "version", "sha256")})
            if isinstance(rest, dict):
                digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
                told = {"format": told["format"], "version": told["version"], **rest, "sha256": digest}
        path.write_bytes(engine)
        text = json.dumps(told).encode("utf-8", "surrogatepass") if kind < 0.9 else json_text(random, told)
        manifest.path_of(path).write_bytes(text)
        command("engine", "inspect", path, *random.choice(((), ("--layers",))))


class Bundles:
    """Bundles to build engines from elsewhere, with a draft that is sealed again."""

    def prepare(self) -> str | None:
        from tests.engines.test_manifest import make, parity

        graph = weights.load("xs").int8
        assert graph is not None
        onnx = graph.read_bytes()
        draft = {k: v for k, v in json.loads(make(onnx_sha256=hashlib.sha256(onnx).hexdigest()).to_json()).items()}
        own = {f for f in manifest.EngineDraft.__dataclass_fields__}
        self._draft = {k: v for k, v in draft.items() if k in own}
        self._head = {"format": manifest.EngineDraft.FORMAT, "version": draft["version"]}
        arrays = io.BytesIO()
        np.savez_compressed(
            arrays,
            crops=np.zeros((2, 256, 256, 3), np.uint8),
            joints=np.zeros((2, 18, 3), np.float32),
            scores=np.zeros((2, 18), np.float32),
            reference=np.array(json.dumps(asdict(parity().reference))),
        )
        self._onnx, self._proof = onnx, arrays.getvalue()
        return None

    def read(self, random: Random, folder: Path) -> None:
        from engines.bundle import BUNDLE_DRAFT, BUNDLE_GRAPH, BUNDLE_PROOF

        draft, onnx, proof = json.loads(json.dumps(self._draft)), self._onnx, self._proof
        kind = random.random()
        if kind < 0.5:
            draft = odd_json(random, draft)
        elif kind < 0.7:
            proof = _spoilt_npz(random, proof)
        elif kind < 0.8:
            onnx = odd_message(random, onnx)
            draft["onnx_sha256"] = hashlib.sha256(onnx).hexdigest()
        if isinstance(draft, dict):
            digest = hashlib.sha256(json.dumps(draft, sort_keys=True).encode()).hexdigest()
            draft = {**self._head, **draft, "sha256": digest}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(BUNDLE_DRAFT, json.dumps(draft).encode("utf-8", "surrogatepass"))
            archive.writestr(BUNDLE_GRAPH, onnx)
            archive.writestr(BUNDLE_PROOF, proof)
        path = folder / "model.bundle.zip"
        path.write_bytes(damaged(random, buffer.getvalue()) if kind >= 0.8 else buffer.getvalue())
        read_bundle(path)


def _spoilt_npz(random: Random, data: bytes) -> bytes:
    """An .npz file, of which some array's header or contents, or the file around them, is spoilt."""
    if random.random() < 0.3:
        return damaged(random, data)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        chosen = random.choice(old.namelist())
        for name in old.namelist():
            contents = old.read(name)
            if name == chosen:
                kind = random.randrange(5)
                if kind == 0:
                    shape = random.choice(("(99999999999,)", "(-1,)", "(0, 256, 256, 3)", "()", "('a',)", "(1e9,)"))
                    descr = random.choice(("'|u1'", "'<f4'", "'|O'", "[('a', '|O')]", "'<U999999999'", "'|V0'", "3"))
                    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
                    contents = b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + contents[128:]
                elif kind == 1:
                    continue
                elif kind == 2:
                    name = random.choice(("x.npy", "../x.npy", name + ".npy", "crops.npy"))
                else:
                    contents = damaged(random, contents)
            new.writestr(name, contents)
    return buffer.getvalue()


class Calibrations:
    """Calibration sets, with headers that are right again."""

    def prepare(self) -> str | None:
        crops = np.stack([cv2.resize(picture(index), (256, 256)) for index in range(12)])
        self._data = CalibrationSet(crops, ("a.mp4",)).to_bytes()
        return None

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "set.npz"
        if random.random() < 0.4:
            with np.load(io.BytesIO(self._data)) as arrays:
                header, crops = json.loads(str(arrays["header"])), arrays["crops"]
            buffer = io.BytesIO()
            text = json_text(random, header).decode("utf-8", "replace")
            np.savez(buffer, header=np.array(text), crops=crops[: random.choice((0, 1, 12))])
            path.write_bytes(buffer.getvalue())
        else:
            path.write_bytes(_spoilt_npz(random, self._data))
        CalibrationSet.load(path)


class Boxes:
    """Files of people's boxes, in each of their formats."""

    def prepare(self) -> str | None:
        rows = [(frame, person, 10 + frame, 12.5, 20, 30) for frame in range(6) for person in (0, 1)]
        self._texts = [
            "frame,x,y,width,height,track_id\n" + "\n".join(f"{f},{x},{y},{w},{h},{p}" for f, p, x, y, w, h in rows),
            "frame,x1,y1,x2,y2\n" + "\n".join(f"{f},{x},{y},{x + w},{y + h}" for f, p, x, y, w, h in rows),
            "\n".join(f"{f + 1},{p},{x},{y},{w},{h},1,-1,-1,-1" for f, p, x, y, w, h in rows),
        ]
        self._poses = PoseFiles()
        self._poses.prepare()
        self._picture = cv2.imencode(".png", picture())[1].tobytes()
        warm()
        return None

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "boxes"
        kind = random.randrange(5)
        path.write_bytes(self._poses.spoilt(random) if kind == 0 else odd_lines(random, random.choice(self._texts), ",\n"))
        if random.random() < 0.1:
            (folder / "p.png").write_bytes(self._picture)
            run_on(folder / "p.png", "--boxes", path)
        GivenBoxes.read(path).check(path, 640, 480)


class PoseFiles:
    """`poses.ndjson` read back."""

    def prepare(self) -> str | None:
        from tests.pipeline.formats.samples import HEADER, posed

        header = replace(HEADER, smooth=True)
        records = [header_record(header), *(frame_record(posed(index), header) for index in range(3))]
        self._lines = [to_line(record).rstrip() for record in records]
        return None

    def spoilt(self, random: Random) -> bytes:
        """The file, spoilt."""
        lines = list(self._lines)
        at = random.randrange(len(lines))
        lines[at] = json_text(random, json.loads(lines[at]))
        data = b"\n".join(lines) + b"\n"
        return damaged(random, data) if random.random() < 0.2 else data

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "poses.ndjson"
        path.write_bytes(self.spoilt(random))
        read_poses(path)


class Arrays:
    """`poses.npz` and other archives of arrays, read within bounds."""

    def prepare(self) -> str | None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, frame_index=np.arange(5), joints_mm=np.zeros((5, 18, 3)), header=np.array("{}"))
        self._data = buffer.getvalue()
        return None

    def read(self, random: Random, folder: Path) -> None:
        try:
            read_npz(_spoilt_npz(random, self._data), {"frame_index": 10**6, "joints_mm": 10**6, "header": 10**6})
        except (ValueError, KeyError, zipfile.BadZipFile) as error:  # what it says that it raises: its callers name the file
            raise CalibrationError(f"the archive is refused: {error}") from error


class SourceLists:
    """Files of sources; those of them that are files are opened."""

    def prepare(self) -> str | None:
        self._text = (
            "# cameras\nleft rtsp://user:pass@10.0.0.1:554/a?x=1#transport=tcp 620,620,319.5,239.5\n"
            "right v4l2:///dev/video9?size=640x480\n\nclip test:// 620,620,319.5,239.5\ncsi csi://0?rate=30\n"
        )
        return None

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "sources.txt"
        path.write_bytes(odd_lines(random, self._text, " ,:/?#=@&"))
        for entry in read_sources(path):
            open_source(entry.uri).close()


class Uris:
    """URIs of cameras and files with their options: what has no meaning is refused when it is opened, before any connection."""

    def prepare(self) -> str | None:
        self._uris = (
            "rtsp://user:p%40ss@10.0.0.1:554/stream?channel=1#transport=tcp&latency=200&flip=180&verify=no",
            "rtsps://[fe80::1]:322/a#ca=/nowhere.pem", "http://host:8080/video.mjpg#flip=90", "https://host/hls.m3u8#verify=yes",
            "udp://239.0.0.1:5000#flip=none", "rtp://0.0.0.0:5004#codec=h264&latency=50", "csi://0?size=1920x1080&rate=30&flip=180",
            "v4l2:///dev/video0?size=1280x720&rate=30&format=mjpeg", "usb:0", "0", "test://?rate=25", "file:///nowhere.mp4",
            "clip.mp4", "/dev/video0",
        )  # fmt: skip
        return None

    def read(self, random: Random, folder: Path) -> None:
        uri = odd_words(random, random.choice(self._uris), ":/?#=@&.[]%")
        source = open_source(uri, live=random.random() < 0.2, loop=random.random() < 0.1)
        source.close()


class Arguments:
    """Arguments of the command line."""

    def prepare(self) -> str | None:
        warm()
        self._picture = cv2.imencode(".png", picture())[1].tobytes()
        self._video = videos()["libx264.mp4"]
        self._values = (
            *ODD_WORDS, "p.png", "v.mp4", "there", "missing", "v.mp4", "junk", "1", "2", "0.5", "620,620,32,24", "mp4",
            "180", "mp4,mp4", "ndjson,npz", "openvino", "torch", "tensorrt", "onnxruntime", "int8", "fp32", "fp16", "skip",
            "stop", "XS", "random", "127.0.0.1:0", "junk.onnx", "junk.engine", "junk.npz", "out.npz", "10s", "rtx40", "1,1,8",
        )  # fmt: skip
        self._options = {
            "run": "--out --sources --formats --model --runtime --precision --boxes --camera --trace --overwrite --min-score "
            "--max-people --keep-lost --smooth --threads --stream --on-damage --view --tcp --osc --osc-style --live --loop "
            "--flip --size --rate --pixel-format --transport --latency --segment --weights --nonsense",
            "verify": "--variant --json",
            "export": "--out --overwrite",
            "calibrate": "--out --count --model --overwrite",
            "build": "--out --all --precision --target --calibration --batch --workspace --version-compatible --dla-core "
            "--hardware-compatible --library --via --overwrite",
            "engine": "inspect --layers",
            "bench-engine": "--batches --seconds --json",
            "cameras": "--json",
            "": "--verbose --help",
        }
        return None

    def read(self, random: Random, folder: Path) -> None:
        for name, data in {"p.png": self._picture, "v.mp4": self._video}.items():
            (folder / name).write_bytes(data)
        for name in ("junk", "junk.onnx", "junk.engine", "junk.engine.json", "junk.npz"):
            (folder / name).write_bytes(random.randbytes(300))
        (folder / "there").mkdir()
        words = [name for name in self._options if name] + ["run"] * 6
        name = random.choice(words) if random.random() < 0.97 else random.choice(ODD_WORDS)
        arguments = [name]
        flags = self._options.get(name, "").split()
        sources = ("p.png", "v.mp4", "there", "missing", "junk", "", "/dev/null", "/dev/zero", "-")
        for _ in range(random.randrange(3)):
            arguments.append(random.choice(sources))
        for _ in range(random.randrange(5)):
            flag = random.choice(flags) if flags else "--help"
            arguments.append(flag)
            if random.random() < 0.8:
                arguments.append(self._value(random))
        if random.random() < 0.5 and "--out" in flags:
            arguments += ["--out", "results.npz" if name == "calibrate" else "results"]
        if name == "run":
            arguments += ["--runtime", "onnxruntime", "--threads", "1", "--seconds", "0.2"]
        random.shuffle(arguments) if random.random() < 0.05 else None
        command(*arguments)

    def _value(self, random: Random) -> str:
        return random.choice(self._values).replace("\0", "")


class Fault:
    """An input that leads to what no input may lead to: shows that it is seen."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def prepare(self) -> str | None:
        return None

    def read(self, random: Random, folder: Path) -> object:
        return self._action()


def _refuse(told: str) -> None:
    raise CalibrationError(told)


def _hang() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 2))  # sooner than others
    while True:
        pass


KINDS: dict[str, Kind] = {
    "video": Media(videos),
    "picture": Media(pictures),
    "folder": Folders(),
    "checkpoint": Checkpoints(),
    "onnx": Graphs(),
    "engine": Engines(),
    "bundle": Bundles(),
    "calibration": Calibrations(),
    "boxes": Boxes(),
    "ndjson": PoseFiles(),
    "npz": Arrays(),
    "sources": SourceLists(),
    "uri": Uris(),
    "arguments": Arguments(),
    "fault: accepted": Fault(int),
    "fault: refused": Fault(lambda: _refuse("expected a case that is refused, received this one")),
    "fault: speechless": Fault(lambda: _refuse("no")),
    "fault: traceback": Fault(lambda: 1 // 0),
    "fault: exit code": Fault(lambda: sys.exit(3)),
    "fault: crash": Fault(os.abort),
    "fault: hang": Fault(_hang),
    "fault: memory": Fault(lambda: bytes(2 * MEMORY)),
}
