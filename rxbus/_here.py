"""Where a thread stands: which event it is delivering to whom."""

from __future__ import annotations

import asyncio
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import msgspec
from reactivex.scheduler import CurrentThreadScheduler
from reactivex.scheduler.trampoline import Trampoline

from rxbus.errors import RxBusError

if TYPE_CHECKING:
    from rxbus._acknowledgement import Acknowledgement, Delivery, Outside
    from rxbus._bell import Bell
    from rxbus._cells import Cell
    from rxbus._fan_out import FanOut, Wait
    from rxbus._lane import Entry
    from rxbus._log import Hub, Log
    from rxbus._observer import Feed
    from rxbus._put_off import PutOff
    from rxbus._watch import Watch
    from rxbus._workers import Monitor

Job = Callable[[], object]

# A place in which a thread waits: inside of whom, with which event, and with which item of a buffer in hand.
Frame = tuple["Feed | None", "FanOut | None", "Origin | None"]


class Reentered(RxBusError):
    """A destructor or a signal handler has struck a thread in the midst of the bus's own work, and wants to use it."""

    def __init__(self) -> None:
        super().__init__("a destructor or signal handler uses a topic that its thread was just about to change")


class Timed(Protocol):
    """A call that is to be made."""

    def dispose(self) -> None:
        """Has it not be made; nothing happens where it has been."""


class Time(Protocol):
    """Whence an engine has its time, and how its publishers let it pass: the machine's, or virtual."""

    lock: Any  # an RLock, which no thread may hold while it waits

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since whenever; never goes back."""
        ...

    def call_after(self, seconds: float, call: Job, lost: Job | None = None) -> Timed:
        """Makes a call in so many seconds; `lost` instead, where the engine is closed before."""
        ...

    def wait(self, bell: Bell, deadline: float | None) -> bool:
        """Waits until the bell rings; False at the deadline (monotonic), or where nothing can ever ring it."""
        ...

    async def wait_async(self, rung: asyncio.Event, deadline: float | None) -> bool:
        """The same without blocking the event loop."""
        ...

    def skip(self) -> bool:
        """Goes on to what the engine is to call next; False where nothing is, or time passes by itself."""
        ...

    def watch(self, interval: float, watch: Watch) -> Monitor:
        """What looks at publishes as time passes."""
        ...

    def lend(self) -> None:
        """The calling thread, if it is one that calls back, is going to run user code."""

    def is_worker(self) -> bool:
        """Whether the calling thread is one that was lent."""
        ...

    def shut(self) -> None:
        """Forgets all calls that there are now; `finish` does the rest."""

    def finish(self) -> None:
        """Waits until the threads have ended that were to end, and says which calls are lost. Can be made again."""


class WorkerPool(Protocol):
    """The workers that a thread is one of, no more of which may run at a time than a limit."""

    def rest(self) -> None:
        """The calling thread is going to wait for what others do: another may run instead."""

    def go_on(self) -> None:
        """It has waited, and runs again."""


class Engine(Protocol):
    """What delivery and operators need of the scheduler above them."""

    limit: int | None  # of workers; 0: everything on the publishing thread
    short: list[None]  # empty as long as the system has had a thread for each worker; see `is_limited`
    handoff_after: float
    stall_after: float
    monitor: Monitor
    time: Time
    waiting: dict[FanOut, None]  # the outermost publishes that wait, for the stall warning
    outside: dict[Outside, AbstractEventLoop | None]  # what is owed by no lane's turn, and by which event loop
    guards: list[Any]  # its RLocks, which no thread may hold while it waits

    def submit(self, job: Job) -> bool:
        """Runs a job on a worker; on the calling thread where there are none.

        False where it may have to wait, for a place or until the thread is in the midst of nothing: who waits for what
        it does has to be told, and to do it.
        """
        ...


class Pool(Protocol):
    """What tells whether there are always threads for jobs."""

    @property
    def limit(self) -> int | None:
        """The most workers there are; None where there is no limit."""
        ...

    @property
    def short(self) -> list[None]:
        """See `Engine`."""
        ...


def is_limited(pool: Pool) -> bool:
    """Whether a job may have to wait for a thread, while those there are may be waiting for just that job.

    Whoever waits for it does it then. So it is from the moment on in which the system had no thread left: each job that
    finds one is done at once still, but those that do not must not be waited for in vain.
    """
    return pool.limit is not None or bool(pool.short)


def is_alone(pool: Pool) -> bool:
    """Whether a job may find no thread but those that wait for it: the system has none left, or the bus no workers."""
    return pool.limit == 0 or bool(pool.short)


class Here:
    """Where a thread stands: what it delivers to whom. One per thread, so that a publish looks up just one thing."""

    __slots__ = (
        "attached",
        "begun",
        "cell",
        "delivery",
        "depth",
        "ending",
        "event",
        "fan",
        "feed",
        "holding",
        "hub",
        "kept",
        "later",
        "loop",
        "native",
        "origin",
        "outer",
        "owed",
        "pool",
        "thread",
        "tracing",
        "trampoline",
        "wait",
        "waits",
    )

    def __init__(self) -> None:
        self.feed: Feed | None = None  # whom this thread is inside of; None: not in a handler
        self.event: Any = None  # what that one was given
        self.fan: FanOut | None = None  # the fan-out that `event` belongs to, once somebody needs it
        self.delivery: Delivery | None = None  # the delivery, once a plain call is not enough
        self.begun: Entry | None = None  # the entry that this thread has linked last
        self.holding = 0  # the turns that it holds, outside of user code
        self.kept = False  # the delivery that has just returned goes on holding its lane's turn
        self.ending = False  # it is telling an observer that its stream has ended
        self.depth = 0  # how many publishes are nested on this thread
        # The events whose publishers wait for this thread: its own, in whose rounds it has come upon other publishers'
        # mail, and one that it delivers for another thread.
        self.outer: list[FanOut] = []
        self.wait: Wait | None = None  # what it waits for, and serves meanwhile
        self.waits: list[Frame] = []  # where its publishes wait, the outermost first
        self.owed: dict[FanOut, None] = {}  # where there may be no workers: its publishes, which only it can serve
        self.later: list[PutOff] = []  # what it must not do inside a handler, until it is in none
        self.origin: Origin | None = None  # what a buffer has let go of and this thread carries on with, in no handler
        self.loop: AbstractEventLoop | None = None  # needed by what is being attached
        self.hub: Hub | None = None  # of what has been attached last, and how that is called
        self.attached = ""
        self.cell: Cell | None = None  # the block in which it attaches; see `EventBus.cell`
        self.pool: WorkerPool | None = None  # that it is a worker of, where there is a limit
        self.tracing = False  # it is telling tracers: what they publish is not traced
        self.thread = threading.get_ident()
        self.native = threading.get_native_id()
        try:
            self.trampoline: Trampoline = CurrentThreadScheduler.singleton().get_trampoline()
        except AttributeError:  # a destructor strikes while RxPY makes this thread's
            raise Reentered from None
        places[self.thread] = self

    def rest(self, wait: Callable[[], bool]) -> bool:
        """Waits for what other threads do. A worker keeps no place in its pool meanwhile: they may need just that."""
        pool = self.pool
        if pool is None:
            return wait()
        pool.rest()
        try:
            return wait()
        finally:
            pool.go_on()


class Once:
    """A right that one taker has, the first, however many threads come for it at the same time."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = [True]

    def take(self) -> bool:
        """Whether the caller has it."""
        try:
            return self._left.pop()
        except IndexError:
            return False


