"""`convnextpose convert`: converts the poses of an earlier run to files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.convert import convert
from pipeline.formats.motion import Export
from pipeline.formats.table import FORMATS
from tools.console import make_console
from tools.run import NAMES_HELP, given_world
from tools.run_console import world_text

_MOTION = [name for name, kind in FORMATS.items() if kind.is_motion]


def convert_command(
    poses: Annotated[Path, typer.Argument(help="A poses.ndjson of an earlier run.", show_default=False)],
    formats: Annotated[str, typer.Option(help=f"What to write: {','.join(_MOTION)}.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.", show_default=False)],
    names: Annotated[str, typer.Option(help=f"Naming scheme of joints and bones: {NAMES_HELP}")] = "auto",
    fill: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Interpolate gaps up to this long; longer ones stay gaps.")
    ] = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="Use the raw poses even if the file also has smoothed ones.")] = False,
    camera_pose: Annotated[
        Path | None,
        typer.Option("--camera-pose", help="The camera's place, as for `run`.", show_default=False),
    ] = None,
    pitch: Annotated[float | None, typer.Option(metavar="DEGREES", help="How far the camera looks down.")] = None,
    roll: Annotated[float | None, typer.Option(metavar="DEGREES", help="How far the camera is rotated clockwise.")] = None,
    camera_height: Annotated[
        float | None, typer.Option("--camera-height", metavar="METRES", help="The camera's height above the floor.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write poses.ndjson as files for other programs: TRC, C3D, BVH, glTF, CSV, Parquet.

    Positions are in upright world coordinates. If the camera's position is not given, it is estimated from all poses together.

    Exit codes: 0 done; 1 the file cannot be read or a result cannot be written; 2 wrong use.
    """
    chosen = tuple(name.strip() for name in formats.split(",") if name.strip())
    if not chosen or (unknown := [name for name in chosen if name not in _MOTION]):
        received = repr(unknown[0]) if chosen else "none"
        raise typer.BadParameter(f"expected formats among {', '.join(_MOTION)}, received {received}", param_hint="--formats")
    try:
        export = Export(names, fill)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    world = given_world(camera_pose, pitch, roll, camera_height)
    done = convert(poses, out, chosen, export=export, given=world, raw=raw, overwrite=overwrite)
    console = make_console()
    for each in done.worlds:
        console.print(f"world    {escape(world_text(each))}")
    for file in done.files:
        console.print(f"wrote    {escape(str(file.path))} ({file.size_bytes} bytes)")
    if done.cut_off:
        console.print("[yellow]the last line was cut off[/] and left out")
    if not done.files:
        console.print("[yellow]nothing written[/]: nobody has a pose in the file")
