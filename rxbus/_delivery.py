"""Publishing: how an event goes round its observers, and what its publisher waits for.

A publisher appends its event to the topic's log and goes round the lanes: a lane that is free it takes, moves the
cursor and calls the observer; to a lane that is busy it leaves mail, and goes on. An outermost publish then waits for
its whole tree; a nested one only for the deliveries that it began itself.

Why nothing deadlocks: what a nested publish waits for began after the handler that waits. Waiting points forward in
time, and time has no circle.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, time
from typing import Any

from reactivex.scheduler.currentthreadscheduler import CurrentThreadSchedulerSingleton
from reactivex.scheduler.trampoline import Trampoline

from rxbus._acknowledgement import Receipt, coroutine_place, current_fan_out, standing
from rxbus._event import Event
from rxbus._fan_out import FanOut, ledger
from rxbus._here import Here, local, places, run_later
from rxbus._lane import Entry, Lane, deliver, drop, hand, hand_over
from rxbus._log import Log, Retired
from rxbus._observer import Feed
from rxbus.errors import AcknowledgementTimeout, PublishError

MAX_DEPTH = 50  # publishes nested deeper on one thread only leave mail: chains do not recurse


def publish(log: Log, payload: Any, timeout: float | None = None) -> Receipt:
    """Publishes, and waits; see `EventBus.publish`.

    This is the short way, for an outermost publish to a single observer that is free: the turn of its lane orders
    the events, so that neither the lock nor an entry in the log is needed. An id is drawn before the log is found
    to be empty and unlocked; hence an event that another publisher appends later has a higher one.
    """
    here = local.here
    if (
        timeout is not None
        or here.feed is not None
        or here.fan is not None
        or here.origin is not None
        or coroutine_place.get() is not None
        or not here.trampoline._idle
    ):
        return publish_to_all(log, payload, timeout=timeout)
    feed = log.only
    if feed is None:
        return _publish_to_all(log, here, payload)
    lane = feed.lane
    try:
        del lane.free
    except AttributeError:
        return _publish_to_all(log, here, payload)
    event = error = None
    called = given = False
    try:
        event = Event(log.name, payload, next(log.hub.ids), time())
        on_next = feed.on_next
        if feed.cursor is log.tail and on_next is not None and getattr(log, "free", False):
            if log.hub.engine.monitor.asleep:
                log.hub.engine.monitor.wake()
            here.event = event
            here.feed = feed
            called = True
            log.singles += 1
            on_next(event)
            if here.fan is None:
                here.feed = here.event = None
                lane.free = given = True
                if lane.inbox:
                    lane.visit()
                return Receipt(event, 1)
    except BaseException as raised:
        error = raised
    fan = delivery = None
    try:
        try:
            if called and not given:
                fan = current_fan_out(here)
                delivery = here.delivery
                _take_in(log, here, fan, feed, error)
        finally:
            here.feed = here.event = here.fan = here.delivery = None
            if here.kept:
                here.kept = False
            elif not given:
                lane.free = True
        lane.visit()
    except BaseException:  # interrupted: somebody else has to look at the mail
        log.hub.engine.submit(lane.visit)
        raise
    if here.later:
        run_later(here)
    if fan is None:
        if error is not None:
            raise error
        return _publish_to_all(log, here, payload)
    return _settle(log, event, fan, 1 if delivery is None else 0, None, None)


def publish_to_all(log: Log, payload: Any, *, timeout: float | None = None, raw: bool = False) -> Receipt:
    """Publishes, whoever listens and wherever the thread stands; with `raw`, `payload` itself is the event."""
    here = local.here
    if here.feed is None and coroutine_place.get() is not None:
        with standing():
            return _publish_to_all(log, here, payload, timeout, raw)
    if not here.trampoline._idle:
        with _own_trampoline(here):
            return _publish_to_all(log, here, payload, timeout, raw)
    return _publish_to_all(log, here, payload, timeout, raw)


def _publish_to_all(log: Log, here: Here, payload: Any, timeout: float | None = None, raw: bool = False) -> Receipt:
    deadline = None if timeout is None else monotonic() + timeout
    outer = here.fan if here.feed is None else current_fan_out(here)
    # With `outer` and in no handler, a destructor publishes between two lines of a round.
    before = None if outer is None else (here.feed, here.event, outer, here.delivery)
    origin, begun = here.origin, here.begun
    here.begun = None
    fan: FanOut | None = None
    try:
        fan = log.append(here, payload, raw, _get_running_loop())
        here.origin = None  # its handlers' publishes are caused by this event
        event = fan.event
        if not fan.feeds:
            return Receipt(event, 0)
        entry = here.begun
        assert entry is not None
        if before is None and timeout is None:
            done = round_lanes(log, here, entry, fan)
        else:
            done = _nested_round(log, here, entry, fan, timeout is not None)
    except Retired:
        return publish_to_all(log.hub.resolve(log.name), payload, timeout=timeout, raw=raw)
    except BaseException as error:
        if fan is None and here.begun is not None:
            fan = here.begun.fan
        if fan is not None and fan.missing < 0:
            _abandon(log, here, fan, fan.done, None, error)
        raise
    finally:
        if before is None:
            here.feed = here.event = here.fan = None
        else:
            here.feed, here.event, here.fan, here.delivery = before
        here.origin = origin
        here.begun = begun
        if here.later:
            run_later(here)
    if done == len(fan.feeds) and fan.wait is None:
        entry.fan = None
        return Receipt(event, done)
    try:
        return _settle(log, event, fan, done, deadline, timeout)
    finally:
        fan.parent = fan.by = None


def _nested_round(log: Log, here: Here, entry: Entry, fan: FanOut, remote: bool) -> int:
    """A round that is not on the publisher's fingers alone: nested in a handler, or `remote`, on workers only."""
    here.depth += 1
    try:
        if here.depth > MAX_DEPTH:
            for feed in fan.rest:
                feed.lane.inbox.append((feed, fan.id))
                here.later.append(feed.lane.visit)
            return 0
        if remote and log.hub.engine.limit != 0:
            with ledger:
                fan.waiting().serves = False
            hand_over(fan)
            return 0
        return round_lanes(log, here, entry, fan)
    finally:
        here.depth -= 1


