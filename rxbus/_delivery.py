"""Publishing: how an event goes round its observers, and what its publisher waits for.

A publisher appends its event to the topic's log and goes round the lanes: a lane that is free it takes, moves the
cursor and calls the observer; to a lane that is busy it leaves mail, and goes on. An outermost publish then waits for
its whole tree; a nested one only for the deliveries that it began itself.

Why nothing deadlocks: what a nested publish waits for began after the handler that waits. Waiting points forward in
time, and time has no circle.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Callable
from contextlib import suppress
from time import time
from typing import Any

from reactivex.scheduler.currentthreadscheduler import CurrentThreadSchedulerSingleton
from reactivex.scheduler.trampoline import Trampoline

from rxbus._acknowledgement import Receipt, coroutine_place, coroutine_places, current_fan_out, work_for_coroutine
from rxbus._event import Event
from rxbus._fan_out import FanOut, is_ctrl_c
from rxbus._handover import hand, hand_over
from rxbus._here import Here, Reentered, is_alone, is_limited, local
from rxbus._lane import Entry, Lane, check_result, deliver, drop
from rxbus._log import Hub, Log, Retired
from rxbus._observer import Feed
from rxbus._outcome import nobody, outcome
from rxbus._put_off import PutOff, pass_on_later, run_later

MAX_DEPTH = 50  # publishes nested deeper on one thread only leave mail: chains do not recurse


def publish(log: Log, payload: Any, timeout: float | None = None) -> Receipt:
    """Publishes, and waits; see `EventBus.publish`.

    This is the short way, for an outermost publish to a single observer that is free: the turn of its lane orders
    the events, so that neither the lock nor an entry in the log is needed. An id is drawn before the log is found
    to be empty and unlocked; hence an event that another publisher appends later has a higher one. The time is the
    machine's: in virtual time, no log has an `only`.
    """
    here, hub = local.here, log.hub
    if (
        timeout is not None
        or here.feed is not None
        or here.fan is not None
        or here.origin is not None
        or (coroutine_places and coroutine_place.get() is not None)
        or not here.trampoline._idle
        or hub.tracers is not None
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
    here.feed = feed  # before any call: a destructor or signal handler that publishes is to see where it is
    event = error = None
    called = given = False
    try:
        event = Event(log.name, payload, next(hub.ids), time())
        on_next = feed.on_next
        try:
            unlocked = log.free
        except AttributeError:
            unlocked = False
        if feed.cursor is log.tail and on_next is not None and unlocked:
            if hub.engine.monitor.asleep:
                hub.engine.monitor.wake()
            here.event = event
            called = True
            log.singles += 1
            if (result := on_next(event)) is not None:
                check_result(result)
            if here.fan is None:
                here.feed = here.event = None
                lane.free = given = True
                if lane.inbox:
                    lane.visit()
                return Receipt(event, 1)
    except BaseException as raised:
        error = raised
    fan = None
    try:
        try:
            if called and not given:
                fan = _take_in(here, feed, error)
        except BaseException:  # interrupted
            fan = _take_in(here, feed, error)
            raise
        finally:
            here.feed = here.event = here.fan = here.delivery = None
            if here.kept:
                here.kept = False
            elif not given:
                lane.free = True
        if fan is not None and is_alone(hub.engine):
            here.owed[fan] = None
        lane.visit()
        if here.later:
            run_later(here)
        if fan is not None:
            return _settle(log, event, fan, None, None)
    except BaseException:  # interrupted, or it tells how it ended
        if fan is not None:
            give_up(fan, ())
        if lane.inbox:  # interrupted: somebody else has to look at it
            hub.engine.submit(lane.visit)
        if here.later:
            pass_on_later(here)
        raise
    finally:
        if fan is not None:
            here.owed.pop(fan, None)
    if error is not None:
        raise error
    return _publish_to_all(log, here, payload)


def publish_to_all(log: Log, payload: Any, *, timeout: float | None = None, raw: bool = False) -> Receipt:
    """Publishes, whoever listens and wherever the thread stands; with `raw`, `payload` itself is the event."""
    here = local.here

    def go_on() -> Receipt:
        return _publish_to_all(log, here, payload, timeout, raw)

    if here.feed is None and coroutine_place.get() is not None:
        try:
            return work_for_coroutine(go_on)
        finally:
            run_later(here)  # what the publish could not do in the coroutine's place
    if not here.trampoline._idle:
        return _on_own_trampoline(here, go_on)
    return go_on()


def _publish_to_all(log: Log, here: Here, payload: Any, timeout: float | None = None, raw: bool = False) -> Receipt:
    engine = log.hub.engine
    deadline = None if timeout is None else engine.time.monotonic() + timeout
    outer = here.fan if here.feed is None else current_fan_out(here)
    # With `outer` and in no handler, a destructor publishes between two lines of a round.
    before = None if outer is None else (here.feed, here.event, outer, here.delivery)
    origin, begun = here.origin, here.begun
    here.begun = None
    fan: FanOut | None = None
    try:
        try:
            fan = log.append(here, payload, raw, _get_running_loop())
            if engine.limit == 0 or engine.short:  # `is_alone`, without the call
                here.owed[fan] = None
            here.origin = None  # its handlers' publishes are caused by this event
            event = fan.event
            entry = here.begun
            if fan.tracers is not None:
                fan.tracers.published(event)
            if entry is None:
                return Receipt(event, 0) if fan.tracers is None else nobody(fan)
            if before is None and timeout is None:
                done = round_lanes(log, here, entry, fan)
            else:
                done = _nested_round(log, here, entry, fan, timeout is not None)
        except Retired:
            return publish_to_all(log.hub.resolve(log.name), payload, timeout=timeout, raw=raw)
        except BaseException:  # interrupted, perhaps before `append` has returned
            if here.begun is not None:
                fan = here.begun.fan
            raise
        finally:
            if before is None:
                here.feed = here.event = here.fan = None
            else:
                here.feed, here.event, here.fan, here.delivery = before
            here.origin = origin
            own, here.begun = here.begun, begun
            if here.later:
                _run_later(here, own)
        if fan.wait is None and done == len(fan.feeds):
            entry.fan = None
            return Receipt(event, done)
        return _settle(log, event, fan, deadline, timeout)
    except BaseException:  # interrupted, or it tells how it ended
        if fan is not None:
            give_up(fan, fan.feeds)
        raise
    finally:
        if fan is not None:
            if here.owed:
                here.owed.pop(fan, None)
            if before is not None:
                fan.parent = fan.by = None
            if fan.origin is not None:
                fan.origin.fans.pop(fan, None)
            if fan.below:
                fan.below = ()


def _run_later(here: Here, entry: Entry | None) -> None:
    fan = None if entry is None else entry.fan
    if fan is not None and is_alone(fan.log.hub.engine):  # perhaps since just now
        here.owed[fan] = None
    run_later(here)


def _nested_round(log: Log, here: Here, entry: Entry, fan: FanOut, remote: bool) -> int:
    """A round that is not on the publisher's fingers alone: nested in a handler, or `remote`, on workers only."""
    here.depth += 1
    try:
        if here.depth > MAX_DEPTH:
            for feed in fan.rest:
                feed.lane.inbox.append((feed, fan.id))
                here.later.append(PutOff(feed.lane.visit, feed.lane.engine.submit))
            return 0
        engine = log.hub.engine
        if remote and engine.limit != 0:
            wait = fan.waiting()
            # In a limited pool a nested one does it itself, late or not: its own handler may be what fills the pool.
            within = fan.root is not None or fan.origin is not None or here.depth > 1
            wait.serves = within and is_limited(engine)
            hand_over(fan)
            wait.serves = within and is_limited(engine)  # there may have been too few threads for the first time
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
    careful = fan.trail is not None or fan.tracers is not None
    try:
        for feed in fan.rest:
            lane = feed.lane
            if lane.slow and engine.limit != 0:
                if fan.last is None:
                    fan.last = [feed]
                else:
                    hand(feed, fan)
                continue
            # A buffer may have refused a delivery, and causes come before their effect; `deliver` tells tracers.
            if careful and (fan.tracers is not None or fan.origin is not None or lane.is_fed_by_several()):
                lane.post((feed, fan.id))
                continue
            try:
                del lane.free
            except AttributeError:
                lane.post((feed, fan.id))
                continue
            if feed.cursor.next is not entry:  # earlier mail first, or somebody was here before
                lane.free = True
                lane.post((feed, fan.id))
                continue
            feed.cursor = entry
            on_next = feed.on_next  # after the cursor has moved: see Attachment.leave
            if on_next is None:
                lane.free = True
                try:
                    drop(feed, entry.id, fan)
                except BaseException:  # interrupted
                    drop(feed, entry.id, fan)
                    raise
                continue
            held = lane
            here.feed = feed
            try:
                result = on_next(event)
                if result is not None:
                    check_result(result)
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
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
            # No `if`, whose jump back would not be in the `try`: see `ledger`.
            lane.inbox and lane.visit()  # type: ignore[func-returns-value] # pyright: ignore
        if fan.last:
            with suppress(IndexError):  # it may have been taken meanwhile
                feed = fan.last.pop()
                feed.lane.post((feed, fan.id))
    except BaseException as error:
        if held is not None:
            done += _interrupted(here, fan, held, error)
        raise
    finally:
        fan.done = done
    return done


