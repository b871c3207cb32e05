"""The manifest beside an engine: what it was made from, where it runs, how it was proven, and how to rebuild it.

The engine is that of a pose model or of a people detector.

An engine is bound to the library's version and to the GPU that it was built for. Elsewhere the library fails with an unhelpful
message, or not at all. So the engine is refused before it is loaded, with the reason and the command that rebuilds it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from convnextpose.errors import EngineError, ModelError, ParityError
from convnextpose.files import MAX_JSON_BYTES, parse_json, read_file, show
from engines.parity import DetectorParity, LayerSensitivity, ParityReport
from engines.people import DetectorInfo
from engines.pose import ModelInfo
from engines.typed_json import decode

if TYPE_CHECKING:
    from typing_extensions import Self

VERSION, READABLE = 2, (1, 2)
"""Version of the manifest's fields, and the readable versions. They are the same for pose models; 1 has no detectors."""

ENGINE_SUFFIX = ".engine"
"""Suffix of engine files."""

RTX = "tensorrt_rtx"
"""The module of TensorRT for RTX, whose engines have other requirements than those of `tensorrt`."""

VERSION_COMPATIBLE, HARDWARE_COMPATIBLE = "version_compatible", "hardware_compatible"
"""The options for compatibility. Values: True or False, and the name of the level (in lower case) or None."""

MAX_BATCH = 1024
"""Largest batch of crops or frames for an engine: far more than fit in one GPU's memory."""

MAX_ENGINE_BYTES = 1024**3
"""The largest engine file that is read. The largest variant's in FP32 has less than 0.1 GB."""

OptionValue = str | int | bool | None

EngineModel = ModelInfo | DetectorInfo
"""The descriptions of models that an engine can have."""

Parity = ParityReport | DetectorParity
"""The reports that prove it."""

KINDS: Mapping[type[Any], tuple[str, type[Parity], str]] = {
    ModelInfo: ("a pose model", ParityReport, "--model"),
    DetectorInfo: ("a people detector", DetectorParity, "--detector"),
}
"""For each kind of model: its name, its report, and the option for its engines."""

M = TypeVar("M", bound=EngineModel)


@dataclass(frozen=True)
class BatchRange:
    """The batch sizes of an engine, in crops (for a detector: frames).

    Attributes:
        min, max: the smallest and the largest number.
        typical: the number for which it is fastest.
    """

    min: int = 1
    typical: int = 1
    max: int = 8

    def __post_init__(self) -> None:
        """Check the order.

        Raises:
            EngineError: the three are not in ascending order.
        """
        if not 1 <= self.min <= self.typical <= self.max <= MAX_BATCH:
            raise EngineError(
                f"expected a batch of 1 <= min <= typical <= max <= {MAX_BATCH} crops, received {self.min}, {self.typical}, "
                f"{self.max}"
            )


@dataclass(frozen=True)
class Machine:
    """A machine that an engine may run on.

    Attributes:
        library: `tensorrt` or `tensorrt_rtx`: the module's name.
        library_version: its full version.
        compute_capability: the GPU's, such as `8.9`.
        gpu_name: the GPU's name, as reported by the driver.
        driver: the driver's version.
    """

    library: str
    library_version: str
    compute_capability: str
    gpu_name: str
    driver: str