class Holder(Protocol):
    """A buffer, as publishers see it."""

    name: str  # of the observer behind it

    def check(self, fan: FanOut) -> None:
        """Fails the deliveries of a fan-out that wait for the very item whose handler waits for them."""


class Trail(msgspec.Struct, frozen=True, eq=False):
    """A cause of an event, and its causes."""

    log: Log
    id: int
    before: Trail | None


class Origin(msgspec.Struct, eq=False):
    """An event that a buffer has acknowledged and now hands on: no publisher waits, but causes go on being counted."""

    log: Log
    event: Any
    id: int
    trail: Trail | None
    chain: int
    holder: Holder
    fans: dict[FanOut, None] = msgspec.field(default_factory=dict)  # what its handler, or what works for it, publishes

    ended: ClassVar[bool] = False

    @property
    def engine(self) -> Engine:
        """Whose event it is."""
        return self.log.hub.engine

    def keep_open(self, by: Acknowledgement) -> None:
        """Nothing waits for it, but closing for what is `Outside`."""
        by._owed = True

    def settle(self, by: Acknowledgement, error: BaseException | None = None, unless_late: bool = False) -> None:
        """What works for it is done. Nobody is told of what has failed."""
        by._owed = False


class _Place:
    """Makes a thread's place when it is asked for first; then the thread's own attribute hides this one.

    No `__init__` of the local does that, since a destructor may run while the place is being made, and ask for it; and
    no `__getattr__`, whose mere presence doubles the time that each access takes.
    """

    def __get__(self, own: _Local, _: type) -> Here:
        here = Here()
        if "here" not in own.__dict__:
            own.here = here
        places[here.thread] = own.here
        return own.here


class _Local(threading.local):
    here = cast(Here, _Place())


# Every thread's place, for the monitor; a thread that has ended is overwritten or swept by its ident.
places: dict[int, Here] = {}
local = _Local()
