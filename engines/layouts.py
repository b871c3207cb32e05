"""The layouts of people detectors: the frames that each kind takes, and the meaning of its outputs.

`LAYOUTS` is the table. A network is recognised by the shapes of its inputs and of the outputs of a first run. If two kinds
have the same shapes, names and the file's metadata decide. A file that could be of two kinds is refused, because frames in the
wrong colour order or scale give boxes that look right and are not.

A box is always x, y, width and height in px of the frame, with pixel centres at whole numbers.
"""

from __future__ import annotations

import ast
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, ModelError
from convnextpose.files import show
from engines.session import Arrays, ArraySpec

MOST = 300
"""Largest number of boxes for a frame, the best ones: as many as networks without non-maximum suppression return."""

STRIDES = ((8, 16, 32), (8, 16, 32, 64))
"""Strides of the grids of YOLO networks; the second are those of their P6 sizes."""

PEOPLE = ("person", "people", "human", "pedestrian")
"""Names of the class of people in detectors' files."""

MAX_NAMES = 65536
"""Limit of the length of a list of class names, characters."""


class Placement(enum.Enum):
    """Position of the picture in the frame: in a corner or in the middle of a letterbox, or stretched to the whole frame."""

    TOP_LEFT = "top left"
    MIDDLE = "in the middle"
    STRETCHED = "stretched"


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a frame, and a frame a network's input.

    Attributes:
        placement: position of the picture in the frame.
        padding: grey level of the letterbox around it, 0..255.
        rgb: whether the channels are in the order red, green, blue; OpenCV's is blue, green, red.
        mean, std: in the channels' order, grey levels: a float input is (level - mean) / std. An uint8 input is not normalised.
    """

    placement: Placement
    padding: int = 0
    rgb: bool = True
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class DetectedBoxes:
    """A detector's boxes for N frames.

    Attributes:
        boxes: float32 [N, K, 4]: x, y, width, height, px of the frame.
        scores: float32 [N, K], 0..1, the best first.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check that the shapes fit each other."""
        if self.boxes.ndim != 3 or self.boxes.shape[2] != 4 or self.scores.shape != self.boxes.shape[:2]:
            raise GeometryError(
                f"expected boxes [N, K, 4] and scores [N, K], received {list(self.boxes.shape)} and {list(self.scores.shape)}"
            )


@dataclass(frozen=True)
class Network:
    """The properties of a network that may be a people detector.

    Attributes:
        inputs: the specs of its inputs.
        outputs: its outputs for one frame.
        size: width and height of its frames, px.
        metadata: its file's metadata.
        stem: number of input channels of its first convolution; None if unknown.
    """

    inputs: tuple[ArraySpec, ...]
    outputs: Arrays
    size: tuple[int, int]
    metadata: Mapping[str, str] = field(default_factory=dict)
    stem: int | None = None

    def shape(self, *names: str) -> tuple[int, ...]:
        """Shape of the output with one of these names; empty if there is none."""
        return next((self.outputs[name].shape for name in names if name in self.outputs), ())

    @property
    def rows(self) -> tuple[int, ...]:
        """Shape of the only output with three axes; empty if there are several. Masks have four axes and are ignored."""
        shapes = [array.shape for array in self.outputs.values() if array.ndim != 4]
        return shapes[0] if len(shapes) == 1 and len(shapes[0]) == 3 else ()

    @property
    def cells(self) -> tuple[int, ...]:
        """Total number of cells in the grids of a frame, for each of STRIDES."""
        width, height = self.size
        return tuple(sum(-(-width // s) * -(-height // s) for s in strides) for strides in STRIDES)


@dataclass(frozen=True)
class Reading:
    """The parameters for reading outputs.

    Attributes:
        size: width and height of the frames, px.
        person: the class of people.
    """

    size: tuple[int, int]
    person: int


@dataclass(frozen=True)
class Layout:
    """A kind of detector: its input and the meaning of its outputs.

    Attributes:
        name: its usual name.
        known_by: description of its outputs.
        preparation: how a picture becomes its input.
        fits: whether a network is of this kind.
        read: converts outputs to boxes.
        person: the class of people if neither the file nor the user names one; None if it detects only people.
        classes: number of a network's classes; None if the outputs do not show it.
    """

    name: str
    known_by: str
    preparation: Preparation
    fits: Callable[[Network], bool]
    read: Callable[[Arrays, Reading], DetectedBoxes]
    person: int | None = 0
    classes: Callable[[Network], int | None] = lambda _: None


def recognise(network: Network) -> Layout:
    """The layout of a network.

    Raises:
        ModelError: it has none of LAYOUTS; names what was found and what is supported.
    """
    for layout in LAYOUTS:
        if layout.fits(network):
            return layout
    found = ", ".join(map(str, network.inputs))
    gave = ", ".join(f"{show(name)} {list(array.shape)}" for name, array in network.outputs.items())
    raise unknown(f"{found} that gives {gave} for a frame of {network.size[0]}x{network.size[1]} px")


def unknown(found: str) -> ModelError:
    """The error for a network that has none of LAYOUTS."""
    known = "; ".join(f"{layout.name}: {layout.known_by}" for layout in LAYOUTS)
    return ModelError(f"expected a people detector of a known layout ({known}), received a network of {found}")


def class_names(metadata: Mapping[str, str]) -> dict[int, str]:
    """The class names in a file's `names`, a Python or JSON dictionary or list; empty if it has none."""
    text = metadata.get("names", "")
    if not 0 < len(text) <= MAX_NAMES:
        return {}
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, (list, tuple)) else ()
    return {int(number): str(name) for number, name in pairs if str(number).isdecimal()}


