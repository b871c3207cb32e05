"""`convnextpose run`: a video, a picture or a folder in, 3D poses out."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from convnextpose import weights
from convnextpose.camera import Intrinsics
from convnextpose.checkpoint import claimed_variant
from convnextpose.errors import GeometryError, StageError
from engines.select import ENGINE_SUFFIX, choose_runtime, is_engine
from pipeline.people import MIN_SCORE
from pipeline.run import RunConfig, open_pipeline
from pipeline.threads import Pipeline
from tools.console import make_console


def _camera(text: str) -> Intrinsics:
    try:
        return Intrinsics.parse(text)
    except GeometryError as error:
        raise typer.BadParameter(str(error)) from error


def run_command(
    source: Annotated[Path, typer.Argument(help="A video file, a picture, or a folder of pictures.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for poses.mp4, poses.ndjson and poses.npz.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(help="Default weights by name (xs), a checkpoint of the authors, an exported .onnx, or an .engine file."),
    ] = "xs",
    engine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.engine",
            help="A TensorRT engine of `convnextpose build` to run in place of a model.",
            show_default=False,
        ),
    ] = None,
    runtime: Annotated[str, typer.Option(help="auto, openvino, onnxruntime, torch, or tensorrt for an engine.")] = "auto",
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="The people's boxes, px: CSV with frame,x,y,width,height[,track_id], or an earlier poses.ndjson. "
            "Without it one person is found and followed."
        ),
    ] = None,
    camera: Annotated[
        Intrinsics | None,
        typer.Option(
            parser=_camera,
            metavar="FX,FY,CX,CY",
            help="The camera's intrinsics, px. Without them a field of view of 60 degrees is assumed, and depths are a guess.",
        ),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write the timeline of every frame here; ui.perfetto.dev opens it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are in the folder already.")] = False,
    min_score: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Mean joint score from which somebody counts as a person.")
    ] = MIN_SCORE,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the runtime; its own choice if not given.", show_default=False)
    ] = None,
    weights_kind: Annotated[
        str, typer.Option("--weights", help="`trained`, or `random` for benchmarks: poses then mean nothing, and say so.")
    ] = "trained",
) -> None:
    """Turn a video into 3D poses: an annotated MP4, poses as NDJSON and NPZ, and the time of every stage.

    Exit codes: 0 done; 1 the source, the model or a stage failed (what was finished before is kept); 2 wrong use;
    130 stopped by Ctrl-C (what was finished is kept).
    """
    if weights_kind not in ("trained", "random"):
        raise typer.BadParameter(f"expected trained or random, received {weights_kind!r}", param_hint="--weights")
    if engine is not None and (weights_kind == "random" or model != "xs"):
        other = "--weights random" if weights_kind == "random" else f"--model {model}"
        raise typer.BadParameter(f"expected an engine or a model, received {engine} and {other}", param_hint="--engine")
    if engine is not None and engine.suffix != ENGINE_SUFFIX:
        raise typer.BadParameter(f"expected a file named *{ENGINE_SUFFIX}, received {engine}", param_hint="--engine")
    config = RunConfig(
        source=source,
        model=model,
        runtime=runtime,
        out=out,
        overwrite=overwrite,
        boxes=boxes,
        camera=camera,
        trace=trace,
        random_weights=weights_kind == "random",
        min_score=min_score,
        threads=threads,
        engine=engine,
    )
    console = make_console()
    pipeline = open_pipeline(config)
    _print_head(console, pipeline, config)
    failure: StageError | None = None
    interrupted = False
    try:
        _follow(pipeline)
    except KeyboardInterrupt:
        interrupted = True
        # Closing is bounded in time; a second Ctrl-C would cost the results that it finishes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except StageError as error:
        failure = error
    try:
        pipeline.close()
    except StageError as error:
        failure = failure or error
    _print_end(console, pipeline, config)
    if interrupted:
        console.print("[yellow]stopped by Ctrl-C[/]: what was finished before it is kept")
        raise typer.Exit(130)
    if failure is not None:
        raise failure
    counts = pipeline.ledger.counts()
    if counts.failed and not counts.processed:
        raise typer.Exit(1)


def _follow(pipeline: Pipeline) -> None:
    """Run it, with a progress bar on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]:.1f} fps"),
        TimeRemainingColumn(),
    )
    screen = make_console(stderr=True, soft_wrap=False)
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as progress:
        task = progress.add_task("frames", total=pipeline.header.frame_count, fps=0.0)
        for _ in pipeline:
            progress.update(task, advance=1, fps=pipeline.timing.frames_per_second)


