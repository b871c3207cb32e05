"""`convnextpose archive`: turns every video in some folders into poses; the same command resumes after an interruption."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from convnextpose import weights
from convnextpose.camera import Intrinsics
from convnextpose.files import size_text
from engines.opening import CPU_PRECISIONS
from engines.sessions.registry import runtime_help
from pipeline.archive.ledger import DAMAGED, DONE, FAILED, NAME, SAME, UNREADABLE
from pipeline.archive.on_ray import ray_pool
from pipeline.archive.pool import local_pool
from pipeline.archive.run import ArchiveRun, ArchiveSummary, Progress
from pipeline.formats.table import FORMATS
from pipeline.people.tracker import KEEP_LOST_S, MAX_PEOPLE
from pipeline.run import RunConfig
from tools.console import make_console
from tools.run import DetectorClassOption, DetectorOption, FlipOption, MinScoreOption, given_options, parse_camera

_LINE_EVERY_S = 60.0
"""Time between two progress lines without a terminal, s."""

_SHOWN_PROBLEMS = 10
_SHOWN_SUFFIXES = 8

_MEANINGS = {
    DONE: "complete",
    DAMAGED: "damaged: poses as far as they could be read",
    UNREADABLE: "unreadable: no results",
    SAME: "the same content as another file, which has the results",
    FAILED: "failed: tried again by the next run",
}


def archive_command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of videos, with their subfolders.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results and the ledger of jobs.", show_default=False)],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Files at a time.", show_default="half of the cores; 1 for an engine; with Ray all that fit"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Use a Ray cluster, whose nodes share the folders and OUT: its address, `auto`, or `local` for one here.",
        ),
    ] = None,
    formats: Annotated[str, typer.Option(help=f"Formats to write, separated by commas: {', '.join(FORMATS)}.")] = "ndjson",
    model: Annotated[
        str, typer.Option(help="Default weights by name, a checkpoint of the authors, an exported .onnx, or an .engine file.")
    ] = "xs",
    runtime: Annotated[str, typer.Option(help=runtime_help())] = "auto",
    precision: Annotated[
        str, typer.Option(help=f"Precision of the network on a CPU: auto, {', '.join(CPU_PRECISIONS)}.")
    ] = "auto",
    detector: DetectorOption = weights.DETECTOR_NAME,
    detector_class: DetectorClassOption = None,
    camera: Annotated[
        Intrinsics | None,
        typer.Option(parser=parse_camera, metavar="FX,FY,CX,CY", help="The intrinsics, px, if all videos are of one camera."),
    ] = None,
    min_score: MinScoreOption = None,
    max_people: Annotated[int, typer.Option(min=1, help="Largest number of people tracked at once.")] = MAX_PEOPLE,
    keep_lost: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long a person who is out of sight keeps the track id.")
    ] = KEEP_LOST_S,
    smooth: Annotated[bool, typer.Option("--smooth", help="Also write poses smoothed over time.")] = False,
    flip: FlipOption = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each worker's runtime.", show_default="the cores divided by workers")
    ] = None,
    on_damage: Annotated[
        str, typer.Option(help="At damage in a video: `stop` ends there, `skip` goes on after it and counts what was lost.")
    ] = "stop",
) -> None:
    """Turn every video in some folders into poses; run the same command again to continue after an interruption.

    The results of FOLDER/a/b.mp4 are in OUT/FOLDER/a/b.mp4/. OUT/ledger.ndjson has the outcome of each file.

    Exit codes: 0 no file failed (damaged and unreadable files are reported); 1 some failed for another reason and are tried
    again by the next run; 2 wrong use; 130 stopped by Ctrl-C.
    """
    console = make_console()
    try:
        config = RunConfig(
            sources=tuple(folders),
            model=model,
            runtime=runtime,
            precision=precision,
            out=out,
            formats=tuple(name.strip() for name in formats.split(",") if name.strip()),
            detector=detector,
            detector_class=detector_class,
            camera=camera,
            min_score=min_score,
            max_people=max_people,
            keep_lost_s=keep_lost,
            smooth=smooth,
            camera_options=given_options(flip=flip),
            threads=threads,
            on_damage=on_damage,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run = ArchiveRun(config, local_pool(workers) if ray is None else ray_pool(ray, workers))
    try:
        summary = _follow(run)
    except KeyboardInterrupt:
        console.print(
            f"[yellow]stopped by Ctrl-C[/]: {run.progress.finished} of {run.progress.files} files are finished; run the same "
            "command again to continue"
        )
        raise typer.Exit(130) from None
    _print_end(console, summary, out)
    if summary.progress.counts[FAILED]:
        raise typer.Exit(1)


def _follow(run: ArchiveRun) -> ArchiveSummary:
    """Run it, on a terminal with a progress bar, elsewhere with one line a minute."""
    screen = make_console(stderr=True, soft_wrap=False)
    if screen.is_terminal:
        with Live(get_renderable=lambda: _line(run.progress), console=screen, refresh_per_second=2, transient=True):
            return run.run()
    told = time.monotonic()

    def on_progress(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= _LINE_EVERY_S:
            told = time.monotonic()
            screen.print(_words(progress), soft_wrap=True)

    return run.run(on_progress)


def _line(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(ProgressBar(max(1, progress.files), progress.finished, width=24), _words(progress))
    return table


def _words(progress: Progress) -> str:
    words = [f"{progress.finished} of {progress.files} files"]
    words += [f"{count} {status}" for status, count in progress.counts.items() if status != DONE]
    words += [f"{progress.in_progress} in work", f"{size_text(progress.remaining_bytes)} left"]
    if progress.remaining_s is not None:
        words.append(f"about {_duration(progress.remaining_s)} left")
    return ", ".join(words)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "a minute"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{round(minutes / 1440)} days"


def _print_end(console: Console, summary: ArchiveSummary, out: Path) -> None:
    progress, found = summary.progress, summary.found
    for folder in found.unreadable:
        console.print(f"[yellow]not searched[/]: {escape(folder)}")
    if found.skipped:
        kinds = ", ".join(f"{count} {escape(kind)}" for kind, count in found.skipped.most_common(_SHOWN_SUFFIXES))
        more = ", ..." if len(found.skipped) > _SHOWN_SUFFIXES else ""
        console.print(f"skipped {found.skipped.total()} files whose names are not those of videos: {kinds}{more}")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    if progress.finished_before:
        table.add_row(str(progress.finished_before), "finished by earlier runs")
    for status, meaning in _MEANINGS.items():
        if count := progress.counts[status]:
            table.add_row(str(count), meaning)
    table.add_row(str(progress.files), f"in all; {progress.frames} frames in {_duration(summary.seconds)}")
    console.print(table)
    for record in summary.problems[:_SHOWN_PROBLEMS]:
        console.print(f"{record.status:<10} {escape(record.file)}: {escape(record.reason)}")
    if (rest := len(summary.problems) - _SHOWN_PROBLEMS) > 0:
        console.print(f"           {rest} more")
    console.print(f"wrote      {escape(str(out))}; {NAME} in it says what became of each file")
