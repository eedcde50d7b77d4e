"""What a bus has done, in numbers."""

from __future__ import annotations

from collections import Counter

import msgspec

from rxbus._fan_out import ledger
from rxbus._here import places
from rxbus._log import Hub, Log
from rxbus._registry import Registry


class Statistics(msgspec.Struct, frozen=True):
    """A snapshot of what a bus has done. Exact when nothing is going on.

    Attributes:
        topics: How many topics the registry holds.
        observers: How many observers are attached.
        published: How many events have been published.
        acknowledged: How many deliveries have been acknowledged.
        failed: How many deliveries have failed.
        pending: How many deliveries have not ended.
        workers: How many worker threads there are.
    """

    topics: int
    observers: int
    published: int
    acknowledged: int
    failed: int
    pending: int
    workers: int


class TopicStatistics(msgspec.Struct, frozen=True):
    """A snapshot of what has happened on one topic. Exact when nothing is going on.

    Attributes:
        observers: How many observers it feeds, those attached through patterns included.
        published: How many events have been published.
        acknowledged: How many deliveries have been acknowledged.
        failed: How many deliveries have failed.
        pending: How many deliveries have not ended.
    """

    observers: int
    published: int
    acknowledged: int
    failed: int
    pending: int


def of_bus(registry: Registry, hub: Hub, workers: int) -> Statistics:
    """Counts up a bus."""
    with registry.lock:
        logs = list(registry.logs.values())
        topics, observers = len(registry.subjects), len({attachment.lane for attachment in registry.attachments})
        published, fanned = registry.published, registry.fanned  # by logs that have been swept out
    published += sum(log.published + log.singles for log in logs)
    fanned += sum(log.fanned() + log.singles for log in logs)
    pending = sum(log.pending() for log in logs) + _open(registry, hub).total()
    acknowledged = max(0, fanned - hub.failed - hub.dropped - pending)
    return Statistics(topics, observers, published, acknowledged, hub.failed, pending, workers)


def of_topics(registry: Registry, hub: Hub) -> dict[str, TopicStatistics]:
    """Counts up each of a bus's topics."""
    with registry.lock:
        logs = list(registry.logs.values())
    open_ = _open(registry, hub)
    return {log.name: _of_topic(log, open_[log] + log.pending()) for log in logs}


def _of_topic(log: Log, pending: int) -> TopicStatistics:
    acknowledged = max(0, log.fanned() + log.singles - log.failed - log.dropped - pending)
    return TopicStatistics(len(log.feeds), log.published + log.singles, acknowledged, log.failed, pending)


def _open(registry: Registry, hub: Hub) -> Counter[Log]:
    """How many deliveries have begun and not ended, by topic."""
    with registry.lock:
        lanes = {attachment.lane for attachment in registry.attachments}
    with ledger:
        open_ = Counter(delivery.fan.log for lane in lanes for delivery in lane.deliveries)
    inside = [(here.feed, here.delivery) for here in list(places.values())]
    open_.update(feed.log for feed, delivery in inside if feed and delivery is None and feed.log.hub is hub)
    return open_
