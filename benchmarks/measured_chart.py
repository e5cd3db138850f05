"""Groups of bars as SVG, side by side, that read in light and in dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _TOP, _LOW, _PANEL, _LEFT = 920, 330, 64, 262, 430, 46
_COLOURS = {
    "memory": ("#1b6ca8", "#58a6e0"),
    "text, our decoder": ("#c1440e", "#f08a5d"),
    "text, transformers": ("#d9822b", "#f2b45c"),
    "text, llama.cpp": ("#8a8f98", "#aab1bb"),
}


@dataclass(frozen=True)
class Bars:
    """A bar with its interval (value, low, high) for each series in each group.

    log: whether bars stand on a log axis that begins at 10.
    """

    title: str
    groups: list[str]
    series: dict[str, list[tuple[float, float, float]]]
    log: bool = False


def chart(panels: Sequence[Bars], origins: Sequence[str]) -> str:
    """The SVG document; `origins` says in its description where the figures are from."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    rules = {name: f"s{i}" for i, name in enumerate(names)}
    light, dark = ("".join(f".{rules[n]}{{fill:{_COLOURS[n][i]}}}" for n in names) for i in (0, 1))
    parts = [
        part
        for number, panel in enumerate(panels)
        for part in _panel(panel, number * (_WIDTH - _PANEL), rules)
    ]
    at = _LEFT
    for name in names:
        parts.append(f'<rect class="{rules[name]}" x="{at}" y="296" width="12" height="12"/>')
        parts.append(f'<text class="start" x="{at + 18}" y="307">{escape(name)}</text>')
        at += 40 + 8 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="12">\n'
        "<title>First token and quality of answers, memory beside text in the prompt</title>\n"
        f"<desc>{escape(' '.join(origins))}</desc>\n"
        f"<style>text{{fill:#1d2733;text-anchor:middle}}.start{{text-anchor:start}}"
        f".title{{font-weight:600}}.line{{stroke:#8a96a3;stroke-width:1}}{light}"
        "@media (prefers-color-scheme:dark){text{fill:#e6edf3}"
        f".line{{stroke:#8a96a3}}{dark}}}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(panel: Bars, left: float, rules: dict[str, str]) -> list[str]:
    values = [value for rows in panel.series.values() for value in rows]
    top = max(high for _, _, high in values)

    def y(value: float) -> float:
        share = math.log(max(value, 10) / 10) / math.log(top / 10) if panel.log else value / top
        return _LOW - share * (_LOW - _TOP)

    start, end = left + _LEFT, left + _PANEL
    wide = (end - start) / len(panel.groups)
    bar = (wide - 16) / len(panel.series)
    parts = [
        f'<text class="start title" x="{start}" y="34">{escape(panel.title)}</text>',
        f'<line class="line" x1="{start}" y1="{_LOW}" x2="{end}" y2="{_LOW}"/>',
    ]
    for number, group in enumerate(panel.groups):
        begin = start + number * wide + 8
        parts.append(f'<text x="{begin + (wide - 16) / 2:.1f}" y="{_LOW + 18}">{group}</text>')
        for place, (name, rows) in enumerate(panel.series.items()):
            value, low, high = rows[number]
            x, middle = begin + place * bar, begin + place * bar + (bar - 3) / 2
            parts.append(
                f'<rect class="{rules[name]}" x="{x:.1f}" y="{y(value):.1f}"'
                f' width="{bar - 3:.1f}" height="{_LOW - y(value):.1f}"/>'
            )
            if low < high:
                parts.append(
                    f'<line class="line" x1="{middle:.1f}" y1="{y(low):.1f}" x2="{middle:.1f}"'
                    f' y2="{y(high):.1f}"/>'
                )
            said = f"{value:,.0f}" if panel.log else f"{value:.1f}"
            parts.append(
                f'<text x="{middle:.1f}" y="{y(high) - 5:.1f}" font-size="9">{said}</text>'
            )
    return parts
