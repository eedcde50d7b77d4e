"""EventBus: what users hold in their hands."""

from __future__ import annotations

import asyncio
import os
import threading
from asyncio import _get_running_loop
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakSet

from reactivex.observer import Observer

from rxbus import _wings
from rxbus._acknowledgement import Delivery, Receipt, coroutine_place
from rxbus._closing import complete_all
from rxbus._coroutines import check_handler
from rxbus._delivery import is_holding, publish
from rxbus._delivery_async import publish_async
from rxbus._event import Event, Topic, name_of
from rxbus._fan_out import ledger, logger
from rxbus._here import Here, Reentered, local, places
from rxbus._log import Hub
from rxbus._registry import Registry
from rxbus._scheduler import BlockingScheduler, schedulers
from rxbus._standing import frames_of, waiting_with
from rxbus._statistics import Statistics, of_bus
from rxbus._taps import Tapped
from rxbus._topic import Subscription, TopicSubject
from rxbus._workers import Crew
from rxbus.errors import BusClosed, InvalidArgument, InvalidTopic, RxBusError

if TYPE_CHECKING:
    from rxbus.display import Monitor, Top
    from rxbus.recording import Recording

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")


class EventBus(Tapped):
    """An event bus whose `publish` returns when every observer has acknowledged.

    Observers are unordered and run in parallel, each of them one event at a time; all see the events of a topic in the
    same order. See the README for who blocks whom, and until when. In a forked process it is closed.

    Args:
        scheduler: What delivers; a `BlockingScheduler` of the bus's own by default. Several buses may share one.
        max_chain: How long a chain of events may grow in which each is published by a handler of the one before.

    Raises:
        InvalidArgument: `scheduler` is not a `BlockingScheduler`, or `max_chain` less than 1.
    """

    def __init__(self, scheduler: BlockingScheduler | None = None, *, max_chain: int = 1000) -> None:
        if scheduler is not None and not isinstance(scheduler, BlockingScheduler):
            raise InvalidArgument(
                f"scheduler is a BlockingScheduler, not {scheduler!r}: it has to wait for every observer"
            )
        if not isinstance(max_chain, int) or max_chain < 1:
            raise InvalidArgument(f"max_chain is at least 1, not {max_chain!r}")
        self._scheduler = scheduler or BlockingScheduler()
        self._crew = Crew(self._scheduler)
        hub = Hub(self._crew, max_chain)
        super().__init__(hub, Registry(hub))
        self._logs = self._registry.logs
        self._scheduler.acquire(self)
        self._closed = self._in_close = False
        self._blocked: list[asyncio.AbstractEventLoop | None] = []  # by threads that close it
        _buses.add(self)
        self._close_lock = threading.RLock()  # held while the bus closes: a second close waits for the first

    @property
    def scheduler(self) -> BlockingScheduler:
        """What delivers; a reactivex scheduler whose actions the publisher waits for."""
        return self._scheduler

    @property
    def topics(self) -> Mapping[str, TopicSubject[Any]]:
        """Every topic that was asked for or subscribed to, by name. Read-only; publishing adds nothing."""
        return MappingProxyType(self._registry.subjects)

    @overload
    def publish(self, topic: Topic[T], payload: T, *, timeout: float | None = None) -> Receipt: ...
    @overload
    def publish(self, topic: str, payload: Any = None, *, timeout: float | None = None) -> Receipt: ...
    @overload
    def publish(
        self, topic: Topic[T | None] | Topic[object], payload: None = None, *, timeout: float | None = None
    ) -> Receipt: ...
    def publish(self, topic: str | Topic[Any], payload: Any = None, *, timeout: float | None = None) -> Receipt:
        """Publishes an event and blocks until every observer attached when the call began has acknowledged it.

        An outermost publish waits for every event that its event leads to, too. A publish made inside a handler waits
        for the observers that are free; one that is busy (the handler itself, first of all) gets the event next, and
        the outermost publish waits for that. Without observers it returns at once. The others go on while one is slow
        or fails; one that leaves meanwhile is not waited for.

        Args:
            topic: A topic or its name.
            payload: What the event carries.
            timeout: Seconds to wait at most; 0 looks just once. With a timeout, handlers run on worker threads.

        Returns:
            How many observers have acknowledged, and the event.

        Raises:
            PublishError: Observers failed; it holds every failure, and the receipt.
            AcknowledgementTimeout: Observers have not acknowledged in time. Their deliveries go on.
            InvalidTopic: `topic` is not a topic.
            InvalidArgument: `timeout` is negative.
            BusClosed: The bus has been closed. While it closes, publishes made inside handlers still work.
            FeedbackLoop: The event is one more in a chain of causes that has grown too long.
            EventLoopBlocked: The call would block the event loop that has to run one of the handlers.
        """
        try:
            log = self._logs[topic if type(topic) is str else name_of(topic)]
        except KeyError:
            log = None
        if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
            raise InvalidArgument(f"timeout is a number of seconds from 0 on, not {timeout!r}")
        if log is None:
            log = self._registry.log(name_of(topic))
        return publish(log, payload, timeout)

    @overload
    async def publish_async(self, topic: Topic[T], payload: T, *, timeout: float | None = None) -> Receipt: ...
    @overload
    async def publish_async(self, topic: str, payload: Any = None, *, timeout: float | None = None) -> Receipt: ...
    @overload
    async def publish_async(
        self, topic: Topic[T | None] | Topic[object], payload: None = None, *, timeout: float | None = None
    ) -> Receipt: ...
    async def publish_async(
        self, topic: str | Topic[Any], payload: Any = None, *, timeout: float | None = None
    ) -> Receipt:
        """Publishes an event and waits as `publish` does, without blocking the event loop.

        The event has its place in the order when the call begins; its handlers run on workers, async ones on their
        loops. Cancelling the call ends the waiting, not the deliveries. With `BlockingScheduler(max_workers=0)` the
        handlers run on the loop's own thread.

        Args:
            topic: A topic or its name.
            payload: What the event carries.
            timeout: Seconds to wait at most.

        Returns:
            How many observers have acknowledged, and the event.

        Raises:
            RxBusError: As `publish` does, but never `EventLoopBlocked`.
        """
        if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
            raise InvalidArgument(f"timeout is a number of seconds from 0 on, not {timeout!r}")
        return await publish_async(self._registry.log(name_of(topic)), payload, timeout)

    @overload
    def subscribe(self, topic_or_pattern: Topic[T], *, name: str | None = None) -> Subscription[T]: ...
    @overload
    def subscribe(self, topic_or_pattern: str, *, name: str | None = None) -> Subscription[Any]: ...
    def subscribe(self, topic_or_pattern: str | Topic[Any], *, name: str | None = None) -> Subscription[Any]:
        """Gives an Observable of the events of a topic, or of all topics that match a pattern.

        In a pattern, `*` stands for exactly one token and `>`, at the end, for one or more. Nothing is attached before
        somebody subscribes to the result.

        Args:
            topic_or_pattern: A topic, its name, or a pattern.
            name: How errors and reports call its observers; by default the handler's name and where it was attached.

        Raises:
            InvalidTopic: It is neither a topic nor a pattern.
            BusClosed: The bus has been closed.
        """
        if name is not None and not isinstance(name, str):
            raise InvalidArgument(f"a name is a string, not a {type(name).__name__}")
        if self._hub.closing:
            raise BusClosed(self._hub.why)
        return self._registry.subscription(name_of(topic_or_pattern), name)

    def unsubscribe(self, topic: str | Topic[Any], subscription: Subscription[Any]) -> None:
        """Completes every observer attached through a subscription (`on_completed`), and frees publishers that wait.

        Deliveries that are queued are dropped, deferred ones count as given; a handler that is running ends first, then
        `on_completed` is called. A second call does nothing. What subscribes to it later is completed at once.

        Raises:
            InvalidArgument: The subscription is not one of this bus's, or not on that topic.
        """
        if not isinstance(subscription, Subscription) or subscription._registry is not self._registry:
            raise InvalidArgument(
                f"{subscription!r} is not a subscription of this bus: give what `bus.subscribe` has returned, or detach"
                " a single observer by the `dispose()` of what attaching it has returned"
            )
        if subscription.topic != name_of(topic):
            raise InvalidArgument(f"that subscription is on {subscription.topic!r}, not on {name_of(topic)!r}")
        subscription.unsubscribe()

    @overload
    def topic(self, topic: Topic[T]) -> TopicSubject[T]: ...
    @overload
    def topic(self, topic: str) -> TopicSubject[Any]: ...
    def topic(self, topic: str | Topic[Any]) -> TopicSubject[Any]:
        """Gives the Subject of a topic, made on first use.

        Raises:
            InvalidTopic: `topic` is not a topic.
        """
        return self._registry.subject(name_of(topic))

    @overload
    def publisher(self, topic: Topic[T]) -> Observer[T]: ...
    @overload
    def publisher(self, topic: str) -> Observer[Any]: ...
    def publisher(self, topic: str | Topic[Any]) -> Observer[Any]:
        """Gives an Rx observer whose `on_next(payload)` publishes: `source.subscribe(bus.publisher("ticks"))`.

        The source is slowed down to the pace of the observers. Its end leaves the topic open; its error is logged.

        Raises:
            InvalidTopic: `topic` is not a topic.
        """
        log = self._registry.log(name_of(topic))
        name = log.name

        def emit(payload: Any) -> None:
            self.publish(name, payload)

        def tell(error: Exception) -> None:
            logger.error("the stream that fed %r has ended with an error", name, exc_info=error)

        return Observer(emit, tell)

    @overload
    def on(
        self, topic_or_pattern: Topic[T], *, name: str | None = None
    ) -> Callable[[Callable[[Event[T]], R]], Callable[[Event[T]], R]]: ...
    @overload
    def on(self, topic_or_pattern: str, *, name: str | None = None) -> Callable[[F], F]: ...
    def on(self, topic_or_pattern: str | Topic[Any], *, name: str | None = None) -> Callable[[F], F]:
        """Attaches the decorated function, plain or `async def`, which takes the event; gives it back unchanged.

        It stays attached until the stream ends; what is to leave earlier is attached by `subscribe(...).subscribe`.

        Args:
            topic_or_pattern: A topic, its name, or a pattern.
            name: How errors and reports call it; by default the function's name and where it was attached.

        Raises:
            InvalidTopic: It is neither a topic nor a pattern.
            InvalidArgument: What is decorated cannot be called.
            BusClosed: The bus has been closed.
            RxBusError: The function is `async def`, and no event loop is running.
        """
        if callable(topic_or_pattern):
            raise InvalidTopic(topic_or_pattern, "write @bus.on(topic), with the topic that the function is to get")
        subscription = self.subscribe(topic_or_pattern, name=name)

        def attach(function: F) -> F:
            check_handler(function)
            subscription.subscribe(function)
            return function

        return attach

    def statistics(self) -> Statistics:
        """Gives a frozen snapshot of what the bus has done."""
        return of_bus(self._registry, self._hub, self._scheduler.workers)

    def record(self, pattern: str | Topic[Any] = ">", *, maxlen: int = 100_000) -> Recording:
        """Begins to record the events that match a topic or pattern, and their deliveries; see `Recording`.

        `with bus.record("build.>") as recording:` ends it with the block.

        Args:
            pattern: A topic, its name, or a pattern; `>` is everything.
            maxlen: How many events are kept at the most, the latest; the others are counted.

        Raises:
            InvalidTopic: It is neither a topic nor a pattern.
            InvalidArgument: `maxlen` is less than 1.
            BusClosed: The bus has been closed.
        """
        return _wings.record(self, name_of(pattern), maxlen)

    def top(self) -> Top:
        """Shows a table of the bus's topics that updates itself, in a notebook or at the terminal; see `Top`.

        Called again, it is the same one. It ends with the bus.

        Raises:
            MissingExtra: What draws it is not installed.
            BusClosed: The bus has been closed.
        """
        return _wings.top(self)

    def monitor(self) -> Monitor:
        """Makes a widget that shows the same with sparklines, for notebooks; see `Monitor`.

        Called again, it is the same one. It ends with the bus.

        Raises:
            MissingExtra: anywidget is not installed.
            BusClosed: The bus has been closed.
        """
        return _wings.monitor(self)

    def close(self) -> None:
        """Waits for running deliveries, completes all observers, ends all threads.

        Publishes made inside handlers still work meanwhile, all others raise `BusClosed`; what `buffered` holds is
        handed on; coroutines are waited for, unless this thread runs their loop, or nobody does: then they have failed;
        what is deferred counts as given. A second call does nothing. An interrupted call can be repeated.

        Raises:
            RxBusError: Called inside a handler or a scheduled action that it would wait for, or by a destructor or
                signal handler that has struck its thread in the midst of the bus's own work.
        """
        if self._would_wait_for_itself():
            raise RxBusError("close() inside a handler would wait for that handler: call it from outside")
        own = self._closed or self._close_lock._is_owned()  # type: ignore[attr-defined] # pyright: ignore
        if not own and is_holding(local.here, self._hub):
            raise Reentered
        # A second close waits for the first, which must not wait for coroutines of an event loop that this one blocks.
        blocked = _get_running_loop()
        self._blocked.append(blocked)
        try:
            self._close_once()
        finally:
            self._blocked.remove(blocked)

    def _close_once(self) -> None:
        with self._close_lock:
            if self._closed or self._in_close:  # a signal handler's, in the midst of it
                return
            self._in_close = True
            try:
                self._close()
            finally:
                self._in_close = False

    def _close(self) -> None:
        self._hub.closing = True
        complete_all(self._registry, self._hub, self._crew, self._blocked)
        self._hub.closed = True
        self._call_back()
        self._scheduler.release(self)
        self._closed = True

    def _inherit(self) -> None:
        self._hub.why = "the bus belongs to the process that this one was forked from: make another after the fork"
        self._hub.closing = self._hub.closed = self._closed = True
        self._registry.inherit()
        self._close_lock = threading.RLock()

    def _would_wait_for_itself(self) -> bool:
        here, place = local.here, coroutine_place.get()
        if here.feed is not None or here.origin is not None:
            place = here.origin
        inside = any(lane.engine is self._crew for lane in waiting_with(frames_of(here)).lanes)
        if isinstance(place, Delivery):
            inside |= not place.is_over() and place.feed.lane.engine is self._crew
        elif place is not None:
            inside |= place.log.hub is self._hub
        return inside or self._scheduler.is_worker()

    def __enter__(self) -> EventBus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> EventBus:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the bus without blocking the event loop, so that its coroutines can end."""
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        state = "closed" if self._hub.closed else "closing" if self._hub.closing else "open"
        return (
            f"<EventBus {state}, topics: {len(self._registry.subjects)}, observers: {len(self._registry.attachments)}>"
        )


def _inherit() -> None:
    """In a forked child, inherited buses are closed: the threads that were at work exist in the parent only.

    What they held would stay taken for ever, so that an error beats what works or hangs, as it happens.
    """
    ledger._at_fork_reinit()  # type: ignore[attr-defined] # pyright: ignore # as threading's own classes do
    places.clear()
    local.here = Here()
    for bus in list(_buses):
        bus._inherit()
    for scheduler in list(schedulers):
        scheduler._inherit()


_buses: WeakSet[EventBus] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)
