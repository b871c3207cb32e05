"""The documentation agrees with the program: its messages, its public names, existing files."""

import ast
import errno
import os
import re
from pathlib import Path

import pytest

import convnextpose

ROOT = Path(__file__).parent.parent
PACKAGES = ("convnextpose", "engines", "pipeline", "tools")
WINDOW = 10


def literals():
    """Every string in the source, with each part of an f-string separately."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def quoted():
    """The messages quoted by the page on troubles: code in the first column, in pieces between the dots."""
    for line in (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| what you see"):
            for code in re.findall("`([^`]+)`", line.split(" | ")[0]):
                yield from (piece for piece in re.split(r"\.\.\.", code) if len(piece.strip()) > 15)


def share_found(piece, text):
    """The fraction of a piece that is in a text, in runs of at least WINDOW characters: values in it are not."""
    found = [False] * len(piece)
    for start in range(len(piece) - WINDOW + 1):
        if piece[start : start + WINDOW] in text:
            found[start : start + WINDOW] = [True] * WINDOW
    return sum(found) / len(piece)


def test_every_message_in_the_page_on_troubles_is_one_of_the_program():
    text = "\n".join((*literals(), *map(os.strerror, errno.errorcode)))
    pieces = list(quoted())
    assert len(pieces) > 40
    assert [piece for piece in pieces if share_found(piece, text) < 0.6] == []
    assert share_found("no such message is in here", text) < 0.6


def test_every_public_name_has_its_place_in_the_page_of_the_api():
    documented = re.findall(r"^::: (.+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.M)
    homes = {f"{module}.{name}" for name, module in convnextpose._PUBLIC.items()}
    assert sorted(documented) == sorted(homes)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_of_the_pages_outside_the_site_lead_to_files(page):
    """`make docs` checks those within docs/."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert re.match("https?://", target) or (ROOT / target).exists(), target


def test_readme_shows_a_moving_picture_small_enough_for_a_page():
    picture = (ROOT / "docs/images/run.webp").read_bytes()
    assert picture[:4] == b"RIFF" and b"ANIM" in picture[:64]
    assert len(picture) < 1_000_000
