"""`convnextpose doctor`: what this machine has, what is missing, and the command that installs it."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from convnextpose.errors import CheckpointError, PoseError, RuntimeUnavailableError, install_command
from tools.console import make_console
from tools.loading import explain, mend

EXPERIMENTAL = "experimental: this project has not been run with it yet"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: the name of what was checked.
        state: `ok`, `missing` (something optional is not installed) or `broken` (the default job cannot run).
        found: what was found.
        needed_for: what it is for.
        mend: the command that fixes it; empty if there is nothing to fix.
    """

    what: str
    state: str
    found: str
    needed_for: str
    mend: str = ""


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, for a program.")] = False,
    camera: Annotated[
        str | None, typer.Option(help="Check this camera instead, for --seconds: how it opens, its rate, its clock.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to check the camera.")] = 10.0,
) -> None:
    """Check this machine: Python, runtimes, GPU, weights, speed; say what is missing and how to install it.

    Exit codes: 0 the default job can run (something optional may be missing), or the camera gives frames; 1 otherwise.
    """
    if camera is not None:
        from tools.cameras import look_at  # imported here because `doctor` must run even if a library is missing

        raise typer.Exit(look_at(camera, seconds, as_json=as_json))
    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        _print(findings)
    raise typer.Exit(1 if any(f.state == "broken" for f in findings) else 0)


def examine() -> list[Finding]:
    """All checks, in the order in which they are printed."""
    findings = [_python(), _processor()]
    findings += [_module(name, package) for name, package in (("numpy", "numpy"), ("av", "av"), ("cv2", "OpenCV"))]
    extra = install_command("build")
    findings += [_package(name, "export", extra) for name in ("onnx", "onnxscript", "safetensors")]
    # Each check imports what it checks, or something that needs it, so a failing import does not affect the other checks.
    for what, needed_for, look in (
        ("runtimes", "running models", _runtimes),
        ("NVIDIA driver", "TensorRT engines", lambda: [_driver()]),
        ("bindings", "TensorRT engines", _bindings),
        ("torch2trt", "TensorRT 8", _torch2trt),
        ("GPU", "TensorRT engines", lambda: [_gpu()]),
        ("TensorRT", "TensorRT engines", _tensorrt),
        ("kernels", "crops on the GPU", lambda: [_kernels()]),
        ("weights", "running models", _weights),
        ("speed", "running models", _speed),
    ):
        try:
            findings += look()
        except ImportError as error:
            findings.append(Finding(what, "broken", explain(error) or str(error), needed_for, mend(error)))
    return findings


def _python() -> Finding:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return Finding("Python", "ok" if fits else "broken", found, "everything", "" if fits else "install Python 3.10 to 3.12")


