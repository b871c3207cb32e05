"""Small ONNX graphs that detect one person by the colour of pixels, in each layout that a people detector may have.

A graph finds the box of the pixels that have the person's colour, in the colour order and scale of its layout's frames, and
gives it a high score only if the letterbox is as in the layout. So with wrong colours, scale, padding or placement it finds
nobody.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.layouts import LAYOUTS, Placement

PERSON, GROUND = (40, 200, 120), (90, 60, 30)
"""Colours of the person and of the background, BGR."""

SCORE, OTHER_SCORE = 0.8, 0.95
"""Scores of the person, and of an object of another class that every graph also finds."""

OTHER = (4.0, 4.0, 40.0, 30.0)
"""That object's box: left, top, right, bottom, px of the frame."""

NAMES = {layout.name: layout for layout in LAYOUTS}

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def picture(width, height, box):
    """A picture with the person in a box: left, top, right, bottom, px."""
    image = np.full((height, width, 3), GROUND, np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = PERSON
    return image


class Graph:
    """Nodes of a graph, named by number."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, values, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def __call__(self, operator, *inputs, **attributes):
        named = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, named, [name], **attributes))
        return name

    def joined(self, *columns):
        return self("Concat", *columns, axis=1)

    def rows(self, columns, rows, at):
        """[N, K, Q]: constant rows [K, Q], with columns [N, 1] in the row `at`."""
        rows = np.array(rows, np.float32)
        rows[at], mark = 0, np.zeros((1, len(rows), 1))
        mark[0, at] = 1
        one = self("Unsqueeze", self.joined(*columns), self.constant([1], np.int64))
        return self("Add", self("Mul", one, mark), rows[None])

    def labels(self, numbers, like, kind):
        """[N, K] constant numbers, for as many frames as `like` has."""
        found = self("Add", self("Mul", like, 0.0), np.array([numbers], np.float32))
        return self("Cast", found, to=kind)

    def named(self, name, output):
        self.nodes.append(helper.make_node("Identity", [name], [output]))
        return output


def seen(graph, layout, size, *, channels_first):
    """Left, top, right, bottom (px) and score of the person, each [N, 1]."""
    width, height = size
    how = layout.preparation
    levels = graph("Cast", "frames" if layout.name == "boxes and scores" else "images", to=TensorProto.FLOAT)
    if not channels_first:
        levels = graph("Transpose", levels, perm=[0, 3, 1, 2])
    by_channel = lambda values: np.array(values, np.float32).reshape(1, 3, 1, 1)  # noqa: E731
    levels = graph("Add", graph("Mul", levels, by_channel(how.std)), by_channel(how.mean))

    def like(colour):
        wanted = by_channel(colour[::-1] if how.rgb else colour)
        off = graph("ReduceMax", graph("Abs", graph("Sub", levels, wanted)), axes=[1])
        return graph("Cast", graph("Less", off, 12.0), to=TensorProto.FLOAT)

    def pixel(mask, x, y):
        at = np.zeros((1, 1, height, width))
        at[0, 0, y, x] = 1
        return graph("ReduceMax", graph("Mul", mask, at), axes=[2, 3], keepdims=0)

    mask, grey = like(PERSON), like((how.padding,) * 3)
    across, down = np.arange(width).reshape(1, 1, 1, -1), np.arange(height).reshape(1, 1, -1, 1)
    far = lambda values: graph("ReduceMax", graph("Mul", mask, values), axes=[2, 3], keepdims=0)  # noqa: E731
    left, top = graph("Sub", float(width), far(width - across)), graph("Sub", float(height), far(height - down))
    right, bottom = far(across + 1), far(down + 1)
    first, last = pixel(grey, 0, 0), pixel(grey, width - 1, height - 1)
    no = lambda value: graph("Sub", 1.0, value)  # noqa: E731
    first = first if how.placement is Placement.MIDDLE else no(first)
    last = no(last) if how.placement is Placement.STRETCHED else last
    found = graph("ReduceMax", mask, axes=[2, 3], keepdims=0)
    score = graph("Mul", graph("Mul", found, graph("Mul", first, last)), SCORE)
    return left, top, right, bottom, score


def detector(
    name,
    *,
    size=(128, 96),
    dtype="float32",
    channels_first=True,
    free=False,
    person=None,
    classes=None,
    metadata=(),
    batch=None,
):
    """The ONNX file of a detector.

    Args:
        name: its layout's name.
        size: width and height of its frames, px.
        dtype: type of its input.
        channels_first: whether the channel axis comes before height and width.
        free: whether the input has no fixed size.
        person: the class of people; None for the layout's.
        classes: number of classes.
        metadata: its file's metadata.
        batch: number of frames that it takes at once; None for any.
    """
    layout, graph, (width, height) = NAMES[name], Graph(), size
    ours = name == "boxes and scores"
    if ours:
        dtype, channels_first = "uint8", False
    left, top, right, bottom, score = seen(graph, layout, size, channels_first=channels_first)
    wide, tall = graph("Sub", right, left), graph("Sub", bottom, top)
    middle = [graph("Mul", graph("Add", low, high), 0.5) for low, high in ((left, right), (top, bottom))]
    person = (layout.person or 0) if person is None else person
    classes = classes or max(person + 1, 4)
    other = 2 if person != 2 else 0
    nothing = graph("Mul", score, 0.0)
    inputs = [
        (
            "frames" if ours else "images",
            TYPES[dtype],
            [batch or "N", *((3, height, width) if channels_first else (height, width, 3))],
        )
    ]
    if free:
        inputs[0] = (*inputs[0][:2], [batch or "N", *((3, "h", "w") if channels_first else ("h", "w", 3))])
    scores = [score if number == person else nothing for number in range(classes)]
    cells = sum((width // s) * (height // s) for s in (8, 16, 32))
    o_left, o_top, o_right, o_bottom = OTHER
    o_middle = [(o_left + o_right) / 2, (o_top + o_bottom) / 2, o_right - o_left, o_bottom - o_top]
    o_scores = [OTHER_SCORE * (number == other) for number in range(classes)]
    share = [graph("Div", value, float(side)) for value, side in zip((*middle, wide, tall), (*size, *size), strict=True)]
    o_share = [value / side for value, side in zip(o_middle, (*size, *size), strict=True)]
    logit = graph("Log", graph("Div", graph("Add", score, 1e-4), graph("Sub", 1.0001, score)))
    low = graph("Sub", nothing, 9.0)
    logits = [logit if number == person else low for number in range(classes)]
    o_logits = [2.9 if number == other else -9.0 for number in range(classes)]
    outputs = []
    if ours:
        corner = [graph("Sub", value, 0.5) for value in (left, top)]
        outputs = [("boxes", graph.rows([*corner, wide, tall], np.ones((3, 4)), 0))]
        outputs += [("scores", graph.joined(score, nothing, nothing))]
    elif name == "YOLOX":
        stride, at = 16, (width // 8) * (height // 8) + 2 * (width // 16) + 3  # the cell at 3 across, 2 down
        base = np.tile([0.5, 0.5, 0.0, 0.0, 0.0, *[0.0] * classes], (cells, 1))
        base[0] = [o_middle[0] / 8, o_middle[1] / 8, *np.log(np.array(o_middle[2:]) / 8), 1.0, *o_scores]
        place = [
            graph("Sub", graph("Div", value, float(stride)), float(cell)) for value, cell in zip(middle, (3, 2), strict=True)
        ]
        extent = [graph("Log", graph("Div", graph("Max", value, 0.1), float(stride))) for value in (wide, tall)]
        half = graph("Sqrt", score)  # the score of an object, and that of a person if it is one
        columns = [*place, *extent, half, *[half if each is score else each for each in scores]]
        outputs = [("output", graph.rows(columns, base, at))]
    elif name == "YOLOv5 and YOLOv7":
        base = np.zeros((3 * cells, 5 + classes))
        base[7] = [*o_middle, 1.0, *o_scores]
        one = graph("Add", nothing, 1.0)
        outputs = [("output0", graph.rows([*middle, wide, tall, one, *scores], base, 5))]
    elif name == "YOLOv8 and later":
        base = np.zeros((cells, 4 + classes))
        base[7] = [*o_middle, *o_scores]
        outputs = [("output0", graph("Transpose", graph.rows([*middle, wide, tall, *scores], base, 5), perm=[0, 2, 1]))]
    elif name == "RT-DETR of Ultralytics":
        base = np.zeros((300, 4 + classes))
        base[7] = [*o_share, *o_scores]
        outputs = [("output0", graph.rows([*share, *scores], base, 5))]
        called = {number: "person" if number == person else f"thing {number}" for number in range(classes)}
        metadata = {"description": "Ultralytics rtdetr-l model", "names": str(called), **dict(metadata)}
    elif name == "YOLO with its own selection":
        base = np.zeros((300, 6))
        base[0] = [*OTHER, OTHER_SCORE, other]
        kind = graph("Add", nothing, float(person))
        outputs = [("output0", graph.rows([left, top, right, bottom, score, kind], base, 1))]
    elif name.endswith("of MMDeploy"):
        # A convolution that adds nothing: its number of input channels distinguishes the two kinds.
        stem = 12 if name.startswith("YOLOX") else 3
        frame = graph("Cast", "images", to=TensorProto.FLOAT)
        frame = frame if channels_first else graph("Transpose", frame, perm=[0, 3, 1, 2])
        small = graph("Concat", *[frame] * (stem // 3), axis=1)
        still = graph("Conv", small, np.zeros((1, stem, 1, 1)), kernel_shape=[1, 1])
        score = graph("Add", score, graph("ReduceMax", still, axes=[2, 3], keepdims=0))
        base = np.zeros((3, 5))
        base[0] = [*OTHER, OTHER_SCORE]
        outputs = [("dets", graph.rows([left, top, right, bottom, score], base, 1))]
        outputs += [("labels", graph.labels([other, person, person], score, TensorProto.INT64))]
    elif name in ("RF-DETR", "RT-DETR of Transformers"):
        called = ("dets", "labels") if name == "RF-DETR" else ("pred_boxes", "logits")
        base = np.zeros((30, 4))
        base[7] = o_share
        answers = np.full((30, classes), -9.0)
        answers[7] = o_logits
        outputs = [(called[0], graph.rows(share, base, 5)), (called[1], graph.rows(logits, answers, 5))]
    elif name == "RT-DETR and D-FINE":
        inputs.append(("orig_target_sizes", TensorProto.INT64, [batch or "N", 2]))
        real = graph("Cast", "orig_target_sizes", to=TensorProto.FLOAT)
        scale = graph("Div", graph.joined(real, real), np.array([[width, height, width, height]]))
        boxes = graph.rows([left, top, right, bottom], np.array([OTHER, OTHER, OTHER]), 1)
        boxes = graph("Mul", boxes, graph("Unsqueeze", scale, graph.constant([1], np.int64)))
        outputs = [("labels", graph.labels([other, person, other], score, TensorProto.INT64)), ("boxes", boxes)]
        outputs += [("scores", graph.joined(graph("Add", nothing, OTHER_SCORE), score, nothing))]
    else:
        order = [
            graph("Div", value, float(side)) for value, side in ((top, height), (left, width), (bottom, height), (right, width))
        ]
        base = np.tile([0.1, 0.1, 0.5, 0.5], (4, 1))
        outputs = [("StatefulPartitionedCall/detection_boxes:0", graph.rows(order, base, 1))]
        kinds = graph.labels([other, person, person, person], score, TensorProto.FLOAT)
        outputs += [("StatefulPartitionedCall/detection_classes:0", kinds)]
        sure = graph("Add", nothing, OTHER_SCORE)
        outputs += [("StatefulPartitionedCall/detection_scores:0", graph.joined(sure, score, nothing, sure))]
        count = graph("Add", graph("ReduceMax", nothing, axes=[1], keepdims=0), 3.0)  # the fourth box does not count
        outputs += [("StatefulPartitionedCall/num_detections:0", count)]
    return _file(graph, inputs, outputs, dict(metadata))


def _file(graph, inputs, outputs, metadata):
    named = [graph.named(value, output) for output, value in outputs]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "detector",
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
            [helper.make_empty_tensor_value_info(name) for name in named],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 13)],
    )
    model.ir_version = 8
    model = onnx.shape_inference.infer_shapes(model)
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()
