"""`convnextpose bench-engine`: the speed of an engine, compared with the same network in PyTorch on the same GPU."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from convnextpose import weights
from convnextpose.checkpoint import VerifiedCheckpoint, verify
from convnextpose.errors import EngineError, ModelError, RuntimeUnavailableError
from convnextpose.files import check_place, write_file
from engines.graph import pose_graph
from engines.opening import pose_baseline
from engines.parity import noise_crops
from engines.pose import CROPS, ModelInfo
from engines.roofline import Floor, Work, count_work
from engines.sessions.engine_file import open_engine
from engines.sessions.tensorrt import TensorRTSession
from engines.sessions.torch import TorchGpuSession
from engines.timing import Latency, TimedSession, measure
from tools.console import make_console

REFERENCE = "torch fp16"


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"expected numbers of crops such as 1,2,4, received {text!r}", param_hint="--batches")
    return numbers


def bench_engine_command(
    path: Annotated[Path, typer.Argument(metavar="FILE.engine", help="An engine with its manifest beside it.")],
    batches: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Crops at once.", show_default="1,2,4,... up to the engine's largest")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each number of crops.")] = 300,
    warm_up: Annotated[int, typer.Option(min=2, help="Runs before those.")] = 50,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint that the engine was made from, for PyTorch.", show_default="the default weights, by their hash"
        ),
    ] = None,
    no_reference: Annotated[bool, typer.Option("--no-reference", help="Time the engine alone, without PyTorch.")] = False,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Do not compile the network in PyTorch, which takes a minute or more.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers to this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Time an engine on the host and on the GPU, for several numbers of crops, beside FP16 PyTorch.

    PyTorch runs as fast as it can: batch norms folded, channels last, compiled, CUDA graphs. The engine has graphs if the
    binding to CUDA supports them.

    Exit codes: 0 done; 1 the engine, the GPU or PyTorch is not available; 2 wrong use.
    """
    counts = None if batches is None else _numbers(batches)
    if out is not None:
        check_place(out, overwrite=overwrite)
    console = make_console(soft_wrap=False)
    with ExitStack() as opened:
        engine = open_engine(path, kind=ModelInfo)
        opened.callback(engine.close)
        name = f"engine {engine.manifest.model.precision}"
        sessions: dict[str, TimedSession] = {name: engine}
        if not no_reference:
            reference, how = _open_reference(_checkpoint(engine, checkpoint), compiled=not no_compile)
            opened.callback(reference.close)
            sessions[REFERENCE] = reference
            told = f"{reference.describe()}, batch norms folded, {how}, with CUDA graphs"
            console.print(f"{REFERENCE:<12} {escape(told)}", soft_wrap=True)
        graphs = "with CUDA graphs" if engine.has_graphs else "without CUDA graphs"
        console.print(f"{name:<12} {escape(str(engine.describe()))}, {escape(engine.binding)}, {graphs}", soft_wrap=True)
        found: list[Latency] = []
        for count in counts or _doubling(engine.limit):
            found += measure(sessions, noise_crops(count), rounds, warm_up)
        work = _work(engine, checkpoint)
        floors = {row.crops: engine.floor(work, row.crops) for row in found if row.runtime == name} if work else {}
    console.print(_table(found))
    if work is not None:
        console.print(_roofline(found, name, floors, work))
    for row in found:
        if row.replayed < row.rounds:
            console.print(f"{row.runtime} at {row.crops} crops: CUDA graphs in {row.replayed} of {row.rounds} runs")
    if out is not None:
        numbers = {"engine": path.name, "runtime": asdict(engine.describe()), "latencies": [asdict(row) for row in found]}
        numbers["floors_ms"] = {str(crops): asdict(floor) for crops, floor in floors.items()}
        write_file(out, (json.dumps(numbers, indent=2) + "\n").encode(), overwrite=overwrite)
        console.print(f"wrote    {escape(str(out))}")


