"""Handing over: deliveries that a publisher has others make, since observers are slow or it must not be late."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from rxbus._fan_out import FanOut, ledger
from rxbus._here import Once

if TYPE_CHECKING:
    from rxbus._observer import Feed


class Handover:
    """A delivery, claimed by a nested publisher, that a worker is to make, or a waiting publisher: who comes first."""

    __slots__ = ("_fan", "_feed", "_right", "owed", "wait")

    def __init__(self, feed: Feed, fan: FanOut) -> None:
        self._feed = feed
        self._fan = fan
        self._right = Once()
        self.wait = wait = fan.waiting()
        with ledger:
            wait.count += 1
            self.owed = True  # it is counted there; under the ledger

    def __call__(self) -> None:
        try:
            if not self._right.take():
                return
            self._feed.lane.serve(self._feed, self._fan, self)
        except BaseException:  # interrupted, perhaps before the lane knew
            self._feed.lane.inbox.append((self._feed, self._fan.id))
            self.drop()
            self._feed.lane.engine.submit(self._feed.lane.visit)
            raise

    def drop(self) -> None:
        """The publisher waits for it no longer, unless the delivery has taken over its claim."""
        with ledger:
            self.wait.count -= self.owed
            self.owed = False
        if self.wait.count <= 0:
            self.wait.ring()


def hand(feed: Feed, fan: FanOut) -> None:
    """Has a worker deliver to one lane."""
    engine = feed.lane.engine
    if fan.root is None:
        feed.lane.call((feed, fan.id))
        if engine.limit is not None:  # a full pool must not keep a publisher waiting that could do it itself
            fan.waiting().offer(feed.lane.visit)
        return
    job = Handover(feed, fan)
    if engine.limit is not None:
        job.wait.offer(job)
    engine.submit(job)


def hand_over(fan: FanOut, most: int | None = None) -> int:
    """Has workers deliver to lanes that the publisher has not come to, all or so many; says to how many.

    A nested publisher is kept from leaving meanwhile: between the taking off and the handing nothing is counted yet,
    and what it has begun would be nobody's.
    """
    nested = fan.waiting() if fan.root is not None else None
    if nested is not None:
        with ledger:
            nested.count += 1
    try:
        rest = list(islice(fan.rest, most))
        if len(rest) != most:
            with suppress(IndexError):
                rest.append((fan.last or []).pop())
        for feed in rest:
            hand(feed, fan)
    finally:
        if nested is not None:
            with ledger:
                nested.count -= 1
            nested.ring()
    return len(rest)