def person_class(layout: Layout, network: Network, asked: str | None) -> int:
    """The class of people.

    Args:
        layout: the network's layout.
        network: its properties.
        asked: the requested class, by name or number; None for the one that the file states, or else the layout's own.

    Raises:
        ModelError: there is no such class, or none with a name for people.
    """
    if layout.person is None:
        if asked is not None:
            raise ModelError(f"expected no class for this people detector, which detects only people, received {show(asked)}")
        return 0
    names, count = class_names(network.metadata), layout.classes(network)
    if asked is not None and asked.isdecimal():
        person = int(asked)
    elif asked is not None or names:
        wanted = PEOPLE if asked is None else (asked.casefold(),)
        matching = [number for number, name in sorted(names.items()) if name.casefold() in wanted]
        if not matching and asked is None and len(names) == 1:
            matching = list(names)
        if not matching:
            what = "for people" if asked is None else show(asked)
            told = ", ".join(f"{number} {show(name)}" for number, name in sorted(names.items())[:5])
            has = f"it has {told}{', ...' if len(names) > 5 else ''}" if names else "its file names none"
            raise ModelError(
                f"expected a people detector with a class {what}, but {has}: give its number with --detector-class"
            )
        person = matching[0]
    else:
        person = 0 if count == 1 else layout.person
    if count is not None and person >= count:
        raise ModelError(
            f"expected the class of people among the detector's {count} (0 to {count - 1}), received {person}: name another "
            "with --detector-class"
        )
    return person


