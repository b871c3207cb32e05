"""The sizes of the results of an ONNX graph's operators, computed from shapes alone before anything runs.

It knows the operators (https://onnx.ai/onnx/operators/) that pose models and detectors have; the result of any other operator
has an unknown size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]
Values = tuple[float, ...]

MAX_SIDE = 2**40
"""Limit of a dimension."""


class Shapes:
    """The shapes of a graph's values, and the numbers in those values that are shapes themselves.

    Args:
        inputs: shape of each input, None if unknown.
        constants: shape of each constant, and its numbers if they are known.
    """

    def __init__(self, inputs: Mapping[str, Shape | None], constants: Mapping[str, tuple[Shape, Values | None]]) -> None:
        self._shapes: dict[str, Shape | None] = {**inputs, **{name: shape for name, (shape, _) in constants.items()}}
        self._values = {name: values for name, (_, values) in constants.items() if values is not None}

    def run(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Any]
    ) -> list[Shape | None]:
        """The shapes of an operator's results, None for an unknown one; later operators may use them.

        Raises:
            ArithmeticError, IndexError, KeyError, TypeError, ValueError: the inputs do not match the operator.
        """
        node = _Node([self._shapes.get(name) for name in inputs], [self._values.get(name) for name in inputs], attributes)
        found: list[Shape | None] = [None] * len(outputs)
        values: Values | None = None
        rule = _RULES.get(operator)
        if rule is not None:
            try:
                shape, values = rule(node)
                found = [shape] * len(outputs)
            except _UnknownError:
                pass
        for name, result in zip(outputs, found, strict=True):
            if result is not None and not all(isinstance(size, int) and 0 <= size <= MAX_SIDE for size in result):
                raise ValueError(f"a result of shape {result}")
            self._shapes[name] = result
        if values is not None:
            self._values[outputs[0]] = values
        return found

    def of(self, name: str) -> Shape | None:
        """The shape of a value; None if it is unknown or there is no such value."""
        return self._shapes.get(name)


class _UnknownError(Exception):
    """Something that the size depends on is unknown."""


class _Node:
    """An operator's inputs and attributes; asking for an unknown one raises `_UnknownError`."""

    def __init__(self, shapes: list[Shape | None], values: list[Values | None], attributes: Mapping[str, Any]) -> None:
        self.shapes = shapes
        self.values = values
        self.attributes = attributes

    def shape(self, index: int) -> Shape:
        found = self.shapes[index]
        if found is None:
            raise _UnknownError
        return found

    def has(self, index: int) -> bool:
        return index < len(self.shapes) and self.shapes[index] is not None

    def numbers(self, index: int) -> Values:
        found = self.values[index] if index < len(self.values) else None
        if found is None:
            raise _UnknownError
        return found

    def integers(self, index: int) -> Shape:
        return tuple(int(value) for value in self.numbers(index))

    def ints(self, name: str, default: Shape) -> Shape:
        return tuple(self.attributes.get(name, default))

    def number(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))


Result = tuple[Shape, Values | None]


def _broadcast(*shapes: Shape) -> Shape:
    sizes = []
    for along in itertools.zip_longest(*map(reversed, shapes), fillvalue=1):
        different = set(along) - {1}
        if len(different) > 1:
            raise ValueError("shapes that do not fit each other")
        sizes.append(different.pop() if different else 1)
    return tuple(reversed(sizes))


def _same(node: _Node) -> Result:
    return node.shape(0), node.values[0]


def _arithmetic(node: _Node) -> Result:
    return _broadcast(*(node.shape(index) for index in range(len(node.shapes)))), None


