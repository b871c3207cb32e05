"""What to build, how it is built on this machine, and the outcome."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from convnextpose.errors import EngineError, PoseError
from engines.manifest import EngineDraft
from engines.pose import PRECISIONS
from engines.precision import INT8_SCHEMES, Int8Scheme
from engines.targets import Target
from engines.tensorrt.builder import BuildOptions
from engines.tensorrt.device import Gpu
from engines.tensorrt.module import LIBRARIES, Library

TORCH2TRT = "torch2trt"
"""The value of `via` for TensorRT 8, which has no strongly typed networks; `engines.torch2trt`."""


@dataclass(frozen=True)
class Step:
    """A step of a build, for progress reports.

    Attributes:
        subject: the model's name, its precision, its target.
        text: a description of the step.
        done: whether the step is done; False when it starts.
    """

    subject: str
    text: str
    done: bool


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class BuildRequest:
    """The engines to build of one model.

    Attributes:
        source: name of default weights, a checkpoint, `detector` or a people detector's ONNX file, or a bundle.
        out: the folder for the engines; created if it does not exist.
        precisions: fp32, fp16, int8; empty for FP16, a detector's FP32, or a bundle's own.
        targets: the targets; empty for the local GPU, or for a bundle's own.
        options: the builder's options.
        calibration: the calibration set, None for the one that the package ships. It also proves graphs of every precision.
        library: `tensorrt` or `tensorrt_rtx`; None for the one that a target prefers.
        via: `torch2trt` for TensorRT 8, otherwise None.
        overwrite: whether to rebuild existing engines, and to replace files of another origin.
        scheme: which layers of an INT8 graph are to be in INT8, a key of `engines.precision.INT8_SCHEMES`.
        frame: width and height of a detector's frames, px; None for its default.
        person: a detector's class of people, by name or number; None for the one that its file states.
    """

    source: str
    out: Path
    precisions: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    calibration: Path | None = None
    library: str | None = None
    via: str | None = None
    overwrite: bool = False
    scheme: str = INT8_SCHEMES[0].key
    frame: tuple[int, int] | None = None
    person: str | None = None

    def __post_init__(self) -> None:
        """Check the names, and that the target supports the options.

        Raises:
            EngineError: a name is unknown, or the target does not support an option.
        """
        if unknown := [name for name in self.precisions if name not in PRECISIONS]:
            raise EngineError(f"expected precision {', '.join(PRECISIONS)}, received {', '.join(unknown)}")
        if self.library not in (None, *LIBRARIES):
            raise EngineError(f"expected library {' or '.join(LIBRARIES)}, received {self.library!r}")
        if self.via not in (None, TORCH2TRT):
            raise EngineError(f"expected {TORCH2TRT}, received {self.via!r}")
        if self.scheme not in (keys := [scheme.key for scheme in INT8_SCHEMES]):
            raise EngineError(f"expected INT8 scheme {', '.join(keys)}, received {self.scheme!r}")
        batch = self.options.batch
        if self.options.dla_core is not None and batch.min != batch.max:
            raise EngineError(
                f"expected one number of crops for --dla-core, such as --batch 4,4,4, received {batch.min} to {batch.max}: a "
                "DLA needs a fixed batch"
            )
        check_dla(self.options, self.precisions)
        if self.options.tail_kernel and (self.via is not None or "fp32" in self.precisions):
            raise EngineError(
                f"expected precision fp16 or int8 for --tail-kernel, which reads FP16 logits, received {self.via or 'fp32'}"
            )
        for target in self.targets:
            if self.options.dla_core is not None and not (target.dla or target.is_at_hand):
                raise EngineError(f"expected a target with a DLA for --dla-core, but {target.title} has none")

    @property
    def int8_scheme(self) -> Int8Scheme:
        """The INT8 scheme."""
        return next(scheme for scheme in INT8_SCHEMES if scheme.key == self.scheme)

    def command(self, precision: str, target: str) -> str:
        """The command that builds one of its engines."""
        options, plain = self.options, BuildOptions()
        words = ["convnextpose", "build", self.source, "--out", str(self.out)]
        words += ["--precision", precision] if precision else []  # a bundle's precision is fixed
        words += ["--target", target]
        words += ["--frame", "{},{}".format(*self.frame)] if self.frame else []
        words += ["--detector-class", self.person] if self.person is not None else []
        words += ["--int8-scheme", self.scheme] if self.scheme != INT8_SCHEMES[0].key else []
        if options.batch != plain.batch:
            words += ["--batch", ",".join(str(getattr(options.batch, f.name)) for f in fields(options.batch))]
        for name, value in options.named().items():
            if value is not None and value is not False:  # core 0 is valid
                words += ["--" + name.removesuffix("_mib").replace("_", "-"), *([] if value is True else [str(value)])]
        for name, given in (("calibration", self.calibration), ("library", self.library), ("via", self.via)):
            if given is not None:
                words += [f"--{name}", str(given)]
        return shlex.join(words)


def check_dla(options: BuildOptions, precisions: tuple[str, ...]) -> None:
    """Refuse a precision that a DLA is not known to support.

    Raises:
        EngineError: names the supported ones.
    """
    if options.dla_core is not None and (refused := [name for name in precisions if name != "fp16"]):
        raise EngineError(
            f"expected precision fp16 for --dla-core, received {', '.join(refused)}: a DLA does not compute in FP32, and "
            "no graph with quantisation nodes was ever tried on one"
        )


@dataclass(frozen=True)
class Plan:
    """How an engine for a target is built on this machine.

    Attributes:
        target: the target.
        library: the library that builds it; None if none can, so that a bundle is written.
        compute_capability: the compute capability that it is built for, such as `8.9`.
        gpu: the local GPU, None if the engine is built without one.
        reason: why no library can build it.
    """

    target: Target
    library: Library | None
    compute_capability: str = ""
    gpu: Gpu | None = None
    reason: str = ""


@dataclass(frozen=True)
class BuildResult:
    """The outcome for one engine.

    Attributes:
        path: the engine, or the bundle.
        outcome: `built`, `kept` (it existed already), or `bundled`.
        draft: its manifest; a bundle's draft.
        convolutions: number of convolutions in each type, as far as the library reports it: `Half`, `Int8`, `Float`.
    """

    path: Path
    outcome: str
    draft: EngineDraft
    convolutions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class BuildFailure:
    """Something that could not be built.

    Attributes:
        subject: the model, its precision and its target.
        error: the reason.
    """

    subject: str
    error: PoseError


@dataclass(frozen=True)
class BuildReport:
    """The outcome of a request.

    Attributes:
        results: the engines and bundles.
        failures: those that could not be built.
    """

    results: tuple[BuildResult, ...]
    failures: tuple[BuildFailure, ...]


@contextmanager
def step(progress: Progress, subject: str, text: str) -> Iterator[Callable[[str], None]]:
    """Report that a step starts; the returned function reports that it is done, with its result."""
    progress(Step(subject, text, done=False))
    yield lambda result: progress(Step(subject, result, done=True))
