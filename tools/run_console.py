"""The console output of `convnextpose run`: at the start, during the run on a terminal, and at the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from convnextpose import weights
from convnextpose.camera import RootDepthSource
from convnextpose.checkpoint import claimed_variant
from convnextpose.world import World, WorldOrigin
from engines.manifest import is_engine
from engines.opening import choose_precision
from engines.sessions.registry import Choice, choose_runtime
from engines.sessions.triton import is_served
from pipeline.ledger import Reasons
from pipeline.people import MIN_SCORE, PICTURE_MIN_SCORE
from pipeline.run import RunConfig
from pipeline.sources.live import LOST, STALLED
from pipeline.status import RunStatus
from pipeline.stream import Stream
from pipeline.streams import Pipeline
from pipeline.summary import NAME as SUMMARY_NAME

_TONES = {"running": "green", "live": "green", "connecting": "yellow", "stalled": "yellow", "lost": "red", "broken": "red"}
"""Colours of states on a terminal."""

_SHOWN_PEOPLE = 10
"""Number of people that the console lists."""

_SHOWN_REASONS = 5
"""Number of reasons of a kind that the console lists."""


def status_lines(status: RunStatus) -> Table:
    """A line for each source: name, state with the cause, progress, speed, age and drops."""
    table = Table.grid(padding=(0, 2))
    for source in status.sources():
        state, counts = source.state, source.counts
        total, done = source.frame_count, counts.posed
        numbers = [f"{source.fps_out:.1f} fps"]
        if source.age_ms is not None:
            numbers.append(f"age {source.age_ms:.0f} ms")
        if counts.dropped:
            numbers.append(f"{counts.dropped} dropped")
        if counts.failed:
            numbers.append(f"{counts.failed} failed")
        table.add_row(
            escape(source.source),
            f"[{_TONES.get(state.state, 'default')}]{escape(state.state)}[/]",
            ProgressBar(total, done, width=24) if total else "",
            f"{done}/{total}" if total else f"{done} frames",
            ", ".join(numbers),
            escape(state.cause),
        )
    return table


def print_head(console: Console, pipeline: Pipeline, config: RunConfig) -> None:
    """Print the head of a run: sources, weights, runtime, where depth comes from, views."""
    for stream in pipeline.streams:
        header = stream.header
        size = f"{header.width}x{header.height}" if header.width else "live"
        rate = f", {header.frame_rate:.4g} fps" if header.frame_rate else ""
        frames = f", {header.frame_count} frames" if header.frame_count else ""
        console.print(f"source   {escape(header.source)} ({size}{rate}{frames})")
        for note in stream.source.info.notes:
            console.print(f"         {escape(note)}")
    header = pipeline.header
    if header.model.random:
        quality = "[bold red]random weights: these poses mean nothing[/]"
    elif shipped := weights.by_checkpoint(header.model.checkpoint_sha256):
        quality = shipped.summary
    else:
        quality = f"your own weights, not measured here; checkpoint {header.model.checkpoint_sha256[:12]}"
    console.print(f"weights  {escape(header.model.name)} (variant {header.model.variant.name}): {quality}")
    claim = None if is_served(config.runtime) else claimed_variant(Path(config.model).name)
    if claim is not None and claim is not header.model.variant:
        wrong = f"the name of {config.model} claims variant {claim.name}, its tensors are variant {header.model.variant.name}"
        console.print(f"[bold red]WRONG NAME[/]  {escape(wrong)}")
    runtime = choose_runtime(config.runtime, engine=is_engine(Path(config.model)))
    console.print(f"runtime  {escape(str(header.runtime))}{escape(_because(config.runtime, runtime))}")
    precision = choose_precision(config.precision, runtime.name, header.model)
    console.print(f"         {precision.name}{escape(_because(config.precision, precision))}")
    if pipeline.detector is not None:
        console.print(f"detector {escape(pipeline.detector)}")
    guessed = [s.header.source for s in pipeline.streams if s.header.root_depth_source is RootDepthSource.ASSUMED_FOV]
    depth = "an assumed field of view: depths and scale are a guess" if guessed else "the given camera"
    of = f" for {', '.join(guessed)}" if 0 < len(guessed) < len(pipeline.streams) else ""
    console.print(f"depth    from {escape(depth + of)}")
    for view_thread in pipeline.view_threads:
        console.print(f"view     {escape(view_thread.view.address)} ({view_thread.view.name})", soft_wrap=True)


def _because(asked: str, choice: Choice) -> str:
    return ", as asked for" if asked != "auto" else f", chosen because {choice.reason}"


def print_end(console: Console, pipeline: Pipeline, config: RunConfig) -> None:
    """Print the outcome of a run: the counts of each source's frames, and the files that were written."""
    for stream in pipeline.streams:
        console.print()
        if len(pipeline.streams) > 1:
            console.print(f"[bold]{escape(stream.header.source)}[/]")
        _print_stream(console, stream, config)
    for view_thread in pipeline.view_threads:
        if view_thread.error is not None:
            console.print(f"[yellow]{view_thread.view.name} stopped before the end[/]: {escape(view_thread.error)}")
    for file in pipeline.outputs:
        console.print(f"wrote    {escape(str(file.path))} ({file.frames} frames)")
    if pipeline.summary is not None:
        console.print(f"wrote    {escape(str(pipeline.summary))}")


