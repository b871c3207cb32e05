"""Logs become a picture that shows each figure where it belongs."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.plot import Axis, Run, draw, read, ticks

SVG = "{http://www.w3.org/2000/svg}"
POSITIVE = st.floats(1e-4, 1e9)


def log(folder, lines, tail=""):
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


@pytest.fixture
def run(tmp_path):
    lines = [{"step": k, "images": 100 * k, "loss": 3 / k} for k in (1, 2, 4, 8)]
    lines.insert(2, {"step": 3, "images": 300, "easy": {"mpjpe_mm": 150.0, "pck": 0.5}, "hard": {"mpjpe_mm": 250.0}})
    return log(tmp_path / "a<b", lines, tail='{"step": 9, "ima')


def test_a_log_is_read_without_its_unfinished_line(run):
    found = read(run)
    assert found.name == "a<b"
    assert found.series["loss"] == [(100, 3), (200, 1.5), (400, 0.75), (800, 0.375)]
    assert found.series["easy, mpjpe_mm"] == [(300, 150.0)] and found.series["hard, mpjpe_mm"] == [(300, 250.0)]
    assert read(run / "log.jsonl") == found


def test_every_figure_is_drawn_in_its_panel_in_order(run):
    other = Run("other", {"loss": [(50, 2.0), (100, 1.0)]})
    picture = ET.fromstring(draw([read(run), other]))
    lines = picture.findall(f"{SVG}polyline")
    assert sorted(len(line.get("points").split()) for line in lines) == [1, 1, 2, 4]
    longest = max(lines, key=lambda line: len(line.get("points")))
    x, y = zip(*(map(float, point.split(",")) for point in longest.get("points").split()), strict=True)
    steps = [b - a for a, b in itertools.pairwise(x)]
    assert max(steps) - min(steps) < 0.3 and min(steps) > 0  # doubled images are equal steps on a logarithmic axis
    assert list(y) == sorted(y)  # a falling loss falls in the picture
    width, height = float(picture.get("width")), float(picture.get("height"))
    assert all(0 < a < width and 0 < b < height for a, b in zip(x, y, strict=True))
    colours = {line.get("stroke") for line in lines}
    assert len(colours) == 2
    texts = [text.text for text in picture.findall(f"{SVG}text")]
    assert {"loss", "easy, mpjpe (mm)", "hard, mpjpe (mm)", "a<b: 800 images", "other: 100 images"} <= set(texts)


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl"):
        read(tmp_path)
    with pytest.raises(ValueError, match="empty"):
        draw([read(log(tmp_path / "empty", []))])


@given(low=POSITIVE, factor=st.floats(1.02, 1e6))
def test_ticks_are_few_round_and_within(low, factor):
    found = ticks(low, low * factor)
    assert all(low <= tick <= low * factor for tick in found) and found == sorted(found)
    assert 1 <= len(found) <= 16
    assert all(tick == pytest.approx(float(f"{tick:.2e}"), rel=1e-9) for tick in found)  # at most three digits


@given(low=POSITIVE, factor=st.floats(1.02, 1e6), share=st.floats(0, 1))
def test_an_axis_keeps_ratios(low, factor, share):
    axis = Axis(low, low * factor, 10, 210)
    assert axis(low) == pytest.approx(10) and axis(low * factor) == pytest.approx(210)
    assert axis(low * factor**share) == pytest.approx(10 + 200 * share, abs=1e-6)