def _interrupted(here: Here, fan: FanOut, held: Lane, error: BaseException) -> bool:
    """The publisher was struck inside of a handler, or next to it; says whether that delivery has ended with this."""
    delivery, here.delivery = here.delivery, None
    if delivery is not None:
        delivery.returned(here, error)
    elif here.feed is not None:
        fan.fail_here(error, here.feed)
    if not here.kept:
        held.free = True
    here.kept = False
    return delivery is None


def give_up(fan: FanOut, feeds: tuple[Feed, ...]) -> None:
    """The publisher was interrupted: what it has not done goes to workers. Idle where it has come to its end."""
    wait = fan.waiting()
    if not wait.gone:
        engine = fan.log.hub.engine
        fan.close_round()
        engine.waiting.pop(fan, None)
        wait.leave(engine.submit)
        for feed in feeds:
            if feed.cursor.id < fan.id:
                feed.lane.inbox.append((feed, fan.id))
            if feed.lane.inbox:
                engine.submit(feed.lane.visit)
    wait.log_failures()


def _settle(log: Log, event: Any, fan: FanOut, deadline: float | None, timeout: float | None) -> Receipt:
    """Waits for what the round has left over, and tells how it all ended."""
    count = len(fan.feeds)
    fan.close_round()
    if fan.origin is not None:
        fan.origin.holder.check(fan.top)
    wait = fan.wait
    in_time = True
    if wait is not None:
        engine = log.hub.engine
        here = local.here
        try:
            if wait.count > 0:  # else the bus may have been closed by now
                engine.monitor.wake()
            if fan.root is None:
                engine.waiting[fan] = None
            if wait.count > 0 and is_holding(here, log.hub):
                raise Reentered
            in_time = wait.sleep(deadline, engine.time)
        finally:
            engine.waiting.pop(fan, None)
            wait.leave(engine.submit)
    return outcome(log.name, event, fan, count, in_time, timeout)