@dataclass(frozen=True)
class EngineDraft:
    """The part of the manifest that is known before an engine is built; a bundle takes it to the machine that builds it.

    Attributes:
        model: the model or detector, its precision, and its calibration.
        onnx_sha256: hash of the typed graph that it is built from, hexadecimal.
        target: name of its target in `engines.targets`.
        batch: its batch sizes.
        options: the builder's options, by name.
        excluded_layers: convolutions of an INT8 graph that stay in FP16, the most sensitive first.
        graph_parity: the typed graph on the CPU compared with FP32 PyTorch; a detector's with its file in ONNX Runtime.
        command: the command that builds it.
    """

    model: EngineModel
    onnx_sha256: str
    target: str
    batch: BatchRange
    options: Mapping[str, OptionValue]
    excluded_layers: tuple[LayerSensitivity, ...]
    graph_parity: Parity
    command: str

    FORMAT: ClassVar[str] = "convnextpose.engine-draft"

    def to_json(self) -> str:
        """The draft as JSON, with a hash over all fields."""
        model = asdict(self.model)
        if isinstance(self.model, ModelInfo):
            model |= {"variant": self.model.variant.name, "joint_set": self.model.joint_set.name}
        fields = {**asdict(self), "model": model, "options": dict(self.options)}
        return json.dumps({"format": self.FORMAT, "version": VERSION, "sha256": _hash(fields), **fields}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            EngineError: the text is not such JSON, or it was edited.
        """
        try:
            found = parse_json(text)
            if not isinstance(found, dict) or found.pop("format", None) != cls.FORMAT:
                raise ValueError("it has another format")
            version = found.pop("version", None)
            if version not in READABLE:
                told = " or ".join(map(str, READABLE))
                raise EngineError(
                    f"expected an engine's manifest of version {told}, received {show(version)}; build the engine again"
                )
            # The hash detects accidents. Anybody can recompute it, so it does not make the fields trustworthy.
            if found.pop("sha256", None) != _hash(found):
                raise EngineError("the engine's manifest was edited: its hash differs; build the engine again")
            return decode(cls, found)
        except EngineError:
            raise
        except (ValueError, RecursionError, ModelError, ParityError) as error:
            raise EngineError(f"expected an engine's manifest in JSON, received something else: {error}") from error

    def __post_init__(self) -> None:
        """Check that the proof matches the kind of model; and the command, because messages tell people to run it.

        Raises:
            EngineError: the proof is of another kind, or the command does not build engines.
        """
        kind, proof, _ = KINDS[type(self.model)]
        if not isinstance(self.graph_parity, proof):
            raise EngineError(
                f"expected the proof of {kind} in the engine's manifest, received another; build the engine again"
            )
        try:
            words = shlex.split(self.command)
        except ValueError:
            words = []
        if words[:2] != ["convnextpose", "build"] or shlex.join(words) != self.command:
            raise EngineError(
                f"expected a command of `convnextpose build` in the engine's manifest, received {show(self.command)}; "
                "build the engine again"
            )


@dataclass(frozen=True)
class EngineManifest(EngineDraft):
    """The manifest of an engine: its draft, and the outcome of its build.

    Attributes:
        engine_sha256: hash of the engine file, hexadecimal.
        engine_bytes: the engine file's size.
        library: the module that built it: `tensorrt` or `tensorrt_rtx`.
        library_version: its full version.
        compute_capabilities: those of the GPUs that it runs on, such as `8.9`.
        gpu_name: name of the GPU that it was built on; None if it was built without one.
        driver: the driver's version there; None if it was built without a GPU.
        engine_parity: the engine itself compared with the same reference; None if there was no GPU to run it.
    """

    engine_sha256: str
    engine_bytes: int
    library: str
    library_version: str
    compute_capabilities: tuple[str, ...]
    gpu_name: str | None
    driver: str | None
    engine_parity: Parity | None

    FORMAT: ClassVar[str] = "convnextpose.engine"

    def __post_init__(self) -> None:
        """The checks of a draft, and that the engine's own proof is of the same kind as the graph's."""
        super().__post_init__()
        if not isinstance(self.engine_parity, (type(self.graph_parity), type(None))):
            raise EngineError("expected proofs of one kind in the engine's manifest, received two; build the engine again")

    def model_of(self, kind: type[M]) -> M:
        """The model, which must be of this kind.

        Raises:
            EngineError: it is of another kind.
        """
        if isinstance(self.model, kind):
            return self.model
        found, _, option = KINDS[type(self.model)]
        raise EngineError(
            f"expected an engine of {KINDS[kind][0]}, received one of {found}, {show(self.model.name)}, which {option} takes"
        )

    def misfit(self, machine: Machine) -> list[str]:
        """The reasons why the engine cannot run on a machine, one sentence each; empty if it can.

        The driver is not compared: a newer one runs engines of an older one, and the library refuses one that is too old.
        """
        if self.library != machine.library:
            return [f"library: the engine was built by {self.library}, this machine has {machine.library}"]
        reasons = []
        if not self._version_fits(machine.library_version):
            wanted = f"{self.library_version} or later" if self.options.get(VERSION_COMPATIBLE) else self.library_version
            reasons.append(
                f"library_version: the engine needs {self.library} {wanted}, this machine has {machine.library_version}"
            )
        level = self.options.get(HARDWARE_COMPATIBLE)
        if level == "ampere_plus":
            if _numbers(machine.compute_capability) < (8,):
                reasons.append(
                    f"compute_capability: the engine needs 8.0 or more, this machine's GPU has {machine.compute_capability}"
                )
        elif machine.compute_capability not in self.compute_capabilities:
            reasons.append(
                f"compute_capability: the engine is for {', '.join(self.compute_capabilities)}, this machine's GPU has "
                f"{machine.compute_capability}"
            )
        elif self.library != RTX and level is None and self.gpu_name not in (None, machine.gpu_name):
            reasons.append(f"gpu_name: the engine is for {self.gpu_name}, this machine has {machine.gpu_name}")
        return reasons

    def check(self, machine: Machine) -> None:
        """Check that the engine fits the machine.

        Raises:
            EngineError: names every reason and the command that rebuilds it.
        """
        if reasons := self.misfit(machine):
            here = re.sub(r"--target \S+", "--target this", self.command)
            raise EngineError(f"{'; '.join(reasons)}; rebuild the engine on this machine with `{here}`")

    def check_bytes(self, engine: bytes) -> None:
        """Check that these bytes are the engine of this manifest.

        Raises:
            EngineError: they are truncated, or those of another file.
        """
        if len(engine) != self.engine_bytes:
            raise EngineError(
                f"expected an engine of {self.engine_bytes} bytes, received {len(engine)}: the file was cut short or replaced; "
                f"build it again with `{self.command}`"
            )
        digest = hashlib.sha256(engine).hexdigest()
        if digest != self.engine_sha256:
            raise EngineError(
                f"expected an engine with SHA-256 {self.engine_sha256[:12]}, received {digest[:12]}: the file was changed or "
                f"replaced; build it again with `{self.command}`"
            )

    def _version_fits(self, version: str) -> bool:
        """Whether the library's version can run the engine: the exact version that built it, or, if the engine is
        version-compatible, a later one with the same major number."""
        if not self.options.get(VERSION_COMPATIBLE):
            return version == self.library_version
        here, built = _numbers(version), _numbers(self.library_version)
        return here[:1] == built[:1] and here >= built


def is_engine(model: object) -> bool:
    """Whether a model is an engine file, judged by its name."""
    return isinstance(model, Path) and model.suffix == ENGINE_SUFFIX


def path_of(engine: Path) -> Path:
    """Path of an engine file's manifest: beside it, with `.json` appended to its name."""
    return engine.with_name(f"{engine.name}.json")


def load(engine: Path) -> EngineManifest:
    """The manifest of an engine file, after a check that the file is the manifest's engine.

    Raises:
        EngineError: one of the two is missing or damaged, or they do not match.
    """
    return load_with_bytes(engine)[0]


def load_with_bytes(engine: Path) -> tuple[EngineManifest, bytes]:
    """As `load`, together with the engine's checked bytes."""
    data = read_file(engine, MAX_ENGINE_BYTES, EngineError, "an engine")
    manifest = read(engine)
    try:
        manifest.check_bytes(data)
    except EngineError as error:
        raise EngineError(f"{engine}: {error}") from None
    return manifest, data


def read(engine: Path) -> EngineManifest:
    """The manifest of an engine file. The engine itself is not checked; use `check_bytes` for that.

    Raises:
        EngineError: the manifest is missing, damaged or edited.
    """
    if not engine.name or engine.is_dir():
        raise EngineError(f"expected an engine file that `convnextpose build` wrote, received the folder {engine}")
    path = path_of(engine)
    what = f"the manifest of engine {engine} (made with it by `convnextpose build`)"
    data = read_file(path, MAX_JSON_BYTES, EngineError, what)
    try:
        return EngineManifest.from_json(data.decode())
    except UnicodeDecodeError as error:
        raise EngineError(f"{path}: expected an engine's manifest in JSON, received other bytes") from error
    except EngineError as error:
        raise EngineError(f"{path}: {error}") from error


def _hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version such as `10.13.3.9.post1`, up to the first part that is not a number."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
