"""`convnextpose run`: videos, pictures or folders in, 3D poses out."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import webbrowser
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape

from convnextpose import weights
from convnextpose.camera import Intrinsics
from convnextpose.errors import GeometryError, StageError
from convnextpose.world import GivenWorld
from engines.opening import CPU_PRECISIONS
from engines.sessions.registry import runtime_help
from pipeline.formats.motion import Export
from pipeline.formats.names import NAMES
from pipeline.formats.table import DEFAULT_FORMATS, FORMATS
from pipeline.people import MIN_SCORE, PICTURE_MIN_SCORE
from pipeline.people.tracker import KEEP_LOST_S, MAX_PEOPLE
from pipeline.run import RunConfig, SourceEntry, open_pipeline, read_sources
from pipeline.sources.orientation import FLIPS
from pipeline.status import RunStatus
from pipeline.streams import Pipeline
from pipeline.views.base import LOOPBACK, Endpoint
from pipeline.views.osc import STYLES
from pipeline.views.table import ViewConfig
from tools.console import make_console
from tools.run_console import print_end, print_head, status_lines

_STOP_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGHUP"):
    _STOP_SIGNALS[signal.SIGHUP] = "SIGHUP"

_CAMERA_HELP = {
    "size": "Ask a camera for pictures of this size, px.",
    "rate": "Ask a camera for this frame rate, frames a second.",
    "format": "Ask a camera for a pixel format or codec, such as mjpeg or yuyv422.",
    "flip": f"Rotate or mirror the pictures of cameras and files: {', '.join(FLIPS)} (clockwise).",
    "transport": "Transport of an RTSP camera: tcp or udp.",
    "latency": "How long to wait for a network camera's packets that arrive out of order, ms.",
}
"""Options that can also be part of a camera's address (docs/live.md)."""

DetectorOption = Annotated[
    str,
    typer.Option(
        metavar="xs|FILE",
        help="The people detector: xs, which is the package's own, or an .onnx file (YOLOX, YOLOv5 and "
        "later, RT-DETR, RF-DETR, RTMDet, SSD: docs/people.md) or an .engine file.",
    ),
]
DetectorClassOption = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS",
        help="The detector's class of people, by name or number; needed only if its file does not name it.",
        show_default=False,
    ),
]
MinScoreOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        show_default=f"{MIN_SCORE}, or {PICTURE_MIN_SCORE} in single pictures",
        help="Lowest mean joint score that counts as a person. In single pictures two thirds of it are enough if the "
        "detector's score is high.",
    ),
]
FlipOption = Annotated[str | None, typer.Option(help=_CAMERA_HELP["flip"], show_default=False)]

NAMES_HELP = f"auto (what fits the format), {', '.join(NAMES)}."


def parse_camera(text: str) -> Intrinsics:
    """The intrinsics from an option's text."""
    try:
        return Intrinsics.parse(text)
    except GeometryError as error:
        raise typer.BadParameter(str(error)) from error


