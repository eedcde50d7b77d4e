"""What the monitor looks at: handlers that keep others waiting, and publishes that do not end.

Correctness never depends on it: without it, a slow handler would only hold up those behind it in its publisher's round.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from itertools import islice
from math import inf
from typing import Any

from rxbus._acknowledgement import Acknowledgement
from rxbus._fan_out import FanOut, ledger, logger, pending
from rxbus._handover import hand_over
from rxbus._here import Engine, Here, pass_on_later, places
from rxbus._lane import SLOW
from rxbus.errors import RxBusError

MOST = 10  # how many observers a warning names


class Watch:
    """Looks at all threads that deliver for one engine.

    Args:
        engine: Whose deliveries are watched.
        handoff_after: Seconds after which a handler is slow: the lanes behind it are handed to workers.
        stall_after: Seconds after which a publish is stalled: a warning is logged, again when that has doubled.
    """

    def __init__(self, engine: Engine, handoff_after: float, stall_after: float) -> None:
        self._engine = engine
        self._handoff_after = handoff_after
        self._stall_after = stall_after
        self._inside: dict[Here, tuple[Any, Any, Any, float]] = {}  # what each thread was doing, since when
        self._stalled: dict[int, tuple[Any, float, float]] = {}  # publishes: since when, and when to tell (again)

    def look(self) -> bool | None:
        """Looks once; see `Monitor`."""
        now = self._engine.time.monotonic()
        news = False
        inside: dict[Here, tuple[Any, Any, Any, float]] = {}
        publishes: dict[int, tuple[Any, str]] = {}
        for here in list(places.values()):
            feed, fan, event = here.feed, here.fan, here.event
            if feed is None or feed.lane.engine.monitor is not self._engine.monitor:
                continue
            before = self._inside.get(here)
            if before is not None and before[0] is feed and before[1] is fan and before[2] is event:
                inside[here] = before
                if now - before[3] >= self._handoff_after and self._engine.limit != 0:
                    news |= self._hand_off(here, fan)
                    feed.lane.slow = SLOW
            else:
                inside[here] = (feed, fan, event, now)
                news = True
            outermost = event if fan is None else fan.top
            publishes[id(outermost)] = (outermost, feed.log.name if fan is None else fan.top.log.name)
        for fan in list(self._engine.waiting):
            publishes[id(fan)] = (fan, fan.log.name)
        self._inside = inside
        self._tell(publishes, now)
        for owed, loop in list(self._engine.loops.items()):
            if loop.is_closed():
                self._give_up(owed)
        return news if publishes or self._engine.loops else None

    def due(self) -> float:
        """When it is to warn next of what it has seen; infinity where there is nothing."""
        return min((due for _, _, due in self._stalled.values()), default=inf)

    def _give_up(self, owed: Acknowledgement) -> None:
        """An event loop has been closed with a coroutine that was not done, or had not begun: nobody else will tell."""
        error = RxBusError("the event loop was closed before the coroutine was done")
        give = partial(owed._give, error)
        if self._engine.loops.pop(owed, None) and not owed._publisher().offer(give):
            self._engine.submit(give)

    def _hand_off(self, here: Here, fan: FanOut | None) -> bool:
        """Hands what waits behind a stuck handler to workers; tells whether there was anything."""
        handed = 0
        for one in (fan, *here.outer):
            while one is not None:
                handed += hand_over(one)
                one = one.parent
        # What a waiting publisher was offered waits behind the handler that it is stuck in. Not with a limited pool:
        # there it is the one thread that is sure to come to it.
        if here.wait is not None and self._engine.limit is None:
            handed += here.wait.pass_on(self._engine.submit)
        return handed + pass_on_later(here) > 0

    def _tell(self, publishes: dict[int, tuple[Any, str]], now: float) -> None:
        """Warns of publishes that take long."""
        stalled: dict[int, tuple[Any, float, float]] = {}
        for key, (publish, topic) in publishes.items():
            known = self._stalled.get(key)
            since, due = (now, now + self._stall_after) if known is None else known[1:]
            if now >= due:
                waited = now - since
                due = now + waited
                logger.warning("publish to %r has waited %.1f s for %s", topic, waited, _listed(_whom(publish)))
            stalled[key] = (publish, since, due)
        self._stalled = stalled


def _whom(publish: Any) -> Iterator[str]:
    """Names the observers that a publish waits for: where their threads stand, or what is still open."""
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    running = set()
    for here in list(places.values()):
        feed, fan, event = here.feed, here.fan, here.event
        if feed is None or (event if fan is None else fan.top) is not publish:
            continue
        running.add(feed)
        frame = frames.get(here.thread)
        line = "a thread that has ended"
        if frame is not None:
            at = traceback.extract_stack(frame, limit=None)[-1]
            own = [call for call in traceback.extract_stack(frame) if not _ours(call.filename)]
            at = own[-1] if own else at
            line = f'line {at.lineno} of "{at.filename}", in {at.name}'
        yield f"{feed.name}, on topic {feed.log.name!r}, at {line} (thread {names.get(here.thread, here.thread)})"
    if isinstance(publish, FanOut):
        with ledger:
            fans = (publish,) if publish.wait is None else tuple(publish.wait.fans)
            late = [feed for feed in dict.fromkeys(feed for _, feed in pending(fans)) if feed not in running]
            open_ = {delivery.feed: delivery for feed in late for delivery in feed.lane.deliveries}
        for feed in late:
            what = "which is queued"
            if feed in open_:
                what = "whose coroutine" if feed.loop and open_[feed].keeps else "whose deferred acknowledgement"
                what += " is not done"
            yield f"{feed.name}, on topic {feed.log.name!r}, {what}"


def _listed(names: Iterator[str]) -> str:
    """Joins a few of them, each once: a long backlog names the same observer again and again."""
    each = dict.fromkeys(names)
    more = len(each) - MOST
    return "; ".join((*islice(each, MOST), *([f"and {more} more"] if more > 0 else ()))) or "its turn"


def _ours(filename: str) -> bool:
    return filename.startswith(_HERE) or "/threading.py" in filename


_HERE = __file__.rsplit("_watch", 1)[0]