def _work(engine: TensorRTSession, given: Path | None) -> Work | None:
    """The work of the engine's network for a crop; None if its graph is not available."""
    shipped = weights.by_checkpoint(engine.manifest.model_of(ModelInfo).checkpoint_sha256)
    if shipped is not None:
        return count_work(shipped.onnx.read_bytes(), shipped.onnx.name)
    return None if given is None else count_work(pose_graph(_checkpoint(engine, given), name="the engine's model"), str(given))


def _checkpoint(engine: TensorRTSession, given: Path | None) -> VerifiedCheckpoint:
    """The checkpoint that the engine was made from.

    Raises:
        EngineError: another one was given, or none was given and the engine is not made from default weights.
    """
    wanted = engine.manifest.model_of(ModelInfo).checkpoint_sha256
    if given is None:
        if (shipped := weights.by_checkpoint(wanted)) is None:
            raise EngineError(
                f"expected an engine of default weights, received one of checkpoint {wanted[:12]}: give that checkpoint's "
                "file with --checkpoint, or skip the comparison with --no-reference"
            )
        return verify(shipped.safetensors)
    found = verify(given)
    if found.sha256 != wanted:
        raise EngineError(
            f"expected checkpoint {wanted[:12]}, which the engine was made from, but {given} is {found.sha256[:12]}"
        )
    return found


def _open_reference(checkpoint: VerifiedCheckpoint, *, compiled: bool) -> tuple[TorchGpuSession, str]:
    """PyTorch's network, after a first crop, and a text on whether it is compiled, which torch cannot do everywhere."""
    try:
        network = pose_baseline(checkpoint)
        how = "not compiled"
        if compiled:
            session = TorchGpuSession(network, "the reference", precision="fp16", compiled=True)
            try:
                session.run({CROPS.name: noise_crops(1)})
            except ModelError as error:  # Triton or a C compiler is missing
                session.close()
                how = f"not compiled ({error})"
            else:
                return session, "compiled"
        return TorchGpuSession(network, "the reference", precision="fp16"), how
    except ImportError as error:
        raise RuntimeUnavailableError(f"the torch reference needs torch: {error}; install torch with CUDA") from error


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... up to and including `most`."""
    return sorted({most, *(2**exponent for exponent in range(most.bit_length()))})


def _roofline(rows: list[Latency], name: str, floors: dict[int, Floor], work: Work) -> Table:
    """A table of the engine's times beside the GPU's lower bounds."""
    done = f"{work.multiply_adds / 1e9:.2f} billion multiply-adds and {work.depthwise / 1e9:.2f} depthwise"
    title = f"the floor: a crop is {done}, {work.weights / 1e6:.1f} million weights"
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for heading in ("crops", "alone", "computing", "memory once", "every layer through memory", "times the floor"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.runtime == name:
            floor = floors[row.crops]
            lower = max((ms for ms in (floor.compute_ms, floor.once_ms) if ms is not None), default=None)
            told = (row.inference.p50, floor.compute_ms, floor.once_ms, floor.through_memory_ms)
            times = "-" if lower is None else f"{row.inference.p50 / lower:.1f}"
            table.add_row(str(row.crops), *("-" if ms is None else f"{ms:.3f}" for ms in told), times)
    return table


def _table(rows: list[Latency]) -> Table:
    title = "ms on the host, ms of the GPU with its copies, and the inference alone (p50)"
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for heading in ("crops", "runtime", "host p50", "p95", "p99", "GPU p50", "p95", "p99", "alone", "crops/s"):
        table.add_column(heading, justify="left" if heading == "runtime" else "right", no_wrap=True)
    for row in rows:
        times = (row.host.p50, row.host.p95, row.host.p99, row.gpu.p50, row.gpu.p95, row.gpu.p99, row.inference.p50)
        table.add_row(str(row.crops), row.runtime, *(f"{ms:.3f}" for ms in times), f"{row.crops_per_s:.0f}")
    return table
