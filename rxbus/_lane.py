"""Lanes: an observer's turn, the mail left for it, and its places in the logs that feed it.

Whoever holds a lane's turn drains its mail when it gives the turn back, whoever published it (flat combining: Hendler,
Incze, Shavit, Tzafrir, SPAA 2010).

Why nothing is lost: mail is left before the turn is tried again, and the turn is given back before the mail is looked
at again; so one of the two sees the other.

Why nothing is delivered twice: only the turn's holder moves a cursor, and an event is delivered by who moves it. Hence
visits are idempotent, and any number of threads may be sent to a lane for the same event.
"""

from __future__ import annotations

import threading
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from time import perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING

import msgspec

from rxbus._acknowledgement import Claim, Delivery
from rxbus._causes import owed_causes
from rxbus._fan_out import FanOut, Wait, interrupted, is_ctrl_c, ledger
from rxbus._here import Engine, Here, Trail, is_alone, local, places
from rxbus._put_off import run_later
from rxbus._span import Span
from rxbus._turn import GIL, LockTurn
from rxbus.errors import RxBusError

if TYPE_CHECKING:
    from rxbus._observer import Attachment, Feed

COMBINED = 16  # how much of other publishers' mail one publisher drains after its own event
SLOW = 16  # fast deliveries in a row after which an observer no longer counts as slow

Mail = tuple["Feed", int] | Callable[[], None]  # "deliver up to this id", or something to be done in the lane's turn


class Entry(msgspec.Struct, eq=False):
    """A place in a topic's log. The last one stays until the next event, so it lets go of a fan-out that is done."""

    id: int
    fan: FanOut | None = None
    next: Entry | None = None


