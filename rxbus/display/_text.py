"""How wide text is: in pixels, whatever the sans-serif font, and in a terminal's columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from rxbus._short import ELLIPSIS

# In hundredths of the font's size, the most that a character takes: in DejaVu Sans, which like Verdana is wider than
# what most systems have; in Liberation Sans, which is as wide as Arial and Helvetica; "M" in Noto Sans and Segoe UI.
_HUNDREDTHS = {
    28: "ijl'",
    30: "I",
    32: " .,",
    34: "/:;\\|·",
    37: "f-",
    41: "t()[]!",
    42: "r",
    46: '"',
    50: "*J`",
    55: "csz",
    58: "kL?_",
    62: "aeovxyFT",
    64: "bdghnpqu0123456789{}$",
    67: "EKPSY",
    69: "ABVXZ",
    73: "CR",
    77: "DHNU",
    79: "GOQ&",
    82: "w",
    84: "#+<=>^~×",
    91: "M",
    100: "mW%…",
    102: "@",
}
_WIDTHS = {char: share / 100 for share, chars in _HUNDREDTHS.items() for char in chars}
TELLING = 2  # letters or digits
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


def telling(text: str, whole: str) -> str:
    """Gives a label that has been clipped, or nothing where what is left of it tells nothing: `']…`."""
    return text if text == whole or sum(map(str.isalnum, text)) >= TELLING else ""


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
