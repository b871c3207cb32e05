"""The registry of runtimes: what each runs, what installs it, when `auto` chooses it. `doctor` and the help texts use it, too.

A runtime that was requested by name either starts or is an error: it is never replaced silently.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from convnextpose.errors import RuntimeUnavailableError, install_command
from engines.manifest import ENGINE_SUFFIX
from engines.session import Session
from engines.sessions.onnxruntime import OnnxRuntimeSession
from engines.sessions.openvino import OpenVinoSession
from engines.sessions.torch import TorchSession
from engines.sessions.triton import SCHEME, is_served

EXPORTED, CHECKPOINT, ENGINE = "exported models", "checkpoints", "engines"
"""The kinds of models that a runtime can run."""


@dataclass(frozen=True)
class Runtime:
    """A library that runs networks.

    Attributes:
        name: its name in `--runtime`.
        runs: EXPORTED, CHECKPOINT or ENGINE.
        open: opens a session, called with the network, the name that error messages call it by, `threads` and `precision`, and
            for an engine the `kind` of model that it is to be of. The network is an ONNX file's bytes, an
            `engines.sessions.torch.TorchNetwork`, or an engine's path.
        packages: the package that installs each module, any one of which is enough.
        extra: the extra of this project that installs it; None if `pip install` with the package's name is enough.
        x86_rank, other_rank: its rank in the order in which `auto` tries runtimes, on x86-64 CPUs and on others; None for
            never.
    """

    name: str
    runs: str
    open: Callable[..., Session]
    packages: tuple[tuple[str, str], ...]
    extra: str | None = None
    x86_rank: int | None = None
    other_rank: int | None = None

    @property
    def modules(self) -> list[str]:
        """Its modules that are installed; they have not been loaded."""
        return [module for module, _ in self.packages if _found(module)]

    @property
    def version(self) -> str | None:
        """The installed version, with the module's name if there may be several; None if unknown."""
        versions = []
        for module in self.modules:
            try:
                version = metadata.version(dict(self.packages)[module])
            except metadata.PackageNotFoundError:
                continue  # a build with another package name
            versions.append(f"{module} {version}" if len(self.packages) > 1 else version)
        return ", ".join(versions) or None

    @property
    def how_to_install(self) -> str:
        """The command that installs it."""
        return f"pip install {self.packages[0][1]}" if self.extra is None else install_command(self.extra)


def _open_engine(path: Path, name: str, **options: Any) -> Session:  # noqa: ANN401
    from engines.sessions.engine_file import open_engine_session  # not needed without a GPU, and it imports a lot

    return open_engine_session(path, name, **options)


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("openvino", EXPORTED, OpenVinoSession, (("openvino", "openvino"),), x86_rank=1, other_rank=2),
        Runtime("onnxruntime", EXPORTED, OnnxRuntimeSession, (("onnxruntime", "onnxruntime"),), x86_rank=2, other_rank=1),
        Runtime("torch", CHECKPOINT, TorchSession, (("torch", "torch"),), extra="build"),
        Runtime(
            "tensorrt",
            ENGINE,
            _open_engine,
            # Two families: the module that an engine was built with runs it.
            (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx-cu13")),
            extra="tensorrt",
            x86_rank=1,
            other_rank=1,
        ),
    )
}
"""The runtimes by name."""


@dataclass(frozen=True)
class Choice:
    """A choice, with its reason.

    Attributes:
        name: the runtime's name, or the precision's.
        reason: the reason, as the end of "chosen because ...".
    """

    name: str
    reason: str


def runtime_help() -> str:
    """The help text of `--runtime`."""
    kinds = dict.fromkeys(runtime.runs for runtime in RUNTIMES.values())
    told = [f"{' and '.join(r.name for r in RUNTIMES.values() if r.runs == kind)} for {kind}" for kind in kinds]
    return f"auto, or {', '.join(told)}; or {SCHEME}HOST:PORT/NAME for a model that a Triton server has."


def choose_runtime(runtime: str = "auto", *, engine: bool = False) -> Choice:
    """Choose the runtime; loads no library and opens no device.

    Args:
        runtime: a name of RUNTIMES, the address of a served model, or `auto`: for an engine TensorRT; for other models the
            first of those that run exported models, on this kind of CPU, that is installed. `torch` is never chosen by `auto`.
        engine: whether the model is an engine.

    Raises:
        RuntimeUnavailableError: there is no such runtime, it is not installed, or it does not run such a model.
    """
    if is_served(runtime):
        return Choice(runtime, "it was asked for")
    if runtime != "auto":
        if runtime not in RUNTIMES:
            raise RuntimeUnavailableError(
                f"expected runtime auto, {', '.join(RUNTIMES)} or {SCHEME}HOST:PORT/NAME, received {runtime!r}"
            )
        asked = RUNTIMES[runtime]
        _require(asked)
        if engine and asked.runs != ENGINE:
            raise RuntimeUnavailableError(
                f"the runtime {runtime} runs no engines; choose tensorrt or auto, or give it a checkpoint or an exported model"
            )
        if asked.runs == ENGINE and not engine:
            raise RuntimeUnavailableError(
                f"the runtime {runtime} runs engines, received a model of another kind; build one with `convnextpose build` "
                f"and give it the {ENGINE_SUFFIX} file"
            )
        return Choice(runtime, "it was asked for")
    if engine:
        for candidate in _ranked(ENGINE, x86=True):
            _require(candidate)
            return Choice(candidate.name, "the model is an engine")
    machine = platform.machine()
    x86 = machine.lower() in ("x86_64", "amd64")
    first, *others = _ranked(EXPORTED, x86=x86)
    cpu = "an x86-64 CPU" if x86 else f"a CPU of type {machine}"
    if first.modules:
        return Choice(first.name, f"it is installed and the default on {cpu}")
    for other in others:
        if other.modules:
            return Choice(other.name, f"it is installed, and {first.name}, the default on {cpu}, is not")
    names = " or ".join(runtime.name for runtime in (first, *others))
    raise RuntimeUnavailableError(f"expected {names} to run models, found neither; {first.how_to_install}")


@contextmanager
def loading(runtime: Runtime) -> Iterator[None]:
    """Convert the ImportError of a library that is installed but does not load to a RuntimeUnavailableError.

    Raises:
        RuntimeUnavailableError: the block raised an ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"the runtime {runtime.name} is installed but does not load: {error}; pip install --force-reinstall {runtime.name}"
        ) from error


def _ranked(runs: str, *, x86: bool) -> list[Runtime]:
    """The runtimes that `auto` may choose for a kind of model, in the order in which it tries them."""
    ranks = {runtime.name: runtime.x86_rank if x86 else runtime.other_rank for runtime in RUNTIMES.values()}
    able = [runtime for runtime in RUNTIMES.values() if runtime.runs == runs and ranks[runtime.name] is not None]
    return sorted(able, key=lambda runtime: ranks[runtime.name] or 0)


def _require(runtime: Runtime) -> None:
    if not runtime.modules:
        raise RuntimeUnavailableError(
            f"the runtime {runtime.name} was asked for and is not installed; {runtime.how_to_install}"
        )


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
