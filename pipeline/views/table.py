"""The views by name. To add one, write it and add a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.status import RunStatus
from pipeline.views.base import Endpoint, View
from pipeline.views.lines import LineView
from pipeline.views.osc import STYLES, opener
from pipeline.views.web import WebView

Opener = Callable[[Endpoint, RunStatus], View]

VIEWS: dict[str, Opener] = {
    "page": WebView,
    "tcp": LineView,
    **{f"osc-{style}": opener(style) for style in STYLES},
}
"""Functions that open a view, given its host and port and the run's status."""


@dataclass(frozen=True)
class ViewConfig:
    """The configuration of a view.

    Attributes:
        kind: a name in VIEWS.
        endpoint: the host and port that it serves on, or sends to.
    """

    kind: str
    endpoint: Endpoint

    def __post_init__(self) -> None:
        """Check the name."""
        if self.kind not in VIEWS:
            raise ValueError(f"expected a view among {', '.join(VIEWS)}, received {self.kind!r}")


def open_view(config: ViewConfig, status: RunStatus) -> View:
    """Open a view.

    Args:
        config: the view's configuration.
        status: the run's status.

    Raises:
        SinkError: its host or port cannot be used.
        RuntimeUnavailableError: a library that it needs is not installed.
    """
    return VIEWS[config.kind](config.endpoint, status)
