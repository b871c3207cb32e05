"""Which runtime runs a model: what is installed, what `auto` chooses and why, and opening it.

A runtime that was asked for by name either starts or is an error: nothing is substituted silently.
"""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from convnextpose.errors import RuntimeUnavailableError, install_command
from engines.metadata import read_metadata
from engines.onnx_file import POSE, read_onnx
from engines.runtime import ModelInfo, Runtime, check_threads
from engines.runtimes.onnxruntime import OnnxRuntime
from engines.runtimes.openvino import OpenVinoRuntime
from engines.runtimes.torch import TorchRuntime

if TYPE_CHECKING:
    from convnextpose.checkpoint import VerifiedCheckpoint

RUNTIMES = ("openvino", "onnxruntime", "torch", "tensorrt")
"""The runtimes by name; each is also the name of its library and of the package that installs it, but for TensorRT's second."""

ENGINE_SUFFIX = ".engine"
"""How the names of engine files end."""

_TENSORRT = ("tensorrt", "tensorrt_rtx")
"""The two families that the runtime `tensorrt` stands for: the module that an engine was built with runs it."""

_PACKAGES = {"tensorrt_rtx": "tensorrt-rtx-cu13"}
"""Packages that have another name than the module in them."""


@dataclass(frozen=True)
class Availability:
    """Whether a runtime is installed.

    Attributes:
        name: the runtime's name.
        installed: whether its library is there, for TensorRT one of the two; it has not been loaded.
        version: the library's version, None where it is not installed or does not tell; TensorRT's with the module's name.
        what_to_install: the command that installs it.
    """

    name: str
    installed: bool
    version: str | None
    what_to_install: str


@dataclass(frozen=True)
class Choice:
    """Which runtime runs a model, and why.

    Attributes:
        name: the runtime's name.
        reason: why that one, as the end of "chosen because ...".
    """

    name: str
    reason: str


def available() -> list[Availability]:
    """Every runtime and whether it is installed; loads no library and opens no device."""
    return [Availability(name, _installed(name), _version(name), _how_to_install(name)) for name in RUNTIMES]


def is_engine(model: object) -> bool:
    """Whether a model is an engine file, by its name."""
    return isinstance(model, Path) and model.suffix == ENGINE_SUFFIX


def choose_runtime(runtime: str = "auto", *, engine: bool = False) -> Choice:
    """Choose the runtime; loads no library and opens no device.

    Args:
        runtime: `openvino`, `onnxruntime`, `torch` or `tensorrt`, or `auto`: for an engine TensorRT; for other models on an
            x86-64 CPU OpenVINO if it is installed, otherwise ONNX Runtime; on other CPUs ONNX Runtime first. `torch` is never
            chosen by `auto`.
        engine: whether the model is an engine.

    Raises:
        RuntimeUnavailableError: there is no such runtime, it is not installed, or it does not run such a model.
    """
    if runtime != "auto":
        if runtime not in RUNTIMES:
            raise RuntimeUnavailableError(f"expected runtime auto, {', '.join(RUNTIMES)}, received {runtime!r}")
        _require(runtime)
        if engine and runtime != "tensorrt":
            raise RuntimeUnavailableError(
                f"the runtime {runtime} runs no engines; choose tensorrt or auto, or give it a checkpoint or an exported model"
            )
        if runtime == "tensorrt" and not engine:
            raise RuntimeUnavailableError(
                "the runtime tensorrt runs engines, received a model of another kind; build one with `convnextpose build` and "
                f"give it the {ENGINE_SUFFIX} file"
            )
        return Choice(runtime, "it was asked for")
    if engine:
        _require("tensorrt")
        return Choice("tensorrt", "the model is an engine")
    machine = platform.machine()
    x86 = machine.lower() in ("x86_64", "amd64")
    first, second = ("openvino", "onnxruntime") if x86 else ("onnxruntime", "openvino")
    cpu = "an x86-64 CPU" if x86 else f"a CPU of type {machine}"
    if _installed(first):
        return Choice(first, f"it is installed and the default on {cpu}")
    if _installed(second):
        return Choice(second, f"it is installed, and {first}, the default on {cpu}, is not")
    raise RuntimeUnavailableError(f"expected openvino or onnxruntime to run models, found neither; pip install {first}")


