"""The targets of engines: GPUs by compute capability, Jetsons with their JetPacks, and the local GPU."""

from __future__ import annotations

from dataclasses import dataclass

from convnextpose.errors import EngineError
from engines.manifest import RTX


@dataclass(frozen=True)
class JetPack:
    """A release of Jetson's system and the TensorRT in it.

    Attributes:
        version: JetPack's version.
        tensorrt: TensorRT's version. Before 10 there are no strongly typed networks: those are built with `--via torch2trt`.
    """

    version: str
    tensorrt: str

    @property
    def strongly_typed(self) -> bool:
        """Whether its TensorRT supports strongly typed graphs."""
        return int(self.tensorrt.split(".")[0]) >= 10


@dataclass(frozen=True)
class Target:
    """A target that engines are built for.

    Attributes:
        name: its name on the command line and in an engine's file name.
        title: its description.
        compute_capabilities: those of its GPUs, such as `8.9`; several if CUDA changed the number; empty for the local GPU.
        libraries: the modules that can build for it, tried in this order.
        jetpacks: a Jetson's systems.
        dla: whether it has a deep-learning accelerator.
    """

    name: str
    title: str
    compute_capabilities: tuple[str, ...]
    libraries: tuple[str, ...]
    jetpacks: tuple[JetPack, ...] = ()
    dla: bool = False

    @property
    def is_at_hand(self) -> bool:
        """Whether it stands for the local GPU, of whatever kind."""
        return not self.compute_capabilities


_DESKTOP = (RTX, "tensorrt")

TARGETS = (
    Target("this", "the local GPU", (), ("tensorrt", RTX)),
    Target("rtx20", "GeForce RTX 20 series (Turing)", ("7.5",), _DESKTOP),
    Target("a100", "A100 (Ampere)", ("8.0",), ("tensorrt", RTX)),
    Target("rtx30", "GeForce RTX 30 series (Ampere)", ("8.6",), _DESKTOP),
    Target("rtx40", "GeForce RTX 40 series (Ada)", ("8.9",), _DESKTOP),
    Target("rtx50", "GeForce RTX 50 series (Blackwell)", ("12.0",), _DESKTOP),
    Target(
        "orin",
        "Jetson Orin",
        ("8.7",),
        ("tensorrt",),
        (
            JetPack("5.1", "8.5.2"),
            JetPack("6.0", "8.6.2"),
            JetPack("6.1", "10.3"),
            JetPack("6.2", "10.3"),
            JetPack("7.2", "10.16"),
            JetPack("7.2.2", "11.4.1"),
        ),
        dla=True,
    ),
    Target(
        "thor",
        "Jetson Thor",
        ("11.0", "10.1"),  # CUDA 13 renamed 10.1 to 11.0
        ("tensorrt",),
        (JetPack("7.0", "10.13"), JetPack("7.1", "10.13"), JetPack("7.2", "10.16"), JetPack("7.2.2", "11.4.1")),
    ),
)
"""All targets."""


def find_target(name: str) -> Target:
    """Find a target by its name or by a compute capability such as `8.9`.

    Raises:
        EngineError: there is no such target.
    """
    for target in TARGETS:
        if name.lower() == target.name or name in target.compute_capabilities:
            return target
    known = ", ".join(
        target.name + (f" ({target.compute_capabilities[0]})" if target.compute_capabilities else "") for target in TARGETS
    )
    raise EngineError(f"expected a target by name or compute capability: {known}, received {name!r}")