def round_lanes(log: Log, here: Here, entry: Entry, fan: FanOut) -> int:
    """Goes round the lanes once, and calls the observers of those that are free; says how many deliveries ended."""
    engine = log.hub.engine
    if engine.monitor.asleep:
        engine.monitor.wake()
    here.fan = fan
    here.event = event = fan.event
    here.delivery = None
    done = 0
    held: Lane | None = None
    careful = fan.origin is not None  # a delivery may have been refused
    try:
        for feed in fan.rest:
            lane = feed.lane
            if lane.slow and engine.limit != 0:
                if fan.last is None:
                    fan.last = [feed]
                else:
                    hand(feed, fan)
                continue
            try:
                del lane.free
            except AttributeError:
                lane.post((feed, fan.id))
                continue
            if feed.cursor.next is not entry or careful:  # earlier mail first, or somebody was here before
                lane.free = True
                lane.post((feed, fan.id))
                continue
            feed.cursor = entry
            on_next = feed.on_next  # after the cursor has moved: see Attachment.leave
            if on_next is None:
                lane.free = True
                drop(feed, entry.id, fan)
                continue
            held = lane
            here.feed = feed
            try:
                on_next(event)
            except Exception as error:
                if here.delivery is None:
                    fan.fail_here(error, feed)
                else:
                    here.delivery.returned(here, error)
            if here.delivery is None:
                done += 1
                lane.free = True
            else:
                here.delivery.returned(here)
                if not here.kept:
                    lane.free = True
                here.delivery = None
                here.kept = False
            held = None
            if lane.inbox:
                lane.visit()
        if fan.last:
            with suppress(IndexError):  # it may have been taken meanwhile
                feed = fan.last.pop()
                feed.lane.post((feed, fan.id))
    except BaseException as error:
        _abandon(log, here, fan, done, held, error)
        raise
    fan.done = done
    return done


