"""`convnextpose evaluate`: the paper's protocols on your copy of a data set, beside the paper's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from convnextpose.files import check_place, write_file
from engines.opening import CPU_PRECISIONS
from engines.pose import ModelInfo
from engines.sessions.registry import runtime_help
from pipeline.human36m import ACTIONS, SUBJECTS, Scores, evaluate, read_test_set
from pipeline.models import open_model
from tools.console import make_console

app = typer.Typer(help="Score a model on your copy of a data set, beside the paper's figures.", no_args_is_help=True)


@app.callback()
def evaluate_command() -> None:
    """Score a model on your copy of a data set, beside the paper's figures."""


@app.command("human36m")
def human36m_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Human3.6M in 3DMPPE's layout: it holds `annotations` and `images`.")
    ],
    model: Annotated[
        str, typer.Option(help="A checkpoint of the authors, default weights by name, an exported .onnx, or an .engine file.")
    ],
    protocol: Annotated[str, typer.Option(help="2: MPJPE of subjects 9 and 11. 1: PA-MPJPE of subject 11. Or both.")] = "both",
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", help="Average with the mirrored picture's prediction, as the authors do.")
    ] = True,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="RootNet's bbox_root_human36m_output.json: its boxes and root depths in place of the true ones.",
            show_default=False,
        ),
    ] = None,
    runtime: Annotated[str, typer.Option(help=runtime_help())] = "auto",
    precision: Annotated[
        str, typer.Option(help=f"Precision of the network on a CPU: auto, {', '.join(CPU_PRECISIONS)}.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime.", show_default="its own choice")] = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers to this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Score a model by Human3.6M's protocols, by action, beside the paper's figure.

    Every 64th frame counts, 17 joints without Thorax. Exit codes: 0 done; 1 data or model is not available; 2 wrong use.
    """
    if protocol not in ("1", "2", "both"):
        raise typer.BadParameter(f"expected 1, 2 or both, received {protocol!r}", param_hint="--protocol")
    protocols = (2, 1) if protocol == "both" else (int(protocol),)
    if out is not None:
        check_place(out, overwrite=overwrite)
    console = make_console()
    frames = read_test_set(folder, sorted({s for p in protocols for s in SUBJECTS[p]}), boxes)
    with open_model(model, runtime, precision=precision, threads=threads) as opened:
        console.print(f"model    {opened.info.name} (variant {opened.info.variant.name}), {opened.describe()}", markup=False)
        places = f"boxes and root depths of {boxes}" if boxes else "true boxes and root depths"
        test = "flip test" if flip else "no flip test"
        console.print(f"frames   {len(frames)}; {places}; {test}", markup=False)
        done = 0

        def on_progress(count: int) -> None:
            nonlocal done
            done = count

        screen = make_console(stderr=True, soft_wrap=False)
        if screen.is_terminal:
            bar = lambda: ProgressBar(len(frames), done, width=40)  # noqa: E731
            with Live(get_renderable=bar, console=screen, refresh_per_second=4, transient=True):
                scores = evaluate(opened, frames, flip=flip, on_progress=on_progress)
        else:
            scores = evaluate(opened, frames, flip=flip)
        info = opened.info
    _print(console, scores, protocols, info)
    if out is not None:
        record = _record(scores, protocols, info) | {"flip": flip, "boxes": None if boxes is None else str(boxes)}
        write_file(out, (json.dumps(record, indent=2) + "\n").encode(), overwrite=overwrite)


_NAMES = {2: "protocol 2: MPJPE, mm", 1: "protocol 1: PA-MPJPE, mm"}


def _paper(protocol: int, info: ModelInfo) -> float | None:
    """The paper's figure for a model of this variant; for protocol 1 it is not known."""
    return info.variant.spec.paper_mpjpe_mm if protocol == 2 else None


def _print(console: Console, scores: Scores, protocols: tuple[int, ...], info: ModelInfo) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("action")
    for protocol in protocols:
        table.add_column(_NAMES[protocol], justify="right")

    def row(name: str, values: list[float | None], pattern: str = "{:.2f}") -> None:
        table.add_row(name, *("" if value is None else pattern.format(value) for value in values))

    for action, name in enumerate(ACTIONS):
        row(name, [scores.of(protocol, action) for protocol in protocols])
    totals = [scores.of(protocol) for protocol in protocols]
    row("all frames", totals)
    papers = [_paper(protocol, info) for protocol in protocols]
    row(f"the paper's {info.variant.name}", papers)
    row("difference", [t - p if t and p else None for t, p in zip(totals, papers, strict=True)], "{:+.2f}")
    console.print(table)


def _record(scores: Scores, protocols: tuple[int, ...], info: ModelInfo) -> dict[str, Any]:
    return {
        "model": info.name,
        "variant": info.variant.name,
        "checkpoint_sha256": info.checkpoint_sha256,
        "frames": len(scores.frames),
        "protocols": {
            str(protocol): {
                "mean_mm": scores.of(protocol),
                "paper_mm": _paper(protocol, info),
                "actions_mm": {name: scores.of(protocol, action) for action, name in enumerate(ACTIONS)},
            }
            for protocol in protocols
        },
    }
