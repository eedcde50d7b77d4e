"""The ring that a recording writes to: the latest events, with what has become of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter, itemgetter
from time import time
from typing import Any

from rxbus import Event, Receipt, matcher
from rxbus.errors import InvalidArgument
from rxbus.recording._records import Delivery, Kind, Passage, Tape, safe_repr

_PASSAGES = 10  # stages that an event may pass on average
_RawDelivery = tuple[int, str, float, float, str, str | None]


class Ring:
    """A tracer that keeps the latest events that match a pattern.

    Told events are put in order of id, and the lowest goes when there are too many. All up to the highest id that has
    gone are gone, so that a delivery is told from its id to be of no use any more: it may come before its event is
    told, or long after that has gone.
    """

    def __init__(self, pattern: str, maxlen: int, now: Callable[[], float] = time) -> None:
        matches = matcher(pattern)
        if not isinstance(maxlen, int) or isinstance(maxlen, bool) or maxlen < 1:
            raise InvalidArgument(f"maxlen is a number of events from 1 on, not {maxlen!r}")
        self.pattern = pattern
        self.maxlen = maxlen
        self.began = now()
        self.ended: float | None = None
        self._now = now  # in virtual time, events have that
        self.dropped = 0
        self.dropped_passages = 0
        self._matches: Callable[[str], bool] | None = None if pattern == ">" else lru_cache(1024)(matches)
        # Guards all below, but for what is appended to the deliveries: that is done without. An RLock, since a signal
        # handler may read what its own thread is writing. What is let go of dies outside of it: it may be anybody's.
        self._lock = threading.RLock()
        self._gone = -1  # the highest id that has gone
        self._events: deque[Event[Any]] = deque()
        self._deliveries: deque[_RawDelivery] = deque()
        self._deliver: Callable[[_RawDelivery], None] | None = self._deliveries.append  # None once it is over
        self._passages: deque[Passage] = deque()
        self._tape: Tape | None = None  # what it has come to, once it is over

    def published(self, event: Event[Any]) -> None:
        """Keeps an event."""
        if self._matches is None or self._matches(event.topic):
            with self._lock:
                out = self._keep(event) if self.ended is None else None
            del out

    def delivered(
        self, event: Event[Any], observer: str, start: float, end: float, thread: str, error: BaseException | None
    ) -> None:
        """Keeps a delivery."""
        if event.id > self._gone and (self._matches is None or self._matches(event.topic)):
            deliver = self._deliver  # once: what is appended after the end goes to what has been left behind
            if deliver is not None:
                deliver((event.id, observer, start, end, thread, None if error is None else safe_repr(error)))

    def settled(self, receipt: Receipt) -> None:
        """Does nothing: the deliveries say it all."""

    def passed(
        self,
        stage: str,
        kind: Kind,
        value: Any,
        event: Event[Any] | None,
        time: float,
    ) -> None:
        """Keeps what has passed a stage, if it was for an event of the pattern, or for none."""
        if event is not None and self._matches is not None and not self._matches(event.topic):
            return
        if kind == "error":
            value = safe_repr(value)
        passage = Passage(stage, kind, value, time, None if event is None else event.id)
        out = None
        with self._lock:
            if self.ended is None and (event is None or event.id > self._gone):
                self._passages.append(passage)
                if len(self._passages) > max(1000, _PASSAGES * self.maxlen):
                    out = self._passages.popleft()
                    self.dropped_passages += 1
        del out

    def _keep(self, event: Event[Any]) -> list[object]:
        """Puts an event where it belongs; gives what has to go for it.

        An interrupt may tear it where something is called; the next call goes on from there.
        """
        events = self._events
        if event.id <= self._gone:  # told so late that those after it have gone
            self.dropped += 1
            return []
        at = len(events)
        while at and events[at - 1].id > event.id:
            at -= 1
        events.insert(at, event)
        out: list[object] = []
        while len(events) > self.maxlen:
            lowest = events[0]
            self._gone = lowest.id
            self.dropped += 1
            events.popleft()
            out.append(lowest)
            self._trim(out)
        return out

    def _trim(self, out: list[object]) -> None:
        """Lets go of what belongs to events that have gone.

        Both are nearly in order of id: what stays behind one that is kept goes with that one.
        """
        deliveries, passages, since = self._deliveries, self._passages, self._events[0].time
        while deliveries and deliveries[0][0] <= self._gone:
            deliveries.popleft()
        while passages and _is_before(passages[0], self._gone, since):
            out.append(passages.popleft())

    def freeze(self) -> None:
        """Keeps nothing more."""
        with self._lock:
            if self.ended is None:
                self._deliver = None
                self._deliveries = self._deliveries.copy()
                self.ended = self._now()

    def wind(self, tape: Tape) -> None:
        """Takes over what has been recorded elsewhere, and is over."""
        with self._lock:
            self.began, self.ended, self._deliver = tape.began, tape.ended, None
            self.dropped, self.dropped_passages = tape.dropped, tape.dropped_passages
            self._tape = tape

    def count(self) -> int:
        """Says how many events are kept."""
        with self._lock:
            return len(self._events if self._tape is None else self._tape.events)

    def tape(self) -> Tape:
        """Gives all that is kept, in order."""
        with self._lock:
            if self._tape is not None:
                return self._tape
            events, deliveries, passages = list(self._events), list(self._deliveries), list(self._passages)
            dropped, dropped_passages, ended = self.dropped, self.dropped_passages, self.ended
        kept = {event.id for event in events}
        tape = Tape(
            self.pattern,
            self.maxlen,
            self.began,
            ended,
            dropped,
            dropped_passages,
            events,
            [Delivery(*raw) for raw in sorted((raw for raw in deliveries if raw[0] in kept), key=itemgetter(2))],
            sorted((one for one in passages if one.event is None or one.event in kept), key=attrgetter("time")),
        )
        if ended is not None:
            self._tape = tape
            self._events, self._deliveries, self._passages = deque(), deque(), deque()
        return tape


def _is_before(passage: Passage, gone: int, since: float) -> bool:
    """Whether something passed for an event that has gone; or for none, before the events that are kept."""
    return passage.time < since if passage.event is None else passage.event <= gone