def open_runtime(
    model: Path | bytes | VerifiedCheckpoint,
    runtime: str = "auto",
    *,
    threads: int | None = None,
    precision: str = "fp32",
    name: str | None = None,
    random: bool = False,
) -> Runtime:
    """Open a model in a runtime. It has run one crop when this returns, so that the next is as fast as any.

    Args:
        model: an exported ONNX file or its bytes; an engine, named `.engine`, with its manifest beside it; or a verified
            checkpoint, which is exported in memory unless the runtime is torch.
        runtime: as for `choose_runtime`.
        threads: how many threads it computes on; None leaves that to the library. An engine has none.
        precision: what its convolutions compute in: `fp32`; with OpenVINO also `bf16` and `fp16` where the CPU has them.
            An engine has its own.
        name: what people call the model; None keeps an exported model's name, and calls a checkpoint by its variant.
        random: whether a checkpoint's weights are random numbers; an exported model says so itself.

    Raises:
        RuntimeUnavailableError: the runtime is not installed, or cannot run such a model, precision or number of threads.
        ModelError: the file is not a whole model that this project exported; EngineError: the engine does not fit this machine.
        ExportError: the checkpoint could not be exported.
    """
    chosen = choose_runtime(runtime, engine=is_engine(model)).name
    check_threads(threads)
    try:
        if chosen == "tensorrt":
            assert isinstance(model, Path)
            if threads is not None:
                raise RuntimeUnavailableError(
                    f"an engine computes on the GPU and takes no number of threads, received {threads}"
                )
            from engines.tensorrt.runtime import open_engine

            return open_engine(model, name)
        if isinstance(model, (Path, bytes)):
            if chosen == "torch":
                raise RuntimeUnavailableError(
                    "the runtime torch runs checkpoints, received an exported model; give it the checkpoint, or choose "
                    "openvino or onnxruntime"
                )
            source = "the model in memory" if isinstance(model, bytes) else str(model)
            onnx = read_onnx(model, POSE, source)
        elif chosen == "torch":
            info = ModelInfo(name or model.variant.name.lower(), model.variant, model.joint_set, model.sha256, random)
            return TorchRuntime(model, info, threads=threads, precision=precision)
        else:
            from engines.export import export_bytes

            onnx, source = export_bytes(model, name=name or model.variant.name.lower(), random=random), model.source
        info = read_metadata(onnx, source, name)
        kind = OpenVinoRuntime if chosen == "openvino" else OnnxRuntime
        return kind(onnx, info, threads=threads, precision=precision)
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"the runtime {chosen} is installed but does not load: {error}; pip install --force-reinstall {chosen}"
        ) from error


def _installed(name: str) -> bool:
    return bool(_modules(name))


def _modules(name: str) -> list[str]:
    """The modules of a runtime that are installed; TensorRT may have two."""
    return [module for module in (_TENSORRT if name == "tensorrt" else (name,)) if _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _require(name: str) -> None:
    if not _installed(name):
        raise RuntimeUnavailableError(f"the runtime {name} was asked for and is not installed; {_how_to_install(name)}")


def _how_to_install(name: str) -> str:
    extras = {"torch": "build", "tensorrt": "tensorrt"}
    return install_command(extras[name]) if name in extras else f"pip install {name}"


def _version(name: str) -> str | None:
    versions = []
    for module in _modules(name):
        try:
            version = metadata.version(_PACKAGES.get(module, module))
        except metadata.PackageNotFoundError:
            continue  # a build under another package's name
        versions.append(f"{module} {version}" if name == "tensorrt" else version)
    return ", ".join(versions) or None
