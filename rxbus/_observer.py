"""Observers as they are attached: their callbacks, and their places in the logs that feed them."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from rxbus._fan_out import FanOut, ledger, logger
from rxbus._here import local
from rxbus._lane import Lane, is_ctrl_c

if TYPE_CHECKING:
    from rxbus._log import Log


class Feed:
    """An observer's place in one topic's log."""

    __slots__ = ("attachment", "cursor", "cut", "lane", "last", "log", "loop", "on_next")

    def __init__(self, attachment: Attachment, log: Log) -> None:
        self.attachment = attachment
        self.lane = attachment.lane
        self.log = log
        self.loop = attachment.loop
        self.cursor = log.tail  # the last event delivered, or skipped; moved by the holder of the lane's turn
        self.on_next: Callable[[Any], object] | None = attachment.on_next  # None: it has left
        self.last: int | None = None  # the last event that is meant for it, once the log feeds it no longer
        self.cut: int | None = None  # the id up to which it had come when it left; what came later is dropped

    @property
    def name(self) -> str:
        """How errors and reports call the observer."""
        return self.attachment.name


class Attachment:
    """One `subscribe`: the callbacks of an observer, and the topics that feed them.

    Args:
        lane: The observer's lane; several attachments share one where operators join them.
        name: How errors and reports call the observer.
        loop: The event loop that has to run for it to acknowledge, if there is one.
        home: The log of the topic that it is attached to, or one named like the pattern.
    """

    __slots__ = ("feeds", "home", "lane", "left", "loop", "name", "on_completed", "on_error", "on_next")

    def __init__(
        self,
        lane: Lane,
        on_next: Callable[[Any], object],
        on_error: Callable[[Exception], object],
        on_completed: Callable[[], object],
        name: str,
        loop: AbstractEventLoop | None,
        home: Log,
    ) -> None:
        self.lane = lane
        self.on_next = on_next
        self.on_error = on_error
        self.on_completed = on_completed
        self.name = name
        self.loop = loop
        self.home = home
        self.feeds: dict[Log, Feed] = {}
        self.left = False

    def leave(self) -> None:
        """Gets nothing more, and nobody waits for it: what is queued is dropped, what is deferred counts as given."""
        with ledger:
            if self.left:
                return
            self.left = True
        held: list[object] = []  # until no lock is: destructors are user code
        for log, feed in list(self.feeds.items()):
            last = log.remove(feed)
            with ledger:
                feed.on_next = None
                # A thread that delivers moves the cursor before it reads `on_next`: what it has come to is its own to
                # count, and what lies beyond is ours.
                feed.cut = feed.cursor.id
                entry = feed.cursor.next
                while entry is not None and entry.id <= last:
                    assert entry.fan is not None
                    log.hub.dropped += 1
                    held.append(entry.fan.contents())
                    entry.fan.end(lost=True)
                    entry = entry.next
        with ledger:
            inside = local.here.delivery
            for delivery in [d for d in self.lane.deliveries if d.feed.attachment is self and d is not inside]:
                held.append(delivery.fan.contents())
                delivery.leave()
        self.feeds.clear()

    def finish(self, error: Exception | None = None) -> None:
        """Leaves, and tells the observer so in its turn: `on_completed`, or `on_error`."""
        self.leave()
        self.lane.post(partial(self.tell, error))

    def end(self, error: Exception | None) -> None:
        """In its turn: leaves, and is told why."""
        self.leave()
        self.tell(error)

    def tell(self, error: Exception | None) -> None:
        """In its turn: calls `on_completed` or `on_error`.

        A delivery like any other, but of no event, and with no publisher that waits: failures are logged.
        """
        here = local.here
        fan = FanOut(self.home, None, 0, ())
        with ledger:
            fan.waiting().gone = True
        before = here.feed, here.event, here.fan, here.delivery, here.origin
        here.feed, here.event, here.fan, here.delivery, here.origin = Feed(self, self.home), None, fan, None, None
        raised: BaseException | None = None
        here.ending = True
        try:
            if error is None:
                self.on_completed()
            else:
                self.on_error(error)
        except BaseException as failure:
            raised = failure
        delivery = here.delivery
        here.feed, here.event, here.fan, here.delivery, here.origin = before
        here.ending = False
        if raised is not None:
            logger.error("an observer failed when its stream ended: %s", self.name, exc_info=raised)
        if delivery is not None:
            delivery.returned(here)
        if raised is not None and is_ctrl_c(raised):
            raise raised