def _processor() -> Finding:
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split())
                break
    extras = [name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimddp") if name in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("processor", "ok", f"{cores} cores" + (f", {' '.join(extras)}" if extras else ""), "CPU runtimes")


def _package(name: str, needed_for: str, how_to_install: str) -> Finding:
    """Check for an optional package, without loading it."""
    try:
        return Finding(name, "ok", metadata.version(name), needed_for)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", needed_for, how_to_install)


def _module(name: str, what: str) -> Finding:
    """Check a module that every run needs by loading it. Any build of OpenCV will do."""
    needed_for = "capture, drawing and results"
    try:
        with redirect_stdout(io.StringIO()):  # OpenCV prints there what it lacks
            version = importlib.import_module(name).__version__
    except ImportError as error:
        return Finding(what, "broken", explain(error) or str(error), needed_for, mend(error))
    return Finding(what, "ok", version, needed_for)


def _runtimes() -> list[Finding]:
    from engines.sessions.registry import CHECKPOINT, ENGINE, RUNTIMES

    candidates = [runtime for runtime in RUNTIMES.values() if runtime.runs != ENGINE]  # TensorRT's modules are listed apart
    usable = any(candidate.modules for candidate in candidates if candidate.runs != CHECKPOINT)
    findings = []
    for candidate in candidates:
        optional = candidate.runs == CHECKPOINT
        needed_for = "checkpoints, export, the reference" if optional else "running models on the CPU"
        state = "ok" if candidate.modules else "missing" if usable or optional else "broken"
        found = (candidate.version or "") if candidate.modules else "not installed"
        mend = "" if candidate.modules else candidate.how_to_install
        findings.append(Finding(f"runtime {candidate.name}", state, found, needed_for, mend))
    return findings


def _driver() -> Finding:
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        return Finding("NVIDIA driver", "ok", driver.read_text(encoding="utf-8").splitlines()[0], "TensorRT engines")
    if Path("/etc/nv_tegra_release").exists():
        release = Path("/etc/nv_tegra_release").read_text(encoding="utf-8").splitlines()[0]
        return Finding("Jetson", "ok", release, "TensorRT engines")
    mend = "needs an NVIDIA GPU and its driver; the CPU runtimes need none"
    return Finding("NVIDIA driver", "missing", "none", "TensorRT engines", mend)


def _bindings() -> list[Finding]:
    """The bindings to CUDA; one of them is enough."""
    from engines.tensorrt.gpu import BINDINGS, binding_installed, binding_version

    found = [name for name in BINDINGS if binding_installed(name)]
    if not found:
        return [Finding(BINDINGS[0], "missing", "not installed", "TensorRT engines", f"pip install {BINDINGS[0]}")]
    experimental = {"pycuda": f" ({EXPERIMENTAL})"}
    findings = []
    for name in found:
        told = f"{binding_version(name) or 'installed'}{experimental.get(name, '')}"
        findings.append(Finding(name, "ok", told, "TensorRT engines"))
    return findings


def _torch2trt() -> list[Finding]:
    """The builder for TensorRT 8, listed only if it is installed."""
    if importlib.util.find_spec("torch2trt") is None:
        return []
    return [Finding("torch2trt", "ok", f"installed ({EXPERIMENTAL})", "--via torch2trt, TensorRT 8")]


def _gpu() -> Finding:
    from engines.tensorrt.gpu import open_device

    try:
        device = open_device()
    except PoseError as error:
        mend = "needs an NVIDIA GPU, its driver and cuda-python; `nvidia-smi` shows whether the driver sees the GPU"
        return Finding("GPU", "missing", str(error), "TensorRT engines", mend)
    gpu = device.gpu
    told = f"{gpu.name}, compute capability {gpu.compute_capability}, driver for {gpu.driver} (reported by {device.binding})"
    return Finding("GPU", "ok", told, "TensorRT engines")


def _tensorrt() -> list[Finding]:
    """The TensorRT modules, checked by loading them, since a library may be missing. One of them is enough."""
    from engines.tensorrt.module import LIBRARIES, load_library

    findings = []
    for name in LIBRARIES:
        try:
            findings.append(Finding(f"module {name}", "ok", load_library(name).version, "TensorRT engines"))
        except RuntimeUnavailableError as error:
            found, _, mend = str(error).rpartition("; ")
            findings.append(Finding(f"module {name}", "missing", found, "TensorRT engines", mend))
    usable = any(finding.state == "ok" for finding in findings)
    return [finding for finding in findings if not (usable and finding.found.endswith("is not installed"))]


def _kernels() -> Finding:
    """Whether an engine's crops can be made on the GPU: NVRTC compiles the kernels, for the local GPU if there is one."""
    from engines.kernels.program import CROP, TAIL, compile_kernel
    from engines.tensorrt.gpu import find_gpu

    gpu = find_gpu()
    try:
        for kernel in (CROP, TAIL):
            compile_kernel(kernel, gpu.compute_capability if gpu else "8.9")
    except PoseError as error:
        found, _, mend = str(error).rpartition("; ")
        return Finding("kernels", "missing", f"crops are made on the CPU: {found or mend}", "crops on the GPU", mend)
    told = "crops are made on the GPU, beside the engine" if gpu else "NVRTC compiles them; without a GPU nothing runs them"
    return Finding("kernels", "ok", told, "crops on the GPU")


def _weights() -> list[Finding]:
    from convnextpose import weights

    findings = []
    for name in weights.names():
        findings.append(_shipped(f"weights {name}", f"--model {name}", partial(_model_files, name)))
    findings.append(_shipped("people detector", f"--detector {weights.DETECTOR_NAME}", lambda: [weights.detector()]))
    return findings


def _model_files(name: str) -> list[Path]:
    from convnextpose import weights

    found = weights.load(name)
    return [found.onnx, found.safetensors]


def _shipped(what: str, needed_for: str, look: Callable[[], list[Path]]) -> Finding:
    """The package's weights, whose hashes are checked."""
    try:
        files = look()
    except CheckpointError as error:
        return Finding(what, "broken", str(error), needed_for, "pip install --force-reinstall convnextpose")
    size = sum(path.stat().st_size for path in files) / 2**20
    return Finding(what, "ok", f"hash fits, {size:.1f} MiB", needed_for)


def _speed() -> list[Finding]:
    """The speed of the default weights in each precision of this CPU; earlier checks report what prevents it."""
    from engines.cpu_precision import BATCH, measure_precisions

    try:
        speeds = measure_precisions()
    except PoseError:
        return []
    findings = []
    for speed in speeds:
        inside = "" if speed.runs_in == speed.precision else f", in {speed.runs_in}"
        default = "; what auto takes" if speed.is_default else ""
        found = f"{speed.alone_ms:.1f} ms a crop, {speed.batch_ms:.1f} ms in batches of {BATCH}{inside}{default}"
        findings.append(Finding(f"speed {speed.precision}", "ok", found, f"--precision {speed.precision}"))
    return findings


def _print(findings: list[Finding]) -> None:
    console = make_console(soft_wrap=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "for"):
        table.add_column(heading, overflow="fold")
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]--[/]", "broken": "[bold red]!![/]"}
    for finding in findings:
        table.add_row(marks[finding.state], finding.what, escape(finding.found), finding.needed_for)
    console.print(table)
    mends = [f for f in findings if f.mend]
    if mends:
        console.print("\nTo fix this:")
        for finding in mends:
            console.print(f"  {finding.what}: {escape(finding.mend)}")
