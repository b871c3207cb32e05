"""Draws the logs of runs in one picture: the loss, and the error on every held-out set, over the number of training images.

    python -m training.plot RUN... [--out plot.svg]

RUN is a run's folder or its `log.jsonl`; several runs share the picture, each with its colour. Both axes are logarithmic. The
picture is an SVG, which browsers and code hosts show.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Palette of Okabe and Ito, distinguishable with colour blindness. Further runs begin again at the first colour."""

PANEL = (400, 250)
MARGIN = (62, 56, 34, 40)
"""Margins of a panel: left, right, top, bottom, px."""

COLUMNS = 3

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """A run's log: for each panel's title the points (images, value)."""

    name: str
    series: dict[str, Points]


def read(path: Path) -> Run:
    """Read a run from its folder or log. An incomplete last line is ignored."""
    log = path / "log.jsonl" if path.is_dir() else path
    if not log.is_file():
        raise FileNotFoundError(f"expected a run's folder with a log.jsonl, or a log, received {path}: name another")
    series: dict[str, Points] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            facts = json.loads(line)
        except json.JSONDecodeError:  # the last line, while it is being written
            continue
        values = {"loss": facts.get("loss")}
        values |= {f"{name}, {next(iter(v))}": next(iter(v.values())) for name, v in facts.items() if isinstance(v, dict) and v}
        for title, value in values.items():
            if isinstance(value, (int, float)) and value > 0 and facts.get("images", 0) > 0:
                series.setdefault(title, []).append((facts["images"], value))
    return Run(log.parent.name if log.name == "log.jsonl" else log.stem, series)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` for a logarithmic axis, as many as stay readable."""
    two, three = (tuple(d / 10**k for d in range(10**k, 10 ** (k + 1))) for k in (1, 2))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), two, three):
        found = [d * 10**p for p in powers for d in digits if low <= d * 10**p <= high]
        if len(found) >= 3:
            break
    return found[:: max(1, len(found) // 8)]


def short(value: float) -> str:
    """A number as it is written at an axis: 20k, 1.5M, 0.3."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end` (px)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Position of a value, px."""
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.end - self.start)


def _axis(values: list[float], start: float, end: float) -> Axis:
    """An axis a little wider than the range of all values."""
    room = max(1.02, (max(values) / min(values)) ** 0.04)
    return Axis(min(values) / room, max(values) * room, start, end)


def panel(title: str, runs: list[Run], left: float, top: float) -> list[str]:
    """The elements of one panel at a position; all panels share the axis of images."""
    width, height = PANEL
    inner = (left + MARGIN[0], left + width - MARGIN[1], top + MARGIN[2], top + height - MARGIN[3])
    across = _axis([x for run in runs for points in run.series.values() for x, _ in points], inner[0], inner[1])
    up = _axis([y for run in runs for _, y in run.series.get(title, [])], inner[3], inner[2])
    result = [f'<text x="{inner[0]:.0f}" y="{inner[2] - 12:.0f}" class="title">{escape(title.replace("_mm", " (mm)"))}</text>']
    for value in ticks(across.low, across.high):
        x = across(value)
        result.append(f'<path d="M{x:.1f} {inner[2]}V{inner[3]}" class="grid"/>')
        result.append(f'<text x="{x:.1f}" y="{inner[3] + 16}" class="tick" text-anchor="middle">{short(value)}</text>')
    for value in ticks(up.low, up.high):
        y = up(value)
        result.append(f'<path d="M{inner[0]} {y:.1f}H{inner[1]}" class="grid"/>')
        result.append(f'<text x="{inner[0] - 7}" y="{y + 4:.1f}" class="tick" text-anchor="end">{short(value)}</text>')
    result.append(f'<text x="{inner[1]}" y="{inner[3] + 32}" class="tick" text-anchor="end">images trained on</text>')
    ends = []
    for number, run in enumerate(runs):
        line = [(across(x), up(y)) for x, y in run.series.get(title, [])]
        if not line:
            continue
        colour = COLOURS[number % len(COLOURS)]
        result.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in line)}" class="line" stroke="{colour}"/>')
        if len(line) <= 30:
            result += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"/>' for x, y in line]
        ends.append((line[-1], colour, run.series[title][-1][1]))
    below = -math.inf
    for (x, y), colour, value in sorted(ends, key=lambda end: end[0][1]):  # last values, one below the other
        below = max(y + 4, below + 13)
        result.append(f'<text x="{x + 6:.1f}" y="{below:.1f}" class="tick" style="fill:{colour}">{value:.4g}</text>')
    return result


def draw(runs: list[Run]) -> str:
    """The picture as SVG."""
    titles = list(dict.fromkeys(title for run in runs for title in run.series))
    if not titles:
        names = ", ".join(run.name for run in runs)
        raise ValueError(f"expected logs with figures in them, received none from {names}: let the run go on for a minute")
    columns = min(COLUMNS, len(titles))
    head = 18 + 20 * len(runs)
    width, height = columns * PANEL[0], head + PANEL[1] * -(-len(titles) // columns) + 8
    style = (
        "text{font-family:Helvetica,Arial,sans-serif;fill:#333}.title{font-size:14px;font-weight:bold}.tick{font-size:11px}"
        ".name{font-size:13px}.grid{stroke:#e4e4e4;fill:none}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<style>{style}</style><rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, run in enumerate(runs):
        y, colour = 24 + 20 * number, COLOURS[number % len(COLOURS)]
        seen = max((x for points in run.series.values() for x, _ in points), default=0)
        parts.append(f'<path d="M{MARGIN[0]} {y - 4}h26" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{MARGIN[0] + 34}" y="{y}" class="name">{escape(run.name)}: {seen:,} images</text>')
    for number, title in enumerate(titles):
        parts += panel(title, runs, number % columns * PANEL[0], head + number // columns * PANEL[1])
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("plot.svg"))
    arguments = parser.parse_args()
    try:
        picture = draw([read(path) for path in arguments.runs])
    except (OSError, ValueError) as error:
        parser.error(str(error))
    arguments.out.write_text(picture, encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