def is_holding(here: Here, hub: Hub) -> bool:
    """Whether a destructor or signal handler is at work that has struck this thread while it held something of ours.

    What that one waits for might need just that.
    """
    return (here.feed is None and here.holding > 0) or any(guard._is_owned() for guard in hub.guards)


def _take_in(here: Here, feed: Feed, error: BaseException | None) -> FanOut:
    """The only observer has returned, or failed, and there is something to be counted."""
    fan = current_fan_out(here)
    if here.delivery is not None:
        here.delivery.returned(here, error)
    else:
        fan.done = 1
        if error is not None:
            fan.fail_here(error, feed)
    return fan


def _on_own_trampoline(here: Here, call: Callable[[], Receipt]) -> Receipt:
    """Gives a publish inside a cold source a trampoline of its own.

    A cold source that emits while it is being subscribed runs on Rx's trampoline of this thread, which would put off
    what handlers subscribe to until the source is done: `publish` would return before they had emitted.
    """
    threads = CurrentThreadSchedulerSingleton._local
    outer = here.trampoline
    own = Trampoline()
    try:
        here.trampoline = threads.tramp = own
        return call()
    finally:
        here.trampoline = threads.tramp = outer


# Where observers are called: what a frame stack shows above one of these is somebody else's subscribe.
DELIVERING = frozenset(one.__code__ for one in (publish, round_lanes, deliver))
