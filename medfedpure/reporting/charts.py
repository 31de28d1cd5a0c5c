"""Charts as inline SVG: colours are style sheet variables, so they follow light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

COLOURS = 8
_SHARES = (0, 0.25, 0.5, 0.75, 1)
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Point:
    """A share with its interval, at a place of the axis."""

    place: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A named line; `hollow` ones are side results, `strong` ones are drawn thicker."""

    name: str
    points: Sequence[Point]
    colour: int
    hollow: bool = False
    strong: bool = False


def share_chart(series: Sequence[Series], ticks: Sequence[str], *, title: str, across: str, up: str) -> str:
    """Shares over evenly spaced places, with intervals; lines differ in colour, dash and marker."""
    return line_chart(series, ticks, _SHARES, title=title, across=across, up=up)


def line_chart(
    series: Sequence[Series],
    ticks: Sequence[str],
    levels: Sequence[float],
    *,
    title: str,
    across: str,
    up: str,
    size: tuple[int, int] = (640, 300),
) -> str:
    """Values over evenly spaced places; whiskers stand beside each other, lines without them where they belong.

    Args:
        series: the lines; the first ones lie below.
        ticks: what stands under each place; "" for nothing.
        levels: heights of the grid, ascending, from the lower to the upper end of the axis.
        title: of the picture, for those who cannot see it.
        across, up: of the axes.
        size: width and height in units of the drawing, in which text is 11 high.
    """
    (width, height), left, top, bottom = size, 44, 10, 44
    step = (width - left - 46) / max(len(ticks) - 1, 1)
    whiskers = any(point.low is not None for line in series for point in line.points)

    def y(value: float) -> float:
        return top + (levels[-1] - value) / (levels[-1] - levels[0]) * (height - top - bottom)

    parts = _grid(width, y, left, levels)
    for place, tick in enumerate(ticks):
        if tick:
            parts.append(_text(left + 22 + place * step, height - bottom + 17, tick, "middle"))
    parts.append(_text(left + (width - left) / 2, height - 6, across, "middle", "soft"))
    turned = f'transform="rotate(-90)" x="{-(top + height - bottom) / 2:.0f}" y="11" text-anchor="middle"'
    parts.append(f'<text class="soft up" {turned}>{escape(up)}</text>')
    for number, line in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * min(5.0, step / (2 * len(series))) if whiskers else 0.0
        places = [(left + 22 + point.place * step + shift, y(point.value)) for point in line.points]
        style = f"c{line.colour % COLOURS}{' strong' if line.strong else ''}"
        dash = "1 4" if line.hollow else _DASHES[number % len(_DASHES)]
        parts.append(f'<g class="{style}"><title>{escape(line.name)}</title>')
        joined = " ".join(f"{across_:.1f},{up_:.1f}" for across_, up_ in places)
        parts.append(f'<polyline class="line" points="{joined}" stroke-dasharray="{dash}"/>')
        for point, (at, level) in zip(line.points, places, strict=True):
            if point.low is not None and point.high is not None:
                parts.append(f'<path class="whisker" d="M{at:.1f} {y(point.low):.1f}V{y(point.high):.1f}"/>')
            parts.append(_marker(at, level, line.colour, line.hollow))
        parts.append("</g>")
    return _svg(width, height, parts, title)


def legend_mark(colour: int, dash: int, *, hollow: bool = False) -> str:
    """The line and marker of a series, small."""
    pattern = "1 4" if hollow else _DASHES[dash % len(_DASHES)]
    line = f'<path class="line" d="M1 6H29" stroke-dasharray="{pattern}"/>'
    return (
        f'<svg class="mark c{colour % COLOURS}" viewBox="0 0 30 12" aria-hidden="true">{line}'
        f"{_marker(15, 6, colour, hollow)}</svg>"
    )


