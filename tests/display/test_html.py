"""Tables of what users hold in their hands."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given

from rxbus import Event, EventBus, Receipt, Subscription
from rxbus.display import marbles, to_html
from rxbus.recording import Recording
from tests.display.recordings import NAMES, PAYLOADS, event, failed, made_up, names, payloads

TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "bdi", "code", "img"}


class Parsed(HTMLParser):
    """What a browser would see: the rows, and whether all is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.caption = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert not {name for name, _ in attrs if name.startswith("on")}
        if tag != "img":
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "caption" in self._open:
            self.caption += data
        elif "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data


def test_a_bus_is_its_topics_the_busiest_first(bus: EventBus) -> None:
    def fail(event: Event[Any]) -> None:
        raise ValueError("no")

    bus.subscribe("b").subscribe(print)
    bus.subscribe("c").subscribe(fail)
    for topic in "a", "b", "b":
        bus.publish(topic)
    with pytest.raises(ExceptionGroup):
        bus.publish("c")
    shown = Parsed(to_html(bus))
    assert shown.caption == repr(bus)
    assert shown.rows == [
        ["topic", "observers", "published", "acknowledged", "failed", "pending"],
        ["b", "1", "2", "2", "0", "0"],
        ["a", "0", "1", "0", "0", "0"],
        ["c", "1", "1", "0", "1", "0"],
    ]


def test_a_bus_of_many_topics_shows_some_of_them(bus: EventBus) -> None:
    for number in range(1234):
        bus.publish(f"topic.{number:04}")
    rows = Parsed(to_html(bus)).rows
    assert len(rows) == 1 + 50 + 1
    assert rows[-1] == ["and 1,184 more"]


def test_a_closed_bus_is_shown_too() -> None:
    with EventBus() as bus:
        bus.publish("a")
    assert Parsed(to_html(bus)).caption == repr(bus)


@pytest.mark.rxbus_allow("failures")
def test_a_topic_and_a_subscription_show_their_observers(bus: EventBus) -> None:
    subscription = bus.subscribe("a.b")
    for name in "<one>", "<one>", "two":
        bus.subscribe("a.b", name=name).subscribe(print)
    subscription.subscribe(print, name := lambda error: None)
    topic = Parsed(to_html(bus.topic("a.b")))
    assert topic.caption == repr(bus.topic("a.b"))
    assert topic.rows[:4] == [["topic", "a.b"], ["observers", "4"], ["", "<one> ×2"], ["", "two"]]
    assert Parsed(to_html(subscription)).rows[:2] == [["topic", "a.b"], ["observers", "1"]]
    bus.topic("a.b").on_error(ValueError("<over>"))
    assert ["ended by", "ValueError('<over>')"] in Parsed(to_html(bus.topic("a.b"))).rows
    assert name


def test_many_observers_are_not_all_named(bus: EventBus) -> None:
    for number in range(60):
        bus.subscribe("a", name=f"observer {number}").subscribe(print)
    assert Parsed(to_html(bus.topic("a"))).rows[-1] == ["", "and 10 more"]


def test_to_look_at_something_changes_nothing(bus: EventBus) -> None:
    subscription: Subscription[Any] = bus.subscribe("a.>")
    before = bus.statistics(), dict(bus.topics)
    for shown in bus, subscription, event(1, payload=subscription), event(1, payload=bus):
        assert to_html(shown)
        assert repr(shown)
    assert (bus.statistics(), dict(bus.topics)) == before


def test_an_event_and_a_receipt_field_by_field() -> None:
    shown = Event("a", {"b": "<i>"}, 7, 1_780_000_000.25, 3)
    rows = dict(Parsed(to_html(shown)).rows)
    moment = rows.pop("time")
    assert rows == {"topic": "a", "payload": "{'b': '<i>'}", "id": "7", "cause": "3"}
    assert re.fullmatch(r"2026-05-2\d \d\d:\d\d:\d\d\.250[+-]\d\d:\d\d", moment)
    receipt = Parsed(to_html(Receipt(shown, 1234, 5)))
    assert receipt.rows[:2] == [["acknowledged", "1,234"], ["queued", "5"]]
    assert ["payload", "{'b': '<i>'}"] in receipt.rows


@pytest.mark.parametrize("time", [float("nan"), 1e300, "no time at all"])
def test_an_event_of_no_moment(time: Any) -> None:
    assert ["time", repr(time)] in Parsed(to_html(Event("a", None, 1, time))).rows


def test_a_recording_is_its_marbles_and_its_topics(bus: EventBus) -> None:
    def fail(event: Event[Any]) -> None:
        raise ValueError("no")

    bus.subscribe("a").subscribe(print)
    bus.subscribe("b").subscribe(fail)
    with Recording(bus) as recording:
        bus.publish("a")
        bus.publish("a")
        bus.publish("quiet")
        with pytest.raises(ExceptionGroup):
            bus.publish("b")
    html = to_html(recording)
    assert html.startswith(marbles(recording)._repr_html_())
    shown = Parsed(html)
    assert shown.caption == repr(recording)
    assert shown.rows[0] == ["topic", "events", "deliveries", "failed", "slowest delivery"]
    assert [row[:4] for row in shown.rows[1:]] == [["a", "2", "2", "0"], ["quiet", "1", "0", "0"], ["b", "1", "1", "1"]]
    assert re.fullmatch(r"[\d.]+ [mµ]?s", shown.rows[1][4])
    assert shown.rows[2][4] == ""


def test_what_has_a_table_shows_it_in_notebooks(bus: EventBus) -> None:
    receipt = bus.publish("a", 1)
    for shown in bus, bus.topic("a"), bus.subscribe("a"), receipt, receipt.event:
        assert shown._repr_html_() == to_html(shown)
    picture = marbles(made_up([event(1)], [failed(1)]))
    assert to_html(picture) == picture._repr_html_()


def test_other_things_are_shown_by_their_repr() -> None:
    assert to_html({"<a>": 1}) == "<code><bdi>{&#x27;&lt;a&gt;&#x27;: 1}</bdi></code>"


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: type(payload).__name__)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_whatever_names_and_payloads_hold_it_is_text(name: str, payload: object) -> None:
    html = to_html(Receipt(Event(name, payload, 1, 2.0), 1))
    Parsed(html).rows.sort()
    assert len(html) < 10_000
    assert html.isprintable()
    html.encode()


@given(names, payloads)
def test_always_well_formed(name: str, payload: object) -> None:
    shown = Parsed(to_html(Event(name, payload, 1, 2.0)))
    assert [row[0] for row in shown.rows] == ["topic", "payload", "id", "time"]
