"""Observers as they are attached: their callbacks, and their places in the logs that feed them."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from rxbus._cells import current_cell
from rxbus._fan_out import FanOut, is_ctrl_c, ledger, logger
from rxbus._here import Reentered, local
from rxbus._lane import Entry, Lane
from rxbus._put_off import PutOff

if TYPE_CHECKING:
    from rxbus._log import Log


class Feed:
    """An observer's place in one topic's log."""

    __slots__ = ("attachment", "cursor", "cut", "dropped", "first", "lane", "last", "log", "loop", "on_next")

    def __init__(self, attachment: Attachment, log: Log) -> None:
        self.attachment = attachment
        self.lane = attachment.lane
        self.log = log
        self.loop = attachment.loop
        self.cursor = log.tail  # the last event delivered, or skipped; moved by the holder of the lane's turn
        self.first = self.cursor.id  # what came up to it is not meant for it
        self.on_next: Callable[[Any], object] | None = attachment.on_next  # None: it has left
        self.last: int | None = None  # the last event that is meant for it, once the log feeds it no longer
        self.cut: int | None = None  # the id up to which it had come when it left; what came later is dropped
        self.dropped: Entry | None = None  # the last that has been

    @property
    def name(self) -> str:
        """How errors and reports call the observer."""
        return self.attachment.name

    def owes(self, id: int) -> bool:
        """Whether it has not come to an event, or to one before it, that is meant for it."""
        entry = self.cursor.next
        if entry is None or entry.id > id or self.on_next is None:
            return False
        return self.last is None or entry.id <= self.last  # it leaves just now, and the log goes on without it

    def leave(self) -> None:
        """Gets nothing more; what it has not come to is dropped. Can be made again."""
        last = self.log.remove(self)
        with ledger:
            if self.cut is None:
                # A thread that delivers moves the cursor before it reads `on_next`: what it has come to is its own to
                # count, and what lies beyond is ours.
                self.on_next = None
                self.dropped = self.cursor
                self.cut = self.dropped.id
        while (entry := self._to_drop(last)) is not None:
            assert entry.fan is not None
            self.log.count_dropped(entry.fan.lapse(self))
            self.dropped = entry
        self.dropped = None  # or it would pin what comes

    def _to_drop(self, last: int) -> Entry | None:
        entry = None if self.dropped is None else self.dropped.next
        return entry if entry is not None and entry.id <= last else None


class Attachment:
    """One `subscribe`: the callbacks of an observer, and the topics that feed them.

    Args:
        lane: The observer's lane; several attachments share one where operators join them.
        name: How errors and reports call the observer.
        loop: The event loop that has to run for it to acknowledge, if there is one.
        home: The log of the topic that it is attached to, or one named like the pattern.
    """

    __slots__ = ("cell", "feeds", "home", "lane", "left", "loop", "name", "on_completed", "on_error", "on_next", "told")

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
        self.told = False  # that its stream has ended
        self.cell = current_cell(home.hub)
        lane.attachments.append(self)
        if self.cell is not None:
            self.cell.add(self, self.finish)

    def leave(self) -> None:
        """Gets nothing more, and nobody waits for it: what is queued is dropped, what is deferred counts as given."""
        if self.left:
            return
        try:
            self._leave()
        except Reentered:  # in a destructor, which is not to know
            self._put_off()
        except BaseException:  # interrupted: what has not been done is done now
            self._leave()
            raise

    def _put_off(self) -> None:
        self.left = False
        submit = self.lane.engine.submit
        if self.lane.engine.limit == 0:
            local.here.later.append(PutOff(self.leave, submit))
        else:
            submit(self.leave)

    def _leave(self) -> None:
        self.left = True
        if self.cell is not None:
            self.cell.forget(self)
        for feed in list(self.feeds.values()):
            feed.leave()
        inside = local.here.delivery
        for delivery in self.lane.all_deliveries():
            if delivery.feed.attachment is self and delivery is not inside:
                delivery.leave()
        self.feeds.clear()
        with suppress(ValueError):
            self.lane.attachments.remove(self)

    def finish(self, error: Exception | None = None) -> None:
        """Leaves, and tells the observer so in its turn: `on_completed`, or `on_error`."""
        self.leave()
        self.lane.post(partial(self.tell, error))

    def end(self, error: Exception | None) -> None:
        """In its turn: leaves, and is told why."""
        self.leave()
        self.tell(error)

    def tell(self, error: Exception | None) -> None:
        """In its turn: calls `on_completed` or `on_error`, once.

        A delivery like any other, but of no event, and with no publisher that waits: failures are logged.
        """
        fan = FanOut(self.home, None, 0, ())
        fan.waiting().gone = True
        feed = Feed(self, self.home)
        here = local.here
        if self.told:
            return
        self.told = True
        before = here.feed, here.event, here.fan, here.delivery, here.origin
        here.feed, here.event, here.fan, here.delivery, here.origin = feed, None, fan, None, None
        here.ending = True
        raised: BaseException | None = None
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
        try:
            if raised is not None:
                logger.error("an observer failed when its stream ended: %s", self.name, exc_info=raised)
        finally:
            if delivery is not None:
                delivery.returned(here)
        if raised is not None and is_ctrl_c(raised):
            raise raised
