"""Tables that show a bus, a topic, an event, and what else there is, in notebooks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from functools import singledispatch
from html import escape
from itertools import count, islice
from typing import Any

from rxbus import Event, EventBus, Receipt, Subscription, TopicSubject
from rxbus._short import clip, plain, short
from rxbus.display._axis import duration
from rxbus.display._marbles import Marbles, marbles
from rxbus.recording import Recording

ROWS = 50
PAYLOAD = 400  # characters

# Said per element and with no colours but greys that let the page shine through: notebooks strip style sheets, and no
# page tells whether it is light or dark.
_TABLE = "border-collapse:collapse;margin:.3em 0"
_CELL = "padding:.2em .7em;border-bottom:1px solid rgba(128,128,128,.3);vertical-align:top"
_TEXT = f"{_CELL};text-align:left;max-width:40em;overflow-wrap:anywhere"
_NUMBER = f"{_CELL};text-align:right;font-variant-numeric:tabular-nums"
_CAPTION = "text-align:left;caption-side:top;padding:.2em .7em;color:inherit;font-weight:bold;overflow-wrap:anywhere"


@singledispatch
def to_html(obj: object) -> str:
    """Writes a bus, a topic, a subscription, an event, a receipt or a recording as an HTML table, for notebooks.

    Payloads are shortened, and all text is escaped. It is a look from outside: nothing is subscribed to. There is no
    script in it and no style sheet; it is legible in light and dark themes.
    """
    return f"<code>{_escaped(short(obj, PAYLOAD))}</code>"


@to_html.register(EventBus)
def _of_bus(bus: EventBus) -> str:
    topics = sorted(bus.topic_statistics().items(), key=lambda item: (-item[1].published, item[0]))
    rows = [
        (name, one.observers, one.published, one.acknowledged, one.failed, one.pending) for name, one in topics[:ROWS]
    ]
    head = ("topic", "observers", "published", "acknowledged", "failed", "pending")
    return _table(repr(bus), head, rows, len(topics) - len(rows))


@to_html.register(TopicSubject)
def _of_topic(topic: TopicSubject[Any]) -> str:
    fields: list[tuple[str, str]] = [("topic", topic.name), *_observers(topic.observer_names)]
    if topic.exception is not None:
        fields.append(("ended by", short(topic.exception, PAYLOAD)))
    return _fields(repr(topic), fields)


@to_html.register(Subscription)
def _of_subscription(subscription: Subscription[Any]) -> str:
    return _fields(repr(subscription), [("topic", subscription.topic), *_observers(subscription.observer_names)])


@to_html.register(Event)
def _of_event(event: Event[Any]) -> str:
    return _fields("Event", _event_fields(event))


@to_html.register(Receipt)
def _of_receipt(receipt: Receipt) -> str:
    fields = [("acknowledged", f"{receipt.acknowledged:,}"), ("queued", f"{receipt.queued:,}")]
    return _fields("Receipt", fields + _event_fields(receipt.event))


@to_html.register(Recording)
def _of_recording(recording: Recording) -> str:
    tape = recording.tape()
    events, deliveries = tape.events, tape.deliveries
    topic_of = {event.id: event.topic for event in events}
    counts = Counter(topic_of.values())
    times: defaultdict[str, list[float]] = defaultdict(list)
    failed: Counter[str] = Counter()
    for one in deliveries:
        topic = topic_of.get(one.event, "")
        times[topic].append(one.end - one.start)
        failed[topic] += one.error is not None
    rows = [
        (topic, number, len(times[topic]), failed[topic], _longest(times[topic]))
        for topic, number in counts.most_common(ROWS)
    ]
    head = ("topic", "events", "deliveries", "failed", "slowest delivery")
    return marbles(recording)._repr_html_() + _table(repr(recording), head, rows, len(counts) - len(rows))


@to_html.register(Marbles)
def _of_marbles(marbles: Marbles) -> str:
    return marbles._repr_html_()


def _longest(times: list[float]) -> str:
    return duration(max(times)) if times else ""


def _observers(names: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    yield "observers", f"{len(names):,}"
    counts = Counter(names)
    for name, number in islice(counts.items(), ROWS):
        yield "", clip(name, PAYLOAD) + (f" ×{number:,}" if number > 1 else "")
    more = len(counts) - ROWS
    if more > 0:
        yield "", f"and {more:,} more"


def _event_fields(event: Event[Any]) -> list[tuple[str, str]]:
    return [
        ("topic", event.topic),
        ("payload", short(event.payload, PAYLOAD)),
        ("id", str(event.id)),
        ("time", _moment(event.time)),
        *([] if event.cause is None else [("cause", str(event.cause))]),
    ]


def _moment(time: float) -> str:
    try:
        return datetime.fromtimestamp(time).astimezone().isoformat(" ", "milliseconds")
    except (TypeError, ValueError, OverflowError, OSError):  # an event that was made by hand
        return short(time)


def _fields(caption: str, fields: Iterable[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><th scope="row" style="{_TEXT}">{name}</th><td style="{_TEXT}">{_escaped(value)}</td></tr>'
        for name, value in fields
    )
    return f'<table style="{_TABLE}">{_caption(caption)}<tbody>{rows}</tbody></table>'


def _table(caption: str, head: Iterable[str], rows: Iterable[tuple[Any, ...]], more: int) -> str:
    names = "".join(f'<th scope="col" style="{_TEXT if not n else _NUMBER}">{name}</th>' for n, name in enumerate(head))
    body = "".join(f"<tr>{''.join(map(_cell, count(), row))}</tr>" for row in rows)
    if more > 0:
        body += f'<tr><td style="{_TEXT}" colspan="{len(tuple(head))}">and {more:,} more</td></tr>'
    return f'<table style="{_TABLE}">{_caption(caption)}<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def _caption(text: str) -> str:
    return f'<caption style="{_CAPTION}">{_escaped(text)}</caption>'


def _cell(column: int, value: Any) -> str:
    shown = f"{value:,}" if isinstance(value, int) else _escaped(value)
    return f'<td style="{_NUMBER if column else _TEXT}">{shown}</td>'


def _escaped(text: str) -> str:
    """What is no visible character is written as `repr` does, and text keeps its direction to itself."""
    return f"<bdi>{escape(plain(text))}</bdi>"