def _best(corners: NDArray[Any], scores: NDArray[Any]) -> DetectedBoxes:
    """The boxes with the highest scores, best first, from all [N, K, 4] (left, top, right, bottom, px) and scores [N, K]."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :MOST]
    chosen = np.take_along_axis(corners.astype(np.float32), order[..., None], axis=1)
    boxes = np.concatenate([chosen[..., :2] - 0.5, chosen[..., 2:] - chosen[..., :2]], axis=2)
    return DetectedBoxes(boxes, np.take_along_axis(scores.astype(np.float32), order, axis=1))


def _corners(middles: NDArray[Any]) -> NDArray[Any]:
    """Boxes [..., 4] as centre and size to left, top, right and bottom."""
    return np.concatenate([middles[..., :2] - middles[..., 2:] / 2, middles[..., :2] + middles[..., 2:] / 2], axis=-1)


def _of_class(scores: NDArray[Any], labels: NDArray[Any], reading: Reading) -> NDArray[Any]:
    """Scores, 0 for labels other than that of people."""
    return np.where(np.rint(labels) == reading.person, scores, 0)


def _sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float32), -60, 60))))


def _only(outputs: Arrays) -> NDArray[Any]:
    return next(array for array in outputs.values() if array.ndim == 3)


def _is_yolox(network: Network) -> bool:
    rows = network.rows
    if not (rows and rows[1] in network.cells and rows[2] >= 6):
        return False
    # Offsets from the cells are about half a cell everywhere; decoded centres are spread over the whole frame.
    if np.median(_only(network.outputs)[..., 0]) > network.size[0] / 8:
        raise ModelError(
            "expected YOLOX's boxes as its export gives them by default, received boxes that are decoded already, as YOLOv6 "
            "gives them for frames of another scale: export YOLOX without --decode_in_inference"
        )
    return True


def _read_yolox(outputs: Arrays, reading: Reading) -> DetectedBoxes:
    """Offsets from each cell and logarithms of the size, both in strides; scores for an object and for each class."""
    rows = _only(outputs)
    width, height = reading.size
    cells, sizes = [], []
    for stride in STRIDES[1]:  # only P6 networks have the fourth grid
        across, down = np.meshgrid(np.arange(-(-width // stride)), np.arange(-(-height // stride)))
        cells.append(np.stack([across, down], axis=-1).reshape(-1, 2))
        sizes.append(np.full((len(cells[-1]), 1), stride))
    grid, stride_px = (np.concatenate(parts)[: rows.shape[1]].astype(np.float32) for parts in (cells, sizes))
    middles = (rows[..., :2] + grid) * stride_px
    extents = np.exp(np.clip(rows[..., 2:4], -20, 10)) * stride_px
    return _best(_corners(np.concatenate([middles, extents], axis=2)), rows[..., 4] * rows[..., 5 + reading.person])


def _read_yolov5(outputs: Arrays, reading: Reading) -> DetectedBoxes:
    rows = _only(outputs)
    return _best(_corners(rows[..., :4]), rows[..., 4] * rows[..., 5 + reading.person])


def _read_yolov8(outputs: Arrays, reading: Reading) -> DetectedBoxes:
    rows = _only(outputs).transpose(0, 2, 1)
    return _best(_corners(rows[..., :4]), rows[..., 4 + reading.person])


def _read_end_to_end(outputs: Arrays, reading: Reading) -> DetectedBoxes:
    rows = _only(outputs)
    return _best(rows[..., :4], _of_class(rows[..., 4], rows[..., 5], reading))


def _is_ultralytics_rtdetr(network: Network) -> bool:
    told = "rtdetr" in network.metadata.get("description", "").lower()
    return told and network.rows[2:] == (4 + len(class_names(network.metadata)),)


def _read_ultralytics_rtdetr(outputs: Arrays, reading: Reading) -> DetectedBoxes:
    rows = _only(outputs)
    return _best(_corners(rows[..., :4]) * (reading.size * 2), rows[..., 4 + reading.person])


def _is_mmdeploy(network: Network, stem: int) -> bool:
    boxes, labels = network.shape("dets"), network.shape("labels")
    return network.stem == stem and boxes[2:] == (5,) and labels == boxes[:2]


def _read_mmdeploy(outputs: Arrays, reading: Reading) -> DetectedBoxes:
    rows = outputs["dets"]
    return _best(rows[..., :4], _of_class(rows[..., 4], outputs["labels"], reading))


def _is_detr(network: Network, boxes: str, logits: str) -> bool:
    places, classes = network.shape(boxes), network.shape(logits)
    # 92 is the number of classes of DETR and YOLOS including "nothing": their scores are not sigmoids.
    return places[2:] == (4,) and len(classes) == 3 and classes[:2] == places[:2] and classes[2] != 92


def _read_detr(boxes: str, logits: str) -> Callable[[Arrays, Reading], DetectedBoxes]:
    def read(outputs: Arrays, reading: Reading) -> DetectedBoxes:
        places = _corners(outputs[boxes]) * (reading.size * 2)
        return _best(places, _sigmoid(outputs[logits][..., reading.person]))

    return read


def _is_deployed_rtdetr(network: Network) -> bool:
    boxes, labels, scores = (network.shape(name) for name in ("boxes", "labels", "scores"))
    return len(network.inputs) == 2 and boxes[2:] == (4,) and labels == scores == boxes[:2]


def _read_deployed_rtdetr(outputs: Arrays, reading: Reading) -> DetectedBoxes:
    return _best(outputs["boxes"], _of_class(outputs["scores"], outputs["labels"], reading))


def _plain(outputs: Arrays) -> Arrays:
    """Outputs by their TensorFlow names without scopes and numbers: `detection_boxes` for `PartitionedCall/...:0`."""
    return {name.rpartition("/")[2].partition(":")[0]: array for name, array in outputs.items()}


def _is_ssd(network: Network) -> bool:
    found = _plain(network.outputs)
    boxes, classes, scores = (found.get(f"detection_{what}", np.zeros(0)).shape for what in ("boxes", "classes", "scores"))
    return boxes[2:] == (4,) and classes == scores == boxes[:2] and "num_detections" in found


def _read_ssd(outputs: Arrays, reading: Reading) -> DetectedBoxes:
    """Top, left, bottom and right as fractions of the frame; entries after `num_detections` have no meaning."""
    found = _plain(outputs)
    corners = found["detection_boxes"][..., [1, 0, 3, 2]] * (reading.size * 2)
    scores = _of_class(found["detection_scores"], found["detection_classes"], reading)
    meant = np.arange(scores.shape[1]) < found["num_detections"].reshape(-1, 1)
    return _best(corners, np.where(meant, scores, 0))


_OURS = Preparation(Placement.TOP_LEFT, rgb=False)
_YOLOX = Preparation(Placement.TOP_LEFT, 114, rgb=False)
_RTMDET = Preparation(Placement.TOP_LEFT, 114, rgb=False, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
_YOLO = Preparation(Placement.MIDDLE, 114, std=(255.0, 255.0, 255.0))
_UNIT = Preparation(Placement.STRETCHED, std=(255.0, 255.0, 255.0))
_IMAGENET = Preparation(Placement.STRETCHED, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_LEVELS = Preparation(Placement.STRETCHED)

BOXES_AND_SCORES = Layout(
    "boxes and scores",
    "input frames, outputs boxes [N, K, 4] and scores [N, K]",
    _OURS,
    lambda n: n.inputs[0].name == "frames" and n.outputs.keys() == {"boxes", "scores"} and n.shape("boxes")[2:] == (4,),
    lambda outputs, _: DetectedBoxes(outputs["boxes"], outputs["scores"]),
    person=None,
)
"""The layout of this project's detectors: `engines.people.people_specs`."""