class Lane:
    """One observer: its turn, and the mail left for it.

    The turn is the attribute `free`: `del lane.free` takes it, and raises AttributeError where another thread has it;
    `lane.free = True` gives it back. Each is a single bytecode, atomic under the GIL, and far cheaper than a lock.
    User code runs in the turn: that is what the turn is for. Taking it never blocks.
    """

    __slots__ = (
        *("__weakref__", "attachments", "called", "deliveries", "due"),
        *("engine", "free", "inbox", "quick", "slow"),
    )

    free: bool

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.free = True
        self.inbox: deque[Mail] = deque()  # anybody appends; the turn's holder takes off
        self.deliveries: dict[Delivery, None] = {}  # those that are counted and have not ended; under the ledger
        # Where threads are short: what its deliveries wait for and could run, actions and publishes of coroutines.
        # Whoever waits for the lane may do it, and has to: its own publisher may have gone, or be stuck elsewhere.
        self.due: dict[Callable[[], None], None] = {}
        self.called = False  # a worker is on its way
        self.attachments: list[Attachment] = []  # what it is the lane of
        self.slow = False
        self.quick = 0  # fast deliveries since it was slow

    def is_fed_by_several(self) -> bool:
        """Whether events come from more than one topic."""
        return len(self.attachments) > 1 or any(len(attachment.feeds) > 1 for attachment in self.attachments)

    def all_deliveries(self) -> list[Delivery]:
        """Those that are counted and have not ended."""
        with ledger:
            return [*self.deliveries]

    def found_slow(self) -> None:
        """Its observer has been slow, and counts as that for some time."""
        self.slow = True
        self.quick = 0

    def post(self, mail: Mail) -> None:
        """Leaves mail and sees to it that it is read."""
        self.inbox.append(mail)
        self.visit()

    def visit(self) -> None:
        """Drains the mail, unless another thread is inside: that one will look again when it comes out."""
        try:
            self._visit(local.here)
        except BaseException:  # interrupted: somebody else has to look again
            self.engine.submit(self.visit)
            raise

    def _visit(self, here: Here) -> None:
        while self.inbox:
            try:
                del self.free
                here.holding += 1
            except AttributeError:
                break
            more = False
            try:
                more = self._drain(here)
            finally:
                here.holding -= 1
                if here.kept:
                    here.kept = False
                else:
                    self.free = True
            if more:
                self._pass_on()
                break
        if here.later:
            run_later(here)

    def demand(self, job: Callable[[], None]) -> None:
        """Where threads are short: has those who wait for the lane, on whatever way, look at a job that is `due`."""
        self.due[job] = None
        for here in list(places.values()):
            if (wait := here.wait) is not None:
                wait.ring()

    def call(self, mail: Mail) -> None:
        """Leaves mail, and sends a worker for it unless somebody is inside, or on the way."""
        self.inbox.append(mail)
        if getattr(self, "free", False) and not self.called:
            self.called = True
            try:
                self._submit(self.answer)
            except BaseException:  # interrupted: it may not be on its way
                self.called = False
                raise

    def answer(self) -> None:
        """A worker has been called: mail that comes from now on calls another."""
        self.called = False
        self.visit()

    def serve(self, feed: Feed, fan: FanOut, claim: Claim) -> None:
        """Delivers up to an event for its publisher, who has claimed it; what comes before that is not waited for."""
        here, id = local.here, fan.id
        depth = len(here.outer)
        try:
            del self.free
            here.holding += 1
        except AttributeError:
            self.inbox.append((feed, id))
        else:
            try:
                here.outer.append(fan)  # its publisher waits for this thread
                _serve_up_to(here, feed, id, claim)
            finally:
                del here.outer[depth:]
                here.holding -= 1
                if here.kept:
                    here.kept = False
                    if feed.cursor.id < id:
                        self.inbox.append((feed, id))
                else:
                    self.free = True
        claim.drop()  # the lane was busy, or somebody else has delivered it
        self.visit()

    def given_back(self) -> None:
        """A turn that a delivery had kept beyond its handler's return has been given back: looks at the mail."""
        loop = _get_running_loop()
        try:
            mail = self.inbox[0]
        except IndexError:
            return
        if loop is None or self.engine.limit == 0 or not isinstance(mail, tuple) or mail[0].loop is loop:
            self.visit()
        else:
            self._submit(self.visit)  # a loop's thread is not for handlers that could block it

    def _drain(self, here: Here) -> bool:
        """In the turn: handles mail until there is none; True where what is left is for another thread."""
        own = here.fan
        budget = 0 if self.slow or (own is not None and own.origin is not None) else COMBINED
        while self.inbox:
            mail = self.inbox[0]
            if not isinstance(mail, tuple):
                mail()  # before it is taken off, lest an interrupt lose it: none minds being run twice
                if here.kept:  # the turn may be another's by now, and what is first in the inbox another mail
                    return False
                self.inbox.popleft()
                continue
            feed, id = mail
            while feed.cursor.id < id:
                head = feed.cursor.next
                assert head is not None
                if self.engine.limit != 0 and _others(here, own, head):
                    if budget == 0 or own is None:
                        return True
                    budget -= 1
                deliver(here, feed, None)
                if here.kept:
                    return False
            if self.inbox and self.inbox[0] is mail:
                self.inbox.popleft()
        return False

    def _pass_on(self) -> None:
        """Finds another thread for the mail: the publisher that waits for the first of it, else a worker."""
        if not is_alone(self.engine):
            try:
                mail = self.inbox[0]
            except IndexError:
                return
            head = mail[0].cursor.next if isinstance(mail, tuple) else None
            wait = None if head is None or head.fan is None else head.fan.top.wait
            if wait is not None and wait.offer(self.visit, if_idle=True):
                return
        self._submit(self.visit)

    def _submit(self, look: Callable[[], None]) -> None:
        """Has a worker look at the mail; all that wait for some of it, where none may come."""
        told = is_alone(self.engine)
        if told:
            self._tell()
        if not self.engine.submit(look) and not told and is_alone(self.engine):  # there has been a thread, till now
            self._tell()

    def _tell(self) -> None:
        for awaited in self.awaited():
            awaited.offer(self.visit)

    def awaited(self) -> dict[Wait, None]:
        """What the publishers wait for whose events lie in the inbox."""
        waits: dict[Wait, None] = {}
        mails = [mail for mail in list(self.inbox) if isinstance(mail, tuple)]
        for feed, id in dict(sorted(mails, key=itemgetter(1))).items():  # not mail by mail: a backlog may be long
            entry = feed.cursor.next
            while entry is not None and entry.id <= id:
                fan = entry.fan
                # Not for what has lapsed: a publisher that waits for no more would offer it to itself for ever.
                if fan is not None and feed not in (fan.lapsed or ()):
                    waits[fan.top.waiting()] = None
                entry = entry.next
        return waits


class LockedLane(LockTurn, Lane):
    """A lane for builds of Python without a GIL."""

    __slots__ = ("lock",)

    def __init__(self, engine: Engine) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        super().__init__(engine)


def new_lane(engine: Engine) -> Lane:
    """Makes the lane that suits this build of Python."""
    return Lane(engine) if GIL else LockedLane(engine)


def _serve_up_to(here: Here, feed: Feed, id: int, claim: Claim) -> None:
    """No loop in the `try` of `serve`: see `ledger`."""
    while feed.cursor.id < id and not here.kept:
        mine = feed.cursor.next is not None and feed.cursor.next.id == id
        if not mine:
            claim.drop()
        deliver(here, feed, claim if mine else None)


