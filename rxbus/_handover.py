"""Handing over: deliveries that a publisher has others make, since observers are slow or it must not be late."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from rxbus._fan_out import FanOut, ledger
from rxbus._here import Engine, Once, is_limited

if TYPE_CHECKING:
    from rxbus._lane import Lane
    from rxbus._observer import Feed


class Handover:
    """A delivery, claimed by a nested publisher, that a worker is to make, or a waiting publisher: who comes first."""

    __slots__ = ("_by", "_fan", "_feed", "_right", "owed", "wait")

    def __init__(self, feed: Feed, fan: FanOut) -> None:
        self._feed = feed
        self._fan = fan
        self._right = Once()
        self._by: Lane | None = None  # where it is due
        self.wait = wait = fan.waiting()
        with ledger:
            wait.count += 1
            self.owed = True  # it is counted there; under the ledger

    def __call__(self) -> None:
        try:
            if self._by is not None:
                self._by.due.pop(self, None)
            if not self._right.take():
                return
            self._feed.lane.serve(self._feed, self._fan, self)
        except BaseException:  # interrupted, perhaps before the lane knew
            self._feed.lane.inbox.append((self._feed, self._fan.id))
            self.drop()
            self._feed.lane.engine.submit(self._feed.lane.visit)
            raise

    def begin(self, engine: Engine) -> None:
        """Has it made by who comes first."""
        told = is_limited(engine)
        if told:
            self._tell()
        if engine.submit(self) or told:
            return
        if not self._tell():  # as in a limited pool, a nested publisher does it itself, late or not
            self.wait.serves = True
            self()

    def _tell(self) -> bool:
        """Has who waits for it make it; False where none will."""
        by, told = self._fan.by, self.wait.offer(self)
        if not told and by is not None:  # a coroutine waits, no thread
            self._by = by.lane
            by.lane.demand(self)
        return told

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
        if is_limited(engine):  # a full pool must not keep a publisher waiting that could do it itself
            fan.waiting().offer(feed.lane.visit)
        return
    Handover(feed, fan).begin(engine)


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
