"""As much of SVG as charts need: text that any browser draws, on light ground and on dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import count as counted
from itertools import takewhile
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

#: The reader's colour scheme decides, also where the file is an image in a page.
_STYLE = """\
    text { font: 12px system-ui, sans-serif; fill: #24292f }
    .title { font-size: 15px; font-weight: 600 }
    .strong { font-weight: 600 }
    .faint { fill: #59636e }
    .grid { stroke: #d1d9e0; stroke-width: 1 }
    .axis { stroke: #59636e; stroke-width: 1 }
    .ours { fill: #0969da } .other { fill: #9a6700 } .bar { opacity: .75 }
    .range { stroke: #24292f; stroke-width: 1.5 }
    .curve { fill: none; stroke: #0969da; stroke-width: 1.5; stroke-linejoin: round }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .faint { fill: #9198a1 }
      .grid { stroke: #3d444d } .axis { stroke: #9198a1 }
      .ours { fill: #4493f8 } .other { fill: #d29922 }
      .range { stroke: #e6edf3 }
      .curve { stroke: #4493f8 }
    }"""

Anchor = Literal["start", "middle", "end"]


def document(width: int, height: int, title: str, elements: Iterable[str]) -> str:
    """A whole file, as large as its picture; ``title`` is what a screen reader says."""
    body = "\n".join(f"  {element}" for element in elements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n'
        f"  <title>{escape(title)}</title>\n  <style>\n{_STYLE}\n  </style>\n{body}\n</svg>\n"
    )


def text(x: float, y: float, content: str, style: str = "", anchor: Anchor = "start") -> str:
    """One line of text on the base line ``y``."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class={quoteattr(style)} '
        f'text-anchor="{anchor}">{escape(content)}</text>'
    )


def rectangle(x: float, y: float, width: float, height: float, style: str) -> str:
    """A filled one."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f"class={quoteattr(style)}/>"
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """From one point to another."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class={quoteattr(style)}/>'
    )


def curve(points: Sequence[tuple[float, float]], style: str) -> str:
    """Straight lines from point to point."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" class={quoteattr(style)}/>'


def ticks(top: float, most: int = 6) -> list[float]:
    """Round numbers from 0 to at least ``top`` (> 0), at most ``most`` steps of 1, 2 or 5."""
    power = 10.0 ** math.floor(math.log10(top / most))
    step = next(power * n for n in (1, 2, 5, 10) if power * n * most >= top)
    below = list(takewhile(lambda value: value < top, (n * step for n in counted())))
    return [*below, len(below) * step]
