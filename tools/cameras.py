"""`convnextpose cameras`: the cameras of this computer, and what each can send."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.sources.v4l2 import Device, list_devices


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
    console = Console(highlight=False, soft_wrap=True)
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
