"""The adapter: finds out what a TensorRT module can do by inspecting it, never by its version.

`tensorrt` 10 and 11 and `tensorrt_rtx` share an interface that has changed over the years: flags come and go, values of enums
move, and only RTX builds for GPUs of other machines.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convnextpose.errors import EngineError, RuntimeUnavailableError, install_command
from engines.manifest import RTX

FULL = "tensorrt"
"""The module of the full TensorRT."""

LIBRARIES = (FULL, RTX)
"""The modules that the adapter knows, by name."""

_EXTRAS = {FULL: "tensorrt", RTX: "tensorrt-rtx"}

LogSink = Callable[[str, str], None]
"""Called with a message's severity in lower case (`internal_error`, `error`, `warning`, `info`, `verbose`) and its text."""


@dataclass(frozen=True)
class Library:
    """A loaded TensorRT module.

    Attributes:
        name: `tensorrt` or `tensorrt_rtx`.
        version: its full version.
        module: the module.
    """

    name: str
    version: str
    module: Any

    @property
    def builds_for_absent_gpus(self) -> bool:
        """Whether it takes the target's compute capability from the caller, so that it needs no GPU to build."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability")

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that it builds for without such a GPU; empty if it only builds for the local GPU."""
        if not self.builds_for_absent_gpus:
            return ()
        numbers = [name[2:] for name in self.module.ComputeCapability.__members__ if name.startswith("SM")]
        return tuple(f"{number[:-1]}.{number[-1]}" for number in numbers)

    @property
    def keeps_timings(self) -> bool:
        """Whether a timing cache shortens its builds: a library that needs no GPU times nothing and has no use for one."""
        return hasattr(self.module.IBuilderConfig, "create_timing_cache") and not self.builds_for_absent_gpus

    def network_flags(self) -> int:
        """The flags of a strongly typed network: their values differ between the modules.

        Raises:
            EngineError: the module has no strongly typed networks.
        """
        flags = self.module.NetworkDefinitionCreationFlag
        if not hasattr(flags, "STRONGLY_TYPED"):
            raise EngineError(
                f"expected a TensorRT with strongly typed networks (10 or later), {self.name} {self.version} has none; build "
                "with --via torch2trt"
            )
        return 1 << int(flags.STRONGLY_TYPED)

    def compute_capability(self, name: str) -> Any:  # noqa: ANN401 - the module's enum
        """The module's value for a compute capability such as `8.9`.

        Raises:
            EngineError: the library does not build for it.
        """
        value = getattr(self.module.ComputeCapability, f"SM{name.replace('.', '')}", None)
        if value is None:
            raise EngineError(
                f"expected a compute capability that {self.name} {self.version} builds for "
                f"({', '.join(self.compute_capabilities)}), received {name}"
            )
        return value

    def builder_flag(self, name: str) -> Any:  # noqa: ANN401
        """The module's builder flag of that name.

        Raises:
            EngineError: it has none.
        """
        return self._member("BuilderFlag", name)

    def hardware_compatibility(self, name: str) -> Any:  # noqa: ANN401
        """The module's level of hardware compatibility of that name, in any case.

        Raises:
            EngineError: it has none.
        """
        return self._member("HardwareCompatibilityLevel", name)

    def _member(self, enum: str, name: str) -> Any:  # noqa: ANN401
        members = getattr(getattr(self.module, enum, None), "__members__", {})
        if name.upper() not in members:
            raise EngineError(
                f"expected an option that {self.name} {self.version} has, but it has no {enum} {name.upper()}"
                + (f" (only {', '.join(members)})" if 0 < len(members) < 8 else "")
            )
        return members[name.upper()]

    def native_logger(self) -> Any:  # noqa: ANN401
        """The library's own logger, which prints warnings and errors and needs no Python."""
        return self.module.Logger(self.module.Logger.WARNING)

    def logger(self, sink: LogSink) -> Any:  # noqa: ANN401
        """A logger that passes every message, verbose ones as well, to a function."""
        module = self.module

        class Logger(module.ILogger):  # type: ignore[misc, name-defined]
            def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
                sink(severity.name.lower(), message)

        return Logger()


def load_library(name: str) -> Library:
    """Load a TensorRT module; opens no device.

    Raises:
        RuntimeUnavailableError: there is no such module, it is not installed, or it does not load.
    """
    if name not in LIBRARIES:
        raise RuntimeUnavailableError(f"expected {' or '.join(LIBRARIES)}, received {name!r}")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(f"{name} is not installed; {install_command(_EXTRAS[name])}") from error
    except (ImportError, OSError) as error:
        raise RuntimeUnavailableError(f"{name} is installed but does not load: {error}; install it again") from error
    return Library(name, str(module.__version__), module)