def deliver(here: Here, feed: Feed, claim: Claim | None) -> None:
    """In the lane's turn: hands the next event of a feed to its observer, and counts it for its publisher.

    `here.kept` is set where the delivery goes on holding the turn.
    """
    entry = feed.cursor.next
    assert entry is not None
    fan = entry.fan
    if fan is not None and fan.trail is not None and feed.lane.is_fed_by_several():
        _catch_up(here, feed.lane, fan.trail)
        if here.kept:
            return
    _deliver(here, feed, entry, claim)


def _deliver(here: Here, feed: Feed, entry: Entry, claim: Claim | None) -> None:
    fan = entry.fan
    if fan is None:
        feed.cursor = entry
        return
    event = fan.event  # now: once its observer leaves, nobody waits, and the fan-out lets go of it
    own = here.fan is fan
    delivery = Delivery(fan, feed)
    before = here.feed, here.event, here.fan, here.delivery, here.origin
    below = len(here.waits)
    error: BaseException | None = None
    began = perf_counter()
    feed.cursor = entry  # from here to `try` there is no call, so that an interrupt cannot lose the event
    on_next = feed.on_next  # after the cursor has moved: see Attachment.leave
    try:
        if on_next is None:
            drop(feed, entry.id, fan)
            return
        if not (delivery.enter_own() if own else delivery.enter(claim)):
            return
        if not own and (here.feed is not None or here.origin is not None):
            here.waits.append((here.feed, here.fan, here.origin))  # a handler has come here: it has given back a turn
        if not own and here.fan is not None:
            here.outer.append(here.fan)
        if fan.tracers is not None:
            delivery.span = Span(fan.tracers, event, feed.name, fan.top.waiting())
            delivery.span.begin()
        here.feed, here.event, here.fan, here.delivery, here.origin = feed, event, fan, delivery, None
        try:
            result = on_next(event) if own or fan.context is None else fan.context.copy().run(on_next, event)
            if result is not None:
                check_result(result)
        except BaseException as raised:
            error = raised
        delivery.returned(here, error and _told(error, own))
    except BaseException as interrupt:  # struck between two lines of our own
        if on_next is None:
            drop(feed, entry.id, fan)
        else:
            delivery.returned(here, error or _told(interrupt, own))
        raise
    finally:
        here.feed, here.event, here.fan, here.delivery, here.origin = before
        del here.waits[below:]
        if here.outer and here.outer[-1] is here.fan:
            here.outer.pop()
    lane = feed.lane
    # By the clock, even where the thread was starved (see `Watch`): one observer is handed to one worker, not all.
    if perf_counter() - began >= lane.engine.handoff_after:
        lane.found_slow()
    elif lane.slow:
        lane.quick += 1
        lane.slow = lane.quick < SLOW
    if error is not None and is_ctrl_c(error):
        raise error


def check_result(result: object) -> None:
    """Looks at what a handler has returned: nobody would run a coroutine, which a function around an async one gives.

    Raises:
        RxBusError: It is one; the delivery has failed.
    """
    if isinstance(result, CoroutineType):
        result.close()
        raise RxBusError("the handler returned a coroutine, which nobody would run: attach the async function itself")


def _catch_up(here: Here, lane: Lane, trail: Trail) -> None:
    """In the lane's turn: delivers the causes of an event that it has not come to, so that none comes after its effect.

    No recursion: what is owed may have causes on further topics, and those others.
    """
    owed = owed_causes(lane, trail)
    while owed and not here.kept:
        feed, id = owed[-1]
        entry = feed.cursor.next
        if entry is None or not feed.owes(id):
            owed.pop()
            continue
        before = None if entry.fan is None else entry.fan.trail
        more = [] if before is None else owed_causes(lane, before)
        if more:
            owed += more
        else:
            _deliver(here, feed, entry, None)


def _told(error: BaseException, own: bool) -> BaseException:
    """What a publisher is told of: Ctrl-C struck the thread that delivered for it, which need not be its own."""
    return error if own or not is_ctrl_c(error) else interrupted(error)


def drop(feed: Feed, id: int, fan: FanOut) -> None:
    """The observer has left: ends a delivery that its leaving has not ended. Can be made again."""
    if feed.cut is not None and id <= feed.cut:
        fan.log.count_dropped(fan.lapse(feed))


def _others(here: Here, own: FanOut | None, head: Entry) -> bool:
    """Whether an event is other publishers' business: come after one's own, or when one need not wait any more.

    Who has a buffer's item in hand leaves earlier events to others, too: they may want room in that very buffer.
    """
    fan = head.fan
    if fan is None:
        return False
    if own is not None:
        return fan.top is not own.top and (head.id > own.id or own.origin is not None)
    wait = here.wait
    if wait is None or fan.top.wait is wait:
        return False
    return wait.count <= 0 or (here.origin is not None and not is_alone(fan.log.hub.engine))  # else there may be none
