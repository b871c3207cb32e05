"""The network, its checkpoints, skeletons, the camera and the crop, scores, the default weights, and the public names.

May import numpy; torch only inside `network.py`, and when used inside `containers.py` and `checkpoint.py`. Imports nothing of
`engines`, `pipeline` or `tools`: the public names below are imported from there when they are first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

logging.getLogger("convnextpose").addHandler(logging.NullHandler())  # silent unless the program configures logging

_PUBLIC = {
    "Box": "convnextpose.crop",
    "Intrinsics": "convnextpose.camera",
    "PoseError": "convnextpose.errors",
    "verify": "convnextpose.checkpoint",
    "export": "engines.export",
    "open_pose_model": "engines.opening",
    "Estimator": "pipeline.estimator",
    "Frame": "pipeline.types",
    "Pipeline": "pipeline.streams",
    "Pose": "pipeline.types",
    "PosedFrame": "pipeline.types",
    "RunConfig": "pipeline.run",
    "open_pipeline": "pipeline.run",
    "open_source": "pipeline.sources",
    "read_poses": "pipeline.formats.records",
}
"""The public names and the modules that define them."""

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:  # noqa: ANN401  # objects of any type
    """A public name, imported when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'convnextpose' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
