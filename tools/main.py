"""The console script `convnextpose` and the one place where errors become exit codes."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from convnextpose.errors import PoseError, RuntimeUnavailableError

HELP = """Raw video in, 3D human poses out. Start with: convnextpose run CLIP --out DIR

Exit codes: 0 done, 1 the job failed, 2 wrong use, 130 stopped by Ctrl-C."""


def build_app() -> typer.Typer:
    """The command line with all its subcommands.

    Raises:
        RuntimeUnavailableError: a library that the base install needs cannot be loaded.
    """
    try:
        from tools.bench_engine import bench_engine_command
        from tools.build import build_command
        from tools.calibrate import calibrate_command
        from tools.cameras import cameras_command
        from tools.doctor import doctor_command
        from tools.engine import app as engine_app
        from tools.export import export_command
        from tools.run import run_command
        from tools.verify import verify_command
    except ImportError as error:
        if "libGL" in str(error):
            raise RuntimeUnavailableError(
                f"OpenCV cannot be loaded ({error}): install the system's libGL, or OpenCV's headless wheel with "
                f"`pip uninstall -y opencv-python && pip install opencv-python-headless`"
            ) from error
        raise
    app = typer.Typer(
        name="convnextpose",
        help=HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode="rich",
    )
    app.command("run")(run_command)
    app.command("verify")(verify_command)
    app.command("export")(export_command)
    app.command("calibrate")(calibrate_command)
    app.command("build")(build_command)
    app.add_typer(engine_app, name="engine")
    app.command("bench-engine")(bench_engine_command)
    app.command("cameras")(cameras_command)
    app.command("doctor")(doctor_command)
    return app


def main() -> None:
    """Run the command line; an error of the project's own is one line on stderr and exit code 1."""
    try:
        build_app()()
    except PoseError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(1)
    except OSError as error:  # a terminal or a pipe that went away, a disk that is full
        print(f"error: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
