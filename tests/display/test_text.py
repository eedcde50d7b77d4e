"""How wide text is, and how moments are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxbus.display._axis import duration, ticks
from rxbus.display._text import columns, fit_columns, fit_pixels, is_measured, pixels, telling


@given(st.text(), st.floats(0, 500), st.integers(0, 60))
def test_what_is_fitted_fits(text: str, room: float, cells: int) -> None:
    assert pixels(fit_pixels(text, room, 11), 11) <= room + 1e-6
    assert columns(fit_columns(text, cells)) <= cells
    assert fit_pixels(text, 1e9, 11) == fit_columns(text, 10**9) == text


def test_what_is_cut_ends_in_an_ellipsis() -> None:
    assert fit_columns("abcdef", 4) == "abc…"
    assert fit_columns("日本語", 4) == "日…"
    assert fit_columns("日本語", 2) == ""
    assert fit_columns("abcdef", 1) == ""


def test_a_label_tells_something_or_is_left_out() -> None:
    assert telling("']…", "'], 'words'") == telling("'a…", "'abc'") == ""
    assert telling("[]", "[]") == "[]"
    assert telling("'ab…", "'abc'") == "'ab…"


def test_letters_are_as_wide_as_in_the_widest_of_common_fonts() -> None:
    for text, share in {"J": 0.5, "EPSY": 0.667, "CR": 0.722, "@": 1.015, "?_": 0.556}.items():  # in Liberation Sans
        assert all(pixels(char, 1) >= share for char in text)
    for text, share in {"il": 0.278, "e": 0.615, "w": 0.818, "=": 0.838, "W": 0.989}.items():  # in DejaVu Sans
        assert all(pixels(char, 1) >= share for char in text)


def test_wide_and_stacked_characters() -> None:
    assert columns("a日😀é") == 1 + 2 + 2 + 1
    assert pixels("日", 10) >= 10
    assert pixels("😀", 10) >= 12
    assert pixels("z\u0301\u0301", 10) == pixels("z", 10)
    assert pixels("é", 10) == pixels("e", 10)
    assert pixels("i", 10) < pixels("ש", 10) == pixels("Ж", 10) < pixels("ß", 10)
    assert is_measured("{'price': 101.5}")
    assert not is_measured("日")


@pytest.mark.parametrize(
    ("span", "labels"),
    [
        (1e-6, ["0", "1 µs"]),
        (0.0019, ["0", "0.5 ms", "1 ms", "1.5 ms"]),
        (4, ["0", "1 s", "2 s", "3 s", "4 s"]),
        (59, ["0", "15 s", "30 s", "45 s"]),
        (100, ["0", "30 s", "60 s", "90 s"]),
        (3600, ["0", "15 min", "30 min", "45 min", "60 min"]),
        (86400, ["0", "6 h", "12 h", "18 h", "24 h"]),
        (1e9, ["0", "5,000 d", "10,000 d"]),
        (1e15, ["0", "2.89352e+09 d"]),
    ],
)
def test_an_axis_has_round_moments(span: float, labels: list[str]) -> None:
    assert [label for _, label in ticks(span, 4)][: len(labels)] == labels


@given(st.floats(1e-6, 1e12), st.integers(0, 30))
def test_ticks_are_inside_and_few(span: float, at_most: int) -> None:
    moments = [moment for moment, _ in ticks(span, at_most)]
    assert 1 <= len(moments) <= max(at_most, 1) + 1
    assert all(0 <= moment <= span * 1.000001 for moment in moments)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0 µs"),
        (1.5e-5, "15 µs"),
        (0.0123, "12.3 ms"),
        (0.999, "999 ms"),
        (1.234, "1.23 s"),
        (90, "1.5 min"),
        (86400 * 1234.5, "1,234 d"),
    ],
)
def test_durations(seconds: float, written: str) -> None:
    assert duration(seconds) == written
