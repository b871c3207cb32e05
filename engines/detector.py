"""The people detector: whole frames in, boxes with scores out; its export, and what runs it.

The exported graph has one contract: input `frames` uint8 [N, 384, 384, 3] in OpenCV's BGR order; outputs `boxes` float32
[N, 32, 4] = (x, y, width, height, px of the frame) and `scores` float32 [N, 32] in 0..1, the best first. Several boxes of one
person are possible: `without_duplicates` leaves the best of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import RGB_MEAN, RGB_STD
from convnextpose.errors import ExportError, GeometryError, ModelError, ParityError, RuntimeUnavailableError, install_command
from convnextpose.files import write_file
from engines.export import graph_of
from engines.onnx_file import DETECTOR, read_onnx
from engines.runtime import check_threads
from engines.select import choose_runtime

if TYPE_CHECKING:
    from torch import nn

    from convnextpose.detector import Detector

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]

FRAME_SIZE = 384
"""Side of the square frame that the detector reads, px."""

OVERLAP = 0.5
"""Of two boxes that share more than this part of their union, the one with the lower score is left out."""

PARITY_FRAMES = 2

MAX_SCORE_ERROR, MAX_BOX_ERROR_PX = 1e-3, 0.1
"""How far an exported detector may stray from PyTorch."""


@dataclass(frozen=True)
class DetectorParity:
    """The largest differences of an exported detector from PyTorch.

    Attributes:
        score: of the sorted scores.
        box_px: of the boxes whose place in that order is certain.
    """

    score: float
    box_px: float

    def check(self) -> None:
        """Refuse differences that rounding does not explain.

        Raises:
            ParityError: telling them.
        """
        if not (self.score <= MAX_SCORE_ERROR and self.box_px <= MAX_BOX_ERROR_PX):
            raise ParityError(
                f"expected the exported detector within {MAX_SCORE_ERROR} and {MAX_BOX_ERROR_PX} px of PyTorch, it strays by "
                f"{self.score:.2g} and {self.box_px:.2g} px"
            )


class PeopleDetector:
    """Runs the detector. Any thread may call `run`; a lock lets one in at a time.

    Attributes:
        runtime: what runs it, e.g. `openvino`.
    """

    def __init__(self, runtime: str, infer: Callable[[NDArray[np.uint8]], Outputs]) -> None:
        self.runtime = runtime
        self._infer = infer
        self._lock = threading.Lock()
        boxes, scores = self.run(np.zeros((1, FRAME_SIZE, FRAME_SIZE, 3), np.uint8))
        if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.shape != boxes.shape[:2] or not np.isfinite(boxes).all():
            raise ModelError(
                f"expected finite boxes [1, K, 4] and scores [1, K] from the detector, received {list(boxes.shape)} and "
                f"{list(scores.shape)}"
            )

    def run(self, frames: NDArray[np.uint8]) -> Outputs:
        """Frames [N, 384, 384, 3] uint8 BGR to boxes [N, K, 4] (px of the frame) and scores [N, K], the best first; N >= 1.

        Raises:
            GeometryError: the frames have another shape or type.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (FRAME_SIZE, FRAME_SIZE, 3) or not len(frames):
            raise GeometryError(
                f"expected frames uint8 [N, {FRAME_SIZE}, {FRAME_SIZE}, 3] in BGR order, received {frames.dtype} "
                f"{list(frames.shape)}"
            )
        with self._lock:
            return self._infer(np.ascontiguousarray(frames))


def open_detector(model: Path | bytes, runtime: str = "auto", *, threads: int | None = None) -> PeopleDetector:
    """Open an exported detector in FP32 on the CPU. It has run one frame when this returns.

    Args:
        model: the ONNX file or its bytes.
        runtime: `openvino`, `onnxruntime` or `auto`, as for `engines.select.choose_runtime`.
        threads: how many threads it computes on; None leaves that to the library.

    Raises:
        ModelError: the file cannot be read, or is no detector.
        RuntimeUnavailableError: the runtime is not installed, or runs no detectors.
    """
    check_threads(threads)
    chosen = choose_runtime(runtime).name
    if chosen not in _OPENERS:
        raise RuntimeUnavailableError(f"expected openvino or onnxruntime to run the people detector, received {chosen!r}")
    onnx = read_onnx(model, DETECTOR)
    try:
        return PeopleDetector(chosen, _OPENERS[chosen](onnx, threads))
    except ImportError as error:
        raise RuntimeUnavailableError(f"the runtime {chosen} is installed but does not load: {error}") from error
    except (RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, (ModelError, GeometryError)):
            raise
        raise ModelError(f"{chosen} cannot run the people detector: {str(error).strip().splitlines()[-1]}") from error


def _open_openvino(onnx: bytes, threads: int | None) -> Callable[[NDArray[np.uint8]], Outputs]:
    import openvino

    settings: dict[str, object] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # left to itself, OpenVINO takes BF16 where the CPU has it
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    request = core.compile_model(core.read_model(onnx), "CPU", settings).create_infer_request()

    def infer(frames: NDArray[np.uint8]) -> Outputs:
        outputs = request.infer({"frames": frames}, share_inputs=True)
        return outputs["boxes"], outputs["scores"]

    return infer


def _open_onnxruntime(onnx: bytes, threads: int | None) -> Callable[[NDArray[np.uint8]], Outputs]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: its own choice
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors share no base class of their own
        raise RuntimeError(str(error)) from error

    def infer(frames: NDArray[np.uint8]) -> Outputs:
        boxes, scores = session.run(["boxes", "scores"], {"frames": frames})
        return boxes, scores

    return infer


_OPENERS = {"openvino": _open_openvino, "onnxruntime": _open_onnxruntime}