def _endpoint(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text)
    if found is None:
        raise typer.BadParameter(f"expected a time such as 30s, 10m or 1h, received {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def given_options(**options: str | float | None) -> tuple[tuple[str, str], ...]:
    """The given options, in the form of a camera's address."""
    return tuple(
        (name, f"{value:g}" if isinstance(value, float) else value) for name, value in options.items() if value is not None
    )


def given_world(camera_pose: Path | None, pitch: float | None, roll: float | None, height_m: float | None) -> GivenWorld:
    """The camera's position, as given on the command line."""
    if camera_pose is None:
        try:
            return GivenWorld.of_angles(pitch, roll, height_m)
        except GeometryError as error:
            raise typer.BadParameter(str(error)) from error
    if (pitch, roll, height_m) != (None, None, None):
        raise typer.BadParameter("expected --camera-pose, or angles and a height, received both: the file has all of them")
    return GivenWorld.read(camera_pose)


def run_command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Video files, pictures, folders of pictures, or cameras: 0, /dev/video0, csi://0, rtsp://, http://, udp://, "
            "rtp://, test://.",
            show_default=False,
            metavar="SOURCE...",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the results; with several sources each gets its own folder in it. Without --out nothing is "
            "written; without --view, --tcp or --osc as well, the run is shown in a browser, with files in a loop.",
            show_default=False,
        ),
    ] = None,
    sources_file: Annotated[
        Path | None,
        typer.Option(
            "--sources", help="File with one source on each line: name, URI and, if known, fx,fy,cx,cy.", show_default=False
        ),
    ] = None,
    formats: Annotated[str, typer.Option(help=f"Formats to write, separated by commas: {', '.join(FORMATS)}.")] = ",".join(
        DEFAULT_FORMATS
    ),
    names: Annotated[str, typer.Option(help=f"Names of joints and bones in files for other programs: {NAMES_HELP}")] = "auto",
    fill: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Interpolate gaps up to this long in files for other programs.")
    ] = 0.0,
    model: Annotated[
        str,
        typer.Option(help="Default weights by name (xs), a checkpoint of the authors, an exported .onnx, or an .engine file."),
    ] = "xs",
    runtime: Annotated[str, typer.Option(help=runtime_help())] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help=f"Precision of the network on a CPU: auto, {', '.join(CPU_PRECISIONS)}. auto takes bf16 if the CPU "
            "supports it and the model was proven in it, otherwise fp32."
        ),
    ] = "auto",
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="The people's boxes, px: CSV with frame,x,y,width,height[,track_id], MOTChallenge's lines, or an earlier "
            "poses.ndjson. Without it people are detected and tracked."
        ),
    ] = None,
    detector: DetectorOption = weights.DETECTOR_NAME,
    detector_class: DetectorClassOption = None,
    camera: Annotated[
        Intrinsics | None,
        typer.Option(
            parser=parse_camera,
            metavar="FX,FY,CX,CY",
            help="The camera's intrinsics, px. Without them a field of view of 60 degrees is assumed, and depths are a guess.",
        ),
    ] = None,
    camera_pose: Annotated[
        Path | None,
        typer.Option(
            "--camera-pose",
            help="The camera's place in the world: JSON with world_from_camera, 3 rows of 4 numbers, mm, y up, the floor at 0.",
            show_default=False,
        ),
    ] = None,
    pitch: Annotated[
        float | None,
        typer.Option(metavar="DEGREES", help="How far the camera looks down; estimated if not given."),
    ] = None,
    roll: Annotated[
        float | None, typer.Option(metavar="DEGREES", help="How far the camera is rotated clockwise about its line of sight.")
    ] = None,
    camera_height: Annotated[
        float | None,
        typer.Option("--camera-height", metavar="METRES", help="The camera's height above the floor; estimated if not given."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write the timeline of every frame here; ui.perfetto.dev opens it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
    min_score: MinScoreOption = None,
    max_people: Annotated[
        int, typer.Option(min=1, help="Largest number of people tracked at once; if there are more, the nearest.")
    ] = MAX_PEOPLE,
    keep_lost: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long a person who is out of sight keeps the track id.")
    ] = KEEP_LOST_S,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="Also write poses smoothed over time; videos and views always show those.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the runtime; by default its own choice.", show_default=False)
    ] = None,
    video_stream: Annotated[
        int | None,
        typer.Option("--stream", min=0, help="Which of a file's video streams to read; by default the one that players show."),
    ] = None,
    on_damage: Annotated[
        str, typer.Option(help="At damage in a recording: `stop` ends there, `skip` goes on after it and counts what was lost.")
    ] = "stop",
    decode: Annotated[
        str,
        typer.Option(
            help="What decodes video: auto, cpu, nvdec (an NVIDIA GPU; the CPU if there is none). auto takes nvdec if the "
            "model is an engine."
        ),
    ] = "auto",
    view: Annotated[
        Endpoint | None,
        typer.Option(
            parser=_endpoint,
            metavar="[HOST:]PORT",
            help="Show the run in a browser: pictures, skeletons, a 3D view, numbers. For other machines (0.0.0.0:8080) it "
            "asks for a token, which is printed once.",
        ),
    ] = None,
    tcp: Annotated[
        Endpoint | None,
        typer.Option(parser=_endpoint, metavar="[HOST:]PORT", help="Serve the newest poses as lines of JSON over TCP."),
    ] = None,
    osc: Annotated[
        Endpoint | None,
        typer.Option(
            parser=_endpoint, metavar="[HOST:]PORT", help="Send the newest poses as OSC over UDP, one bundle a frame."
        ),
    ] = None,
    osc_style: Annotated[
        str, typer.Option(help=f"What the bundles hold: {', '.join(STYLES)}; VMC listens on port 39539, VRChat on 9000.")
    ] = "vmc",
    live: Annotated[bool, typer.Option("--live", help="Play files as cameras: in real time, newest frame only.")] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Like --live, in a loop.")] = False,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help=_CAMERA_HELP["size"], show_default=False)] = None,
    rate: Annotated[float | None, typer.Option(help=_CAMERA_HELP["rate"], show_default=False)] = None,
    pixel_format: Annotated[str | None, typer.Option(help=_CAMERA_HELP["format"], show_default=False)] = None,
    flip: FlipOption = None,
    transport: Annotated[str | None, typer.Option(help=_CAMERA_HELP["transport"], show_default=False)] = None,
    latency: Annotated[float | None, typer.Option(help=_CAMERA_HELP["latency"], show_default=False)] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="End the run after this many seconds.", show_default=False)
    ] = None,
    segment: Annotated[
        float | None,
        typer.Option(
            parser=_duration,
            metavar="TIME",
            help="Record cameras in segments of this length, such as 10m, each in a folder of its own.",
            show_default=False,
        ),
    ] = None,
    weights_kind: Annotated[
        str, typer.Option("--weights", help="`trained`, or `random` for benchmarks: poses then mean nothing and are marked so.")
    ] = "trained",
) -> None:
    """Turn videos and cameras into 3D poses: an annotated MP4, poses as NDJSON and NPZ, a summary.

    A camera may be absent, or disconnect for a while: the run goes on and reconnects until it is stopped.

    Exit codes: 0 done; 1 a source, the model or a stage failed (what was finished before is kept); 2 wrong use;
    130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (what was finished is kept).
    """
    if weights_kind not in ("trained", "random"):
        raise typer.BadParameter(f"expected trained or random, received {weights_kind!r}", param_hint="--weights")
    if osc_style not in STYLES:
        raise typer.BadParameter(f"expected {', '.join(STYLES)}, received {osc_style!r}", param_hint="--osc-style")
    asked = (("page", view), ("tcp", tcp), (f"osc-{osc_style}", osc))
    views = tuple(ViewConfig(kind, endpoint) for kind, endpoint in asked if endpoint is not None)
    watching = out is None and not views
    if watching:  # without other outputs, people most likely want to watch for as long as they like
        views, loop = (ViewConfig("page", Endpoint(LOOPBACK, 0)),), True
    entries = [*(SourceEntry(uri) for uri in sources or ()), *(read_sources(sources_file) if sources_file else ())]
    if not entries:
        raise typer.BadParameter("expected at least one source, received none: name one, or a file of them with --sources")
    try:
        config = RunConfig(
            sources=entries,
            model=model,
            runtime=runtime,
            precision=precision,
            out=out,
            formats=tuple(name.strip() for name in formats.split(",") if name.strip()),
            export=Export(names, fill),
            overwrite=overwrite,
            boxes=boxes,
            detector=detector,
            detector_class=detector_class,
            camera=camera,
            world=given_world(camera_pose, pitch, roll, camera_height),
            trace=trace,
            random_weights=weights_kind == "random",
            min_score=min_score,
            max_people=max_people,
            keep_lost_s=keep_lost,
            smooth=smooth,
            threads=threads,
            video_stream=video_stream,
            on_damage=on_damage,
            decode=decode,
            views=views,
            live=live,
            camera_options=given_options(
                size=size, rate=rate, format=pixel_format, flip=flip, transport=transport, latency=latency
            ),
            loop=loop,
            segment_s=segment,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = make_console()
    pipeline = open_pipeline(config)
    print_head(console, pipeline, config)
    if watching:
        address = pipeline.view_threads[0].view.address
        console.print(
            f"watch    open {escape(address)} in a browser; nothing is written (--out DIR keeps the poses), Ctrl-C ends it"
        )
        if console.is_terminal:
            threading.Thread(target=_open_browser, args=(address,), daemon=True).start()
    failure: StageError | None = None
    stopped_by: list[signal.Signals] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopped_by.append(signal.Signals(number))
        raise KeyboardInterrupt

    for number in _STOP_SIGNALS:
        signal.signal(number, stop)
    timer = threading.Timer(seconds, pipeline.stop) if seconds else None
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        _follow(pipeline)
    except KeyboardInterrupt:
        # Closing is bounded in time; a second signal would cost the results that it finishes.
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    except StageError as error:
        failure = error
    if timer is not None:
        timer.cancel()
    try:
        pipeline.close()
    except StageError as error:
        failure = failure or error
    print_end(console, pipeline, config)
    if stopped_by:
        console.print(f"[yellow]stopped by {_STOP_SIGNALS[stopped_by[0]]}[/]: what was finished before it is kept")
        raise typer.Exit(128 + stopped_by[0])
    if failure is not None:
        raise failure
    counts = [stream.ledger.counts() for stream in pipeline.streams]
    if any(each.failed and not each.posed for each in counts):
        raise typer.Exit(1)


def _open_browser(address: str) -> None:
    """Open the page if there is a display: otherwise a text browser might take over the terminal."""
    with contextlib.suppress(webbrowser.Error):
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser:
            browser.open(address)


def _follow(pipeline: Pipeline) -> None:
    """Run it, on a terminal with a status line for each source, elsewhere silently."""
    screen = make_console(stderr=True, soft_wrap=False)
    if not screen.is_terminal:
        pipeline.run()
        return
    lines = partial(status_lines, RunStatus(pipeline.streams))
    with Live(get_renderable=lines, console=screen, refresh_per_second=5, transient=True):
        pipeline.run()
