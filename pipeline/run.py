"""Makes a pipeline from a config: opens the models, the sources, the people finder and the results."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from convnextpose import weights
from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.errors import GeometryError, SinkError, SourceError
from convnextpose.files import read_file
from convnextpose.world import GivenWorld
from engines.manifest import is_engine
from pipeline.draw import PoseRenderer
from pipeline.estimator import Estimator
from pipeline.formats.base import Recorder
from pipeline.formats.motion import Export
from pipeline.formats.segments import Segments
from pipeline.formats.table import DEFAULT_FORMATS, FORMATS, open_recorders
from pipeline.formats.trace import TraceRecorder
from pipeline.models import MAX_BATCH, Models, open_models
from pipeline.people import PeopleFinder, WholePicture
from pipeline.people.detection import detections_of
from pipeline.people.given import GivenBoxes
from pipeline.people.rotation import RotationCheck
from pipeline.people.tracker import KEEP_LOST_S, MAX_PEOPLE, PeopleTracker
from pipeline.sources import Decode, OnDamage, Source, SourceInfo, Timeouts, open_source
from pipeline.sources.timeouts import DEFAULT_TIMEOUTS
from pipeline.sources.uri import scheme_of
from pipeline.status import RunStatus
from pipeline.stream import Stream
from pipeline.streams import Pipeline
from pipeline.summary import NAME as SUMMARY_NAME
from pipeline.summary import check_summary, write_summary
from pipeline.types import RunHeader
from pipeline.views.base import View
from pipeline.views.table import ViewConfig, open_view

_log = logging.getLogger("convnextpose.run")

RANDOM_CAPTION = "RANDOM WEIGHTS"
"""Written on every picture of a run with random weights, whose poses are meaningless."""

MAX_LIST_BYTES = 2**20
"""Largest file of sources, bytes: more lines than any machine can run."""


@dataclass(frozen=True)
class SourceEntry:
    """A source with a name and intrinsics of its own.

    Attributes:
        uri: as `open_source` takes it.
        name: its name in results, or None for the source's id.
        camera: its true intrinsics, or None for those of the run.
    """

    uri: str | Path
    name: str | None = None
    camera: Intrinsics | None = None


def read_sources(path: Path) -> tuple[SourceEntry, ...]:
    """Read a file with one source on each line: name, URI and, if known, the intrinsics as fx,fy,cx,cy.

    Empty lines and lines that begin with # are skipped. A path is relative to the working directory.

    Raises:
        SourceError: it cannot be read, or a line is wrong. The message has the line's number but not its text, which may
            contain a password.
    """
    try:
        lines = read_file(path, MAX_LIST_BYTES, SourceError, "a file of sources").decode().splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"expected a file of sources, but {path} is not text in UTF-8") from error
    entries: list[SourceEntry] = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        where = f"line {number} of {path}"
        if len(parts) not in (2, 3):
            raise SourceError(f"expected a name, a URI and optionally fx,fy,cx,cy, received {len(parts)} words in {where}")
        if scheme_of(parts[0]) is not None:
            raise SourceError(f"expected a name before the URI, received a URI first in {where}")
        try:
            camera = Intrinsics.parse(parts[2]) if len(parts) == 3 else None
        except GeometryError as error:
            raise SourceError(f"{error}, in {where}") from error
        if parts[0].casefold() in {entry.name.casefold() for entry in entries if entry.name}:
            raise SourceError(f"expected a different name for each source, received {parts[0]} again in {where}")
        entries.append(SourceEntry(parts[1], parts[0], camera))
    if not entries:
        raise SourceError(f"expected a source on each line, but {path} has none")
    return tuple(entries)


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run.

    Attributes:
        sources: one or several videos, pictures, folders of pictures or cameras, as `open_source` takes them; or a
            `SourceEntry`, to give a source a name and intrinsics of its own.
        model: a name of default weights, a checkpoint in any container that `verify` reads, an exported `.onnx` file, or an
            `.engine` file with its manifest beside it.
        runtime: `auto`, `openvino`, `onnxruntime`, `torch` or `tensorrt`; or `triton://HOST:PORT/NAME` for a model on a Triton
            server: `model` is then ignored.
        precision: `auto`, `fp32`, `bf16`, `fp16` or `int8`: the precision of the network on a CPU; an engine has its own.
        out: folder for the results, or None to write none; with several sources each has its own folder in it.
        formats: names of the formats that results are written in (`pipeline.formats.table.FORMATS`).
        export: how motion files (TRC, C3D, BVH, glTF and tables) are written.
        overwrite: whether existing results may be replaced.
        boxes: file of the people's boxes, or None to detect and track everybody.
        detector: the people detector: `xs`, the package's own, or the path of an `.onnx` file, of any layout in
            `engines.layouts`, or of an `.engine` file with its manifest beside it.
        detector_class: the detector's class of people, by name or number, or None for the one that its file declares.
        camera: the true intrinsics, or None to assume a field of view.
        world: what is known of the camera's position, the same for every source; the rest is estimated from the people.
        trace: file for the timeline of every frame, or None.
        random_weights: replace the model's weights by random numbers, for benchmarks.
        min_score: lowest mean joint score that counts as a person, 0..1; None for 0.51 in streams and 0.55 in single pictures.
            In these two thirds of it is enough if the detector's score is high.
        max_people: largest number of people tracked at once; if there are more, the nearest.
        keep_lost_s: how long a person who is out of sight keeps the track id, s.
        smooth: whether data files also contain the poses smoothed over time; videos and views always show these.
        threads: threads of the network's library, or None for its own choice.
        video_stream: which of a file's video streams is read, from 0, or None for the one that players show.
        on_damage: at damage in a recording, `stop` ends there and `skip` continues after it.
        views: the live views and outputs of the newest poses.
        live: whether files play as cameras do: in real time, newest frame only.
        loop: whether such files play in a loop.
        segment_s: length of the segments in which live sources are recorded, s, or None for one recording each.
        timeouts: the timeouts of live sources.
        camera_options: options of every camera, as in its address: pairs of a name and a value, such as
            ("size", "1280x720"). An option in an address overrides these. For files only `flip` is allowed.
        decode: what decodes video: `cpu`, `nvdec` (an NVIDIA GPU), or `auto`: the GPU if it runs the model, too. If NVDEC is
            not available, the CPU decodes, and the source's notes say why.
    """

    sources: str | Path | SourceEntry | Sequence[str | Path | SourceEntry]
    model: str = "xs"
    runtime: str = "auto"
    precision: str = "auto"
    out: Path | None = None
    formats: tuple[str, ...] = DEFAULT_FORMATS
    export: Export | None = None
    overwrite: bool = False
    boxes: Path | None = None
    detector: str = weights.DETECTOR_NAME
    detector_class: str | None = None
    camera: Intrinsics | None = None
    world: GivenWorld | None = None
    trace: Path | None = None
    random_weights: bool = False
    min_score: float | None = None
    max_people: int = MAX_PEOPLE
    keep_lost_s: float = KEEP_LOST_S
    smooth: bool = False
    threads: int | None = None
    video_stream: int | None = None
    on_damage: str = OnDamage.STOP.value
    views: tuple[ViewConfig, ...] = ()
    live: bool = False
    loop: bool = False
    segment_s: float | None = None
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    camera_options: tuple[tuple[str, str], ...] = ()
    decode: str = "auto"

    def __post_init__(self) -> None:
        """Check what can be checked without touching a file; paths may be given as strings."""
        for name in ("out", "boxes", "trace"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        if not self.source_list:
            raise ValueError("expected at least one source, received none")
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise ValueError(f"expected a minimum score in 0..1, received {self.min_score}")
        if self.max_people < 1:
            raise ValueError(f"expected to follow at least one person, received max_people={self.max_people}")
        if not 0 <= self.keep_lost_s < math.inf:
            raise ValueError(f"expected a finite time to keep lost people, 0 s or more, received {self.keep_lost_s}")
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ValueError(f"expected formats among {', '.join(FORMATS)}, received {unknown[0]!r}")
        if self.on_damage not in [each.value for each in OnDamage]:
            raise ValueError(f"expected stop or skip for damaged recordings, received {self.on_damage!r}")
        if self.random_weights and is_engine(Path(self.model)):
            raise ValueError(f"expected a model with replaceable weights, received the engine {self.model}")
        if self.decode not in ("auto", *Decode):
            raise ValueError(f"expected decode auto, {', '.join(kind.value for kind in Decode)}, received {self.decode!r}")
        if self.segment_s is not None and not self.segment_s >= 1:
            raise ValueError(f"expected segments of at least 1 s, received {self.segment_s:g} s")
        if self.boxes is not None and (self.detector != weights.DETECTOR_NAME or self.detector_class is not None):
            raise ValueError("expected boxes or a people detector, received both: omit one of them")
        if self.boxes is not None and len(self.source_list) > 1:
            raise ValueError(f"expected one source where boxes are given, received {len(self.source_list)}")

    @property
    def has_engine(self) -> bool:
        """Whether the model or the detector is an engine, which runs on the GPU."""
        return is_engine(Path(self.model)) or (self.boxes is None and is_engine(Path(self.detector)))

    @property
    def decoder(self) -> Decode:
        """What decodes video."""
        if self.decode == "auto":
            return Decode.NVDEC if is_engine(Path(self.model)) else Decode.CPU
        return Decode(self.decode)

    @property
    def source_list(self) -> tuple[SourceEntry, ...]:
        """The sources, one or several."""
        given = (self.sources,) if isinstance(self.sources, (str, Path, SourceEntry)) else tuple(self.sources)
        return tuple(entry if isinstance(entry, SourceEntry) else SourceEntry(entry) for entry in given)


def result_folders(out: Path, names: Sequence[str]) -> list[Path]:
    """The folder of each source's results: `out` itself for one source, otherwise a folder in it, named after the source."""
    return [out] if len(names) == 1 else [out / name for name in names]


def source_names(infos: Sequence[SourceInfo]) -> list[str]:
    """A name for each source that can also name a folder: its id without a file's suffix or an address's scheme and query.

    Equal names are numbered.
    """
    names: list[str] = []
    for info in infos:
        kept = re.sub(r"^[a-z0-9]+://|[?#].*", "", info.id) if info.live else Path(info.id).stem
        kept = kept or scheme_of(info.id) or ""
        plain = "".join(c if c.isalnum() or c in "-_. " else "_" for c in kept)
        stem = plain.strip(" ._") or "source"
        name, number = stem, 2
        while name.casefold() in {taken.casefold() for taken in names}:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def unique_ids(infos: Sequence[SourceInfo]) -> list[str]:
    """An id for each source: its own; equal ids are numbered."""
    seen: dict[str, int] = {}
    ids = []
    for info in infos:
        seen[info.id] = seen.get(info.id, 0) + 1
        ids.append(info.id if seen[info.id] == 1 else f"{info.id} ({seen[info.id]})")
    return ids


def _keep_apart(config: RunConfig, folders: Sequence[Path]) -> None:
    """Refuse results that would replace their own input, or each other.

    Raises:
        SinkError: they would; names the file.
    """
    inputs = [
        *(entry.uri for entry in config.source_list),
        *([config.boxes] if config.boxes else []),
        config.model,
        config.detector,
    ]
    read = {Path(path).resolve() for path in inputs if Path(path).exists()}  # models may be names instead of files
    names = [FORMATS[name].file_name for name in config.formats]
    written = [folder / name for folder in folders for name in names] if config.out else []
    written += [config.out / SUMMARY_NAME] if config.out else []
    for path in [*written, *([config.trace] if config.trace else [])]:
        if path.resolve() in read:
            raise SinkError(
                f"expected the results in another place than the sources, received {path} for both: choose another place"
            )
    if config.trace is not None and config.trace.resolve() in {path.resolve() for path in written}:
        raise SinkError(f"expected a trace file other than the results, received {config.trace}: choose another name")


def _check_camera(camera: Intrinsics, info: SourceInfo) -> None:
    """Refuse a principal point outside the picture: the intrinsics belong to pictures of another size."""
    if info.width and info.height and not (0 <= camera.cx <= info.width and 0 <= camera.cy <= info.height):
        raise GeometryError(
            f"expected the camera's principal point inside the {info.width}x{info.height} px pictures of {info.id}, received "
            f"cx={camera.cx:g}, cy={camera.cy:g}: give the intrinsics for pictures of this size"
        )


def open_estimator(
    config: RunConfig,
    models: Models,
    info: SourceInfo,
    *,
    camera: Intrinsics | None = None,
    given: GivenBoxes | None = None,
) -> Estimator:
    """Make the estimator of one source of a run.

    Args:
        config: the run's configuration.
        models: the models that `open_models` opened for it.
        info: the source's description.
        camera: its true intrinsics, or None to assume a field of view.
        given: the boxes from the file that the config names, or None without one.
    """
    model, detector = models.pose, models.people
    people: PeopleFinder = given or WholePicture()
    rotation_check = None
    if detector is not None:
        detect = detections_of(detector)
        sequential = info.live or info.frame_rate is not None  # pictures have no frame rate, and no order in time
        people = PeopleTracker(
            detect,
            model.info.joint_set,
            min_score=config.min_score,
            max_people=config.max_people,
            keep_lost_s=config.keep_lost_s,
            sequential=sequential,
        )
        rotation_check = RotationCheck(detect, model, min_score=config.min_score, sequential=sequential)
    return Estimator(model, people, camera=camera, rotation_check=rotation_check, world=config.world)


def open_pipeline(
    config: RunConfig | str | Path | SourceEntry | Sequence[str | Path | SourceEntry], models: Models | None = None
) -> Pipeline:
    """Make the pipeline that a config describes; iterate over it, or call its `run`, to run it.

    Every error in the config is found here, before a frame is read and before a result is touched.

    Args:
        config: the run's configuration; or only its sources, for the default configuration.
        models: models that the caller opened with `open_models`, to use them in several runs; the caller closes them. None to
            open them here; the pipeline then closes them.

    Raises:
        PoseError: sources, model, runtime, boxes or results are not available; says which, and what to do.
    """
    config = config if isinstance(config, RunConfig) else RunConfig(config)
    with ExitStack() as opened:
        sources: list[Source] = []
        for entry in config.source_list:
            source = open_source(
                entry.uri,
                stream=config.video_stream,
                on_damage=config.on_damage,
                live=config.live,
                loop=config.loop,
                timeouts=config.timeouts,
                options=config.camera_options,
                decode=config.decoder,
            )
            sources.append(source)
            opened.callback(source.close)
        entries = config.source_list
        infos = [replace(s.info, id=entry.name or s.info.id) for s, entry in zip(sources, entries, strict=True)]
        cameras = [entry.camera or config.camera for entry in entries]
        for camera, info in zip(cameras, infos, strict=True):
            if camera is not None:
                _check_camera(camera, info)
        names = source_names(infos)
        folders = result_folders(config.out, names) if config.out else []
        _keep_apart(config, folders)
        given = GivenBoxes.read(config.boxes) if config.boxes else None
        if given is not None and config.boxes is not None and infos[0].width and infos[0].height:
            given.check(config.boxes, infos[0].width, infos[0].height)
        owned: list[Callable[[], None]] = []
        if models is None:
            models = open_models(
                config.model,
                config.runtime,
                precision=config.precision,
                random_weights=config.random_weights,
                threads=config.threads,
                max_batch=MAX_BATCH if len(sources) > 1 else None,
                detector=config.detector if given is None else None,
                person=config.detector_class,
            )
            opened.callback(models.close)
            owned = [models.close]
        model, detector = models.pose, models.people
        trace = TraceRecorder(config.trace, overwrite=config.overwrite) if config.trace else None
        if config.out is not None:
            check_summary(config.out, overwrite=config.overwrite)
        segments = None if config.segment_s is None else Segments(config.segment_s, time.time_ns())
        streams = []
        places: list[Path | None] = [*folders] or [None] * len(sources)
        for source, info, camera, source_id, folder in zip(sources, infos, cameras, unique_ids(infos), places, strict=True):
            header = RunHeader(
                source=source_id,
                width=info.width,
                height=info.height,
                frame_rate=info.frame_rate,
                frame_count=info.frame_count,
                camera=camera or (Intrinsics.assumed(info.width, info.height) if info.width and info.height else None),
                root_depth_source=RootDepthSource.INTRINSICS if camera else RootDepthSource.ASSUMED_FOV,
                model=model.info,
                runtime=model.describe(),
                smooth=config.smooth,
            )
            recorders: list[Recorder] = []
            if folder is not None:
                divided = segments if info.live else None
                recorders = open_recorders(
                    folder, config.formats, header, overwrite=config.overwrite, segments=divided, export=config.export
                )
            streams.append(
                Stream(
                    source,
                    open_estimator(config, models, info, camera=camera, given=given),
                    header,
                    recorders=recorders,
                    renderer=PoseRenderer(model.info.joint_set) if any(r.needs_picture for r in recorders) else None,
                    caption=RANDOM_CAPTION if model.info.random else None,
                )
            )
        views: list[View] = []
        status = RunStatus(streams)
        for view in config.views:
            views.append(open_view(view, status))
            opened.callback(views[-1].close)
        at_end = None
        if config.out is not None:
            at_end = partial(write_summary, out=config.out, overwrite=config.overwrite)
        opened.pop_all()
    about = None if detector is None else f"{detector.name} ({detector.about}), {detector.describe()}"
    return Pipeline(streams, models=owned, detector=about, views=views, trace=trace, at_end=at_end)
