"""A training run's state in files of at most 16 MiB, replaced together: a crash at any moment leaves a complete state."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PART_BYTES = 15 * 2**20
"""Largest sum of the tensors in one file; its header is added to this."""

INDEX = "state.json"


def save(folder: Path, tensors: dict[str, Tensor], facts: dict, tag: str) -> None:
    """Write tensors and facts (JSON values) under a tag that differs from that of the last save.

    The index lists the parts and is replaced last; then all other parts are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.nbytes > PART_BYTES:
            raise ValueError(f"expected tensors of at most {PART_BYTES} bytes, received {name} of {tensor.nbytes}")
        if filled + tensor.nbytes > PART_BYTES:
            parts.append({})
            filled = 0
        parts[-1][name] = tensor
        filled += tensor.nbytes
    names = [f"state-{tag}-{number}.safetensors" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_tensors(folder / name, part)
    index = folder / f"{INDEX}.new"
    index.write_text(json.dumps({"parts": names, "facts": facts}, indent=2) + "\n", encoding="utf-8")
    index.replace(folder / INDEX)
    for path in folder.glob("state-*.safetensors*"):
        if path.name not in names:
            path.unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, completely or not at all."""
    new = path.with_name(path.name + ".new")
    save_file(tensors, new)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)


def load_facts(folder: Path) -> dict | None:
    """The facts of the state in a folder; None if there is no state."""
    index = folder / INDEX
    return json.loads(index.read_text(encoding="utf-8"))["facts"] if index.exists() else None


def load_tensors(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """All tensors of the state in a folder."""
    names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["parts"]
    return {key: tensor.to(device) for name in names for key, tensor in load_file(folder / name).items()}
