"""Checks of ONNX files before a library opens them: what they contain, whether it is safe, and whether it fits a contract.

The libraries that run models trust a file: they follow addresses and paths in it, and allocate the memory that it declares. So
each file is parsed first (`engines.onnx_parser`) and checked here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convnextpose.errors import ModelError
from convnextpose.files import read_file, show, size_text
from convnextpose.variants import INPUT_SIZE
from engines.onnx_parser import ELEMENT_BITS, FLOAT, STRING, UINT8, OnnxModel, TensorType, parse_onnx
from engines.onnx_shapes import Shapes

MAX_BYTES = 512 * 1024**2
"""The largest ONNX file that is read. The largest variant in FP32 has 34 MB, the largest common people detectors 0.4 GB."""

MAX_RESULTS_BYTES = 4 * 1024**3
"""Limit of the total size of all results for one picture, as FP32, in a foreign model, bytes; a contract has its own limit."""

FREE_SIDE = 640
"""Side of a foreign model's pictures if it takes any size and its metadata names none, px: the one most are trained with."""

BATCH = 2
"""Number of pictures for which sizes are computed: two, because a graph may work only for one without declaring so."""

MAX_OPSET = 1000
"""Largest version of a set of operators; ONNX's is under 30. Some readers count down from it to one that they support."""

_STANDARD = ("", "ai.onnx")
"""The names of ONNX's own domain of operators."""

_ENDLESS = ("Loop", "Scan", "SequenceMap")
"""Operators that may run for ever, or allocate memory in each iteration."""

ANY = -1
"""In a contract's shape: a fixed size, whatever it is."""


@dataclass(frozen=True)
class Contract:
    """The inputs and outputs of a kind of model.

    Attributes:
        what: the kind, for messages.
        inputs, outputs: by name; in a shape None is a variable size (the batch) and ANY a fixed one.
        operators: the types of operators that it may have, or None for any.
        results_bytes: limit of the total size of all results for one picture, as FP32. Those of the shipped pose model have
            50 MB, those of the largest variant 0.2 GB.
    """

    what: str
    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    operators: frozenset[str] | None = None
    results_bytes: int = 1024**3


_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "And", "Or", "Not"}
_BY_ELEMENT = {"Relu", "Exp", "Sigmoid", "Sqrt", "Neg", "Clip", "Cast", "Identity", "Softmax"}
_RESHAPING = {
    "Reshape",
    "Transpose",
    "Concat",
    "Resize",
    "Unsqueeze",
    "Squeeze",
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "Constant",
}

POSE_OPERATORS = frozenset({"Conv", "QuantizeLinear", "DequantizeLinear"} | _ARITHMETIC | _BY_ELEMENT | _RESHAPING)
"""The operators that this project's exporter writes for poses, or that another version of PyTorch might write instead."""

POSE = Contract(
    "a pose model of `convnextpose export`",
    {"crops": TensorType(UINT8, (None, INPUT_SIZE, INPUT_SIZE, 3))},
    {"joints": TensorType(FLOAT, (None, ANY, 3)), "scores": TensorType(FLOAT, (None, ANY))},
    POSE_OPERATORS,
)
"""The contract of `engines.pose`."""


def read_onnx(model: Path | bytes, contract: Contract | None, source: str | None = None) -> bytes:
    """Read and check an ONNX file: the returned bytes are safe to open with any library, and follow the contract.

    Args:
        model: the file or its bytes.
        contract: its contract; None for a foreign model whose layout is checked elsewhere.
        source: its name in messages; None for its path.

    Raises:
        ModelError: it cannot be read, is damaged or unsafe, or breaks the contract; says which.
    """
    source = source or (str(model) if isinstance(model, Path) else "the model in memory")
    data = read_file(model, MAX_BYTES, ModelError, "an ONNX model") if isinstance(model, Path) else model
    found = parse_onnx(data, source)
    check_safe(found, source)
    if contract is not None:
        check_contract(found, contract, source)
    check_sizes(found, contract, source)
    return data


def first_channels(model: OnnxModel) -> int | None:
    """Number of input channels of a graph's first convolution; None if no convolution has its weights directly in the file."""
    for node in model.nodes:
        if node.operator == "Conv":
            weight = model.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
            return weight.shape[1] if weight is not None and len(weight.shape) > 1 else None
    return None


def check_fp32(model: OnnxModel, source: str) -> None:
    """Refuse a model whose convolutions or matrix products do not compute in FP32.

    Weights that are only stored in FP16, each with a cast, are allowed.

    Raises:
        ModelError: names the first such operator.
    """
    for node in model.nodes:
        weight = model.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        typed = node.operator in ("Conv", "ConvTranspose", "MatMul", "Gemm") and weight is not None and weight.element != FLOAT
        if typed or node.operator in ("QuantizeLinear", "DequantizeLinear", "ConvInteger", "QLinearConv"):
            raise ModelError(f"expected a model in FP32, but {source} has {node.operator} of another type: export it in FP32")


