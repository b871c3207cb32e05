"""A parser of ONNX files: protobuf's wire format (https://protobuf.dev/programming-guides/encoding/) with the field numbers of
onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).

The base install has no `onnx`. Only the types, shapes and sizes of weights are read. A file that two parsers could read
differently is refused. `engines.onnx_file` decides whether a file is safe.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from convnextpose.errors import ModelError
from convnextpose.files import show

MAX_FIELDS = 1_000_000
"""Limit of the number of protobuf fields. The default model has 5,000."""

MAX_DEPTH = 16
"""Limit of the nesting of graphs."""

KNOWN_VALUES = 64
"""Largest number of values in a constant that are read: shapes, factors and axes; never weights."""

FLOAT, UINT8, STRING = 1, 2, 8
"""Types of elements, as TensorProto.DataType numbers them."""

ELEMENT_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16, 17: 8,
    18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4,
}  # fmt: skip
"""Bits of an element by its type; strings (8) have no size."""

_TYPE_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip

Value = int | memoryview
Message = dict[int, list[Value]]


@dataclass(frozen=True)
class TensorType:
    """The type of an input or an output.

    Attributes:
        element: the type of its numbers, as in TensorProto.DataType.
        shape: its dimensions, with None for a variable one; None if the file does not declare a shape.
    """

    element: int
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        """In the usual notation: `uint8 [N, 256, 256, 3]`."""
        name = _TYPE_NAMES.get(self.element, f"type {self.element}")
        if self.shape is None:
            return f"{name} of unstated shape"
        return f"{name} [{', '.join('N' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Constant:
    """A tensor in the file.

    Attributes:
        name: its name, empty for an attribute's.
        element: the type of its numbers.
        shape: its dimensions.
        values: its numbers, if they are few, and integers or float32; otherwise None.
        stored_bytes: size of its numbers in the file, bytes.
        external: whether its numbers are declared to be in another file.
    """

    name: str
    element: int
    shape: tuple[int, ...]
    values: tuple[float, ...] | None
    stored_bytes: int
    external: bool

    @property
    def declared_bytes(self) -> int:
        """The size that its shape and type declare, bytes."""
        return -(-math.prod(self.shape) * ELEMENT_BITS.get(self.element, 8) // 8)


Attribute = int | float | bytes | tuple[int, ...] | tuple[float, ...] | Constant
"""The value of an operator's attribute."""


@dataclass(frozen=True)
class Node:
    """An operator in a graph.

    Attributes:
        operator: its type, such as `Conv`.
        domain: domain of the operator; empty for ONNX's own.
        inputs, outputs: names of its inputs and outputs; empty for one that is omitted.
        attributes: by name; those that are graphs are omitted.
    """

    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass
class OnnxModel:
    """The contents of an ONNX file, without the numbers of its weights.

    Attributes:
        inputs, outputs: of the graph, by name.
        nodes: of the graph, in order.
        constants: of the graph, by name.
        metadata: the model's metadata.
        opsets: domain and version of each set of operators that it was written for.
        everywhere: every node, including those of nested graphs.
        tensors: every constant in the file, wherever it is.
        oddities: descriptions of features that no pose model and no detector needs: functions, sparse constants, training
            graphs.
    """

    inputs: dict[str, TensorType] = field(default_factory=dict)
    outputs: dict[str, TensorType] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    opsets: list[tuple[str, int]] = field(default_factory=list)
    everywhere: list[Node] = field(default_factory=list)
    tensors: list[Constant] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)


def parse_onnx(data: bytes, source: str) -> OnnxModel:
    """Parse an ONNX file.

    Raises:
        ModelError: it is not a complete ONNX file, or two parsers could read it differently.
    """
    try:
        return _Parser().model(memoryview(data))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        reason = show(str(error)) if isinstance(error, ValueError) and not isinstance(error, UnicodeDecodeError) else "damaged"
        if isinstance(error, UnicodeDecodeError):
            reason = "it has text that is not UTF-8"
        raise ModelError(
            f"expected an ONNX model, received {source}, which is damaged, cut short or something else ({reason})"
        ) from error


