"""Moments on an axis of time, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_STEPS = {
    "d": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    "h": (1, 2, 3, 6, 12),
    "min": (1, 2, 5, 10, 15, 30),
    "s": (1, 2, 5, 10, 15, 30),
}
_DECIMAL = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def ticks(span: float, at_most: int) -> Iterator[tuple[float, str]]:
    """Gives round moments between 0 and `span` seconds, and what to write there."""
    step = _step(span / max(at_most, 1))
    most = span if span < 60 else step  # half a second is read more easily than half a minute
    unit, name = next(((unit, name) for unit, name in _UNITS if most >= unit), _UNITS[-1])
    for number in range(int(span / step * (1 + 1e-9)) + 1):
        yield number * step, f"{round(number * step / unit, 6):,g} {name}" if number else "0"


def duration(seconds: float) -> str:
    """Writes a time in a unit that suits it, with two or three digits."""
    unit, name = next(((unit, name) for unit, name in _UNITS if seconds >= unit), _UNITS[-1])
    value = seconds / unit
    return f"{value:,.0f} {name}" if value >= 100 else f"{value:.3g} {name}"


def _step(at_least: float) -> float:
    for unit, name in reversed(_UNITS):
        for steps in _STEPS.get(name, _DECIMAL):
            if unit * steps >= at_least:
                return unit * steps
    return at_least
