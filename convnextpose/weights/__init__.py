"""The default weights, which this project trained on rendered people and real pictures, without research-only data.

Each set of weights is some files beside this one: `NAME.safetensors` (FP16 state dict), `NAME.onnx` (the exported model
that the base install runs), `NAME.int8.onnx` (the same in INT8) and `NAME.json` (its card: hashes and figures). `detector` is
the people detector, an exported model and its card alone. `demo.mp4` is a clip of a synthetic person, `demo_truth.json` its
true poses, `calibration.npz` a set of crops of synthetic people to calibrate and prove INT8 models on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from convnextpose.errors import CheckpointError
from convnextpose.variants import Variant

FOLDER = Path(__file__).parent
DEMO_CLIP = FOLDER / "demo.mp4"
DEMO_TRUTH = FOLDER / "demo_truth.json"
CALIBRATION = FOLDER / "calibration.npz"
DETECTOR = "detector"
DETECTOR_NAME = "xs"
"""The people detector's name for `--detector`."""
INT8_SUFFIX = "int8.onnx"
"""Suffix of an INT8 model's file name."""


@dataclass(frozen=True)
class Deviation:
    """The deviation of a model from its checkpoint in FP32 PyTorch.

    Attributes:
        mean_px, max_px: mean and largest distance between the two predictions of a joint, px of the crop.
        mean_mm, max_mm: mean and largest difference of their depths, mm.
        max_score: largest difference of a score (0..1).
        crops: number of crops that it was measured on.
        runtime: the runtime that ran the model. Old cards, from before there was a choice, do not name it: it was OpenVINO.
    """

    mean_px: float
    max_px: float
    mean_mm: float
    max_mm: float
    max_score: float
    crops: int
    runtime: str = "openvino"


@dataclass(frozen=True)
class Weights:
    """A set of default weights; its files were checked against their hashes.

    Attributes:
        name: its name for `--model`.
        variant: XS, S, M or L.
        onnx: the exported model.
        safetensors: the state dict, FP16.
        summary: its accuracy, in one line.
        int8: the exported model in INT8; None if there is none.
        deviations: by precision (`bf16`, `int8`): the model's deviation, as measured when it was made.
    """

    name: str
    variant: Variant
    onnx: Path
    safetensors: Path
    summary: str
    int8: Path | None = None
    deviations: Mapping[str, Deviation] = field(default_factory=dict)


def names() -> list[str]:
    """The names of the package's pose models."""
    found = {path.stem for path in FOLDER.glob("*.json") if path.with_suffix(".onnx").exists()}
    return sorted(found - {DETECTOR})


def by_checkpoint(sha256: str) -> Weights | None:
    """The weights whose checkpoint has this hash (hexadecimal), or None. A name proves nothing.

    Raises:
        CheckpointError: as for `load`.
    """
    for name in names():
        card = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        if card["sha256"]["safetensors"] == sha256:
            return load(name)
    return None


def load(name: str) -> Weights:
    """Find weights by name and check their files.

    Raises:
        CheckpointError: there are none with that name, or a file is not the one that was shipped.
    """
    if name not in names():
        raise CheckpointError(f"expected weights that the package holds ({', '.join(names())}), received {name!r}")
    card, files = _checked(name)
    return Weights(
        name,
        Variant[card["variant"]],
        files["onnx"],
        files["safetensors"],
        card["summary"],
        files.get(INT8_SUFFIX),
        {precision: Deviation(**found) for precision, found in card.get("deviations", {}).items()},
    )


def detector() -> Path:
    """The exported people detector, its file checked.

    Raises:
        CheckpointError: it is missing, or not the one that was shipped.
    """
    return _checked(DETECTOR)[1]["onnx"]


def _checked(name: str) -> tuple[dict[str, Any], dict[str, Path]]:
    """A set's card, and the files whose hashes are in it, by suffix.

    Raises:
        CheckpointError: a file is not the one that was shipped.
    """
    try:
        card = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"expected the package's card of {name}, but it is missing; install the package again") from None
    files = {suffix: FOLDER / f"{name}.{suffix}" for suffix in card["sha256"]}
    for suffix, path in files.items():
        state = path.stat()
        digest = _digest(path, state.st_size, state.st_mtime_ns)
        if digest != card["sha256"][suffix]:
            raise CheckpointError(
                f"expected {path.name} with SHA-256 {card['sha256'][suffix][:12]}, received {digest[:12]}: the installed file "
                f"was changed; install the package again"
            )
    return card, files


@lru_cache(maxsize=16)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """The SHA-256 of a file, cached until the file changes: a run needs that of the same weights several times."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