class _Parser:
    """Reads messages of onnx.proto into an `OnnxModel`; raises ValueError or IndexError for anything else."""

    def __init__(self) -> None:
        self._found = OnnxModel()
        self._fields = 0

    def model(self, data: memoryview) -> OnnxModel:
        found, message = self._found, self._message(data)
        for text in (2, 3, 4, 6):  # producer_name, producer_version, domain, doc_string
            _text(message, text)
        for entry in message.get(14, []):
            pair = self._message(entry)
            key = _text(pair, 1)
            if key in found.metadata:
                raise ValueError(f"metadata {key} twice")
            found.metadata[key] = _text(pair, 2)
        if message.get(20):
            found.oddities.append("a training graph")
        if message.get(25):
            found.oddities.append("functions of its own")
        for entry in message.get(8, []):
            opset = self._message(entry)
            found.opsets.append((_text(opset, 1), _signed(_number(_one(opset, 2)))))
        (graph,) = message[7]
        self._graph(graph, 0)
        return found

    def _graph(self, data: Value, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError("graphs nested too deeply")
        message = self._message(data)
        found = self._found
        if message.get(15):
            found.oddities.append("sparse constants")
        _text(message, 2)
        constants = [self._tensor(entry) for entry in message.get(5, [])]
        nodes = [self._node(entry, depth) for entry in message.get(1, [])]
        inputs, outputs = (dict(self._value(entry) for entry in message.get(number, [])) for number in (11, 12))
        for entry in message.get(13, []):
            self._value(entry)
        found.everywhere += nodes
        if depth == 0:
            found.nodes = nodes
            found.constants = {constant.name: constant for constant in constants}
            found.inputs, found.outputs = inputs, outputs
            if len(found.constants) != len(constants) or len(inputs) != len(message.get(11, [])):
                raise ValueError("a name twice")
        else:
            found.oddities.append("nested graphs")

    def _node(self, data: Value, depth: int) -> Node:
        message = self._message(data)
        attributes: dict[str, Attribute] = {}
        for entry in message.get(5, []):
            name, value = self._attribute(entry, depth)
            if name in attributes:
                raise ValueError(f"attribute {name} twice")
            if value is not None:
                attributes[name] = value
        _text(message, 3)
        inputs, outputs = (tuple(str(_bytes(v), "utf-8") for v in message.get(number, [])) for number in (1, 2))
        return Node(_text(message, 4), _text(message, 7), inputs, outputs, attributes)

    def _attribute(self, data: Value, depth: int) -> tuple[str, Attribute | None]:
        message = self._message(data)
        name = _text(message, 1)
        if message.get(22) or message.get(23):
            self._found.oddities.append("sparse constants")
        for number in (6, 11):  # g, graphs
            for entry in message.get(number, []):
                self._graph(entry, depth + 1)
        tensors = [self._tensor(entry) for number in (5, 10) for entry in message.get(number, [])]
        _one(message, 5)
        if tensors:
            return name, tensors[0]
        if 2 in message:
            return name, struct.unpack("<f", _bytes(_one(message, 2)))[0]
        if 3 in message:
            return name, _signed(_number(_one(message, 3)))
        if 4 in message:
            return name, bytes(_bytes(_one(message, 4)))
        if 7 in message:
            return name, tuple(value for entry in message[7] for (value,) in struct.iter_unpack("<f", _bytes(entry)))
        return name, tuple(map(_signed, _numbers(message.get(8, [])))) if 8 in message else None

    def _tensor(self, data: Value) -> Constant:
        message = self._message(data)
        shape = tuple(map(_signed, _numbers(message.get(1, []))))
        element = _number(_one(message, 2) or 0)
        if any(not 0 <= size < 2**48 for size in shape) or len(shape) > 32 or 3 in message:
            raise ValueError("a constant without a valid shape")
        raw = _bytes(_one(message, 9)) if 9 in message else None
        typed: dict[int, list[Value]] = {number: message[number] for number in (4, 5, 6, 7, 10, 11) if number in message}
        if len(typed) + (raw is not None) > 1:
            raise ValueError("a constant with its numbers twice")
        constant = Constant(
            name=_text(message, 8),
            element=element,
            shape=shape,
            values=None,
            stored_bytes=len(raw) if raw is not None else sum(_stored(n, values, element) for n, values in typed.items()),
            external=bool(message.get(13)) or _number(_one(message, 14) or 0) != 0,
        )
        values = _values(constant, raw, typed)
        constant = Constant(constant.name, element, shape, values, constant.stored_bytes, constant.external)
        self._found.tensors.append(constant)
        return constant

    def _value(self, data: Value) -> tuple[str, TensorType]:
        message = self._message(data)
        kinds = self._message(_one(message, 2)) if 2 in message else {}
        if set(kinds) - {1, 6}:  # a sequence, a map, an optional
            return _text(message, 1), TensorType(0, None)
        tensor = self._message(_one(kinds, 1)) if 1 in kinds else {}
        element = _number(_one(tensor, 1) or 0)
        if 2 not in tensor:
            return _text(message, 1), TensorType(element, None)
        sizes: list[int | None] = []
        for entry in self._message(_one(tensor, 2)).get(1, []):
            size = self._message(entry)
            if 1 in size and 2 in size:
                raise ValueError("a size with a number and a name")
            _text(size, 2)
            sizes.append(_signed(_number(_one(size, 1))) if 1 in size else None)
        return _text(message, 1), TensorType(element, tuple(sizes))

    def _message(self, data: Value | None) -> Message:
        """The fields of a message by number: numbers as they are, everything else as its bytes."""
        view, position = _bytes(data), 0
        message: Message = {}
        while position < len(view):
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise ValueError(f"more than {MAX_FIELDS:,} fields")
            tag, position = _varint(view, position)
            number, kind = tag >> 3, tag & 7
            if tag >= 2**32 or not number:
                raise ValueError("not a protobuf message")
            value: Value
            if kind == 0:
                value, position = _varint(view, position)
            else:
                length, position = _varint(view, position) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), position)
                if length < 0 or position + length > len(view):
                    raise ValueError("not a protobuf message")
                value = view[position : position + length]
                position += length
            message.setdefault(number, []).append(value)
        return message


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """A protobuf varint and the position after it."""
    value = shift = 0
    while view[position] & 0x80:
        if shift > 63:
            raise ValueError("not a protobuf message")
        value |= (view[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    value |= view[position] << shift
    if value >= 2**64:
        raise ValueError("not a protobuf message")
    return value, position + 1


def _one(message: Message, number: int) -> Value | None:
    """A field that may occur only once: if there were two, parsers would use the first, the last or a mixture."""
    values = message.get(number, [])
    if len(values) > 1:
        raise ValueError("a field twice")
    return values[0] if values else None


def _bytes(value: Value | None) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("not a protobuf message")
    return value


def _number(value: Value | None) -> int:
    if not isinstance(value, int):
        raise ValueError("not a protobuf message")
    return value


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(message: Message, number: int) -> str:
    value = _one(message, number)
    return "" if value is None else str(_bytes(value), "utf-8")


def _numbers(values: Sequence[Value]) -> list[int]:
    """A repeated field of varints, packed or not."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            found.append(number)
    return found


def _stored(number: int, values: Sequence[Value], element: int) -> int:
    """Size in bytes of the numbers in a tensor's repeated field, counted without reading them."""
    if number in (4, 10):  # float_data, double_data
        return sum(len(_bytes(value)) for value in values)
    if number == 6:  # string_data
        return 0
    # Every varint ends with a byte below 128.
    count = sum(1 if isinstance(value, int) else int((np.frombuffer(value, np.uint8) < 128).sum()) for value in values)
    return count * (1 if ELEMENT_BITS.get(element) == 4 else ELEMENT_BITS.get(element, 8) // 8)


def _values(constant: Constant, raw: memoryview | None, typed: Mapping[int, Sequence[Value]]) -> tuple[float, ...] | None:
    """A constant's numbers, if they are few."""
    if math.prod(constant.shape) > KNOWN_VALUES or constant.declared_bytes != constant.stored_bytes:
        return None
    formats = {1: "<f", 6: "<i", 7: "<q", 2: "<B", 3: "<b", 9: "<?", 11: "<d"}
    if raw is not None and constant.element in formats:
        return tuple(value for (value,) in struct.iter_unpack(formats[constant.element], raw))
    if 4 in typed and constant.element == FLOAT:
        return tuple(value for entry in typed[4] for (value,) in struct.iter_unpack("<f", _bytes(entry)))
    for number, element in ((7, 7), (5, 6)):
        if number in typed and constant.element == element:
            return tuple(map(_signed, _numbers(typed[number])))
    return () if 0 in constant.shape else None