LAYOUTS = (
    BOXES_AND_SCORES,
    Layout(
        "YOLOX",
        "[N, cells of strides 8, 16, 32, 5 + C], boxes in cells",
        _YOLOX,
        _is_yolox,
        _read_yolox,
        classes=lambda n: n.rows[2] - 5,
    ),
    Layout(
        "YOLOv5 and YOLOv7",
        "[N, 3 boxes in each cell, 5 + C]",
        _YOLO,
        lambda n: n.rows[2:] >= (6,) and n.rows[1] in [3 * count for count in n.cells],
        _read_yolov5,
        classes=lambda n: n.rows[2] - 5,
    ),
    Layout(
        "YOLOv8 and later",
        "[N, 4 + C, cells]",
        _YOLO,
        lambda n: n.rows[1:2] >= (5,) and n.rows[2] in n.cells,
        _read_yolov8,
        classes=lambda n: n.rows[1] - 4,
    ),
    Layout(
        "RT-DETR of Ultralytics",
        "[N, K, 4 + C] and a description that says so",
        _UNIT,
        _is_ultralytics_rtdetr,
        _read_ultralytics_rtdetr,
        classes=lambda n: n.rows[2] - 4,
    ),
    Layout("YOLO with its own selection", "[N, K, 6]", _YOLO, lambda n: n.rows[2:] == (6,), _read_end_to_end),
    Layout(
        "YOLOX of MMDeploy",
        "dets [N, K, 5], labels [N, K] and a first convolution of 12 channels",
        _YOLOX,
        lambda n: _is_mmdeploy(n, 12),
        _read_mmdeploy,
    ),
    Layout(
        "RTMDet of MMDeploy",
        "dets [N, K, 5], labels [N, K] and a first convolution of 3 channels",
        _RTMDET,
        lambda n: _is_mmdeploy(n, 3),
        _read_mmdeploy,
    ),
    Layout(
        "RF-DETR",
        "dets [N, K, 4] and labels [N, K, C]",
        _IMAGENET,
        lambda n: _is_detr(n, "dets", "labels"),
        _read_detr("dets", "labels"),
        person=1,  # COCO's own class numbers start at 1
        classes=lambda n: n.shape("labels")[2],
    ),
    Layout(
        "RT-DETR of Transformers",
        "pred_boxes [N, K, 4] and logits [N, K, C]",
        _UNIT,
        lambda n: _is_detr(n, "pred_boxes", "logits"),
        _read_detr("pred_boxes", "logits"),
        classes=lambda n: n.shape("logits")[2],
    ),
    Layout(
        "RT-DETR and D-FINE",
        "a second input for the picture's size, labels [N, K], boxes [N, K, 4] and scores [N, K]",
        _UNIT,
        _is_deployed_rtdetr,
        _read_deployed_rtdetr,
    ),
    Layout(
        "SSD",
        "detection_boxes [N, K, 4], detection_classes and detection_scores [N, K], num_detections [N]",
        _LEVELS,
        _is_ssd,
        _read_ssd,
        person=1,  # as RF-DETR
    ),
)
"""The known layouts; the first that fits is used."""
