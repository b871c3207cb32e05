"""`convnextpose build`: builds TensorRT engines from checkpoints and people detectors, each with its proof and its manifest.

Exit code: 0 if everything is built (or bundled, or exists already), 1 if something is not, 2 for wrong use, 130 after Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from convnextpose import weights
from convnextpose.errors import EngineError, PoseError
from engines.build import build, find_checkpoints
from engines.build_request import BuildFailure, BuildReport, BuildRequest, BuildResult, Step
from engines.fastest import FASTEST, build_fastest
from engines.manifest import BatchRange, EngineManifest
from engines.parity import DetectorParity
from engines.precision import INT8_SCHEMES
from engines.targets import find_target
from engines.tensorrt.builder import BuildOptions
from tools.console import make_console

TABLE_WIDTH = 110
"""Smallest width of the table, characters: a long name must not hide digits of the figures."""


def _batch(text: str) -> BatchRange:
    try:
        minimum, typical, maximum = map(int, text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected MIN,TYPICAL,MAX, received {text!r}") from error
    try:
        return BatchRange(minimum, typical, maximum)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error


def build_command(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the engines; made if needed.", show_default=False)
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT...|FOLDER",
            help="Checkpoints, default weights by name (xs), bundles, or people detectors: detector, the package's own, or an "
            ".onnx file; with --all a folder of checkpoints.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Build every checkpoint in the folder; without a folder, all default weights.")
    ] = False,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="fp16, int8, fp32; several separated by commas or by repeating the option; or fastest: the faster of fp16 and "
            "int8, timed on the local GPU. For a people detector only fp32.",
            show_default="fp16; a detector's fp32",
        ),
    ] = None,
    int8_scheme: Annotated[
        str, typer.Option(help=f"Which layers INT8 applies to: {', '.join(scheme.key for scheme in INT8_SCHEMES)}.")
    ] = INT8_SCHEMES[0].key,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="this (the local GPU), rtx20, rtx30, rtx40, rtx50, a100, orin, thor, or a compute capability such as 8.9; "
            "several likewise.",
            show_default="this; a bundle's own",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Your own crops, from `convnextpose calibrate`.", show_default="the package's"),
    ] = None,
    batch: Annotated[
        BatchRange,
        typer.Option(
            parser=_batch, metavar="MIN,TYPICAL,MAX", help="How many people (for a detector: frames) an engine takes at once."
        ),
    ] = "1,1,8",  # type: ignore[assignment]  # typer parses the default, too
    frame: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTH,HEIGHT",
            help="Size of a people detector's frames, px; its engine takes no other size.",
            show_default="the detector's own",
        ),
    ] = None,
    detector_class: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|NUMBER",
            help="The detector's class of people; needed only if its file does not name it.",
            show_default=False,
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(min=1, metavar="MIB", help="Limit of the GPU memory for layers.", show_default="no limit")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Also let later versions of the same major version of TensorRT run it.")
    ] = False,
    hardware_compatible: Annotated[
        str | None,
        typer.Option(help="ampere_plus or same_compute_capability: let other GPUs run it, too (tensorrt).", show_default=False),
    ] = None,
    dla_core: Annotated[
        int | None, typer.Option(min=0, help="Run on this deep-learning accelerator of a Jetson Orin.", show_default=False)
    ] = None,
    library: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt_rtx.", show_default="what the target prefers")
    ] = None,
    via: Annotated[str | None, typer.Option(help="torch2trt: for TensorRT 8 (JetPack 6.0).", show_default=False)] = None,
    tail_kernel: Annotated[
        bool,
        typer.Option(
            "--tail-kernel", help="Experimental: end the engine at its logits; a kernel computes the joints (needs NVRTC)."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Build existing engines again; replace other files.")] = False,
) -> None:
    """Turn checkpoints and people detectors into TensorRT engines: verify, export, prove, build, write the manifest.

    For a target that cannot be built here, a bundle is written, to build from on the target. Existing engines that fit are
    kept.

    Exit codes: 0 done; 1 something failed (only complete files are left); 2 wrong use; 130 stopped by Ctrl-C.
    """
    console = make_console()
    sources, sides = _sources(models or [], everything), _sides(frame)
    try:
        targets = tuple(find_target(name) for name in _split(target or []))
        precisions = _split(precision or [])
        make = build_fastest if precisions == [FASTEST] else build
        requests = [
            BuildRequest(
                source=source,
                out=out,
                precisions=() if make is build_fastest else tuple(precisions),
                targets=targets,
                options=BuildOptions(batch, workspace, version_compatible, hardware_compatible, dla_core, tail_kernel),
                calibration=calibration,
                library=library,
                via=via,
                overwrite=overwrite,
                scheme=int8_scheme,
                frame=sides,
                person=detector_class,
            )
            for source in sources
        ]
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    results: list[BuildResult] = []
    failures: list[BuildFailure] = []
    with console.status("") as status, _ctrl_c() as check:

        def show(step: Step) -> None:
            check()
            _show(console, status, step)

        for request in requests:
            try:
                report = make(request, show)
            except PoseError as error:
                report = BuildReport((), (BuildFailure(request.source, error),))
            check()
            for failure in report.failures:
                console.print(f"[bold red]FAILED[/]  {escape(failure.subject)}: {escape(str(failure.error))}", soft_wrap=True)
            results += report.results
            failures += report.failures
    if results:
        console.print()
        make_console(soft_wrap=False, width=max(console.width, TABLE_WIDTH)).print(_table(results))
    if failures:
        console.print(f"[bold red]{len(failures)} failed[/]")
        raise typer.Exit(1)


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if Ctrl-C was pressed, even if a library turned it into another error.

    PyTorch's exporter does this if Ctrl-C is pressed while it imports its own parts.
    """
    came = threading.Event()

    def stop(*_: object) -> None:
        came.set()
        raise KeyboardInterrupt

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell may have set it to be ignored
    if handled:
        signal.signal(signal.SIGINT, stop)
    try:
        yield check
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _sources(models: list[str], everything: bool) -> list[str]:
    if not everything:
        if not models:
            raise typer.BadParameter(
                "expected a checkpoint, default weights by name, a bundle or a people detector, received none; or give --all"
            )
        return models
    if len(models) > 1:
        raise typer.BadParameter(f"expected one folder with --all, received {len(models)} arguments")
    return [str(path) for path in find_checkpoints(Path(models[0]))] if models else weights.names()


