"""Exports networks as ONNX files: they are compared with PyTorch first, and then put in place in one step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from convnextpose.files import check_place, write_file
from engines.graph import people_graph, pose_graph, store_in_fp16
from engines.opening import open_people_detector, open_pose_model
from engines.parity import DetectorParity, ParityReport, compare, compare_detectors, noise_crops, noise_frames

if TYPE_CHECKING:
    from convnextpose.checkpoint import VerifiedCheckpoint

PARITY_CROPS, PARITY_FRAMES = 4, 2


@dataclass(frozen=True)
class ExportReport:
    """The outcome of an export.

    Attributes:
        path: the ONNX file.
        sha256: its hash, hexadecimal.
        size_bytes: its size.
        node_count: number of nodes in its graph.
        parity: the exported model compared with the reference.
    """

    path: Path
    sha256: str
    size_bytes: int
    node_count: int
    parity: ParityReport


def export(
    checkpoint: VerifiedCheckpoint, out: Path, *, name: str, random: bool = False, overwrite: bool = False
) -> ExportReport:
    """Write a verified checkpoint as an ONNX file.

    Args:
        checkpoint: the model.
        out: the file, in a folder that exists.
        name: the model's name.
        random: whether its weights are random.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputExistsError: the file exists and may not be replaced.
        SinkError: the file cannot be written.
        ExportError: torch, onnx or onnxscript is missing, or they could not export it.
        RuntimeUnavailableError: there is no runtime to prove the exported model in.
        ParityError: the exported model differs too much from the reference.
    """
    check_place(out, overwrite=overwrite)
    data = store_in_fp16(pose_graph(checkpoint, name=name, random=random))
    with (
        open_pose_model(checkpoint, "torch", name=name, random=random) as reference,
        open_pose_model(data, precision="fp32") as candidate,
    ):
        parity = compare(reference, candidate, noise_crops(PARITY_CROPS))
    parity.check()
    write_file(out, data, overwrite=overwrite)
    import onnx

    node_count = len(onnx.load_from_string(data).graph.node)
    return ExportReport(out, hashlib.sha256(data).hexdigest(), len(data), node_count, parity)


def export_detector(weights: Path, out: Path) -> DetectorParity:
    """Write a people detector's safetensors file as an ONNX file.

    Raises:
        CheckpointError: the weights are not a detector's.
        ExportError: torch, onnx or onnxscript is missing, or they could not export it.
        RuntimeUnavailableError: there is no runtime to prove the exported detector in.
        ParityError: the exported detector differs too much from PyTorch.
        SinkError: the file cannot be written.
    """
    data = store_in_fp16(people_graph(weights))
    with open_people_detector(weights, "torch") as reference, open_people_detector(data) as candidate:
        frames = noise_frames(PARITY_FRAMES, candidate.frame_size[0])
        wide = frames[:, : candidate.frame_for(16, 9)[1]]  # another shape than the graph was exported with
        several = [compare_detectors(reference, candidate, each) for each in (frames, wide)]
        most = {name: max(getattr(found, name) for found in several) for name in ("score", "box_px")}
        counts = {name: sum(getattr(found, name) for found in several) for name in ("frames", "boxes")}
        parity = replace(several[0], **most, **counts)
    parity.check()
    write_file(out, data, overwrite=True)
    return parity
