"""`convnextpose triton`: a model repository for NVIDIA's Triton server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from engines.triton import write_repository
from tools.console import make_console


def triton_command(
    model: Annotated[
        Path, typer.Argument(metavar="FILE", help="An .engine file with its manifest beside it, or an exported .onnx file.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="REPOSITORY", help="The model repository, a folder.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model on the server.", show_default="the model's own name")
    ] = None,
    version: Annotated[int, typer.Option("--version", min=1, help="Version number; the server serves the highest.")] = 1,
    queue_us: Annotated[
        int, typer.Option("--queue-us", min=0, help="How long the server waits for more crops to run at once, microseconds.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write a model into a Triton model repository: the file, its configuration, and which server fits.

    Exit codes: 0 done; 1 the model is damaged, Triton cannot run it, or it cannot be written; 2 wrong use.
    """
    console = make_console()
    written = write_repository(model, out, name=name, version=version, queue_us=queue_us, overwrite=overwrite)
    console.print(f"model    {escape(written.info.name)} (variant {written.info.variant.name}, {written.info.precision})")
    console.print(f"wrote    {escape(str(written.folder))}, version {version}")
    if written.tensorrt is None:
        console.print("server   any release with the ONNX Runtime backend")
        image = "nvcr.io/nvidia/tritonserver:RELEASE-py3"
    elif written.server is None:
        console.print(
            f"[yellow]server[/]   no release is known here with TensorRT {escape(written.tensorrt)}, which the engine needs: "
            "see NVIDIA's support matrix, or build the engine with the server's TensorRT"
        )
        image = "nvcr.io/nvidia/tritonserver:RELEASE-py3"
    else:
        image = written.server.image
        console.print(f"server   {image} (TensorRT {written.server.tensorrt}; the engine needs {escape(written.tensorrt)})")
        console.print(f"check    docker run --rm {image} sh -c 'env | grep TRT_VERSION'", soft_wrap=True)
    gpus = "" if written.tensorrt is None else "--gpus all "
    console.print(
        f"serve    docker run --rm {gpus}-p 8000:8000 -v {escape(str(out.resolve()))}:/models {image} tritonserver "
        "--model-repository=/models",
        soft_wrap=True,
    )
    console.print(
        f"use      convnextpose run CLIP --out DIR --runtime triton://127.0.0.1:8000/{escape(written.name)}", soft_wrap=True
    )
