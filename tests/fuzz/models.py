"""Inputs for networks: checkpoints, ONNX files, engines, bundles, calibration sets, arrays."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import struct
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np

from convnextpose import weights
from convnextpose.archives import read_npz
from convnextpose.checkpoint import verify_state
from convnextpose.errors import CalibrationError, CheckpointError
from engines import manifest
from engines.bundle import read_bundle
from engines.calibration import MIN_CROPS, CalibrationSet
from engines.opening import open_pose_model
from tests.fuzz.base import command
from tests.fuzz.mutations import damaged, json_text, odd_json, odd_message


class Checkpoints:
    """Checkpoints in every container, small ones and whole models, in `convnextpose verify`."""

    def prepare(self) -> str | None:
        tree = {"network": {"a.weight": np.arange(12.0, dtype=np.float32).reshape(3, 4), "b": np.array([7])}, "epoch": 68}
        self._files = {"small.safetensors": _safetensors(tree["network"])}  # type: ignore[arg-type]
        self._files["whole.safetensors"] = weights.load("xs").safetensors.read_bytes()
        try:
            import torch
        except ImportError:
            return None  # files of torch.save cannot be made here
        torch.set_num_threads(1)
        with suppress(CheckpointError):  # the variants' tensors are determined only once
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
    """A ZIP file with one spoilt member whose checksum is still right."""
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
    """ONNX files: a small graph that follows the contract of pose models, opened and run.

    Attributes:
        whole: the graph before it is spoilt.
    """

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
        self.whole = model.SerializeToString()
        return None

    def read(self, random: Random, folder: Path) -> None:
        data = self.whole
        for _ in range(random.choice((1, 1, 2, 3))):
            data = odd_message(random, data)
        path = folder / "model.onnx"
        path.write_bytes(data)
        runtime = random.choice(("openvino", "onnxruntime"))
        with open_pose_model(path, runtime, threads=1) as model:
            model.run(np.zeros((2, 256, 256, 3), np.uint8))


class Engines:
    """Engine files and their manifests, spoilt and with a new hash, in `convnextpose engine inspect`."""

    def prepare(self) -> str | None:
        from tests.engines.test_manifest import DETECTOR, ENGINE, make

        self._engine, self._manifests = ENGINE, [make().to_json(), make(**DETECTOR).to_json()]
        for library in ("tensorrt", "tensorrt_rtx", "cuda.bindings.driver", "cuda.bindings.runtime"):
            with suppress(ImportError):
                importlib.import_module(library)
        return None

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "model.engine"
        engine, told = self._engine, json.loads(random.choice(self._manifests))
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
    """Bundles for building engines elsewhere, whose draft has a new hash."""

    def prepare(self) -> str | None:
        from tests.engines.test_manifest import make, parity

        graph = weights.load("xs").int8
        assert graph is not None
        self._whole = self._small = graph.read_bytes()
        graphs = Graphs()
        if graphs.prepare() is None:
            self._small = graphs.whole
        draft = json.loads(make().to_json())
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
        self._proof = arrays.getvalue()
        return None

    def read(self, random: Random, folder: Path) -> None:
        from engines.bundle import BUNDLE_DRAFT, BUNDLE_GRAPH, BUNDLE_PROOF

        draft, proof = json.loads(json.dumps(self._draft)), self._proof
        onnx = self._whole if random.random() < 0.05 else self._small
        draft["onnx_sha256"] = hashlib.sha256(onnx).hexdigest()
        kind = random.random()
        if kind < 0.5:
            draft = odd_json(random, draft)
        elif kind < 0.7:
            proof = spoilt_npz(random, proof)
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


def spoilt_npz(random: Random, data: bytes) -> bytes:
    """An .npz file in which an array's header or contents, or the file around them, is spoilt."""
    if random.random() < 0.3:
        return damaged(random, data)
    buffer = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method, compresslevel=1) as new:
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
    """Calibration sets, with corrected headers."""

    def prepare(self) -> str | None:
        crops = np.full((MIN_CROPS + 1, 256, 256, 3), 255, np.uint8)
        crops[:, :100] = np.arange(len(crops))[:, None, None, None]  # stripes are unpacked quickly
        self._data = CalibrationSet(crops, ("a.mp4",)).to_bytes()
        return None

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "set.npz"
        if random.random() < 0.4:
            with np.load(io.BytesIO(self._data)) as arrays:
                header, crops = json.loads(str(arrays["header"])), arrays["crops"]
            buffer = io.BytesIO()
            text = json_text(random, header).decode("utf-8", "replace")
            np.savez(buffer, header=np.array(text), crops=crops[: random.choice((0, 1, MIN_CROPS + 1))])
            path.write_bytes(buffer.getvalue())
        else:
            path.write_bytes(spoilt_npz(random, self._data))
        CalibrationSet.load(path)


class Arrays:
    """`poses.npz` and other archives of arrays, read within limits."""

    def prepare(self) -> str | None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, frame_index=np.arange(5), joints_mm=np.zeros((5, 18, 3)), header=np.array("{}"))
        self._data = buffer.getvalue()
        return None

    def read(self, random: Random, folder: Path) -> None:
        try:
            read_npz(spoilt_npz(random, self._data), {"frame_index": 10**6, "joints_mm": 10**6, "header": 10**6})
        except (ValueError, KeyError, zipfile.BadZipFile) as error:  # its documented errors: its callers name the file
            raise CalibrationError(f"the archive is refused: {error}") from error
