"""`convnextpose verify`: the actual contents of checkpoints, side by side.

Exit code: 0 if every file is verified, 1 if one is not, 2 for wrong use.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convnextpose.checkpoint import verify
from convnextpose.errors import PoseError
from convnextpose.report import VerificationReport, describe
from convnextpose.variants import Variant
from tools.console import make_console, visible

LABEL_WIDTH = 12
COLUMN_WIDTH = 14
"""Widths of the labels and of a file's column, characters: four files fit in 80; the others go into another table below."""


def _variant(text: str) -> Variant:
    try:
        return Variant[text.upper()]
    except KeyError:
        raise typer.BadParameter(f"expected XS, S, M or L, received {text!r}") from None


def verify_command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Checkpoints in any container: torch.save, ZIP, tar, folder, safetensors."),
    ],
    variant: Annotated[
        Variant | None,
        typer.Option("--variant", parser=_variant, metavar="XS|S|M|L", help="Refuse every file of another variant."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array, one object for each file.")] = False,
) -> None:
    """Check checkpoints: which variant their tensors belong to, and that none is missing, unknown or broken.

    Exit codes: 0 every file is verified; 1 one of them is not; 2 wrong use.
    """
    results: list[VerificationReport | PoseError] = []
    for file in files:
        try:
            results.append(describe(verify(file, variant)))
        except PoseError as error:
            results.append(error)
    if as_json:
        typer.echo(json.dumps([_to_json(file, result) for file, result in zip(files, results, strict=True)], indent=2))
    else:
        _print_results(make_console(soft_wrap=False), results)
    if any(isinstance(result, PoseError) for result in results):
        raise typer.Exit(1)


def _to_json(file: Path, result: VerificationReport | PoseError) -> dict[str, object]:
    if isinstance(result, PoseError):
        return {"file": str(file), "verified": False, "error": str(result)}
    return {"file": str(file), "verified": True, "error": None} | result.to_json()


def _print_results(console: Console, results: list[VerificationReport | PoseError]) -> None:
    reports = [result for result in results if isinstance(result, VerificationReport)]
    fitting = max(1, (console.width - LABEL_WIDTH - 3) // (COLUMN_WIDTH + 2))
    for start in range(0, len(reports), fitting):
        console.print(_table(reports[start : start + fitting]))
    for report in reports:
        # In the format of sha256sum, so that it can be checked with it.
        console.print(Text(visible(f"{report.sha256}  {report.file}")), soft_wrap=True)
    if reports:
        console.print()
    for result in results:
        if isinstance(result, PoseError):
            console.print(Text.assemble(("REFUSED  ", "bold red"), visible(str(result))), soft_wrap=True)
        elif result.name_claims:
            told = f"{result.file}: its name says {result.name_claims}, but its tensors are those of {result.variant}"
            console.print(Text.assemble(("WRONG NAME  ", "bold yellow"), visible(told)), soft_wrap=True)
    style = "bold green" if len(reports) == len(results) else "bold red"
    console.print(Text(f"{len(reports)} of {len(results)} verified", style))


def _table(reports: list[VerificationReport]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", width=LABEL_WIDTH, style="dim", no_wrap=True)
    for report in reports:
        table.add_column(Text(visible(Path(report.file).name or report.file)), min_width=COLUMN_WIDTH, overflow="fold")
    for lines in zip(*map(_lines, reports), strict=True):
        table.add_row(lines[0][0], *(value for _, value in lines))
    table.add_row("verdict", *(_verdict(report) for report in reports))
    return table


def _lines(report: VerificationReport) -> list[tuple[str, str]]:
    """Label and value of each line."""
    head = report.head
    return [
        ("variant", report.variant),
        ("trainable", f"{report.trainable_parameters:,}"),
        ("state dict", f"{report.state_numbers:,}"),
        ("backbone", report.backbone),
        ("  blocks", ",".join(map(str, report.blocks))),
        ("  channels", ",".join(map(str, report.channels))),
        ("  kernel", f"{report.backbone_kernel}x{report.backbone_kernel}"),
        ("head kernels", ",".join(f"{layer.kernel}x{layer.kernel}" for layer in head)),
        ("  channels", ",".join(str(layer.channels) for layer in head)),
        ("  active, %", ",".join(_percent(layer.active_percent) for layer in head)),
        ("  upsampling", ",".join("x2" if layer.upsamples else "none" for layer in head)),
        ("  keys", report.head_format),
        ("  prefix", report.key_prefix or "none"),
        ("heat-map", f"{report.heatmap_size}x{report.heatmap_size}"),
        ("depth bins", str(report.depth_bins)),
        ("joints", f"{report.joints} {report.joint_set}"),
        ("paper MPJPE", "none" if report.paper_mpjpe_mm is None else f"{report.paper_mpjpe_mm:.2f} mm"),
    ]


def _percent(value: float) -> str:
    """A percentage, rounded down so that 100 means all."""
    return f"{math.floor(value * 10) / 10:g}"


def _verdict(report: VerificationReport) -> Text:
    if report.name_claims:
        return Text(f"verified {report.variant}, named {report.name_claims}", "bold yellow")
    return Text(f"verified {report.variant}", "bold green")
