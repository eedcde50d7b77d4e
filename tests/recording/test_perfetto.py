"""Traces for Perfetto: the rules of Chrome's trace event format, and what the trace tells."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rxbus import Event, EventBus
from rxbus.operators import buffered
from rxbus.recording import Delivery, Recording
from tests.recording.conftest import Wound

PATIENCE = 10.0
Spawn = Callable[..., Future[Any]]
Entry = dict[str, Any]


def trace(recording: Recording, tmp_path: Path) -> list[Entry]:
    """Writes a trace, and sees that it keeps the rules."""
    path = tmp_path / "trace.json"
    recording.to_perfetto(path)
    whole = json.loads(path.read_text("utf-8"))
    assert set(whole) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert whole["displayTimeUnit"] == "ms"
    entries: list[Entry] = whole["traceEvents"]
    check(entries)
    return entries


def check(entries: list[Entry]) -> None:
    names = {(one["pid"], one["tid"]) for one in entries if one["ph"] == "M" and one["name"] == "thread_name"}
    assert [one["ph"] for one in entries[: 2 * len(names) + 1]] == ["M"] * (2 * len(names) + 1)
    timed = [one for one in entries if one["ph"] != "M"]
    assert {one["ph"] for one in timed} <= {"X", "s", "f"}
    assert [one["ts"] for one in timed] == sorted(one["ts"] for one in timed)
    assert all(one["ts"] >= 0 and isinstance(one["name"], str) and one["cat"] for one in timed)
    assert {(one["pid"], one["tid"]) for one in timed} <= names
    check_slices([one for one in timed if one["ph"] == "X"])
    check_flows(timed)


def check_slices(slices: list[Entry]) -> None:
    """On each thread, in the order of the file, slices lie apart, or one in the other."""
    open_: dict[int, list[float]] = defaultdict(list)
    for one in slices:
        start, end = nano(one["ts"]), nano(one["ts"]) + nano(one["dur"])
        ends = open_[one["tid"]]
        while ends and ends[-1] <= start:
            ends.pop()
        assert start <= end
        assert not ends or end <= ends[-1]
        ends.append(end)


def check_flows(timed: list[Entry]) -> None:
    """Each flow begins once and ends once, later.

    Both times it is bound to the slice that has begun last on its track, as Perfetto does it.
    """
    latest: dict[int, Entry] = {}
    begun: dict[int, Entry] = {}
    for one in timed:
        if one["ph"] == "X":
            latest[one["tid"]] = one
            continue
        bar = latest[one["tid"]]
        assert bar["ts"] == one["ts"]
        if one["ph"] == "s":
            assert one["id"] not in begun
            begun[one["id"]] = one
        else:
            start = begun.pop(one["id"])
            assert (start["name"], start["cat"], one["bp"]) == (one["name"], one["cat"], "e")
            assert bar["args"]["id"] == one["id"]
    assert begun == {}


def nano(micro: float) -> int:
    return round(micro * 1000)


def tracks(entries: list[Entry]) -> dict[int, str]:
    named = [one for one in entries if one["name"] == "thread_name"]
    return {one["tid"]: one["args"]["name"] for one in named}


def slices(entries: list[Entry], category: str) -> list[Entry]:
    return [one for one in entries if one["ph"] == "X" and one["cat"] == category]


def test_tracks_of_topics_and_threads(chain: Recording, tmp_path: Path) -> None:
    entries = trace(chain, tmp_path)
    assert entries[0]["args"] == {"name": "rxbus >"}
    here = threading.current_thread().name
    names = tracks(entries)
    assert sorted(names.values()) == sorted(["topic a", "topic b", "topic c", f"thread {here}"])
    publishes = slices(entries, "publish")
    assert [(names[one["tid"]], one["name"], one["args"]["id"]) for one in publishes[:4]] == [
        ("topic a", "a", 1),
        ("topic b", "b", 2),
        ("topic c", "c", 3),
        ("topic c", "c", 4),
    ]
    about = {"id": 4, "cause": 1, "payload": "1", "observers": 1, "failed": 1}
    assert publishes[3]["args"] == about
    delivered = slices(entries, "delivery")
    assert [one["name"] for one in delivered[:4]] == ["lead", "tapped", "fails", "fails"]
    assert delivered[3]["args"] == {"event": 4, "topic": "c", "error": "ValueError('one too many')"}
    for event, one in zip(chain.events, publishes, strict=True):
        assert one["ts"] == pytest.approx((event.time - chain.began) * 1e6, abs=1)


def test_flows_from_the_delivery_that_published(chain: Recording, tmp_path: Path) -> None:
    entries = trace(chain, tmp_path)
    names = tracks(entries)
    flows = [one for one in entries if one["ph"] in "sf"]
    lead = [one["ts"] for one in slices(entries, "delivery") if one["name"] == "lead"]
    assert [one["ts"] for one in flows if one["ph"] == "s"] == [lead[0]] * 3 + [lead[1]] * 3
    assert [one["id"] for one in flows if one["ph"] == "f"] == [2, 3, 4, 6, 7, 8]
    assert {names[one["tid"]] for one in flows if one["ph"] == "s"} == {f"thread {threading.current_thread().name}"}
    assert {names[one["tid"]] for one in flows if one["ph"] == "f"} == {"topic b", "topic c"}


def test_an_effect_behind_a_buffer_is_caused_by_the_publish(wound: Wound, tmp_path: Path) -> None:
    events = [Event("a", None, 1, 1000.0), Event("b", None, 2, 1003.0, 1), Event("c", None, 3, 999.0, 2)]
    recording = wound(events, [Delivery(1, "buffer", 1000.0, 1001.0, "main")])
    entries = trace(recording, tmp_path)
    names = tracks(entries)
    (start,) = [one for one in entries if one["ph"] == "s"]  # none to what a clock that was set back has put before
    assert (names[start["tid"]], start["ts"]) == ("topic a", 1e6)


def test_what_overlaps_goes_to_a_further_track(wound: Wound, tmp_path: Path) -> None:
    recording = wound(
        [Event("a", None, id, 1000.0 + id) for id in range(3)],
        [
            Delivery(0, "deferred", 1000.0, 1001.5, "main"),
            Delivery(1, "deferred", 1001.0, 1005.0, "main"),
            Delivery(2, "quick", 1002.0, 1003.0, "main"),
        ],
    )
    entries = trace(recording, tmp_path)
    names = tracks(entries)
    assert sorted(names.values()) == ["thread main", "thread main", "topic a", "topic a"]
    for category in ("publish", "delivery"):
        first, second, third = (one["tid"] for one in slices(entries, category))
        assert first != second
        assert third == first


def test_what_overlaps_at_random(wound: Wound, tmp_path: Path) -> None:
    random = Random(7)
    times = [(random.randrange(60), random.randrange(20)) for _ in range(500)]
    events = [Event("a", None, id, float(start)) for id, (start, _) in enumerate(times)]
    deliveries = [
        Delivery(id, "o", float(start), float(start + length), "t") for id, (start, length) in enumerate(times)
    ]
    entries = trace(wound(events, deliveries), tmp_path)
    check(entries)
    assert len(slices(entries, "publish")) == len(slices(entries, "delivery")) == 500


def test_thousands_that_overlap_are_not_compared_with_each_other(wound: Wound, tmp_path: Path) -> None:
    count = 30_000  # it would take minutes
    events = [Event("a", None, id, float(id)) for id in range(count)]
    deliveries = [Delivery(id, "o", float(id), float(id + count), "t") for id in range(count)]
    assert len(tracks(trace(wound(events, deliveries), tmp_path))) == 2 * count


def test_under_threads(bus: EventBus, spawn: Spawn, tmp_path: Path) -> None:
    bus.subscribe("a.*").subscribe(lambda event: bus.publish("b", event.payload))
    bus.subscribe("b").pipe(buffered(3)).subscribe(lambda event: bus.publish("c"))
    bus.subscribe("*").subscribe(lambda event: None)
    with bus.record() as recording:
        threads = [spawn(lambda name: [bus.publish(name, n) for n in range(20)], f"a.{name}") for name in range(4)]
        for thread in threads:
            thread.result(PATIENCE)
    entries = trace(recording, tmp_path)
    assert len(slices(entries, "publish")) == len(recording.events)
    assert len(slices(entries, "delivery")) == len(recording.deliveries)
    published = {event.id for event in recording.events}
    assert sum(one["ph"] == "s" for one in entries) == sum(event.cause in published for event in recording.events)


def test_nothing(wound: Wound, tmp_path: Path) -> None:
    assert [one["name"] for one in trace(wound([]), tmp_path)] == ["process_name"]


def test_whatever_it_is_called(wound: Wound, tmp_path: Path) -> None:
    hostile = 'half \ud83d"</script>\n'
    recording = wound(
        [Event(hostile, hostile * 100, 1, 1000.0)], [Delivery(1, hostile, 1000.0, 1000.0, hostile, hostile)]
    )
    entries = trace(recording, tmp_path)
    assert set(tracks(entries).values()) == {'topic half \\ud83d"</script>\n', 'thread half \\ud83d"</script>\n'}
    assert len(slices(entries, "publish")[0]["args"]["payload"]) <= 1000
