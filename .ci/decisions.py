"""A hook of the documentation's builder: fills the list of decisions, so that it is always up to date with the folder."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, files: Any, **_: Any) -> str:  # noqa: ANN401  # the builder's own types
    """Add a line for each decision to the page that lists them.

    Raises:
        ValueError: a decision does not start with its number and title.
    """
    if page.file.src_uri != "decisions/index.md":
        return markdown
    lines = []
    for file in files.documentation_pages():
        if re.fullmatch(r"decisions/\d{4}-.+\.md", file.src_uri):
            first = file.content_string.splitlines()[0]
            title = re.fullmatch(r"# (\d{4}): (.+)", first)
            if not title:
                raise ValueError(f"expected '# NNNN: title' as the first line of {file.src_uri}, received {first!r}")
            lines.append(f"- [{title[1]}]({file.src_uri.partition('/')[2]}): {title[2]}")
    return f"{markdown}\n" + "\n".join(sorted(lines)) + "\n"
