"""The console script `convnextpose`; only here do errors become exit codes."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape

from convnextpose.errors import PoseError
from tools.console import make_console, replace_unencodable
from tools.loading import explain

HELP = """Raw video in, 3D human poses out. Start with: convnextpose run CLIP

Exit codes: 0 done, 1 the job failed, 2 wrong use, 130 stopped by Ctrl-C."""

COMMANDS = {
    "run": "Turn videos and cameras into 3D poses: an annotated MP4, poses as NDJSON and NPZ, a summary.",
    "archive": "Turn every video in some folders into poses; run the same command again to continue after an interruption.",
    "evaluate": "Score a model on your copy of a data set, beside the paper's figures.",
    "convert": "Write poses.ndjson as files for other programs: TRC, C3D, BVH, glTF, CSV, Parquet.",
    "verify": "Check checkpoints: which variant their tensors belong to, and that none is missing, unknown or broken.",
    "export": "Write a verified checkpoint as ONNX, compared with PyTorch before the file is put in place.",
    "calibrate": "Collect crops of people to calibrate INT8 models on, with a preview sheet FILE.png.",
    "build": "Turn checkpoints and people detectors into TensorRT engines: verify, export, prove, build, write the manifest.",
    "engine": "Inspect TensorRT engines.",
    "bench-engine": "Time an engine on the host and on the GPU, for several numbers of crops, beside FP16 PyTorch.",
    "triton": "Write a model into a Triton model repository: the file, its configuration, and which server fits.",
    "cameras": "List the cameras of this computer with their sizes and frame rates; `convnextpose run` takes their paths.",
    "doctor": "Check this machine: Python, runtimes, GPU, weights, speed; say what is missing and how to install it.",
}
"""The subcommands with their help. `bench-engine` is `bench_engine_command` in `tools/bench_engine.py`, and so on."""


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The command line with the subcommand in the arguments; the others are only listed with their name and help.

    So if a library of one subcommand cannot be loaded, the others still work.

    Raises:
        ImportError: a library that the subcommand needs cannot be loaded.
    """
    app = typer.Typer(
        name="convnextpose",
        help=HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    wanted = next((word for word in arguments if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        if name != wanted:
            app.command(name, help=summary)(_not_loaded)
            continue
        module = importlib.import_module(f"tools.{name.replace('-', '_')}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, f"{name.replace('-', '_')}_command"))
    return app


def _options(
    verbose: Annotated[bool, typer.Option("--verbose", help="Log to stderr: models, sources, tracks.")] = False,
) -> None:
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        logger = logging.getLogger("convnextpose")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _not_loaded() -> None:
    """Placeholder for a subcommand that is only listed, not run."""
    raise typer.BadParameter(f"expected the subcommand first: one of {', '.join(COMMANDS)}")


def main() -> None:
    """Run the command line; an error of this project becomes one line on stderr and exit code 1."""
    replace_unencodable(sys.stdout)
    replace_unencodable(sys.stderr)
    try:
        build_app(sys.argv[1:])()
    except PoseError as error:
        _fail(str(error))
    except ImportError as error:
        if (told := explain(error)) is None:
            raise
        _fail(told)
    except OSError as error:  # a terminal or pipe that was closed, a full disk
        print(f"error: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(told: str) -> None:
    make_console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(told)}")
    sys.exit(1)


if __name__ == "__main__":
    main()
