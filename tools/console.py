"""Makes all consoles: printing never ends a run, whatever characters a name contains."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, change a terminal's title or turn text around; not tab and newline."""


def visible(text: str) -> str:
    """A text with its control characters as escapes, so that a name in a file cannot control the terminal."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class _VisibleConsole(Console):
    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 (rich's own options)
        return super().render_str(visible(text), **options)


def make_console(*, stderr: bool = False, soft_wrap: bool | None = None, width: int | None = None) -> Console:
    """A console for stdout or stderr that takes markup, but no emoji codes: `a:x:b.mp4` is a name.

    Characters that the terminal's encoding lacks become question marks.

    Args:
        stderr: whether it is for stderr.
        soft_wrap: whether long lines are left to the terminal; None for yes without a terminal, as for a pipe.
        width: characters in a line; None for the terminal's width.
    """
    replace_unencodable(sys.stderr if stderr else sys.stdout)
    console = _VisibleConsole(stderr=stderr, highlight=False, emoji=False, width=width)
    console.soft_wrap = not console.is_terminal if soft_wrap is None else soft_wrap
    return console


def replace_unencodable(stream: object) -> None:
    """Let a stream replace characters that its encoding lacks, instead of raising an error."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")
