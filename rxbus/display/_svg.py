"""Elements of SVG pictures: text that fits, marbles, and the colours of light and dark themes."""

from __future__ import annotations

from html import escape
from math import cos, pi, sin

from rxbus._short import plain
from rxbus.display._text import is_measured, pixels

FONT = 11
SMALL = 10

# Okabe and Ito's colours, which those who see no red or no green tell apart too. Black is read best on all but blue.
HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
ON_HUES = ("#fff", "#000", "#000", "#000", "#000", "#000", "#000")
SHAPES = 4  # another number than that of the colours: both together repeat after 28 topics only

# The picture has a background of its own. An image is not told of the theme that its page has chosen, only of the
# browser's: without, light text would stand on a light page where the two differ.
_LIGHT = {
    "card": "fill:#fff;stroke:#d5d9de",
    "ink": "fill:#1f2328",
    "dim": "fill:#5b6470",
    "grid": "stroke:#e8ebef",
    "line": "stroke:#8a939d",
    "tip": "fill:#8a939d",
    "edge": "stroke:#3b4149",
    "halo": "stroke:#fff",
    "link": "stroke:#5b6470",
    "arrow": "fill:#5b6470",
    "bar": "stroke:#1f2328",
    "bad": "stroke:#b3001b",
    "badge": "fill:#b3001b",
    "sorry": "fill:#b3001b",
    "none": "fill:#c3c9d0",
}
_DARK = {
    "card": "fill:#1c1f24;stroke:#3a4048",
    "ink": "fill:#e8eaed",
    "dim": "fill:#a3abb5",
    "grid": "stroke:#2b3037",
    "line": "stroke:#78828d",
    "tip": "fill:#78828d",
    "edge": "stroke:#dfe3e8",
    "halo": "stroke:#1c1f24",
    "link": "stroke:#a3abb5",
    "arrow": "fill:#a3abb5",
    "bar": "stroke:#e8eaed",
    "bad": "stroke:#ff7b86",
    "badge": "fill:#c9233b",
    "sorry": "fill:#ff7b86",
    "none": "fill:#8d959f",
}


def _rules(theme: dict[str, str]) -> str:
    return "".join(f".rxbus .{name}{{{style}}}" for name, style in theme.items())


# Not `system-ui`: on a Linux that has not been told what this is, it may be any font there is, a typewriter's even.
_FONTS = "-apple-system,BlinkMacSystemFont,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',Arial,sans-serif"
STYLE = (
    f".rxbus text{{font:{FONT}px {_FONTS}}}"
    f".rxbus .s{{font-size:{SMALL}px}}.rxbus .b{{font-weight:600}}.rxbus .m{{text-anchor:middle}}"
    ".rxbus .e{text-anchor:end}.rxbus .o{fill:#fff}.rxbus .f{fill:none}"
    ".rxbus .halo{stroke-width:3;stroke-linejoin:round;paint-order:stroke}.rxbus .edge{stroke-width:1}"
    ".rxbus .link{fill:none;stroke-opacity:.75}.rxbus .dots{stroke-dasharray:1.5 3}.rxbus .sky{stroke-width:2}"
    ".rxbus .bad,.rxbus .bar{stroke-width:3;stroke-linecap:round;fill:none}"
    + "".join(f".rxbus .h{number}{{fill:{hue}}}" for number, hue in enumerate(HUES))
    + "".join(f".rxbus .k{number}{{stroke:{hue}}}" for number, hue in enumerate(HUES))
    + "".join(f".rxbus .t{number}{{fill:{ink}}}" for number, ink in enumerate(ON_HUES))
    + ".rxbus .kn{stroke:#98a1ab}.rxbus .tn{fill:#000}"
    + _rules(_LIGHT)
    + f"@media (prefers-color-scheme:dark){{{_rules(_DARK)}}}"
)


def number(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, style: str, size: float = FONT) -> str:
    """A line of text that has been clipped to its room.

    What has characters of unknown width is squeezed, or stretched, into the width that they were taken to have.
    """
    if not content:
        return ""
    content = plain(content)
    width = "" if is_measured(content) else f' textLength="{number(pixels(content, size))}"'
    squeeze = width and ' lengthAdjust="spacingAndGlyphs"'
    small = " s" if size == SMALL else ""
    place = f'x="{number(x)}" y="{number(y)}"'
    return f'<text {place} class="{style}{small}"{width}{squeeze}>{escape(content)}</text>'


def path(data: str, style: str) -> str:
    """A path."""
    return f'<path d="{data}" class="{style}"/>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return path(f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}", style)


def box(left: float, top: float, width: float, height: float, style: str, radius: float) -> str:
    """A rectangle with round corners."""
    place = f'x="{number(left)}" y="{number(top)}" width="{number(width)}" height="{number(height)}"'
    return f'<rect {place} rx="{number(radius)}" class="{style}"/>'


def marble(x: float, y: float, radius: float, hue: int | None) -> str:
    """A marble in the colour and shape of a topic; grey and round, where it is nobody's."""
    style = f"{fill(hue)} edge"
    shape = 0 if hue is None else hue % SHAPES
    if shape == 0:
        return f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" class="{style}"/>'
    if shape == 1:
        side = radius * 1.8
        return box(x - side / 2, y - side / 2, side, side, style, 2)
    corners, size = ((4, radius * 1.2), (6, radius * 1.1))[shape - 2]
    turns = [2 * pi * corner / corners for corner in range(corners)]
    points = [f"{number(x + size * cos(turn))} {number(y + size * sin(turn))}" for turn in turns]
    return path(f"M{'L'.join(points)}Z", style)


def fill(hue: int | None) -> str:
    """The class of what is filled in a topic's colour."""
    return "none" if hue is None else f"h{hue % len(HUES)}"


def stroke(hue: int | None) -> str:
    """The class of what is drawn in a topic's colour."""
    return "kn" if hue is None else f"k{hue % len(HUES)}"


def on(hue: int | None) -> str:
    """The class of text that stands on a topic's colour."""
    return "tn" if hue is None else f"t{hue % len(HUES)}"
