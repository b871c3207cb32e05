"""From a config to a running pipeline: which model, which runtime, which source, which people, which sinks."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from convnextpose import weights
from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.checkpoint import VerifiedCheckpoint, verify, verify_state
from convnextpose.errors import CheckpointError, ModelError, RuntimeUnavailableError, SinkError, install_command
from convnextpose.variants import Variant
from engines.runtime import Runtime
from engines.select import is_engine, open_runtime
from pipeline.channels import DropPolicy
from pipeline.draw import PoseRenderer
from pipeline.people import MIN_SCORE, GivenBoxes, PeopleFinder, WholePicture, one_person
from pipeline.sinks import RESULT_NAMES, Sink, open_sinks
from pipeline.sources import open_source
from pipeline.threads import Pipeline
from pipeline.timeline import TraceWriter
from pipeline.types import RunHeader

RANDOM_CAPTION = "RANDOM WEIGHTS"
"""Stamped on every picture of a run whose poses mean nothing."""


@dataclass(frozen=True)
class RunConfig:
    """What a run is to do.

    Attributes:
        source: a video, a picture or a folder of pictures.
        model: a name of default weights, a checkpoint in any container that `verify` reads, an exported `.onnx` file, or an
            `.engine` file with its manifest beside it.
        runtime: `auto`, `openvino`, `onnxruntime`, `torch` or `tensorrt`.
        out: folder for the results, or None to write none.
        overwrite: whether results that are there already may be replaced.
        boxes: file of the people's boxes, or None to find and follow one person.
        camera: the true intrinsics, or None to assume a field of view.
        trace: file for the timeline of every frame, or None.
        random_weights: replace the model's weights by random numbers, for benchmarks.
        min_score: mean joint score from which a person counts as found, 0..1.
        threads: threads of the runtime, or None for its own choice.
        engine: an engine that runs in place of `model`, or None.
    """

    source: Path
    model: str = "xs"
    runtime: str = "auto"
    out: Path | None = None
    overwrite: bool = False
    boxes: Path | None = None
    camera: Intrinsics | None = None
    trace: Path | None = None
    random_weights: bool = False
    min_score: float = MIN_SCORE
    threads: int | None = None
    engine: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"expected a minimum score in 0..1, received {self.min_score}")
        if self.engine is not None and self.random_weights:
            raise ValueError(
                f"expected a model to replace the weights of, received engine {self.engine}, whose weights are in it"
            )

    @property
    def network(self) -> str:
        """What runs: the engine if there is one, otherwise the model."""
        return self.model if self.engine is None else str(self.engine)


def open_model(model: str, runtime: str, *, random_weights: bool = False, threads: int | None = None) -> Runtime:
    """Open a model by the name of default weights, or by the path of a checkpoint, an exported file or an engine.

    Raises:
        CheckpointError, ModelError: it is none of these, or not a ConvNeXtPose model.
        RuntimeUnavailableError: the runtime cannot start here.
    """
    if random_weights:
        return open_runtime(_random_checkpoint(model), runtime, threads=threads, name=f"{model.lower()}-random", random=True)
    if model.lower() in weights.names():
        shipped = weights.load(model.lower())
        what: Path | VerifiedCheckpoint = verify(shipped.safetensors) if runtime == "torch" else shipped.onnx
        return open_runtime(what, runtime, threads=threads, name=shipped.name)
    path = Path(model)
    if not path.exists():
        raise ModelError(
            f"expected a model: one of the default weights ({', '.join(weights.names())}), a checkpoint, an .onnx or an "
            f".engine file; received {model!r}, which is none of them"
        )
    if is_engine(path):  # its manifest has the model's own name
        return open_runtime(path, runtime, threads=threads)
    return open_runtime(path if path.suffix == ".onnx" else verify(path), runtime, threads=threads, name=path.name)


def _random_checkpoint(variant: str) -> VerifiedCheckpoint:
    if variant.upper() not in Variant.__members__:
        known = ", ".join(v.name.lower() for v in Variant)
        raise CheckpointError(f"expected one of {known} as the model of random weights, received {variant!r}")
    try:
        from convnextpose.network import random_state  # torch: an extra that only this path needs
    except ImportError as error:
        raise RuntimeUnavailableError(f"random weights need torch: {error}; {install_command('build')}") from error

    return verify_state(random_state(Variant[variant.upper()]), source=f"{variant.lower()}-random")


def _keep_apart(config: RunConfig) -> None:
    """Refuse results that would replace what they are made from, or each other.

    Raises:
        SinkError: naming the file.
    """
    given = (config.source, config.boxes, Path(config.network))
    read = {path.resolve() for path in given if path is not None and path.exists()}  # the network may be a name
    written = [config.out / name for name in RESULT_NAMES] if config.out else []
    for path in [*written, *([config.trace] if config.trace else [])]:
        if path.resolve() in read:
            raise SinkError(
                f"expected results apart from what they are made from, received {path} for both: name another place"
            )
    if config.trace is not None and config.trace.resolve() in {path.resolve() for path in written}:
        raise SinkError(f"expected a trace file apart from the results, received {config.trace}: name another")


def open_pipeline(config: RunConfig) -> Pipeline:
    """Make the pipeline that a config describes; iterate over it to run it.

    Everything that can be wrong with the config is found here, before a frame is read and before a result is touched.

    Raises:
        PoseError: source, model, runtime, boxes or results cannot be had; says which and what to do.
    """
    with ExitStack() as opened:
        source = open_source(config.source)
        opened.callback(source.close)
        finder: PeopleFinder | None = GivenBoxes.read(config.boxes) if config.boxes else None
        runtime = open_model(config.network, config.runtime, random_weights=config.random_weights, threads=config.threads)
        opened.callback(runtime.close)
        if finder is None and config.random_weights:
            finder = WholePicture()
        elif finder is None:  # pictures have no frame rate: one is not what came after another
            follows = source.frame_rate is not None
            finder = one_person(runtime, config.min_score, follows=follows, where=config.runtime, threads=config.threads)
        header = RunHeader(
            source=source.name,
            width=source.width,
            height=source.height,
            frame_rate=source.frame_rate,
            frame_count=source.frame_count,
            camera=config.camera or Intrinsics.assumed(source.width, source.height),
            root_depth_source=RootDepthSource.INTRINSICS if config.camera else RootDepthSource.ASSUMED_FOV,
            model=runtime.model,
            runtime=runtime.describe(),
        )
        _keep_apart(config)
        trace = TraceWriter(config.trace, overwrite=config.overwrite) if config.trace else None
        sinks: list[Sink] = [] if config.out is None else open_sinks(config.out, header, overwrite=config.overwrite)
        opened.pop_all()
    return Pipeline(
        source,
        runtime,
        finder,
        header=header,
        camera=config.camera,
        renderer=PoseRenderer(runtime.model.joint_set) if config.out else None,
        sinks=sinks,
        trace=trace,
        policy=DropPolicy.BLOCK,
        caption=RANDOM_CAPTION if runtime.model.random else None,
    )
