"""Bars as SVG, small enough to be read as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, LABELS, ROW = 760, 210, 26
OURS, OTHERS, LIGHTER = "#0b7a75", "#8d99ae", 0.55


def bars(title: str, unit: str, lines: Mapping[str, Sequence[float]], keys: Sequence[str]) -> str:
    """A horizontal bar chart: for each line one bar per key, ours in a colour of their own."""
    longest = max((value for values in lines.values() for value in values), default=1) or 1
    scale = (WIDTH - LABELS - 90) / longest
    thick = (ROW - 6) / max(1, len(keys))
    parts = [_text(0, 18, title, size=15, bold=True), _text(0, 36, f"{unit}; {', then '.join(keys)}", colour="#666")]
    for index, (name, values) in enumerate(lines.items()):
        top = 50 + index * ROW
        colour = OURS if name.startswith("pulsartasks") else OTHERS
        parts.append(_text(0, top + ROW / 2 + 1, name))
        for place, value in enumerate(values):
            y, opacity = top + 3 + place * thick, 1 if place == 0 else LIGHTER
            size = f'x="{LABELS}" y="{y:.1f}" width="{max(1, value * scale):.1f}" height="{thick - 1:.1f}"'
            parts.append(f'<rect {size} fill="{colour}" opacity="{opacity}"/>')
            parts.append(_text(LABELS + value * scale + 5, y + thick - 1.5, f"{value:,.0f}", size=min(11, thick + 1)))
    height = 60 + len(lines) * ROW
    frame = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    background = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    style = 'font-family="system-ui, sans-serif"'
    return "\n".join([f"<svg {frame} {style}>", f"<title>{escape(title)}</title>", background, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: float = 12, bold: bool = False, colour: str = "#222") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" fill="{colour}"{weight}>{escape(text)}</text>'