def _settle(log: Log, event: Any, fan: FanOut, done: int, deadline: float | None, timeout: float | None) -> Receipt:
    """Waits for what the round has left over, and tells how it all ended."""
    count = len(fan.feeds)
    fan.close_round(done)
    wait = fan.wait
    in_time = True
    if wait is not None:
        engine = log.hub.engine
        if fan.root is None:
            engine.waiting[fan] = None
        try:
            if fan.origin is not None and fan.root is None and wait.count > 0:
                fan.origin.holder.check(fan)
            in_time = wait.fatal is not None or wait.sleep(deadline)
        finally:
            engine.waiting.pop(fan, None)
            if fan.origin is not None and fan.origin.fan is fan:
                fan.origin.fan = None
            wait.leave(engine.submit)
    return outcome(log, event, fan, count, in_time, timeout)


def outcome(log: Log, event: Any, fan: FanOut, count: int, in_time: bool, timeout: float | None) -> Receipt:
    with ledger:
        wait = fan.wait
        queued = fan.missing - fan.ended
        receipt = Receipt(event, count - queued - fan.lost, queued)
        pending: tuple[str, ...] = ()
        if wait is not None and not in_time:
            late = (fan,) if fan.root is not None else tuple(wait.fans)
            names = [feed.name for one in late for feed in one.pending()]
            pending = tuple(dict.fromkeys(names + (_inside(fan) if fan.root is None else [])))
    if wait is None:
        return receipt
    failures = wait.failures
    if wait.fatal is not None:
        raise _noting(wait.fatal, failures)
    if not in_time and timeout is not None:
        raise _noting(AcknowledgementTimeout(log.name, timeout, pending), failures)
    if failures:
        raise PublishError(f"publish to {log.name!r}: {len(failures)} failed", failures, receipt)
    return receipt


def _noting(error: BaseException, failures: list[Exception]) -> BaseException:
    """Tells of failures in the notes of an error that goes before them.

    A function, since a frame that names what it raises is a cycle, and would keep the payload.
    """
    for failure in failures:
        with suppress(Exception):  # see FanOut.fail
            error.add_note("failed: " + "; ".join((repr(failure), *getattr(failure, "__notes__", ()))))
    return error


def _inside(fan: FanOut) -> list[str]:
    """The observers of an event's tree that threads are inside of."""
    here_and_there = [(here.feed, here.fan) for here in list(places.values())]
    return [feed.name for feed, one in here_and_there if feed is not None and one is not None and one.top is fan]


def _abandon(log: Log, here: Here, fan: FanOut, done: int, held: Lane | None, error: BaseException) -> None:
    """The publisher was interrupted: what it has not done goes to workers, and nothing stays taken."""
    if held is not None:
        if here.delivery is not None:
            here.delivery.returned(here, error)
        else:
            done += 1
            if here.feed is not None:
                fan.fail_here(error, here.feed)
        if here.kept:
            here.kept = False
        else:
            held.free = True
        here.delivery = None
    feeds = fan.feeds
    fan.close_round(done)
    with ledger:
        fan.waiting().gone = True
    engine = log.hub.engine
    for feed in feeds:
        if feed.cursor.id < fan.id:
            feed.lane.inbox.append((feed, fan.id))
        if feed.lane.inbox:
            engine.submit(feed.lane.visit)


def _take_in(log: Log, here: Here, fan: FanOut, feed: Feed, error: BaseException | None) -> None:
    if here.delivery is not None:
        here.delivery.returned(here, error)
    elif error is not None:
        fan.fail_here(error, feed)


@contextmanager
def _own_trampoline(here: Here) -> Iterator[None]:
    """Gives a publish inside a cold source a trampoline of its own.

    A cold source that emits while it is being subscribed runs on Rx's trampoline of this thread, which would put off
    what handlers subscribe to until the source is done: `publish` would return before they had emitted.
    """
    threads = CurrentThreadSchedulerSingleton._local
    outer = here.trampoline
    here.trampoline = threads.tramp = Trampoline()
    try:
        yield
    finally:
        here.trampoline = threads.tramp = outer


# Where observers are called: what a frame stack shows above one of these is somebody else's subscribe.
DELIVERING = frozenset(one.__code__ for one in (publish, round_lanes, deliver))
