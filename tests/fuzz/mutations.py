"""Small changes to bytes, JSON values, lines of text and protocol buffers; all randomness comes from a `Random`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**53, 2**63 - 1, 2**63, 2**64 - 1)

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 2**31, 2**53 + 1, 2**63, 10**30, 1e308, 5e-324, float("nan"), float("inf"), "", "x",
    "\0", "\ud800", "é" * 300, "../../x", "/dev/zero", "9" * 5000, [], {}, [[]], [None] * 200, {"": None}, [1, "a", None],
)  # fmt: skip

ODD_WORDS = (
    "", " ", "-", "--", "0", "-1", "1e309", "nan", "-inf", "1" * 5000, "0x10", "½", "\x1b[2J", "\u202e", "\ufeff", "\\",
    '"', "'", ",", ";", "#", "?", "%00", "%", "%ff", "../..", "/", ".", "~", "/dev/zero", "/dev/null", "/proc/self/mem", "con",
    "a" * 5000, "\ud800", "None", "true", "xs", "2147483648", "9223372036854775808", "1,2,3,4", "1,2,3", "1:2", "[::1]", "[",
    "::", "@", "a@b:c@d", "a\nb",
)  # fmt: skip

_TAG = re.compile(rb"[A-Za-z0-9 ]{4}")


def damaged(random: Random, data: bytes) -> bytes:
    """Bytes with one or several changes, more of them in a container's tables than in its contents."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        _damage(random, result)
    return bytes(result)


def _damage(random: Random, data: bytearray) -> None:
    at, length = _place(random, data), random.choice((1, 2, 4, 8, 64, 1024))
    kind = random.randrange(9)
    if kind == 0 and data:
        data[min(at, len(data) - 1)] ^= 1 << random.randrange(8)
    elif kind == 1:
        data[at : at + length] = random.randbytes(length)
    elif kind == 2:
        data[at : at + 4] = (random.choice(NUMBERS) & 0xFFFFFFFF).to_bytes(4, random.choice(("big", "little")))
    elif kind == 3:
        data[at : at + 8] = random.choice(NUMBERS).to_bytes(8, random.choice(("big", "little")))
    elif kind == 4:
        data[at:at] = random.randbytes(length)
    elif kind == 5:
        del data[at : at + length]
    elif kind == 6:
        data[at : at + length] = bytes(length)
    elif kind == 7:
        other = _place(random, data)
        data[at : at + length] = data[other : other + length]
    else:
        del data[random.randrange(len(data) + 1) :]


def _place(random: Random, data: bytes | bytearray) -> int:
    """A random position: anywhere, near either end, or beside a name of four letters, as boxes and chunks have."""
    kind = random.randrange(4)
    if kind == 0:
        return random.randrange(len(data) + 1)
    if kind == 1:
        return random.randrange(min(512, len(data)) + 1)
    if kind == 2:
        return max(0, len(data) - random.randrange(2048))
    start = random.randrange(max(1, len(data)))
    found = _TAG.search(data, start) or _TAG.search(data)
    return max(0, found.start() + random.choice((-4, -2, 0, 4, 8, 12, 16))) if found else start


def odd_json(random: Random, value: Any) -> Any:
    """A JSON value with one change at any depth; lists and dictionaries are changed in place."""
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.1:
        return random.choice(ODD_VALUES)
    key: Any = random.choice(sorted(value)) if isinstance(value, dict) else random.randrange(len(value))
    kind = random.randrange(8)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, dict):
        value[random.choice(("", key + "x", "__class__", "type"))] = value.pop(key)
    elif kind == 1:
        value.insert(key, random.choice(ODD_VALUES))
    else:
        value[key] = odd_json(random, value[key])
    return value


def json_text(random: Random, value: Any) -> bytes:
    """A JSON value with something odd in it, as text that is sometimes damaged or nested too deeply."""
    text = json.dumps(odd_json(random, value)).encode("utf-8", "surrogatepass")
    kind = random.randrange(12)
    if kind == 0:
        return damaged(random, text)
    if kind == 1:
        depth = random.choice((50, 2000, 100_000))
        return text.replace(b"null", b"[" * depth + b"]" * depth, 1) + (b"[" * depth if random.random() < 0.5 else b"")
    if kind == 2:
        return text.replace(b"0", b"1" + b"0" * random.choice((400, 5000)), 1)
    return text


def odd_lines(random: Random, text: str, separators: str) -> bytes:
    """Lines of text with words changed, lines left out or repeated, or bytes damaged."""
    lines = text.split("\n")
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(lines))
        kind = random.randrange(6)
        if kind == 0:
            del lines[at]
            lines = lines or [""]
        elif kind == 1:
            lines.insert(at, random.choice(lines))
        elif kind == 2:
            lines[at] = random.choice(ODD_WORDS)
        else:
            lines[at] = odd_words(random, lines[at], separators)
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return damaged(random, data) if random.random() < 0.2 else data


def odd_words(random: Random, text: str, separators: str) -> str:
    """A text whose words, between separators, are changed, left out, repeated or joined with others."""
    parts = re.split(f"([{re.escape(separators)}])", text)
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(parts))
        change = random.choice(("odd", "odd", "joined", "without", "again"))
        if change == "odd":
            parts[at] = random.choice(ODD_WORDS)
        elif change == "joined":
            parts[at] += random.choice(ODD_WORDS)
        elif change == "again":
            parts[at] *= random.choice((2, 50))
        elif len(parts) > 1:
            del parts[at]
    return "".join(parts)


def odd_message(random: Random, data: bytes, depth: int = 0) -> bytes:
    """A protocol buffer with one field changed at any depth; the lengths around it are corrected, or sometimes wrong."""
    fields = list(_fields(data))
    if not fields or depth > 12:
        return damaged(random, data)
    start, body, end, tag = random.choice(fields)
    kind = random.randrange(10)
    if tag & 7 == 2 and kind < 6 and end - body > 1:
        inner = odd_message(random, data[body:end], depth + 1)
        length = len(inner) if random.random() < 0.98 else random.choice(NUMBERS)
        changed = _varint(tag) + _varint(length) + inner
    elif kind == 6:
        changed = b""
    elif kind == 7:
        changed = data[start:end] * random.choice((2, 50))
    elif kind == 8:
        changed = _varint(tag ^ (random.randrange(1, 16) << 3)) + data[start:end][len(_varint(tag)) :]
    elif tag & 7 == 0:
        changed = _varint(tag) + _varint(random.choice(NUMBERS))
    elif tag & 7 == 2:
        word = random.choice(ODD_WORDS).encode("utf-8", "surrogatepass")
        changed = _varint(tag) + _varint(len(word)) + word
    else:
        changed = damaged(random, data[start:end])
    return data[:start] + changed + data[end:]


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(start, start of the contents, end, tag) of each field, as far as they can be read."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _read(data, at)
        body = at
        if tag & 7 == 0:
            _, at = _read(data, at)
        elif tag & 7 == 2:
            length, body = _read(data, at)
            at = body + length
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            return
        if at > len(data) or tag >> 3 == 0:
            return
        yield start, body, at, tag


def _read(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 63:
            break
    return value, at


def _varint(value: int) -> bytes:
    result = b""
    while value > 127:
        result += bytes([value & 127 | 128])
        value >>= 7
    return result + bytes([value])
