"""Recordings as pandas data frames."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

from rxbus.errors import InvalidArgument, MissingExtra
from rxbus.recording._records import Delivery, Tape

if TYPE_CHECKING:
    from pandas import DataFrame


def to_dataframe(tape: Tape, of: Literal["events", "deliveries"]) -> DataFrame:
    """Makes a frame; see `Recording.to_dataframe`."""
    if of not in ("events", "deliveries"):
        raise InvalidArgument(f"there are data frames of 'events' and of 'deliveries', not of {of!r}")
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra("pandas", "to_dataframe()") from error
    return _of_events(pandas, tape) if of == "events" else _of_deliveries(pandas, tape)


def _of_events(pandas: Any, tape: Tape) -> DataFrame:
    by_event: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in tape.deliveries:
        by_event[delivery.event].append(delivery)
    events = tape.events
    told = [by_event.get(event.id, []) for event in events]
    failed = [sum(one.error is not None for one in some) for some in told]
    ends = [max((one.end for one in some), default=None) for some in told]
    latencies = [None if end is None else end - event.time for event, end in zip(events, ends, strict=True)]
    columns = {
        "topic": pandas.Series([event.topic for event in events], dtype="str"),
        "payload": pandas.Series([event.payload for event in events], dtype="object"),
        "time": _times(pandas, [event.time for event in events]),
        "cause": pandas.Series([event.cause for event in events], dtype="Int64"),
        "observers": pandas.Series([len(some) for some in told], dtype="int64"),
        "acknowledged": pandas.Series([len(some) - bad for some, bad in zip(told, failed, strict=True)], dtype="int64"),
        "failed": pandas.Series(failed, dtype="int64"),
        "latency": pandas.Series(latencies, dtype="float64"),
    }
    index = pandas.Index([event.id for event in events], name="id", dtype="int64")
    frame: DataFrame = pandas.DataFrame(columns).set_index(index)
    return frame


def _of_deliveries(pandas: Any, tape: Tape) -> DataFrame:
    topics = {event.id: event.topic for event in tape.events}
    some = tape.deliveries
    columns = {
        "event": pandas.Series([one.event for one in some], dtype="int64"),
        "topic": pandas.Series([topics.get(one.event) for one in some], dtype="str"),
        "observer": pandas.Series([one.observer for one in some], dtype="str"),
        "start": _times(pandas, [one.start for one in some]),
        "end": _times(pandas, [one.end for one in some]),
        "duration": pandas.Series([one.end - one.start for one in some], dtype="float64"),
        "thread": pandas.Series([one.thread for one in some], dtype="str"),
        "error": pandas.Series([one.error for one in some], dtype="object"),
    }
    frame: DataFrame = pandas.DataFrame(columns)
    return frame


def _times(pandas: Any, seconds: list[float]) -> Any:
    times = pandas.to_datetime(pandas.Series(seconds, dtype="float64"), unit="s", utc=True, errors="coerce")
    return times.dt.as_unit("ns")
