"""`convnextpose engine inspect`: describes an engine, and says whether it fits this machine."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from convnextpose.errors import PoseError
from engines import manifest as manifests
from engines.manifest import EngineManifest
from engines.pose import ModelInfo
from engines.sessions.engine_file import open_engine
from engines.sessions.tensorrt import TensorRTSession
from engines.tensorrt.engine import LayerInfo
from engines.tensorrt.slot import MemoryUse
from tools.console import make_console

app = typer.Typer(help="Inspect TensorRT engines.", no_args_is_help=True)


@app.callback()
def engine_command() -> None:
    """Inspect TensorRT engines."""


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(metavar="FILE.engine", help="An engine with its manifest beside it.")],
    every_layer: Annotated[
        bool, typer.Option("--layers", help="List every layer, instead of the number of each kind.")
    ] = False,
) -> None:
    """Print an engine's manifest and, if the local GPU can run it, its layers with their types and its memory.

    Exit codes: 0 the engine is complete (whether or not this machine can run it); 1 it is not.
    """
    console = make_console(soft_wrap=True)
    manifest = manifests.read(path)
    _print_manifest(console, manifest)
    manifests.load(path)
    console.print("file     complete: size and hash match the manifest")
    try:
        session = open_engine(path)
    except PoseError as error:
        console.print(f"here     [yellow]does not run[/]: {escape(str(error))}")
        console.print("layers   and memory: TensorRT reports them on a machine that runs the engine")
        return
    with closing(session):
        _print_inside(console, session, every_layer)


def _print_manifest(console: Console, manifest: EngineManifest) -> None:
    model, batch = manifest.model, manifest.batch
    calibrated = ""
    if isinstance(model, ModelInfo):
        random = " [bold red]random weights[/]" if model.random else ""
        console.print(f"model    {escape(model.name)} (variant {model.variant.name}, {len(model.joint_set)} joints){random}")
        console.print(f"         checkpoint {model.checkpoint_sha256}")
        calibrated = f", calibrated on {model.calibration_sha256[:12]}" if model.calibration_sha256 else ""
    else:
        who = "" if model.person is None else f", people are class {model.person}"
        console.print(f"detector {escape(f'{model.name} ({model.layout}, {model.width}x{model.height} px{who})')}")
        console.print(f"         file {model.file_sha256}")
    console.print(f"types    {model.precision}{calibrated}")
    if manifest.excluded_layers:
        console.print(f"         in FP16: {escape(', '.join(map(str, manifest.excluded_layers)))}")
    built = f" on {manifest.gpu_name} ({manifest.driver})" if manifest.gpu_name else " without a GPU"
    console.print(f"built    by {manifest.library} {manifest.library_version}{escape(built)}")
    console.print(f"for      {manifest.target}: compute capability {', '.join(manifest.compute_capabilities)}")
    items = "crops" if isinstance(model, ModelInfo) else "frames"
    console.print(f"batch    {batch.min} to {batch.max} {items}, fastest at {batch.typical}")
    options = ", ".join(f"{name}={value}" for name, value in manifest.options.items() if value not in (None, False))
    console.print(f"options  {escape(options or 'none')}")
    console.print(f"engine   {manifest.engine_bytes:,} bytes, SHA-256 {manifest.engine_sha256}")
    console.print(f"graph    SHA-256 {manifest.onnx_sha256}")
    console.print(f"parity   graph on the CPU: {escape(str(manifest.graph_parity))}")
    engine = escape(str(manifest.engine_parity)) if manifest.engine_parity else "not measured: it was built without a GPU"
    console.print(f"         engine: {engine}")
    console.print(f"rebuild  {escape(manifest.command)}")


def _print_inside(console: Console, session: TensorRTSession, every_layer: bool) -> None:
    console.print(f"here     [green]runs[/]: {escape(str(session.describe()))}")
    layers = session.layers()
    console.print(f"layers   {len(layers)}")
    if every_layer:
        for layer in layers:
            console.print(f"         {escape(_line(layer))}")
    else:
        for line, count in Counter(_line(layer, named=False) for layer in layers).most_common():
            console.print(f"         {count:>4} {escape(line)}")
    console.print(f"memory   {escape(_memory(session.memory()))}")


def _line(layer: LayerInfo, *, named: bool = True) -> str:
    types = f"{', '.join(layer.inputs)} -> {', '.join(layer.outputs)}" if layer.inputs or layer.outputs else ""
    return " ".join(filter(None, (layer.name if named else "", layer.kind or "layer", types)))


def _memory(use: MemoryUse) -> str:
    activations, held, free = (f"{value / 2**20:,.1f} MiB" for value in (use.activations, use.held, use.free))
    return f"{activations} of activations for the largest batch; {held} in use beside the weights; {free} free on the GPU"