DETECTOR_RUNTIMES = tuple(_OPENERS)
"""The runtimes that run the detector, by name."""


def without_duplicates(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], min_score: float, overlap: float = OVERLAP
) -> NDArray[np.intp]:
    """Non-maximum suppression of one frame's boxes.

    Args:
        boxes: [K, 4] x, y, width, height, px.
        scores: [K].
        min_score: boxes with a lower score are left out.
        overlap: intersection over union from which two boxes are taken for the same person.

    Returns:
        Indices of the boxes that are left, the best first.
    """
    order = np.argsort(-scores, kind="stable")
    left = order[scores[order] >= min_score]
    kept = []
    while len(left):
        kept.append(left[0])
        shared = overlaps(boxes[left[:1]], boxes[left[1:]])[0]
        left = left[1:][shared < overlap]
    return np.array(kept, np.intp)


def overlaps(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of boxes [A, 4] with boxes [B, 4] (x, y, width, height): [A, B]."""
    a, b = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = (high - low).clip(0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared
    return np.asarray(shared / np.maximum(union, 1e-12))


def export_detector(weights: Path, out: Path) -> DetectorParity:
    """Export a detector's safetensors file to ONNX: compared with PyTorch first, then put in place at once.

    Raises:
        CheckpointError: the weights are not a detector's.
        ExportError: torch, onnx or onnxscript is missing, or they could not export it.
        ParityError: the exported detector strays from PyTorch.
        SinkError: the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it and says so less clearly
        import torch

        from convnextpose.detector import build_detector
    except ImportError as error:
        raise ExportError(
            f"exporting a detector needs torch, onnx and onnxscript: {error}; {install_command('build')}"
        ) from error
    example = torch.zeros(2, FRAME_SIZE, FRAME_SIZE, 3, dtype=torch.uint8)
    model = graph_of(contract_detector(build_detector(weights)), example, "frames", ("boxes", "scores"))
    onnx.helper.set_model_props(model, {"convnextpose.detector": "1"})
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    parity = compare_detector(weights, open_detector(data), noise_frames(PARITY_FRAMES))
    parity.check()
    write_file(out, data, overwrite=True)
    return parity


def noise_frames(count: int) -> NDArray[np.uint8]:
    """Frames [N, 384, 384, 3] uint8 of noise in blocks of many sizes: the same each time."""
    rng = np.random.default_rng(0)
    total = np.zeros((count, FRAME_SIZE, FRAME_SIZE, 3))
    for cells in (3, 6, 24, 96):
        block = FRAME_SIZE // cells
        total += rng.normal(128 / 4, 40, (count, cells, cells, 3)).repeat(block, 1).repeat(block, 2)
    return total.clip(0, 255).astype(np.uint8)


def compare_detector(weights: Path, candidate: PeopleDetector, frames: NDArray[np.uint8]) -> DetectorParity:
    """A running detector against the PyTorch network of its weights, nothing folded, on frames [N, 384, 384, 3]."""
    import torch

    from convnextpose.crop import normalise
    from convnextpose.detector import build_detector, decode

    with torch.inference_mode():
        boxes, scores = (t.numpy() for t in decode(build_detector(weights)(torch.from_numpy(normalise(frames)))))
    found_boxes, found_scores = candidate.run(frames)
    # Where two scores are all but equal their order may change: there boxes cannot be compared.
    gap = np.pad(-np.diff(scores, axis=1), ((0, 0), (1, 1)), constant_values=1.0)
    certain = (np.minimum(gap[:, 1:], gap[:, :-1]) > 2 * MAX_SCORE_ERROR) & (scores > 2 * MAX_SCORE_ERROR)
    return DetectorParity(
        score=float(np.abs(found_scores - scores).max()),
        box_px=float(np.abs(found_boxes - boxes)[certain].max(initial=0.0)),
    )


def contract_detector(detector: Detector) -> nn.Module:
    """The detector as it is exported: uint8 BGR frames in, boxes and scores out, batch norms and preprocessing folded."""
    import torch
    from torch import Tensor, nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    from convnextpose.detector import decode
    from convnextpose.network import Block, HeadLayer

    class ContractDetector(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
            # Cast first: TensorRT casts uint8 and does nothing else with it.
            return decode(self.network(frames.float().permute(0, 3, 1, 2)))

    def read(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
        """Make a convolution without padding read scale * its input + shift."""
        assert conv.bias is not None
        conv.bias.data += (conv.weight * shift[:, None, None]).sum((1, 2, 3))
        conv.weight.data *= scale[:, None, None]

    def read_norm(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        read(conv, scale, norm.bias - norm.running_mean * scale)

    network: Any = detector.double().eval()  # so that the only rounding is the last one, of the weights to FP32
    stem, *downsamples = network.backbone.downsample_layers
    stem[0], stem[1] = fuse_conv_bn_eval(stem[0], stem[1]), nn.Identity()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (RGB_MEAN, RGB_STD))
    read(stem[0], 1 / (255 * std), -mean / std)
    stem[0].weight.data = stem[0].weight.data.flip(1)  # the frames' channels are BGR
    for norm_and_conv in downsamples:
        read_norm(norm_and_conv[0], norm_and_conv[1])
        norm_and_conv[0] = nn.Identity()
    for module in network.modules():
        if isinstance(module, (Block, HeadLayer)):
            module.dwconv = fuse_conv_bn_eval(module.dwconv, module.norm)
            module.set_submodule("norm", nn.Identity())
    for lateral in (network.coarse, network.fine):
        read_norm(lateral.norm, lateral.conv)
        lateral.norm = nn.Identity()
    return ContractDetector(network.float()).eval().requires_grad_(False)