def _sides(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        width, height = map(int, text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected WIDTH,HEIGHT such as 384,224, received {text!r}", param_hint="--frame") from error
    return width, height


def _split(values: list[str]) -> list[str]:
    """Values that were separated by commas or given by repeating the option, each once."""
    return list(dict.fromkeys(part.strip().lower() for value in values for part in value.split(",")))


def _show(console: Console, status: Status, step: Step) -> None:
    if step.done:
        console.print(f"{escape(step.subject):<24} {escape(step.text)}", soft_wrap=True)
    else:
        status.update(f"{escape(step.subject)}: {escape(step.text)}")


def _table(results: list[BuildResult]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("engine", "", "precision", "proven"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MiB", "mean mm", "max mm", "max px", "left in FP16"):
        table.add_column(heading, no_wrap=True, justify="right")
    for result in results:
        draft = result.draft
        on_gpu = draft.engine_parity if isinstance(draft, EngineManifest) else None
        parity, proven = (on_gpu, "engine") if on_gpu else (draft.graph_parity, "graph")
        excluded = str(len(draft.excluded_layers)) if draft.model.precision == "int8" else ""
        if isinstance(parity, DetectorParity):
            strays = ("", "", f"{parity.box_px:.3f}")
        else:
            strays = (f"{parity.mm.mean:.3f}", f"{parity.mm.max:.3f}", f"{parity.px.max:.3f}")
        size = f"{result.path.stat().st_size / 2**20:.1f}"
        table.add_row(escape(result.path.name), result.outcome, draft.model.precision, proven, size, *strays, excluded)
    return table
