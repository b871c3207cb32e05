"""The console script `convnextpose` and the one place where errors become exit codes."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from convnextpose.errors import PoseError
from tools.doctor import doctor_command
from tools.export import export_command
from tools.run import run_command
from tools.verify import verify_command

app = typer.Typer(
    name="convnextpose",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    help=(
        "Raw video in, 3D human poses out. Start with: convnextpose run CLIP --out DIR\n\n"
        "Exit codes: 0 done, 1 the job failed, 2 wrong use, 130 stopped by Ctrl-C."
    ),
)
app.command("run")(run_command)
app.command("verify")(verify_command)
app.command("export")(export_command)
app.command("doctor")(doctor_command)


def main() -> None:
    """Run the command line; an error of the project's own is one line on stderr and exit code 1."""
    try:
        app()
    except PoseError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]error:[/]", str(error), markup=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
