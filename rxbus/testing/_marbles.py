"""What has come, compared with a marble diagram in RxPY's notation, which RxPY itself parses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, zip_longest
from typing import Any, Literal, NamedTuple

from reactivex.notification import OnError, OnNext
from reactivex.observable.marbles import parse

from rxbus import Event, InvalidArgument, Topic, matcher

CLOSE = 1e-6  # seconds by which times may differ always: what virtual time resolves
WIDEST = 200

Values = Mapping[Any, Any]


class _Marble(NamedTuple):
    """Something that has come, or should have."""

    kind: Literal["next", "error", "completed"]
    value: Any
    time: float


def assert_marbles(
    actual: Any,
    expected: str,
    values: Values | None = None,
    *,
    topic: str | Topic[Any] | None = None,
    stage: str | None = None,
    unit: float | None = None,
    tolerance: float = 0.0,
    start: float | None = None,
    error: object = None,
) -> None:
    """Compares payloads that have come with a marble diagram: `assert_marbles(events, "a-(b,c)--d", {"a": 1, ...})`.

    The notation is RxPY's: each character is a unit of time; `-` is nothing, `(b,c)` comes at once (where the bracket
    opens), `#` is an error, `|` the end, other characters a marble: `ab` is one, called so. Spaces do not count. A
    marble stands for what `values` says, else for itself, as a number where it is one.

    Args:
        actual: What has come: a recording (anything with `events`, and `passages`), events, or passages.
        expected: The diagram.
        values: What the marbles stand for.
        topic: Only what has been published to it, or to what matches; None: all events.
        stage: What has passed `operators.tap(stage)`, instead of events; only there one sees errors and the end.
        unit: Seconds per character; None: only the order counts.
        tolerance: Seconds by which times may differ.
        start: When the diagram begins, in seconds since the epoch; None: with the recording (`began`), else so that the
            first marbles meet. In virtual time, 0 is the beginning.
        error: What `#` stands for: an exception, or a class of exceptions; None: any.

    Raises:
        AssertionError: They differ; the message shows both, one under the other.
        InvalidArgument: The diagram cannot be meant.
    """
    __tracebackhide__ = True  # pytest shows the test, not this
    wanted = _parsed(expected, values or {}, unit or 1.0, error)
    got = list(_passages(actual, stage) if stage is not None else _events(actual, topic))
    if stage is None and any(marble.kind != "next" for marble in wanted) and all(one.kind == "next" for one in got):
        raise InvalidArgument("events do not tell of errors and the end: mark a stage by operators.tap, and name it")
    began = getattr(actual, "began", None) if start is None else start
    if began is None:
        began = got[0].time - wanted[0].time if got and wanted else 0.0
    wanted = [marble._replace(time=marble.time + began) for marble in wanted]
    differs = (not _meets(*pair, unit and tolerance + CLOSE) for pair in zip_longest(wanted, got))
    place = next((place for place, differs in enumerate(differs) if differs), None)
    if place is not None:
        legend: dict[str, Any] = {}
        texts = [_text(marble, values or {}, legend) for marble in got]
        what = _in_words(place, wanted, got, texts, began, unit)
        shown = "\n".join(f"where {name} is {_shortened(value)}" for name, value in legend.items())
        raise AssertionError(
            f"the marbles differ at the {place + 1}. of them: {what}\n"
            f"expected: {expected}\n"
            f"     got: {_drawn(got, texts, began, unit)}\n{shown}".rstrip()
        )


def _parsed(diagram: str, values: Values, unit: float, error: object) -> list[_Marble]:
    try:
        messages: list[Any] = parse(diagram, timespan=unit, lookup=values, raise_stopped=True)
    except ValueError as wrong:
        raise InvalidArgument(f"the diagram {diagram!r} cannot be meant: {wrong}") from None
    marbles = []
    for time, message in messages:
        if isinstance(message, OnNext):
            _check_name(message.value, values)
            marbles.append(_Marble("next", message.value, time))
        else:
            failed = isinstance(message, OnError)
            marbles.append(_Marble("error" if failed else "completed", error if failed else None, time))
    return marbles


def _check_name(name: object, values: Values) -> None:
    """In RxJS, `(bc)` is two marbles."""
    if isinstance(name, str) and len(name) > 1 and name not in values and all(letter in values for letter in name):
        raise InvalidArgument(f"{name!r} is one marble in RxPY's notation: '({','.join(name)})' comes at once")


def _events(actual: Any, topic: str | Topic[Any] | None) -> Iterator[_Marble]:
    matches = matcher(str(topic)) if topic is not None else lambda _: True
    ones: Iterable[Any] = getattr(actual, "events", actual)
    for one in ones:
        if not isinstance(one, Event):
            yield from _passages([one], None)
        elif matches(one.topic):
            yield _Marble("next", one.payload, one.time)


def _passages(actual: Any, stage: str | None) -> Iterator[_Marble]:
    for one in getattr(actual, "passages", actual):
        if stage is None or one.stage == stage:
            yield _Marble(one.kind, one.value, one.time)


def _meets(wanted: _Marble | None, got: _Marble | None, most: float | None) -> bool:
    """Whether it is what should have come, and when; without `most`, the time does not count."""
    if wanted is None or got is None or wanted.kind != got.kind:
        return False
    if most is not None and abs(wanted.time - got.time) > most:
        return False
    if wanted.kind == "error":
        return wanted.value is None or _is_error(got.value, wanted.value)
    return _is_same(wanted.value, got.value)


def _is_error(got: object, wanted: object) -> bool:
    if isinstance(wanted, type):
        return isinstance(got, wanted)
    return got is wanted or (repr(wanted) in (got, repr(got)))  # a recording that has been loaded has its repr


def _is_same(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:  # arrays and data frames compare by element
        return type(one) is type(other) and repr(one) == repr(other)


def _in_words(
    place: int, wanted: list[_Marble], got: list[_Marble], texts: list[str], began: float, unit: float | None
) -> str:
    def when(marble: _Marble) -> str:
        return "" if unit is None else f" at {round(marble.time - began, 6):g} s"

    came = f"{texts[place]} came{when(got[place])}" if place < len(got) else "nothing more came"
    if place >= len(wanted):
        return f"nothing more was expected, but {came}"
    marble = wanted[place]
    what = {"error": "#", "completed": "|"}.get(marble.kind) or _shortened(marble.value)
    return f"{what} was expected{when(marble)}, but {came}"


def _text(marble: _Marble, values: Values, legend: dict[str, Any]) -> str:
    """How a marble is drawn: by the name that it has in the diagram, by itself, or by one that the legend explains."""
    if marble.kind != "next":
        return "#" if marble.kind == "error" else "|"
    names = [str(name) for name, value in values.items() if _is_same(value, marble.value)]
    if names:
        return names[0]
    if isinstance(marble.value, str | int | float) and re.fullmatch(r"[^-,()#|\s]{1,8}", str(marble.value)):
        return str(marble.value)
    known = [name for name, value in legend.items() if _is_same(value, marble.value)]
    name = known[0] if known else f"?{len(legend) + 1}"
    legend[name] = marble.value
    return name


def _drawn(marbles: list[_Marble], texts: list[str], began: float, unit: float | None) -> str:
    if unit is None:
        return "-".join(texts) or "-"
    diagram, place = "", 0
    frames = [round((marble.time - began) / unit) for marble in marbles]
    for frame, group in groupby(zip(frames, texts, strict=True), key=lambda pair: pair[0]):
        together = [text for _, text in group]
        # Where names are longer than the time between them, which the notation cannot tell, a blank sets them apart.
        diagram += "-" * (frame - place) if frame > place or not diagram else " "
        drawn = together[0] if len(together) == 1 else f"({','.join(together)})"
        diagram, place = diagram + drawn, max(frame, place) + len(drawn)
    return diagram or "-"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