def _print_head(console: Console, pipeline: Pipeline, config: RunConfig) -> None:
    header = pipeline.header
    size = f"{header.width}x{header.height}"
    rate = f", {header.frame_rate:.4g} fps" if header.frame_rate else ""
    frames = f", {header.frame_count} frames" if header.frame_count else ""
    console.print(f"source   {escape(header.source)} ({size}{rate}{frames})")
    if header.model.random:
        quality = "[bold red]random weights: these poses mean nothing[/]"
    elif shipped := weights.by_checkpoint(header.model.checkpoint_sha256):
        quality = shipped.summary
    else:
        quality = f"your own weights, not measured here; checkpoint {header.model.checkpoint_sha256[:12]}"
    console.print(f"weights  {escape(header.model.name)} (variant {header.model.variant.name}): {quality}")
    claim = claimed_variant(Path(config.network).name)
    if claim is not None and claim is not header.model.variant:
        wrong = f"the name of {config.network} claims variant {claim.name}, its tensors are variant {header.model.variant.name}"
        console.print(f"[bold red]WRONG NAME[/]  {escape(wrong)}")
    console.print(f"runtime  {escape(str(header.runtime))}{_why(config)}")
    depth = "the given camera" if config.camera else "an assumed field of view: depths and scale are a guess"
    console.print(f"depth    from {depth}")


def _why(config: RunConfig) -> str:
    if config.runtime != "auto":
        return ", as asked for"
    return f", chosen because {choose_runtime(engine=is_engine(Path(config.network))).reason}"


def _print_end(console: Console, pipeline: Pipeline, config: RunConfig) -> None:
    table = Table(title=None, box=None, pad_edge=False)
    for heading in ("stage", "p50 ms", "p95 ms", "p99 ms", "waiting ms", "share"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in pipeline.timing.statistics():
        numbers = (row.p50_ms, row.p95_ms, row.p99_ms, row.wait_p50_ms)
        table.add_row(row.stage, *(f"{n:.2f}" for n in numbers), f"{row.share:.0%}")
    console.print()
    console.print(table)
    timing, counts = pipeline.timing, pipeline.ledger.counts()
    console.print()
    if counts.processed:
        console.print(
            f"speed    {timing.frames_per_second:.1f} frames a second over {timing.elapsed_s:.2f} s; "
            f"latency p50 {timing.latency_ms(50):.1f} ms, p99 {timing.latency_ms(99):.1f} ms"
        )
    console.print(f"frames   {counts}")
    for reason, count in counts.reasons:
        console.print(f"         {count} failed: {escape(reason)}")
    console.print(f"people   a pose in {counts.with_person} of {counts.processed} frames")
    for reason, count in counts.problems:
        console.print(f"         {count} without a pose: {escape(reason)}")
    if counts.processed and not counts.with_person and not counts.problems:
        if config.boxes:
            advice = f"no frame has a box in {config.boxes}: its frames count from 0"
        else:
            advice = f"nobody was found: give --boxes, or lower --min-score (now {config.min_score:g}) if someone is there"
        console.print(f"         {escape(advice)}")
    for path in pipeline.outputs:
        console.print(f"wrote    {escape(str(path))}")
