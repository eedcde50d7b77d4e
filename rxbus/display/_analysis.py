"""What a recording comes to, in numbers: by topic, by observer, by failure, and which topics led to which."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from rxbus import Event
from rxbus.recording import Delivery, Recording

LONGEST = 1e12  # seconds: a file may hold any number, and two of them may be infinitely far from each other
BINS = 60  # stretches of time that a topic's events are counted in


class Latency(msgspec.Struct, frozen=True):
    """Percentiles of durations, in seconds, by nearest rank."""

    p50: float
    p99: float
    max: float


class TopicFigures(msgspec.Struct, frozen=True):
    """A topic. Its latency is the time from the publish to the end of the event's last delivery."""

    topic: str
    events: int
    per_second: float | None
    deliveries: int
    observers: int
    failures: int
    latency: Latency | None
    bins: tuple[int, ...]


class ObserverFigures(msgspec.Struct, frozen=True):
    """An observer. Its latency is the time from the call of its handler to the end of the delivery."""

    observer: str
    topics: int
    deliveries: int
    failures: int
    total: float
    latency: Latency


class Failure(msgspec.Struct, frozen=True):
    """An error that deliveries of an observer have ended with, on one topic."""

    observer: str
    topic: str
    error: str
    count: int
    first: Event[Any]


class Lineage:
    """Events of one topic that were all caused along the same chain of topics, and what they led to.

    Attributes:
        topic: The topic.
        events: How many events there are.
        delays: Seconds from each event's cause to it.
        effects: What they led to, by topic.
    """

    __slots__ = ("delays", "effects", "events", "topic")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.events = 0
        self.delays: list[float] = []
        self.effects: dict[str, Lineage] = {}

    def effect(self, topic: str) -> Lineage:
        return self.effects.setdefault(topic, Lineage(topic))

    def sorted_effects(self) -> list[Lineage]:
        return sorted(self.effects.values(), key=lambda one: (-one.events, one.topic))


class Analysis(msgspec.Struct, frozen=True):
    """A recording in numbers; the topics with the most events come first, and the slowest observers."""

    began: float
    seconds: float
    per_second: float | None
    events: int
    dropped: int
    deliveries: int
    failed: int
    latency: Latency | None
    topics: list[TopicFigures]
    observers: list[ObserverFigures]
    failures: list[Failure]
    lineage: Lineage


def analyse(recording: Recording) -> Analysis:
    """Counts up a recording, one that goes on as far as it has come."""
    events, deliveries = recording.events, recording.deliveries
    began, seconds = _span(recording, events, deliveries)
    by_id = {event.id: event for event in events}
    latencies = _latencies(by_id, deliveries)
    return Analysis(
        began,
        seconds,
        _rate(len(events), seconds),
        len(events),
        recording.dropped,
        len(deliveries),
        sum(delivery.error is not None for delivery in deliveries),
        latency_of(latencies.values()),
        _topics(events, by_id, deliveries, latencies, began, seconds),
        _observers(by_id, deliveries),
        _failures(by_id, deliveries),
        lineage_of(by_id),
    )


def between(begin: float, end: float) -> float:
    return min(LONGEST, max(0.0, end - begin))


def latency_of(seconds: Collection[float]) -> Latency | None:
    if not seconds:
        return None
    rising = sorted(seconds)
    p50, p99 = (rising[max(0, math.ceil(percent * len(rising) / 100) - 1)] for percent in (50, 99))
    return Latency(p50, p99, rising[-1])


def lineage_of(events: dict[int, Event[Any]]) -> Lineage:
    """Gathers events by the chains of topics that led to them, below a root without a topic."""
    root = Lineage("")
    known: dict[int, Lineage] = {}
    for event in events.values():  # in order of id: causes first
        cause = known.get(event.cause) if event.cause is not None else None
        one = known[event.id] = (cause or root).effect(event.topic)
        one.events += 1
        if cause is not None and event.cause is not None:
            one.delays.append(between(events[event.cause].time, event.time))
    return root


def _span(recording: Recording, events: list[Event[Any]], deliveries: list[Delivery]) -> tuple[float, float]:
    """Gives when what is kept began, and how many seconds it lasted."""
    began = events[0].time if recording.dropped and events else recording.began
    latest = max((*(event.time for event in events[-1:]), *(one.end for one in deliveries[-1:]), began))
    return began, between(began, latest if recording.ended is None else recording.ended)


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _latencies(events: dict[int, Event[Any]], deliveries: Iterable[Delivery]) -> dict[int, float]:
    """By event: seconds until its last delivery had ended."""
    ends: dict[int, float] = {}
    for delivery in deliveries:
        if delivery.end > ends.get(delivery.event, -math.inf):
            ends[delivery.event] = delivery.end
    return {id: between(events[id].time, end) for id, end in ends.items() if id in events}


def _topics(
    events: list[Event[Any]],
    by_id: dict[int, Event[Any]],
    deliveries: list[Delivery],
    latencies: dict[int, float],
    began: float,
    seconds: float,
) -> list[TopicFigures]:
    own: dict[str, list[Event[Any]]] = defaultdict(list)
    for event in events:
        own[event.topic].append(event)
    delivered: dict[str, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        if delivery.event in by_id:
            delivered[by_id[delivery.event].topic].append(delivery)
    return [
        TopicFigures(
            topic,
            len(own[topic]),
            _rate(len(own[topic]), seconds),
            len(delivered[topic]),
            len({delivery.observer for delivery in delivered[topic]}),
            sum(delivery.error is not None for delivery in delivered[topic]),
            latency_of([latencies[event.id] for event in own[topic] if event.id in latencies]),
            tuple(_bins((event.time for event in own[topic]), began, seconds)),
        )
        for topic in sorted(own, key=lambda topic: (-len(own[topic]), topic))
    ]


def _bins(times: Iterable[float], began: float, seconds: float) -> Iterator[int]:
    width = seconds / BINS or 1.0
    counts = Counter(int(min(BINS - 1.0, max(0.0, (time - began) / width))) for time in times)
    return (counts[number] for number in range(BINS))


def _observers(events: dict[int, Event[Any]], deliveries: Iterable[Delivery]) -> list[ObserverFigures]:
    own: dict[str, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        own[delivery.observer].append(delivery)
    return sorted(
        (_observer(events, observer, own[observer]) for observer in own),
        key=lambda one: (-one.latency.p50, one.observer),
    )


def _observer(events: dict[int, Event[Any]], observer: str, deliveries: list[Delivery]) -> ObserverFigures:
    seconds = [between(delivery.start, delivery.end) for delivery in deliveries]
    latency = latency_of(seconds)
    assert latency is not None  # there is a delivery at least
    topics = len({events[delivery.event].topic for delivery in deliveries if delivery.event in events})
    failures = sum(delivery.error is not None for delivery in deliveries)
    return ObserverFigures(observer, topics, len(deliveries), failures, sum(seconds), latency)


def _failures(events: dict[int, Event[Any]], deliveries: Iterable[Delivery]) -> list[Failure]:
    found: dict[tuple[str, str, str], list[Event[Any]]] = defaultdict(list)
    for delivery in deliveries:
        if delivery.error is not None and delivery.event in events:
            event = events[delivery.event]
            found[delivery.observer, event.topic, delivery.error].append(event)
    many = (Failure(*key, len(failed), failed[0]) for key, failed in found.items())
    return sorted(many, key=lambda one: (-one.count, one.first.id))
