"""`convnextpose cameras`: the cameras of this computer with their formats, and the test of a camera for `doctor --camera`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.sources import open_source
from pipeline.sources.probe import probe
from pipeline.sources.v4l2 import Device, list_devices
from tools.console import make_console


def cameras_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON, for a program.")] = False,
) -> None:
    """List the cameras of this computer with their sizes and frame rates; `convnextpose run` takes their paths.

    Network cameras and a Jetson's CSI cameras are not listed: name them as rtsp://... and csi://0.
    """
    devices = list_devices()
    if as_json:
        typer.echo(json.dumps([asdict(device) for device in devices], indent=2))
        return
    console = make_console(soft_wrap=True)
    if not devices:
        console.print("no camera: plug one in, or name a network camera as rtsp://host/path")
    for device in devices:
        _print_device(console, device)


def _print_device(console: Console, device: Device) -> None:
    console.print(f"[bold]{escape(device.path)}[/]  {escape(device.name)}")
    if device.problem:
        console.print(f"  {escape(device.problem)}: add the user to the group video, or close the program that has it")
    for mode in device.modes:
        rates = ", ".join(f"{rate:g}" for rate in mode.rates) or "any number of"
        console.print(f"  {escape(mode.format):5}  {mode.width}x{mode.height}  {rates} frames a second")


def look_at(uri: str, seconds: float, *, as_json: bool) -> int:
    """Test a camera for some seconds and print the results; returns the exit code: 1 if no frame came.

    Raises:
        SourceError: the camera's name is not valid.
    """
    source = open_source(uri, live=True)
    report = probe(source, seconds)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return 0 if report.frames else 1

    def told(value: float | None, unit: str) -> str:
        return "unknown" if value is None else f"{value:.1f} {unit}"

    age = f"{told(report.age_p50_ms, 'ms')}, 99th percentile {told(report.age_p99_ms, 'ms')}, by {report.clock}"
    rows = {
        "camera": source.info.id,
        "sends": report.description or "nothing",
        "first frame": f"after {report.opened_s:.2f} s" if report.opened_s is not None else "none came",
        "frames": f"{report.frames}, {report.unreadable} unreadable",
        "rate": told(report.rate, "frames a second"),
        "jitter": f"{told(report.jitter_ms, 'ms')}, longest gap {told(report.longest_gap_ms, 'ms')}",
        "stalls": str(report.stalls),
        "age": age if report.clock else "unknown",
        "clock": "not the sender's" if report.offset_ms is None else f"behind ours by {report.offset_ms:.1f} ms at most",
    }
    console = make_console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    for state in report.states:
        table.add_row(state.state, escape(state.cause))
    console.print(table)
    return 0 if report.frames else 1
