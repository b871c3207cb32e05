"""From JSON to frozen dataclasses by their annotations: a value of the wrong type is an error that names the field."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

from convnextpose.files import show
from convnextpose.skeleton import JOINT_SETS, JointSet

T = TypeVar("T")


def decode(kind: type[T], value: object, name: str = "it") -> T:
    """A JSON value as an instance of a dataclass, an enumeration (by its member's name) or a joint set (by its name).

    Args:
        kind: the dataclass; its fields are of such classes, `str`, `int`, `float`, `bool`, None, unions of these,
            `tuple[X, ...]` and `Mapping[str, X]`.
        value: the result of `json.loads`.
        name: its name in messages.

    Raises:
        ValueError: a field is missing, unknown or of another type, or a number is not finite.
        PoseError: the dataclass itself refuses its values.
    """
    return typing.cast("T", _decode(kind, value, name))


def _decode(kind: Any, value: object, name: str) -> object:  # noqa: ANN401 (any annotation)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(arguments, value, name)
    if kind is type(None) and value is None:
        return None
    if kind in (str, int, bool) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(typing.cast("float", value)):
        return value
    if kind is JointSet and isinstance(value, str) and value in JOINT_SETS:
        return JOINT_SETS[value]
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str) and value in kind.__members__:
        return kind[value]
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{name}.{show(key)}") for key, item in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return _decode_fields(kind, value, name)
    expected = getattr(kind, "__name__", str(kind))
    raise ValueError(f"expected {name} to be {expected}, received {_short(value)}")


def _first_that_fits(kinds: tuple[Any, ...], value: object, name: str) -> object:
    reasons = []
    meant: list[Any] = [kind for kind in kinds if is_dataclass(kind)]
    if meant and isinstance(value, dict):
        # Of several dataclasses, the one that shares most fields with the value is meant: its error names the wrong field.
        return _decode(max(meant, key=lambda kind: len(value.keys() & _hints(kind).keys())), value, name)
    for kind in kinds:
        try:
            return _decode(kind, value, name)
        except ValueError as error:
            reasons.append(error)
    raise max(reasons, key=lambda error: len(str(error)))


def _decode_fields(kind: Any, value: dict[str, object], name: str) -> object:  # noqa: ANN401 (a dataclass)
    hints = _hints(kind)
    known = {field.name: field for field in fields(kind)}
    if unknown := [key for key in value if key not in known]:
        raise ValueError(f"expected no field {show(unknown[0])} in {name}")
    if missing := [key for key, field in known.items() if key not in value and field.default is MISSING]:
        raise ValueError(f"expected a field {missing[0]} in {name}, received none")
    return kind(**{key: _decode(hints[key], item, key if name == "it" else f"{name}.{key}") for key, item in value.items()})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:  # noqa: ANN401 (a dataclass)
    return typing.get_type_hints(kind)


def _short(value: object) -> str:
    """A value for a message: one that may be long or nested is described by its type alone."""
    if value is None or isinstance(value, (bool, float)):
        return str(value).lower()
    if isinstance(value, str):
        return show(repr(value))
    return {dict: "an object", list: "a list", int: "a whole number"}.get(type(value), type(value).__name__)
