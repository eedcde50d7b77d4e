"""What the monitor looks at: handlers that keep others waiting, and publishes that do not end.

Correctness never depends on it: without it, a slow handler would only hold up those behind it in its publisher's round.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any

import msgspec

from rxbus._acknowledgement import Outside
from rxbus._fan_out import FanOut, ledger, logger, pending
from rxbus._handover import hand_over
from rxbus._here import Engine, Here, is_limited, places
from rxbus._put_off import pass_on_later
from rxbus.errors import RxBusError

if TYPE_CHECKING:
    from rxbus._observer import Feed

MOST = 10  # how many observers a warning names
AT_THE_DOOR = "_wait_for_room"  # the function of `_buffered` in which a thread stands that waits for room
SHARE = 8  # to how many workers a thread that is stuck hands over at each look


class Stand(msgspec.Struct, eq=False):
    """What a thread was doing when it was seen first."""

    feed: Feed
    fan: FanOut | None
    event: Any
    since: float  # when it was seen first, or was starved last
    ran: int | None = None  # for how long it had run when it was found starved first
    slow: bool = False  # its handler has been found slow, and stays that


class Watch:
    """Looks at all threads that deliver for one engine.

    Args:
        engine: Whose deliveries are watched.
        handoff_after: Seconds after which a handler is slow: the lanes behind it are handed to workers. Linux
            tells whether it has waited or run for so long, or just got no processor; elsewhere it is time by the clock.
        stall_after: Seconds after which a publish is stalled: a warning is logged, again when that has doubled.
    """

    def __init__(self, engine: Engine, handoff_after: float, stall_after: float) -> None:
        self._engine = engine
        self._handoff_after = handoff_after
        self._stall_after = stall_after
        self._inside: dict[Here, Stand] = {}
        self._stalled: dict[int, tuple[Any, float, float]] = {}  # publishes: since when, and when to tell (again)

    def look(self) -> bool | None:
        """Looks once; see `Monitor`."""
        now = self._engine.time.monotonic()
        news = False
        inside: dict[Here, Stand] = {}
        publishes: dict[int, tuple[Any, str]] = {}
        for here in list(places.values()):
            feed, fan, event = here.feed, here.fan, here.event
            if feed is None or feed.lane.engine.monitor is not self._engine.monitor:
                continue
            stand = self._inside.get(here)
            if stand is None or stand.feed is not feed or stand.fan is not fan or stand.event is not event:
                stand = Stand(feed, fan, event, now)
            elif self._engine.limit != 0 and self._is_slow(here, stand, now):
                news |= self._hand_off(here, fan)
                feed.lane.found_slow()
            news |= stand.since == now
            inside[here] = stand
            outermost = event if fan is None else fan.top
            publishes[id(outermost)] = (outermost, feed.log.name if fan is None else fan.top.log.name)
        for fan in list(self._engine.waiting):
            publishes[id(fan)] = (fan, fan.log.name)
        self._inside = inside
        self._tell(publishes, now)
        # No `list(outside.items())`: it makes tuples, so that the collector, and other threads, may run in its midst.
        outside = self._engine.outside
        on_loops = [(owed, loop) for owed in list(outside) if (loop := outside.get(owed)) is not None]
        for owed, loop in on_loops:
            if loop.is_closed():
                self._give_up(owed)
        return news if publishes or on_loops else None

    def _is_slow(self, here: Here, stand: Stand, now: float) -> bool:
        """Whether a thread is stuck in a handler that has waited, or run, for too long.

        It has not while it is starved: ready to run, but the machine is busy with something else. Workers would be so
        too, each in the handler that it has begun, hence one for every observer.
        """
        if stand.slow or now - stand.since < self._handoff_after:
            return stand.slow
        ran = processor_time(here.native)
        if ran is not None:
            stand.ran = ran if stand.ran is None else stand.ran
            if ran - stand.ran < self._handoff_after * 1e9:
                stand.since = now
                return False
        stand.slow = here.feed is stand.feed and here.event is stand.event  # it could go on while it was asked about
        return stand.slow

    def due(self) -> float:
        """When it is to warn next of what it has seen; infinity where there is nothing."""
        return min((due for _, _, due in self._stalled.values()), default=inf)

    def _give_up(self, owed: Outside) -> None:
        """An event loop has been closed with a coroutine that was not done, or had not begun: nobody else will tell."""
        error = RxBusError("the event loop was closed before the coroutine was done")
        give = partial(owed._give, error)
        if self._engine.outside.pop(owed, None) and not owed._offer(give):
            self._engine.submit(give)

    def _hand_off(self, here: Here, fan: FanOut | None) -> bool:
        """Hands what waits behind a stuck handler to workers; tells whether there was anything.

        Few at a time, since one of them may be enough for all that is left. Where these get stuck too, they hand over
        in their turn at the next look, so that the workers multiply as long as handlers block, and only then.

        Nothing of it is done here: the monitor would be stuck in a handler. What is another bus's that has no workers
        stays with its publisher; what was put off, which nobody might come to otherwise, goes to workers of this one.
        """
        handed = 0
        for one in (fan, *here.outer):
            while one is not None:
                if one.log.hub.engine.limit != 0:
                    handed += hand_over(one, SHARE)
                one = one.parent
        # What a waiting publisher was offered waits behind the handler that it is stuck in. Not with a limited pool:
        # there it is the one thread that is sure to come to it.
        wait = here.wait  # once: it is another thread's
        if wait is not None and not is_limited(self._engine):
            handed += wait.pass_on(self._engine.submit)
        return handed + pass_on_later(here, self._engine.submit) > 0

    def _tell(self, publishes: dict[int, tuple[Any, str]], now: float) -> None:
        """Warns of publishes that take long."""
        stalled: dict[int, tuple[Any, float, float]] = {}
        for key, (publish, topic) in publishes.items():
            known = self._stalled.get(key)
            since, due = (now, now + self._stall_after) if known is None else known[1:]
            if now >= due:
                waited = now - since
                due = now + waited
                logger.warning(
                    "publish to %r has waited %.1f s for %s", topic, waited, listed(_whom(publish), "its turn")
                )
            stalled[key] = (publish, since, due)
        self._stalled = stalled


def processor_time(thread: int) -> int | None:
    """For how many nanoseconds a thread has run, if it runs or could; None: it waits, or that cannot be found out.

    A file can be asked for a thread that has ended; its clock (`pthread_getcpuclockid`) cannot.
    """
    try:
        if not _read(thread, "stat").rpartition(b") ")[2].startswith(b"R"):  # behind a name that may hold anything
            return None
        return int(_read(thread, "schedstat").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _read(thread: int, name: str) -> bytes:
    file = os.open(f"/proc/self/task/{thread}/{name}", os.O_RDONLY)
    try:
        return os.read(file, 1000)
    finally:
        os.close(file)


def _whom(publish: Any) -> Iterator[str]:
    """Names the observers that a publish waits for: where their threads stand, or what is still open."""
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    running = set()
    publishing: set[Feed | None] = set()  # those in whose own publishes these threads stand
    for here in list(places.values()):
        feed, fan, event = here.feed, here.fan, here.event
        if feed is None or (event if fan is None else fan.top) is not publish:
            continue
        running.add(feed)
        frame = frames.get(here.thread)
        line = "a thread that has ended"
        if frame is not None:
            stack = traceback.extract_stack(frame)
            own = [place for place, call in enumerate(stack) if not _ours(call.filename)]
            at = stack[own[-1] if own else -1]
            line = f'line {at.lineno} of "{at.filename}", in {at.name}'
            if any(call.name == AT_THE_DOOR for call in stack[own[-1] + 1 if own else 0 :]):
                line += ", waiting for room in a buffer"
        yield f"{feed.name}, on topic {feed.log.name!r}, at {line} (thread {names.get(here.thread, here.thread)})"
        while fan is not None:
            publishing.add(fan.by)
            fan = fan.parent
    if isinstance(publish, FanOut):
        with ledger:
            fans = (publish,) if publish.wait is None else tuple(publish.wait.fans)
        late = [feed for feed in dict.fromkeys(one.feed for one in pending(fans)) if feed not in running]
        open_ = {delivery.feed: delivery for feed in late for delivery in feed.lane.all_deliveries()}
        for feed in late:
            what, delivery = "which is queued", open_.get(feed)
            if delivery is not None and feed.loop and delivery.keeps:
                what = "whose coroutine is not done"
            elif feed in publishing and not getattr(feed.lane, "free", False):
                what = "which waits in a publish of its own"
            elif delivery is not None:
                what = "whose deferred acknowledgement is not done"
            yield f"{feed.name}, on topic {feed.log.name!r}, {what}"


def listed(names: Iterable[str], none: str) -> str:
    """Joins a few of them, each once: a long backlog names the same observer again and again."""
    each = dict.fromkeys(names)
    more = len(each) - MOST
    return "; ".join((*islice(each, MOST), *([f"and {more} more"] if more > 0 else ()))) or none


def _ours(filename: str) -> bool:
    return filename.startswith(_HERE) or "/threading.py" in filename


_HERE = __file__.rsplit("_watch", 1)[0]