def _window(node: _Node, spatial: Shape, kernel: Shape) -> Shape:
    """The sides of the result of a convolution or a pooling."""
    count = len(spatial)
    strides, dilations = node.ints("strides", (1,) * count), node.ints("dilations", (1,) * count)
    pads = node.ints("pads", (0,) * (2 * count))
    if node.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return tuple(-(-side // stride) for side, stride in zip(spatial, strides, strict=True))
    up = node.number("ceil_mode", 0)
    sides = []
    for axis, (side, size, stride, dilation) in enumerate(zip(spatial, kernel, strides, dilations, strict=True)):
        room = side + pads[axis] + pads[axis + count] - dilation * (size - 1) - 1
        sides.append((-(-room // stride) if up else room // stride) + 1)
    return tuple(sides)


def _conv(node: _Node) -> Result:
    (batch, _, *spatial), (channels, _, *kernel) = node.shape(0), node.shape(1)
    return (batch, channels, *_window(node, tuple(spatial), tuple(kernel))), None


def _pool(node: _Node) -> Result:
    batch, channels, *spatial = node.shape(0)
    return (batch, channels, *_window(node, tuple(spatial), node.ints("kernel_shape", ()))), None


def _reshape(node: _Node) -> Result:
    before, wanted = node.shape(0), list(node.integers(1))
    for axis, size in enumerate(wanted):
        if size == 0 and not node.number("allowzero", 0):
            wanted[axis] = before[axis]
    if wanted.count(-1) == 1:
        known = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(before) // known if known else 0
    if math.prod(wanted) != math.prod(before):
        raise ValueError("another number of elements")
    return tuple(wanted), node.values[0]


def _transpose(node: _Node) -> Result:
    before = node.shape(0)
    order = node.ints("perm", tuple(reversed(range(len(before)))))
    if sorted(order) != list(range(len(before))):
        raise ValueError("no order of axes")
    return tuple(before[axis] for axis in order), None


def _concat(node: _Node) -> Result:
    parts = [node.shape(index) for index in range(len(node.shapes))]
    axis = node.number("axis", 0) % max(1, len(parts[0]))
    if any(part[:axis] + part[axis + 1 :] != parts[0][:axis] + parts[0][axis + 1 :] for part in parts):
        raise ValueError("shapes that do not fit each other")
    known = [values for values in node.values if values is not None]
    values = tuple(itertools.chain(*known)) if len(known) == len(parts) else None
    return (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :]), values


def _resize(node: _Node) -> Result:
    before = node.shape(0)
    if sizes := node.integers(3) if node.has(3) else ():
        return sizes, None
    factors = node.numbers(2 if len(node.shapes) > 2 else 1)
    return tuple(math.floor(side * factor) for side, factor in zip(before, factors, strict=True)), None


def _axes(node: _Node, rank: int) -> list[int] | None:
    given = node.integers(1) if node.has(1) else node.ints("axes", ())
    return [axis % rank for axis in given] or None


def _reduce(node: _Node) -> Result:
    before = node.shape(0)
    axes = _axes(node, max(1, len(before))) or list(range(len(before)))
    if node.number("keepdims", 1):
        return tuple(1 if axis in axes else size for axis, size in enumerate(before)), None
    return tuple(size for axis, size in enumerate(before) if axis not in axes), None


def _unsqueeze(node: _Node) -> Result:
    sizes = list(node.shape(0))
    given = node.integers(1) if node.has(1) else node.ints("axes", ())
    for axis in sorted(axis % (len(sizes) + len(given)) for axis in given):
        sizes.insert(axis, 1)
    return tuple(sizes), node.values[0]


def _squeeze(node: _Node) -> Result:
    before = node.shape(0)
    axes = _axes(node, max(1, len(before))) or [axis for axis, size in enumerate(before) if size == 1]
    if any(before[axis] != 1 for axis in axes):
        raise ValueError("an axis that is not one")
    return tuple(size for axis, size in enumerate(before) if axis not in axes), node.values[0]


def _shape(node: _Node) -> Result:
    before = node.shape(0)
    found = before[slice(node.number("start", 0), node.attributes.get("end"))]
    return (len(found),), tuple(map(float, found))


def _expand(node: _Node) -> Result:
    return _broadcast(node.shape(0), node.integers(1)), None


def _slice(node: _Node) -> Result:
    sizes, starts, ends = list(node.shape(0)), node.integers(1), node.integers(2)
    axes = node.integers(3) if node.has(3) else tuple(range(len(starts)))
    steps = node.integers(4) if node.has(4) else (1,) * len(starts)
    known = node.values[0] if len(sizes) == 1 else None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        part = slice(start, end if end > -(2**62) else None, step)
        known = known[part] if known is not None else None
        sizes[axis] = len(range(*part.indices(sizes[axis])))
    return tuple(sizes), known


def _gather(node: _Node) -> Result:
    before, indices = node.shape(0), node.shape(1)
    axis = node.number("axis", 0) % len(before)
    chosen = node.values[1]
    known = node.values[0] if len(before) == 1 and chosen is not None else None
    return (*before[:axis], *indices, *before[axis + 1 :]), known and tuple(known[int(index)] for index in chosen or ())


def _top(node: _Node) -> Result:
    sizes = list(node.shape(0))
    sizes[node.number("axis", -1)] = node.integers(1)[0]
    return tuple(sizes), None


def _indices(node: _Node) -> Result:
    return node.shape(1), None


def _matmul(node: _Node) -> Result:
    left, right = node.shape(0), node.shape(1)
    if len(left) < 2 or len(right) < 2:
        raise _UnknownError
    return (*_broadcast(left[:-2], right[:-2]), left[-2], right[-1]), None


def _constant(node: _Node) -> Result:
    given = node.attributes.get("value")
    if given is not None:
        return given.shape, given.values
    for name in ("value_int", "value_float"):
        if name in node.attributes:
            return (), (node.attributes[name],)
    for name in ("value_ints", "value_floats"):
        if name in node.attributes:
            return (len(node.attributes[name]),), node.attributes[name]
    raise _UnknownError


def _constant_of_shape(node: _Node) -> Result:
    return node.integers(0), None


def _range(node: _Node) -> Result:
    start, limit, step = (node.numbers(index)[0] for index in range(3))
    return (max(0, math.ceil((limit - start) / step)),), None


def _tile(node: _Node) -> Result:
    return tuple(size * times for size, times in zip(node.shape(0), node.integers(1), strict=True)), None


def _pad(node: _Node) -> Result:
    before = node.shape(0)
    pads = node.integers(1) if len(node.shapes) > 1 else node.ints("pads", ())
    if node.has(3):
        raise _UnknownError
    return tuple(size + pads[axis] + pads[axis + len(before)] for axis, size in enumerate(before)), None


_RULES: Mapping[str, Callable[[_Node], Result]] = {
    **dict.fromkeys(
        ("Relu", "Exp", "Sigmoid", "Sqrt", "Neg", "Clip", "Cast", "Identity", "Softmax", "QuantizeLinear", "DequantizeLinear",
         "LeakyRelu", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Log", "Floor", "Abs", "Not", "BatchNormalization"),
        _same,
    ),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "And", "Or", "Less", "Greater", "Mod", "PRelu"),
        _arithmetic,
    ),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    "Conv": _conv,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Resize": _resize,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Shape": _shape,
    "Expand": _expand,
    "Slice": _slice,
    "Gather": _gather,
    "TopK": _top,
    "GatherElements": _indices,
    "MatMul": _matmul,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Tile": _tile,
    "Pad": _pad,
}  # fmt: skip
