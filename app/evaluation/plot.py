"""A scatter plot as SVG: sizes on a log axis, an interval at each point, levels across."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 560, 70, 190, 30, 60
_COLOURS = ("#1b6ca8", "#c1440e", "#3b7d3b", "#7a4fa3")


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float
    high: float
    label: str


def plot(
    series: Mapping[str, Sequence[Point]],
    levels: Mapping[str, float],
    x_name: str,
    y_name: str,
    *,
    bytes_across: bool = True,
) -> str:
    """The SVG document. Points of the first series carry their labels.

    bytes_across: whether x counts bytes, or is a plain number.
    """
    name_of = _short if bytes_across else str
    points = [point for some in series.values() for point in some]
    xs = [math.log2(point.x) for point in points]
    ys = [0.0, *levels.values(), *(y for point in points for y in (point.low, point.high))]
    left, right = math.floor(min(xs)), math.floor(max(xs)) + 1
    step = _step(max(ys) - min(ys))
    bottom, top = math.floor(min(ys) / step) * step, (math.floor(max(ys) / step) + 1) * step

    def x(value: float) -> float:
        share = (math.log2(value) - left) / (right - left)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (top - value) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_WIDTH / 2, _HEIGHT - 12, x_name), _text(_LEFT, _TOP - 12, y_name)]
    for power in range(left, right + 1):
        parts.append(_line(x(2**power), y(bottom), x(2**power), y(top), "#ddd"))
        parts.append(_text(x(2**power), y(bottom) + 20, name_of(2**power)))
    for number in range(round((top - bottom) / step) + 1):
        value = bottom + number * step
        parts.append(_line(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "#ddd"))
        parts.append(_text(_LEFT - 8, y(value) + 4, f"{value:g}", "end"))
    for name, value in levels.items():
        parts.append(_line(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "#666", dashed=True))
        parts.append(_text(_WIDTH - _RIGHT + 6, y(value) + 4, name, "start"))
    for index, (name, some) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        parts.append(_text(_WIDTH - _RIGHT + 6, _TOP + 16 * index, f"● {name}", "start", colour))
        for point in some:
            at = x(point.x)
            parts.append(_line(at, y(point.low), at, y(point.high), colour))
            parts.append(f'<circle cx="{at:.1f}" cy="{y(point.y):.1f}" r="4" fill="{colour}"/>')
            if not index:
                parts.append(_text(at + 6, y(point.y) - 6, point.label, "start", colour))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%"'
        f' fill="white"/>\n{body}\n</svg>\n'
    )


def _step(span: float) -> float:
    """A round distance of grid lines: about eight over the span."""
    rough = max(span, 1e-9) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _short(size: int) -> str:
    for unit, name in ((1 << 20, " MiB"), (1 << 10, " KiB")):
        if size >= unit:
            return f"{size // unit}{name}"
    return f"{size} B"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
