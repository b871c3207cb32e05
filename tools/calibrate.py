"""`convnextpose calibrate`: crops of people from clips, for INT8 models.

Exit code: 0 if the set is written, 1 if it is not, 2 for wrong use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from convnextpose.files import check_place, write_files
from engines.calibration import MAX_CROPS, MIN_CROPS
from pipeline.calibration import collect_crops, draw_preview
from pipeline.models import open_detector, open_model
from pipeline.sources import open_source
from tools.console import make_console


def calibrate_command(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="CLIP...|FOLDER", help="Videos, pictures, folders of pictures; one person in each."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="The calibration set to write.", show_default=False)],
    count: Annotated[
        int, typer.Option(min=MIN_CROPS, max=MAX_CROPS, help="How many crops to collect, evenly from all sources.")
    ] = 128,
    model: Annotated[
        str, typer.Option(help="The model: default weights by name (xs), a checkpoint, or an exported .onnx file.")
    ] = "xs",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Collect crops of people to calibrate INT8 models on, with a preview sheet FILE.png.

    Use clips that are typical of the model's later use: the same camera, light and people.

    Exit codes: 0 done; 1 nobody was found, or a file cannot be read or written; 2 wrong use.
    """
    if out.suffix != ".npz":
        raise typer.BadParameter(f"expected a file that ends in .npz, received {out.name!r}", param_hint="--out")
    preview = out.with_suffix(".png")
    for path in (out, preview):
        check_place(path, overwrite=overwrite)
    for source in sources:  # a wrong one is refused before the networks are opened
        with open_source(source):
            pass
    found = collect_crops(sources, open_model(model), open_detector(), count)
    contents = {out: found.to_bytes(), preview: draw_preview(found.crops)}
    write_files(contents, tuple(contents) if overwrite else ())
    console = make_console(soft_wrap=True)
    fewer = "" if len(found) == count else f" of {count}: nobody was found in the other frames"
    console.print(f"crops    {len(found)}{fewer}")
    console.print(f"wrote    {escape(str(out))} ({len(contents[out]) / 2**20:.1f} MiB)")
    console.print(f"wrote    {escape(str(preview))}: check that it shows people in full view")
    console.print(f"sha256   {found.sha256}")
