"""Topics as Subjects, subscriptions as Observables: what one can subscribe to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

from reactivex import Observable, abc
from reactivex.disposable import Disposable
from reactivex.internal import DisposedException
from reactivex.internal.basic import default_error, noop
from reactivex.observer import Observer
from reactivex.subject import Subject

from rxbus import operators
from rxbus._coroutines import check_handler, is_async, on_loop, running_loop
from rxbus._delivery import publish_to_all
from rxbus._event import Event
from rxbus._here import local
from rxbus._log import Log
from rxbus._observer import Attachment
from rxbus._wings import Shown

if TYPE_CHECKING:
    from rxbus._registry import Registry

T = TypeVar("T")

STREAM_CAPACITY = 64  # events that `async for` holds for a consumer that is slower than its publishers


class Source(Shown, Observable[Event[T]]):
    """What one can subscribe to: a topic, or a subscription on a topic or pattern."""

    __iter__ = None  # slices make Python think that it could be iterated over, without an end; `async for` is meant

    def __init__(self, registry: Registry, topic: str) -> None:
        Observable.__init__(self)
        self._registry = registry
        self._topic = topic
        self._root: Source[T] = self  # what a view is a view of

    def subscribe(
        self,
        on_next: abc.ObserverBase[Event[T]] | Callable[[Event[T]], object] | None = None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
        *,
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        """Attaches an observer: from now on it gets every event, and `publish` waits for it.

        Args:
            on_next: An Rx observer, or a function that takes the event; an `async def` function too, where an event
                loop is running: it runs there, one event at a time, and publishers wait for it.
            on_error: Takes the error that ended the topic's stream.
            on_completed: Called when the stream ends: the topic, the bus or the subscription does.
            scheduler: Not used: what is hot emits where it is published.

        Returns:
            What detaches the observer: after `dispose` it gets nothing more, and nobody waits for it.

        Raises:
            BusClosed: The bus has been closed.
            InvalidArgument: `on_next` cannot be called, or is a generator.
            RxBusError: `on_next` is an `async def` function, and no event loop is running, or it stands behind an
                operator, which would call it and forget its coroutine: `map_async` is for that.
        """
        name, lane = self._registry.whose(sys._getframe(), on_next)
        if isinstance(on_next, abc.ObserverBase) or callable(getattr(on_next, "on_next", None)):
            observer = cast(abc.ObserverBase[Event[T]], on_next)
            on_next, on_error, on_completed = observer.on_next, observer.on_error, observer.on_completed
        handler = cast(Callable[[Any], object], on_next or noop)
        loop = local.here.loop
        check_handler(handler)
        if is_async(handler):
            loop = running_loop("an async handler")
            handler = on_loop(loop, cast(Callable[[Any], Coroutine[Any, Any, object]], handler))
        try:
            self._root.check_open()
        except DisposedException as error:
            if on_error is None:
                raise
            on_error(error)
            return Disposable()
        return self._registry.attach(
            self._root,
            lane,
            handler,
            on_error or default_error,
            on_completed or noop,
            self._root.name_given() or name,
            loop,
        )

    def name_given(self) -> str | None:
        """The name that was given to its observers, if any."""
        return None

    if not TYPE_CHECKING:  # reactivex's own overloads stand

        def pipe(self, *operators: Callable[[Any], Any]) -> Any:
            """Composes operators; see reactivex.

            Each chain begins at a view of its own: operators such as `with_latest_from` and `delay` take the lock of
            their source while they call what follows, so that chains on one source would hold up each other.
            """
            if not operators:
                return self
            view = Source(self._registry, self._topic)
            view._root = self._root
            return Observable.pipe(view, *operators)

    def check_open(self) -> None:
        """Raises where nobody can attach any more."""

    def only_payload(self) -> Observable[T]:
        """The payloads of the events; see `rxbus.only_payload`."""
        return operators.only_payload(self)

    async def __aiter__(self) -> AsyncIterator[Event[T]]:
        """Iterates over the events from now on; up to 64 are held for a slow loop body, then publishers wait.

        The events of an iteration that has been left go nowhere. It ends when the stream ends; an error is raised.
        """
        loop = asyncio.get_running_loop()
        held: asyncio.Queue[Event[T]] = asyncio.Queue(STREAM_CAPACITY)
        ended: asyncio.Future[Exception | None] = loop.create_future()

        def end(error: Exception | None = None) -> None:
            loop.call_soon_threadsafe(settle, error)

        def settle(error: Exception | None) -> None:
            if not ended.done():
                ended.set_result(error)

        async def take(event: Event[T]) -> None:
            await held.put(event)

        take.__qualname__ = "async for"
        attached = self.subscribe(take, end, end)
        getting: asyncio.Task[Event[T]] | None = None
        try:
            while not (ended.done() and held.empty()):
                getting = getting or asyncio.ensure_future(held.get())
                await asyncio.wait((getting, ended), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    event, getting = getting.result(), None
                    yield event
            error = ended.result()
            if error is not None:
                raise error
        finally:
            attached.dispose()
            while not held.empty():  # a publisher may be waiting for room
                held.get_nowait()
            if getting is not None:
                getting.cancel()
            ended.cancel()


class Subscription(Source[T]):
    """What `bus.subscribe` returns: an Observable of a topic's events, or of all that match a pattern.

    It is lazy, as Rx is: an observer is attached when somebody subscribes to it, directly or behind operators. Several
    may, and each acknowledges for itself. `async for event in subscription` works too.
    """

    def __init__(self, registry: Registry, topic: str, name: str | None) -> None:
        super().__init__(registry, topic)
        self._given_name = name
        self._unsubscribed = False
        self._attachments: dict[Attachment, None] = {}  # under the registry's lock

    @property
    def topic(self) -> str:
        """The topic or pattern that it is on."""
        return self._topic

    @property
    def observer_names(self) -> tuple[str, ...]:
        """How errors and reports call the observers attached through it, in the order of attachment."""
        with self._registry.lock:
            return tuple(attachment.name for attachment in self._attachments)

    def __repr__(self) -> str:
        return f"<Subscription on {self._topic!r}, observers: {len(self._attachments)}>"

    def name_given(self) -> str | None:
        return self._given_name

    def unsubscribe(self) -> None:
        """Completes every observer attached through it; see `EventBus.unsubscribe`."""
        with self._registry.lock:
            self._unsubscribed = True
            attachments = list(self._attachments)
        for attachment in attachments:
            attachment.finish()


class TopicSubject(Source[T], Subject[Event[T]]):
    """A topic as a Subject: the events of one name, in one order, to all its observers at once.

    It is a true `reactivex.subject.Subject`. `on_next(event)` delivers what it is given, as it is, in the way that
    `publish` does: it waits for every observer and raises `PublishError`. `on_completed`, `on_error` and `dispose` end
    its observers, but not those attached through patterns, which later publishes still reach.
    """

    def __init__(self, registry: Registry, log: Log) -> None:
        self.is_disposed = False
        self._log = log
        Source.__init__(self, registry, log.name)
        Observer.__init__(self)

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._topic

    @property
    def observers(self) -> list[abc.ObserverBase[Event[T]]]:  # type: ignore[override] # pyright: ignore
        """Who is attached, in the order of attachment."""
        attached: list[Any] = [feed.attachment for feed in list(self._log.feeds)]
        return [Observer(one.on_next, one.on_error, one.on_completed) for one in attached]

    @property
    def observer_names(self) -> tuple[str, ...]:
        """How errors and reports call its observers, those attached through patterns included."""
        return tuple(feed.name for feed in list(self._log.feeds))

    @property
    def exception(self) -> Exception | None:  # type: ignore[override] # pyright: ignore
        """What ended the topic's stream, if it was an error."""
        return None if self.is_disposed else self._log.error

    def __repr__(self) -> str:
        state = "disposed" if self.is_disposed else "ended" if self._log.ended else "open"
        return f"<TopicSubject {self._topic!r}, {state}, observers: {len(self._log.feeds)}>"

    def check_open(self) -> None:
        self.check_disposed()

    def on_next(self, value: Event[T]) -> None:
        """Delivers an event, as it is, and waits as `publish` does.

        Raises:
            PublishError: Observers failed.
            DisposedException: The subject has been disposed.
        """
        self.check_disposed()  # not under the Subject's lock, which operators on it may hold while they call
        Observer.on_next(self, value)

    def _subscribe_core(
        self, observer: abc.ObserverBase[Event[T]], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        return self.subscribe(observer, scheduler=scheduler)

    def _on_next_core(self, value: Event[T]) -> None:
        publish_to_all(self._log, value, raw=True)

    def _on_error_core(self, error: Exception) -> None:
        self._log.end(error, self._registry.is_on_pattern)

    def _on_completed_core(self) -> None:
        self._log.end(None, self._registry.is_on_pattern)

    def dispose(self) -> None:
        """Detaches all observers and releases the topic; using it further raises `DisposedException`."""
        self.is_disposed = True
        Observer.dispose(self)
        for attachment in self._log.dispose(self._registry.is_on_pattern):
            attachment.leave()