def roc_chart(benign: Sequence[float], attacks: Sequence[tuple[str, Sequence[float], int]], *, title: str) -> str:
    """True against false positive rate, one staircase for each attack."""
    size, left, top, bottom = 300, 40, 10, 40
    span = size - left - 10

    def at(fpr: float, tpr: float) -> str:
        return f"{left + fpr * span:.1f} {top + (1 - tpr) * (size - top - bottom):.1f}"

    parts = _grid(size, lambda value: top + (1 - value) * (size - top - bottom), left, _SHARES)
    parts.append(f'<path class="chance" d="M{at(0, 0)}L{at(1, 1)}"/>')
    parts += [_text(left + share * span, size - bottom + 16, f"{share:g}", "middle") for share in (0, 0.5, 1)]
    parts.append(_text(left + span / 2, size - 6, "false positive rate", "middle", "soft"))
    for number, (name, scores, colour) in enumerate(attacks):
        corners = roc(torch.tensor(benign), torch.tensor(scores))
        path = "L".join(at(fpr, tpr) for fpr, tpr in corners)
        dash = _DASHES[number % len(_DASHES)]
        parts.append(
            f'<g class="c{colour % COLOURS}"><title>{escape(name)}</title>'
            f'<path class="line" d="M{path}" stroke-dasharray="{dash}"/></g>'
        )
    return _svg(size, size, parts, title)


def roc(benign: Tensor, suspicious: Tensor) -> list[tuple[float, float]]:
    """Corners (false, true positive rate) for every threshold, from none flagged to all."""
    thresholds = torch.cat((benign, suspicious)).double().unique().flip(0)
    corners = [(0.0, 0.0)]
    for threshold in thresholds.tolist():
        fpr, tpr = ((scores.double() >= threshold).double().mean().item() for scores in (benign, suspicious))
        corners.append((fpr, tpr))
    return corners


def score_histogram(benign: Sequence[float], attacked: Sequence[float], bounds: tuple[float, float], title: str) -> str:
    """Shares of benign (up) and attacked (down) images in 16 bins of the score; the outer two hold what lies beyond.

    Bins are even in the logarithm where scores span more than two decades.
    """
    width, height, bins, middle = 200, 108, 16, 48.0
    decades = bounds[0] > 0 and bounds[1] > 100 * bounds[0]
    low, high = (math.log10(bound) for bound in bounds) if decades else bounds
    parts = [f'<path class="axis" d="M0 {middle}H{width}"/>']
    for scores, style, sign in ((benign, "benign", -1), (attacked, "attacked", 1)):
        if not scores:
            continue
        values = torch.tensor(scores, dtype=torch.float64).clamp(*bounds)
        values = values.log10() if decades else values
        place = ((values - low) / max(high - low, 1e-12) * bins).long().clamp(0, bins - 1)
        shares = place.bincount(minlength=bins).double() / len(scores)
        for number, share in enumerate(shares.tolist()):
            tall = 40 * (share / max(float(shares.max()), 1e-12))
            if share:
                up = middle - tall if sign < 0 else middle
                wide = width / bins
                parts.append(
                    f'<rect class="{style}" x="{number * wide + 0.5:.1f}" y="{up:.1f}" width="{wide - 1:.1f}" '
                    f'height="{tall:.1f}"/>'
                )
    parts += [_text(0, height - 6, f"{bounds[0]:.2g}", "start"), _text(width, height - 6, f"{bounds[1]:.2g}", "end")]
    parts.append(_text(width / 2, height - 6, "score, log" if decades else "score", "middle", "soft"))
    return _svg(width, height, parts, title)


def levels_around(values: Sequence[float]) -> list[float]:
    """Two to six round numbers, evenly spaced, that enclose all values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-9):
        margin = abs(high) / 2 or 0.5
        low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * 4 >= (high - low) * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _grid(width: float, y: Callable[[float], float], left: float, levels: Sequence[float]) -> list[str]:
    parts = []
    for level in levels:
        parts.append(f'<path class="grid" d="M{left} {y(level):.1f}H{width - 6}"/>')
        parts.append(_text(left - 6, y(level) + 4, f"{level:g}", "end"))
    return parts


def _marker(x: float, y: float, kind: int, hollow: bool) -> str:
    style = "hollow" if hollow else "solid"
    shape = kind % 4
    if shape == 0:
        return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if shape == 1:
        return f'<rect class="{style}" x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
    if shape == 2:
        return f'<path class="{style}" d="M{x:.1f} {y - 5:.1f}L{x + 4.6:.1f} {y + 3.6:.1f}H{x - 4.6:.1f}Z"/>'
    return f'<path class="{style}" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5Z"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