def check_safe(model: OnnxModel, source: str) -> None:
    """Refuse a model that makes a library read other memory or files, run for ever, or allocate more than the file contains.

    `check_sizes` checks the memory for the operators' results.

    Raises:
        ModelError: names the first such thing.
    """
    for tensor in model.tensors:
        name = show(tensor.name or "of an attribute")
        if tensor.external:
            raise ModelError(
                f"expected a model with its weights inside, but constant {name} of {source} lies in another file: save it as "
                "one file"
            )
        if tensor.element not in ELEMENT_BITS:
            raise ModelError(f"expected constants of numbers, but {source} has {name} of strings or an unknown type")
        if tensor.declared_bytes != tensor.stored_bytes:
            raise ModelError(
                f"expected a whole ONNX model, but constant {name} of {source} should have {tensor.declared_bytes} bytes and "
                f"has {tensor.stored_bytes}"
            )
    for domain, version in model.opsets:
        if not 1 <= version <= MAX_OPSET:
            told = f"{source} has version {version} of {show(domain or 'ai.onnx')}"
            raise ModelError(f"expected an operator set of version 1 to {MAX_OPSET}, but {told}: export it again")
    if model.oddities:
        raise ModelError(f"expected a plain ONNX graph, but {source} has {model.oddities[0]}: export it without")
    for node in model.everywhere:
        if node.domain not in _STANDARD:
            raise ModelError(
                f"expected ONNX's own operators, but {source} has {show(node.operator)} of {show(node.domain)}: export it "
                "without"
            )
        if node.operator in _ENDLESS:
            raise ModelError(f"expected no loops, but {source} has {node.operator}: export it without")
    for name, kind in (*model.inputs.items(), *model.outputs.items()):
        if kind.element == STRING or kind.element not in ELEMENT_BITS:
            raise ModelError(f"expected inputs and outputs of numbers, but {source} has {show(name)}: {kind}")


def check_contract(model: OnnxModel, contract: Contract, source: str) -> None:
    """Refuse a model whose inputs, outputs or operators differ from a contract.

    Raises:
        ModelError: names the first difference.
    """
    for what, expected, received in (
        ("input", contract.inputs, model.inputs),
        ("output", contract.outputs, model.outputs),
    ):
        if set(expected) != set(received):
            raise ModelError(
                f"expected {contract.what} with {what} {', '.join(expected)}, but {source} has {', '.join(map(show, received))}"
            )
        for name, kind in expected.items():
            if not _fits(received[name], kind):
                told = str(kind).replace(str(ANY), "J")
                raise ModelError(
                    f"expected {contract.what} with {what} {name}: {told}, but {source} has {received[name]}: export it again"
                )
    if contract.operators is not None:
        foreign = Counter(node.operator for node in model.everywhere if node.operator not in contract.operators)
        if foreign:
            raise ModelError(
                f"expected {contract.what}, but {source} has operators that no such model has "
                f"({', '.join(map(show, sorted(foreign)[:3]))}): export it again"
            )


def check_sizes(model: OnnxModel, contract: Contract | None, source: str) -> None:
    """Refuse a model whose operators' results are far larger than its file, or whose outputs are not as its contract declares.

    Args:
        model: the model.
        contract: its contract; None for a foreign model, whose operators may have results of unknown size.
        source: its name in messages.

    Raises:
        ModelError: names the first such operator.
    """
    sides = free_sides(model.metadata)
    shapes = Shapes(
        {name: _of_batch(kind, sides) for name, kind in model.inputs.items()},
        {name: (constant.shape, constant.values) for name, constant in model.constants.items()},
    )
    limit, total = (contract.results_bytes if contract else MAX_RESULTS_BYTES), 0
    for node in model.nodes:
        try:
            results = shapes.run(node.operator, node.inputs, node.outputs, node.attributes)
        except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"expected operators that fit their inputs, but {source} has a {show(node.operator)} that does not: export it "
                "again"
            ) from error
        if contract is not None and None in results:
            raise ModelError(
                f"expected operators whose results have a known size, but {source} has a {show(node.operator)} whose result "
                "has none: export it again"
            )
        total += sum(4 * math.prod(shape) for shape in results if shape is not None)
        if total > BATCH * limit:
            raise ModelError(
                f"expected results of at most {size_text(limit)} from one picture, but {source} has a {show(node.operator)} "
                "that exceeds this: export it again"
            )
    for name, kind in model.outputs.items() if contract is not None else ():
        found = shapes.of(name)
        if found is None or found != _of_batch(kind):
            raise ModelError(
                f"expected output {show(name)}: {kind}, as {source} declares, received {list(found or ())} for {BATCH} "
                "pictures: export it again"
            )


def free_sides(metadata: Mapping[str, str]) -> tuple[int, int]:
    """Height and width of the pictures if a model takes any size: `imgsz` of its metadata, or else FREE_SIDE, px."""
    told = re.fullmatch(r"\[(\d{1,5}), ?(\d{1,5})\]", metadata.get("imgsz", ""))
    return (int(told[1]), int(told[2])) if told else (FREE_SIDE, FREE_SIDE)


def _of_batch(kind: TensorType, sides: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    """The shape for BATCH pictures, with the given sides in place of other variable sizes; None if no shape is declared."""
    if kind.shape is None:
        return None
    rest = iter(sides)
    return tuple(
        size if size is not None else BATCH if axis == 0 else next(rest, BATCH) for axis, size in enumerate(kind.shape)
    )


def _fits(received: TensorType, expected: TensorType) -> bool:
    if received.element != expected.element or received.shape is None or expected.shape is None:
        return False
    if len(received.shape) != len(expected.shape):
        return False
    pairs = zip(received.shape, expected.shape, strict=True)
    return all((size is not None and size > 0) if wanted == ANY else size == wanted for size, wanted in pairs)