def _print_stream(console: Console, stream: Stream, config: RunConfig) -> None:
    table = Table(title=None, box=None, pad_edge=False)
    for heading in ("stage", "p50 ms", "p95 ms", "p99 ms", "waiting ms", "share"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in stream.timing.statistics():
        numbers = (row.p50_ms, row.p95_ms, row.p99_ms, row.wait_p50_ms)
        table.add_row(row.stage, *(f"{n:.2f}" for n in numbers), f"{row.share:.0%}")
    console.print(table)
    timing, counts = stream.timing, stream.ledger.counts()
    console.print()
    if counts.posed:
        console.print(
            f"speed    {timing.frames_per_second:.1f} frames a second over {timing.elapsed_s:.2f} s; "
            f"latency p50 {timing.latency_ms(50):.1f} ms, p99 {timing.latency_ms(99):.1f} ms"
        )
    console.print(f"frames   {counts}")
    _print_reasons(console, counts.drop_reasons, "dropped")
    _print_reasons(console, counts.failures, "failed")
    for name, count in stream.missed.items():
        if count:
            console.print(f"         {count} missed by {escape(name)}, which was too slow")
    if stream.world is not None:
        console.print(f"world    {escape(world_text(stream.world))}")
    troubles = Counter((each.state, each.cause) for each in stream.states if each.state in (STALLED, LOST))
    for (state, cause), count in troubles.most_common(_SHOWN_REASONS):
        console.print(f"camera   {count} times {state}: {escape(cause)}")
    people = stream.people.all()
    console.print(f"people   {len(people)}; a pose in {counts.with_person} of {counts.posed} frames")
    for person in people[:_SHOWN_PEOPLE]:
        gaps = {0: "", 1: ", one gap"}.get(person.gaps, f", {person.gaps} gaps")
        console.print(
            f"         person {person.track_id}: {person.first_s:.2f} to {person.last_s:.2f} s, {person.poses} poses{gaps}"
        )
    if len(people) > _SHOWN_PEOPLE:
        console.print(f"         {len(people) - _SHOWN_PEOPLE} more people: see {SUMMARY_NAME}")
    _print_reasons(console, counts.problems, "without a pose")
    if counts.posed and not counts.with_person and not counts.problems:
        if config.boxes:
            advice = f"no frame has a box in {config.boxes}: its frames count from 0"
        else:
            now = f"{MIN_SCORE}, or {PICTURE_MIN_SCORE} in single pictures" if config.min_score is None else config.min_score
            advice = "nobody was found, not even in rotated pictures: give --boxes, or lower --min-score "
            advice += f"(now {now}) if there are people"
        console.print(f"         {escape(advice)}")


def world_text(world: World) -> str:
    """A sentence on the camera's position, and how it is known."""

    def known(origin: WorldOrigin, error: str | None) -> str:
        return f"estimated{'' if error is None else f', ±{error}'}" if origin is WorldOrigin.ESTIMATED else origin.value

    tilt = None if world.tilt_error_degrees is None else f"{world.tilt_error_degrees:.1f}°"
    off = None if world.height_error_mm is None else f"{world.height_error_mm / 1000:.2f} m"
    return (
        f"the camera looks {abs(world.pitch_degrees):.1f}° {'down' if world.pitch_degrees >= 0 else 'up'}, roll "
        f"{world.roll_degrees:.1f}° ({known(world.origin, tilt)}); {world.height_mm / 1000:.2f} m above the floor "
        f"({known(world.height_origin, off)})"
    )


def _print_reasons(console: Console, reasons: Reasons, what: str) -> None:
    for reason, count in reasons[:_SHOWN_REASONS]:
        console.print(f"         {count} {what}: {escape(reason)}")
    if rest := reasons[_SHOWN_REASONS:]:
        console.print(f"         {sum(count for _, count in rest)} {what} for {len(rest)} more reasons: see {SUMMARY_NAME}")
