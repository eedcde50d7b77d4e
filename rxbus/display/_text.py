"""How wide text is: in pixels, whatever the sans-serif font, and in a terminal's columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from rxbus._short import ELLIPSIS

# In hundredths of the font's size, as in DejaVu Sans, which like Verdana is wider than what most systems have.
_HUNDREDTHS = {
    28: "ijl'",
    30: "IJ",
    32: " .,",
    34: "/:;\\|·",
    36: "f-",
    40: "t()[]!",
    42: "r",
    46: '"',
    53: "sz?*_`",
    58: "cLk",
    61: "avxyTP",
    64: "bdeghnopqu0123456789{}$FSEY",
    70: "ACRXBKVZ",
    79: "DGHNOQU&",
    82: "w",
    84: "#+<=>^~×",
    87: "M",
    100: "mW@%…",
}
_WIDTHS = {char: share / 100 for share, chars in _HUNDREDTHS.items() for char in chars}
_WIDE = 1.1  # CJK takes a square
_EMOJI = 1.4
_LETTER = 0.7  # Greek, Cyrillic, Hebrew, Arabic
_OTHER = 0.9


def is_measured(text: str) -> bool:
    """Whether the width of each character is known, and not a guess."""
    return all(char in _WIDTHS for char in text)


def pixels(text: str, size: float) -> float:
    """The width of a text in a sans-serif font; rather too much than too little."""
    return size * sum(map(_share, text))


def columns(text: str) -> int:
    """The width of a text in a terminal."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def fit_pixels(text: str, room: float, size: float) -> str:
    """Clips a text to a width in pixels; to nothing where there is no room for a character and an ellipsis."""
    return _fit(text, room / size, _share)


def fit_columns(text: str, room: int) -> str:
    """Clips a text to a width in a terminal's columns."""
    return _fit(text, room, _cells)


def _fit(text: str, room: float, measure: Callable[[str], float]) -> str:
    width = 0.0
    kept = 0  # how much leaves room for an ellipsis
    for place, char in enumerate(text):
        if width + measure(ELLIPSIS) <= room:
            kept = place
        width += measure(char)
        if width > room:
            return text[:kept] + ELLIPSIS if kept else ""
    return text


def _share(char: str) -> float:
    known = _WIDTHS.get(char)
    if known is not None:
        return known
    if unicodedata.combining(char):
        return 0.0
    if "\u00c0" <= char <= "\u024f":
        return _WIDTHS.get(unicodedata.normalize("NFD", char)[0], _OTHER)
    if "\u0370" <= char <= "\u06ff":
        return _LETTER
    if char > "\uffff" or "\u2600" <= char <= "\u27bf":
        return _EMOJI
    return _WIDE if unicodedata.east_asian_width(char) in "WF" else _OTHER


def _cells(char: str) -> int:
    if char.isascii():
        return 1
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
