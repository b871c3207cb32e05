"""`convnextpose export`: exports a checkpoint as an ONNX file for all runtimes.

Exit code: 0 if the file is written and proven, 1 if it is not, 2 for wrong use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from convnextpose.checkpoint import verify
from engines.export import export
from tools.console import make_console


def export_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint in any container that `verify` reads.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.onnx", help="The ONNX file to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a verified checkpoint as ONNX, compared with PyTorch before the file is put in place.

    Exit codes: 0 done; 1 the checkpoint, the export or its comparison failed, and no file was left; 2 wrong use.
    """
    verified = verify(checkpoint)
    console = make_console(soft_wrap=True)
    if verified.name_claims is not None:
        wrong = f"the name of {checkpoint} claims variant {verified.name_claims.name}, its tensors are variant "
        console.print(f"[bold red]WRONG NAME[/]  {escape(wrong + verified.variant.name)}")
    report = export(verified, out, name=out.stem, overwrite=overwrite)
    console.print(f"wrote    {escape(str(report.path))} ({report.size_bytes / 2**20:.1f} MiB, {report.node_count} nodes)")
    console.print(f"sha256   {report.sha256}")
    console.print(f"parity   {report.parity}")
